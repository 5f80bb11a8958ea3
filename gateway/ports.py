"""What the core asks of the outside world. Each port says what holds after it returns; `tests/contract` checks adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.record import Entry
from policy.refusal import Refused


class Clock(Protocol):
    """Time, as three questions."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch. May step; decides only which calendar period it is."""

    def monotonic_s(self) -> float:
        """Seconds that never step back and include suspend (CLOCK_BOOTTIME)."""

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at or after `deadline_s` on the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimit:
    """An account to be kept, with its limit in bits."""

    account: str
    limit_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """An account as the store has it. `debited_bits` counts granted leases as spent."""

    account: str
    limit_bits: int
    debited_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many bits a lease needs of one account, and how many it would take."""

    least_bits: int
    most_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A lease: the store has debited these bits, durably. `fence` is the highest fence among its accounts."""

    lease: str
    bits: Mapping[str, int]
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLimit:
    """No lease: `account` has fewer than the least wanted bits left. Nothing was debited anywhere."""

    account: str
    remaining_bits: int


class LedgerUnavailable(Exception):
    """The store did not answer, or its answer cannot be trusted. Whatever was asked counts as spent."""


class Ledger(Protocol):
    """Durable accounts. A grant is a spend: after a crash the store already says at least what left.

    All methods raise `LedgerUnavailable`. Bits are non-negative integers below 2**63.
    """

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """Make accounts known, or change their limits; usage is never touched. Returns the accounts whose limit was raised.

        A limit set below what is already debited stays at the debited figure, so that `debited <= limit` always holds.
        """

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """Debit every account or none, at least `least_bits` and at most `most_bits` each. Durable on return.

        Idempotent by `lease`, an id made by the holder: asking again returns what was granted the first time.
        """

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> bool:
        """Give back what provably did not leave. Takes effect once; False if the lease was closed before or is not the holder's.

        Raises `ValueError` if more is returned than was granted. Nobody but the holder ever closes a lease.
        """

    async def states(self) -> Sequence[AccountState]:
        """All accounts, by id."""

    async def close(self) -> None:
        """Finish what was begun and let go of the store."""


class AuditFailed(Exception):
    """A record could not be made durable. The process must stop: nothing may leave unrecorded."""


class AuditLog(Protocol):
    """The append-only record."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """On return the entries are durable, in order, after all earlier ones. Raises `AuditFailed`; never retry."""

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
