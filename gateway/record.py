"""What the audit log holds: one frozen type per thing that happened. Leaves are commitments; content travels beside them.

A leaf never contains what a client or a backend said. Content is for the auditors alone: a log keeps it sealed or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct


class Leaf(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Common to all leaves."""

    at_ms: int  # wall clock, Unix epoch


class Started(Leaf, frozen=True, kw_only=True, tag="started"):
    """The gateway began to serve under this policy."""

    version: str
    policy: str
    codes: str
    boot_id: str


class Stopped(Leaf, frozen=True, kw_only=True, tag="stopped"):
    """The gateway drained and closed its leases. A log without it tells of a crash."""


class PolicyLoaded(Leaf, frozen=True, kw_only=True, tag="policy_loaded"):
    """A new policy came into force while serving."""

    policy: str
    raised: tuple[str, ...]  # accounts whose limit went up: a reload never raises a budget silently


class LeaseGranted(Leaf, frozen=True, kw_only=True, tag="lease_granted"):
    """The ledger debited these bits for this process."""

    lease: str
    bits: dict[str, int]


class LeaseClosed(Leaf, frozen=True, kw_only=True, tag="lease_closed"):
    """These bits of a lease did not leave and go back. Recorded before the ledger is told: a crash between over-counts."""

    lease: str
    returned: dict[str, int]


class Opened(Leaf, frozen=True, kw_only=True, tag="opened"):
    """A request was admitted and is about to reach a backend."""

    answer: str
    tenant: str
    model: str
    route: str
    seed: int
    request_bytes: int


class Released(Leaf, frozen=True, kw_only=True, tag="released"):
    """A piece left. Written, and durable, before its bytes reach a socket."""

    answer: str
    tick: int
    idle_ticks: int
    text_bytes: int
    charged_bits: int
    outcome: str | None


class Closed(Leaf, frozen=True, kw_only=True, tag="closed"):
    """Nothing more leaves for this answer. `outcome` is None if the client went away first."""

    answer: str
    outcome: str | None
    text_bytes: int
    charged_bits: int


class Settled(Leaf, frozen=True, kw_only=True, tag="settled"):
    """What a closed answer costs under the cheapest code. The difference to its raw charge went back to the purse."""

    answer: str
    code: str
    charged_bits: int
    refunded_bits: int


class Refusals(Leaf, frozen=True, kw_only=True, tag="refusals"):
    """How many requests were refused since the last such leaf, by reason."""

    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf and the content it commits to, if any."""

    leaf: Leaf
    content: bytes | None = None
