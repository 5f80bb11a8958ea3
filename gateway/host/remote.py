"""The keeper's ledger and audit log, as its workers have them: the ports over a channel, and the table that answers them.

A worker whose keeper is gone can neither be granted anything nor record anything: the one is `LedgerUnavailable`, the other
`AuditFailed`, which ends it before another byte leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from gateway.host.channel import Answers, Channel, ChannelBroken, T
from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    AuditFailed,
    ClockBehind,
    Granted,
    LeaseState,
    Ledger,
    LedgerUnavailable,
    NotGranted,
    OverLimit,
    Wanted,
)
from gateway.record import Entry, Leaf, lines

FAULTS = (LedgerUnavailable, NotGranted, AccountFrozen, ClockBehind, AuditFailed, KeyError, ValueError)


class Register(Struct, frozen=True, tag=True):
    """`Ledger.register`."""

    limits: Sequence[AccountLimit]


class Grant(Struct, frozen=True, tag=True):
    """`Ledger.grant`."""

    lease: str
    holder: str
    wanted: Mapping[str, Wanted]


class GrantAnswer(Struct, frozen=True):
    """Either, not both."""

    granted: Granted | None = None
    over: OverLimit | None = None


class CloseLease(Struct, frozen=True, tag=True):
    """`Ledger.close_lease`."""

    lease: str
    holder: str
    returned: Mapping[str, int]


class Beat(Struct, frozen=True, tag=True):
    """`Ledger.beat`."""

    holder: str


class Idle(Struct, frozen=True, tag=True):
    """`Ledger.idle_s`."""

    holder: str


class IdleAnswer(Struct, frozen=True):
    """None if the holder never said that it lives."""

    seconds: float | None


class States(Struct, frozen=True, tag=True):
    """`Ledger.states`."""

    accounts: Collection[str] | None


class Freeze(Struct, frozen=True, tag=True):
    """`Ledger.freeze`."""

    fences: Mapping[str, int]


class Thaw(Struct, frozen=True, tag=True):
    """`Ledger.thaw`."""

    account: str
    lost_bits: int


class Leases(Struct, frozen=True, tag=True):
    """`Ledger.leases`."""

    holder: str | None
    after: str
    count_max: int


class Append(Struct, frozen=True, tag=True):
    """`AuditLog.append`, of leaves that are encoded already: a keeper that looked at them would be too slow for many workers."""

    lines: bytes


class LineLog(Protocol):
    """An audit log that takes leaves as lines."""

    async def append_lines(self, payload: bytes) -> None:
        """As `AuditLog.append`."""


def answers(*, ledger: Ledger, audit: LineLog, holds: Callable[[str], None]) -> Answers:
    """The keeper's side of both ports, for one worker. `holds` is told every holder that asks for a grant, beforehand."""

    async def grant(asked: Grant) -> GrantAnswer:
        holds(asked.holder)
        answer = await ledger.grant(lease=asked.lease, holder=asked.holder, wanted=asked.wanted)
        return GrantAnswer(granted=answer) if isinstance(answer, Granted) else GrantAnswer(over=answer)

    async def idle(asked: Idle) -> IdleAnswer:
        return IdleAnswer(await ledger.idle_s(asked.holder))

    return {
        Register: lambda asked: ledger.register(asked.limits),
        Grant: grant,
        CloseLease: lambda asked: ledger.close_lease(lease=asked.lease, holder=asked.holder, returned=asked.returned),
        Beat: lambda asked: ledger.beat(asked.holder),
        Idle: idle,
        States: lambda asked: ledger.states(asked.accounts),
        Freeze: lambda asked: ledger.freeze(asked.fences),
        Thaw: lambda asked: ledger.thaw(asked.account, lost_bits=asked.lost_bits),
        Leases: lambda asked: ledger.leases(holder=asked.holder, after=asked.after, count_max=asked.count_max),
        Append: lambda asked: audit.append_lines(asked.lines),
    }


class RemoteLedger:
    """The `Ledger` port over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`."""
        return await self._ask(Register(limits), list[str])

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`."""
        answer = await self._ask(Grant(lease, holder, wanted), GrantAnswer)
        found = answer.granted or answer.over
        assert found is not None
        return found

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """See `Ledger.close_lease`."""
        return await self._ask(CloseLease(lease, holder, returned), list[str])

    async def beat(self, holder: str) -> int:
        """See `Ledger.beat`."""
        return await self._ask(Beat(holder), int)

    async def idle_s(self, holder: str) -> float | None:
        """See `Ledger.idle_s`."""
        return (await self._ask(Idle(holder), IdleAnswer)).seconds

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """See `Ledger.states`."""
        return await self._ask(States(accounts), list[AccountState])

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """See `Ledger.freeze`."""
        await self._ask(Freeze(fences), type(None))

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """See `Ledger.thaw`."""
        return await self._ask(Thaw(account, lost_bits), bool)

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """See `Ledger.leases`."""
        return await self._ask(Leases(holder, after, count_max), list[LeaseState])

    async def close(self) -> None:
        """The store is the keeper's to close."""

    async def _ask(self, argument: Struct, answer: type[T]) -> T:
        try:
            return await self._channel.call(argument, answer)
        except ChannelBroken as broken:
            raise LedgerUnavailable(f"the keeper: {broken}") from broken


class RemoteAuditLog:
    """The `AuditLog` port over a channel."""

    def __init__(self, channel: Channel, *, recent: Callable[[], Iterator[Leaf]]) -> None:
        self._channel = channel
        self._recent = recent  # to read what is on the record, nobody needs to be asked

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        try:
            await self._channel.call(Append(lines(entries)), type(None))
        except ChannelBroken as broken:
            raise AuditFailed(f"the keeper: {broken}") from broken

    def recent(self) -> Iterator[Leaf]:
        """See `AuditLog.recent`."""
        return self._recent()

    async def close(self) -> None:
        """The files are the keeper's to close."""
