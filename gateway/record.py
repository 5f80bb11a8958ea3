"""What the audit log holds: one frozen type per thing that happened. Leaves are commitments; content travels beside them.

A leaf never contains what a client or a backend said. Content is for the auditors alone: a log keeps it sealed or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct


class Leaf(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Common to all leaves."""

    at_ms: int  # wall clock, Unix epoch


class Started(Leaf, frozen=True, kw_only=True, tag="started"):
    """A process began to serve under this policy, as this holder of leases."""

    holder: str
    version: str
    policy: str
    codes: str
    boot_id: str
    witnesses: str = ""  # SHA-256 of the file that says who must cosign the log; none: nobody must


class Stopped(Leaf, frozen=True, kw_only=True, tag="stopped"):
    """The process drained and closed its leases. A holder without it has crashed, or forfeited them."""

    holder: str


class Recovered(Leaf, frozen=True, kw_only=True, tag="recovered"):
    """What this holder left behind was given back, as far as the log proves that it did not leave; it is not to be done again."""

    holder: str


class Alive(Leaf, frozen=True, kw_only=True, tag="alive"):
    """A holder is about to tell the ledger that it lives. A log that ends long before its last word there is an old copy."""

    holder: str


class Forfeited(Leaf, frozen=True, kw_only=True, tag="forfeited"):
    """A holder dropped all its leases and goes on as `successor`: its clock had jumped, or its machine had slept."""

    holder: str
    successor: str
    cause: str


class PolicyLoaded(Leaf, frozen=True, kw_only=True, tag="policy_loaded"):
    """A new policy came into force while serving."""

    policy: str
    raised: tuple[str, ...]  # accounts whose limit went up: a reload never raises a budget silently
    raised_more: int = 0  # beyond those that a leaf has room for; the ledger has them all


class Rekeyed(Leaf, frozen=True, kw_only=True, tag="rekeyed"):
    """The log's checkpoints are signed by another key from here on: this record is the last that the key before it has signed.

    Both are written as verifiers write them (vkey); they have the log's name.
    """

    key: str
    previous: str


class LicenceInstalled(Leaf, frozen=True, kw_only=True, tag="licence_installed"):
    """An operating licence came into force, or was found in force at a start."""

    version: int
    not_before_s: int
    expires_s: int
    policy: str
    terms: str  # digest of what was signed
    signers: tuple[str, ...]


class LicenceAmended(Leaf, frozen=True, kw_only=True, tag="licence_amended"):
    """The licence in force covers this policy as well, which permits no more than the one that it names."""

    policy: str
    signers: tuple[str, ...]


class LicenceLapsed(Leaf, frozen=True, kw_only=True, tag="licence_lapsed"):
    """From here on nothing left: no licence was in force."""

    cause: str


class LeaseGranted(Leaf, frozen=True, kw_only=True, tag="lease_granted"):
    """The ledger debited these bits for this holder. A lease of very many accounts stands in several, one after the other."""

    lease: str
    holder: str
    bits: dict[str, int]
    fences: dict[str, int]


class LeaseClosed(Leaf, frozen=True, kw_only=True, tag="lease_closed"):
    """These bits of a lease did not leave and go back. Recorded before the ledger is told: a crash between over-counts."""

    lease: str
    holder: str
    returned: dict[str, int]


class Fences(Leaf, frozen=True, kw_only=True, tag="fences"):
    """The highest fence seen of every account in use. A store that later shows a lower one has forgotten grants."""

    fences: dict[str, int]


class Frozen(Leaf, frozen=True, kw_only=True, tag="frozen"):
    """The store showed lower fences than before, so nothing is granted from these accounts until an operator thaws them."""

    seen: dict[str, int]
    shown: dict[str, int]


class Tally(Leaf, frozen=True, kw_only=True, tag="tally"):
    """What a holder had at this place of the log, so that recovery need not read further back. In parts, one after the other."""

    holder: str
    part: int  # from 0, which stands for everything before it
    unspent_bits: dict[str, int]  # granted, and neither charged nor given back
    leases: dict[str, dict[str, int]]  # that are open: bits by account
    answers: tuple[
        tuple[tuple[str, ...], tuple[str, ...]], ...
    ]  # that are open: accounts, and the answers that they bear


class Sealed(Leaf, frozen=True, kw_only=True, tag="sealed"):
    """What the leaves before this one commit to (their `content`), sealed to the auditors; since the `Sealed` leaf before it."""

    batch: str
    sha256: str  # of the ciphertext, which is kept beside the leaves
    bytes: int


class Opened(Leaf, frozen=True, kw_only=True, tag="opened"):
    """A request was admitted and is about to reach a backend."""

    answer: str
    holder: str
    accounts: tuple[str, ...]  # that bear its charges
    tenant: str
    model: str
    route: str
    seed: int
    request_bytes: int
    content: str | None = None  # commitment to the request as it was sent upstream


class Renewed(Leaf, frozen=True, kw_only=True, tag="renewed"):
    """A budget's window ended during an answer: from here on these accounts bear its charges."""

    answer: str
    accounts: tuple[str, ...]


class Released(Leaf, frozen=True, kw_only=True, tag="released"):
    """A piece left. Written, and durable, before its bytes reach a socket."""

    answer: str
    tick: int
    idle_ticks: int
    text_bytes: int
    charged_bits: int
    outcome: str | None
    content: str | None = None  # commitment to what was said


class Closed(Leaf, frozen=True, kw_only=True, tag="closed"):
    """Nothing more leaves for this answer. `outcome` is None if the client went away first."""

    answer: str
    outcome: str | None
    parting_bits: int  # charged now, for the silence since the last release
    text_bytes: int
    charged_bits: int
    spent_bits: dict[str, int]  # by this holder since it began, of the accounts that bore this answer
    content: str | None = None  # commitment to the backend's token ids, if it gave any


class Settled(Leaf, frozen=True, kw_only=True, tag="settled"):
    """What a closed answer costs under the cheapest code. The difference went back to the accounts that bear its charges."""

    answer: str
    code: str
    charged_bits: int
    refunded_bits: int


class Refusals(Leaf, frozen=True, kw_only=True, tag="refusals"):
    """How many requests were refused since the last such leaf, by reason."""

    counts: dict[str, int]


AnyLeaf = (
    Started
    | Stopped
    | Alive
    | Recovered
    | Forfeited
    | PolicyLoaded
    | Rekeyed
    | LicenceInstalled
    | LicenceAmended
    | LicenceLapsed
    | LeaseGranted
    | LeaseClosed
    | Fences
    | Frozen
    | Tally
    | Sealed
    | Opened
    | Renewed
    | Released
    | Closed
    | Settled
    | Refusals
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf and the content it commits to, if any: bytes, or a value that is kept as JSON."""

    leaf: Leaf
    content: object = None
