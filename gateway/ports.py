"""What the core asks of the outside world. Each port says what holds after it returns; `tests/contract` checks adapters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.record import Entry, Leaf
from policy.budget import Step
from policy.refusal import Refused


class Clock(Protocol):
    """Time, as three questions."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch. May step; decides only which calendar period it is."""

    def monotonic_s(self) -> float:
        """Seconds that never step back and include suspend (CLOCK_BOOTTIME)."""

    def suspended_s(self) -> float:
        """For how long of `monotonic_s` the machine was suspended."""

    def boot_id(self) -> str:
        """Which boot of which machine this is."""

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at or after `deadline_s` on the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimit:
    """An account to be kept, with its limit in bits. `step` is set for one step of a sliding window."""

    account: str
    limit_bits: int
    step: Step | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """An account as the store has it. `debited_bits` counts granted leases as spent.

    The steps of a sliding window are accounts, and so is their series, which holds the sum of the steps that still count.
    """

    account: str
    limit_bits: int  # what holds now: never below `debited_bits`
    debited_bits: int
    fence: int = 0  # how many grants the account has seen; a step's grants are counted by its series
    series: str | None = None  # of a step
    frozen: bool = False  # the store once forgot grants of this account; nothing is granted until an operator thaws it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many bits a lease needs of one account, and how many it would take."""

    least_bits: int
    most_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A lease: the store has debited these bits, durably."""

    lease: str
    bits: Mapping[str, int]
    fences: Mapping[str, int]  # the number of this grant, in each account or, for a step, in its series
    remaining_bits: Mapping[str, int]  # what each account could grant beyond this, when it was answered


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLimit:
    """No lease: `account` has fewer than the least wanted bits left. Nothing was debited anywhere."""

    account: str
    remaining_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """A lease as the store has it, for exports and inquiries."""

    lease: str
    holder: str
    codes: str  # digest of the code set that its bits are counted under
    granted_at: str  # RFC 3339, by the store's clock
    bits: Mapping[str, int]
    returned_bits: Mapping[str, int]  # of the accounts that are closed; the others are spent and may yet be returned


class LedgerUnavailable(Exception):
    """The store did not answer, or its answer cannot be trusted. Whatever was asked counts as spent."""


class NotGranted(LedgerUnavailable):
    """The store answered, and has certainly debited nothing."""


class AccountFrozen(NotGranted):
    """The store has forgotten grants of this account before, so nothing is granted until an operator thaws it."""


class ClockBehind(NotGranted):
    """A step of a sliding window was asked for that is over by everybody else's clock."""


class Ledger(Protocol):
    """Durable accounts. A grant is a spend: after a crash the store already says at least what left.

    Every method that changes something is durable on return, and may be repeated: a reply can get lost. Operations of one
    account happen one after the other, in the order in which the store took them. All methods raise `LedgerUnavailable`,
    after which it is unknown whether anything happened. Bits are non-negative integers below 2**63.
    """

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """Make accounts known, or change their limits; usage is never touched. Returns the accounts whose limit was raised.

        A limit set below what is already debited stays at the debited figure, so that `debited <= limit` always holds, and
        follows it down as leases are closed. A step's limit is its series' limit. What `raised` compares is what was set.
        """

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """Debit every account or none, at least `least_bits` and at most `most_bits` each.

        Idempotent by `lease`, an id made by the holder: asking again returns what was granted the first time.
        Raises `KeyError` for an account that is not registered, and `AccountFrozen`. A step more than one behind the newest
        of its series raises `ClockBehind`.
        """

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """Close the named accounts of a lease and give back what provably did not leave. Nobody but the holder ever does.

        Each account of a lease is closed once. Returns those that this call closed; they are empty if the holder is another.
        Raises `ValueError`, and closes nothing, if more is returned than was granted.
        """

    async def beat(self, holder: str) -> int:
        """This holder lives. Returns how many have said so within the last `HOLDER_S`, itself included."""

    async def idle_s(self, holder: str) -> float | None:
        """How long ago the holder's last `beat` was, by the store's clock. None if it never said that it lives."""

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """These accounts and the series of the steps among them, or all; by id. Those that are not registered are left out."""

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """Grant nothing from these accounts any more: each was seen at this fence, and the store has forgotten."""

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """An operator's act: debit what the store forgot, up to the limit, and let grants go on. False if it was not frozen.

        The fence goes on above the one that `freeze` named.
        """

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """Leases by id, beginning after `after`: those of one holder, or all."""

    async def close(self) -> None:
        """Finish what was begun and let go of the store."""


class AuditFailed(Exception):
    """A record could not be made durable. The process must stop: nothing may leave unrecorded."""


class AuditLog(Protocol):
    """The append-only record."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """On return the entries are durable, in order, after all earlier ones. Raises `AuditFailed`; never retry."""

    def recent(self) -> Iterator[Leaf]:
        """What is on the record: oldest first, from a moment at least `RECENT_S` before its end."""

    async def close(self) -> None:
        """Let go of the files."""


class Meter(Protocol):
    """A code that settles a whole text. Pure; may be slow, and is then called off the event loop."""

    name: str
    digest: str  # of the data that the code depends on

    def text_bits(self, text: bytes) -> int:
        """The self-delimiting codelength of `text` in bits, rounded up."""


class UpstreamFailed(Exception):
    """The backend did not give a readable response. `kind` is a closed word for metrics and logs."""

    def __init__(self, kind: str, *, timeout: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.timeout = timeout


class UpstreamResponse(Protocol):
    """A backend's response whose status and headers have been read and checked."""

    status: int
    content_type: str  # media type, lower case, without parameters

    async def read(self) -> bytes:
        """What has come of the body, at least one byte; nothing at its end. Raises `UpstreamFailed`."""


class Upstream(Protocol):
    """One backend."""

    def request(
        self, *, method: str, path: str, body: bytes, stream: bool
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send a request whose every byte the gateway made. Entering raises `UpstreamFailed`; leaving closes what is open.

        An unstreamed answer has no first byte before it is whole, so only its total deadline applies.

        Cancelling inside, or leaving before the body ended, aborts the backend's work on it.
        """

    async def reachable(self) -> bool:
        """Whether a connection can be made now."""


class Client(Protocol):
    """The way back to whoever asked."""

    async def begin(self, *, status: int, content_type: str, stream: bool) -> None:
        """Status and headers, once, all of them the gateway's own."""

    async def refuse(self, refused: Refused) -> None:
        """Instead of `begin`: an error response, complete."""

    async def write(self, data: bytes, *, last: bool) -> None:
        """Body bytes, flushed. Raises `ClientGone`."""

    def abort(self) -> None:
        """Break the connection so that nobody takes what was sent for a whole answer."""


class ClientGone(Exception):
    """The client went away or stopped reading. What was charged stays charged."""


@dataclass(frozen=True, slots=True)
class ToScore:
    """A text that left, and the request that it answers, as it was sent upstream."""

    request: bytes
    text: bytes


class ScorerFailed(Exception):
    """No scores for this batch: the scorer is away, late, or talks nonsense. `kind` is a closed word for metrics."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Scorer(Protocol):
    """The trusted process that knows the public language model."""

    async def score(self, items: Sequence[ToScore]) -> Sequence[int | None]:
        """Codelengths in bits, rounded up, given the requests; None where there is none. Raises `ScorerFailed`."""


class TokenCounter(Protocol):
    """A pinned tokenizer."""

    def tokens(self, text: str) -> int:
        """How many tokens `text` has, special tokens not counted."""
