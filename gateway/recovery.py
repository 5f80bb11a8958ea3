"""After a crash: what the audit log proves not to have left goes back to the ledger, once. Without proof it stays spent.

Every charge is on the record before its bytes leave. So what a holder was granted, less what the record says it charged, is
at most what it had not yet spent when it died; a torn last frame tells of charges whose bytes never left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gateway import parts
from gateway.ports import AuditLog, Clock, LeaseState, Ledger
from gateway.record import (
    Alive,
    Closed,
    Entry,
    Fences,
    Forfeited,
    Leaf,
    LeaseClosed,
    LeaseGranted,
    Opened,
    Recovered,
    Released,
    Renewed,
    Settled,
    Started,
    Stopped,
    Tally,
)
from policy.codelength import parting_bits
from policy.limits import STALE_S

LEASES_PAGE = 1000
UNRECORDED_S_MAX = 2.0  # between a grant, by the store's clock, and the holder's last word on the record: a few flushes
# What the silence of an answer that was open may have said. Longer than the longest answer, in the shortest ticks.
SILENCE_BITS = parting_bits(idle_ticks=2**32)


@dataclass(slots=True)
class Estate:
    """What a holder left behind, as the log tells it."""

    holder: str
    last_ms: int  # its last word on the record
    unspent_bits: dict[str, int] = field(default_factory=dict)  # granted, and neither charged nor given back
    leases: dict[str, dict[str, int]] = field(default_factory=dict)  # open: bits by account
    closing: dict[str, dict[str, int]] = field(default_factory=dict)  # closed on the record; the store may not know
    silent: dict[str, tuple[str, ...]] = field(default_factory=dict)  # open answers: their silence is not charged yet

    def add(self, bits: Mapping[str, int]) -> None:
        """More is unspent, or with a minus less."""
        for account, amount in bits.items():
            self.unspent_bits[account] = self.unspent_bits.get(account, 0) + amount

    def returns(self) -> dict[str, dict[str, int]]:
        """How the remainders go back: by lease and account, the youngest leases first; accounts without a rest close too."""
        rests = dict(self.unspent_bits)
        for accounts in self.silent.values():
            for account in accounts:
                rests[account] = rests.get(account, 0) - SILENCE_BITS
        returns: dict[str, dict[str, int]] = {}
        for lease, bits in reversed(self.leases.items()):
            for account, granted_bits in bits.items():
                part_bits = max(min(granted_bits, rests.get(account, 0)), 0)
                rests[account] = rests.get(account, 0) - part_bits
                returns.setdefault(lease, {})[account] = part_bits
        return returns


class Estates:
    """The holders that neither stopped nor were recovered, from leaves in order.

    A holder whose `Started` or `Tally` is not among the leaves is unknown, and so is all that it did. One that forfeited its
    leases has none: a copy of it may have spent them elsewhere.
    """

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self.found: dict[str, Estate] = {}
        self._answers: dict[str, tuple[Estate, tuple[str, ...]]] = {}
        take: dict[type[Leaf], Callable[[Any], None]] = {
            Started: lambda leaf: self._begin(leaf.holder, leaf.at_ms),
            Stopped: lambda leaf: self._end(leaf.holder),
            Recovered: lambda leaf: self._end(leaf.holder),
            Alive: self._alive,
            Forfeited: self._forfeited,
            Tally: self._tally,
            LeaseGranted: self._granted,
            LeaseClosed: self._closed_lease,
            Opened: self._opened,
            Renewed: self._renewed,
            Released: self._released,
            Closed: self._closed,
            Settled: lambda leaf: self._charge(leaf, -leaf.refunded_bits),
        }
        for leaf in leaves:
            if type(leaf) in take:
                take[type(leaf)](leaf)

    def _begin(self, holder: str, at_ms: int) -> None:
        self.found[holder] = Estate(holder, at_ms)

    def _alive(self, leaf: Alive) -> None:
        if leaf.holder in self.found:
            self.found[leaf.holder].last_ms = leaf.at_ms

    def _end(self, holder: str) -> None:
        self.found.pop(holder, None)

    def _forfeited(self, leaf: Forfeited) -> None:
        self._end(leaf.holder)
        self._begin(leaf.successor, leaf.at_ms)

    def _tally(self, leaf: Tally) -> None:
        if leaf.part == 0:
            estate = self.found.setdefault(leaf.holder, Estate(leaf.holder, leaf.at_ms))
            estate.unspent_bits, estate.leases, estate.silent = {}, {}, {}
        elif leaf.holder in self.found:
            estate = self.found[leaf.holder]
        else:
            return  # what is recent begins between two parts
        estate.last_ms = leaf.at_ms
        estate.unspent_bits |= leaf.unspent_bits
        for lease, bits in leaf.leases.items():
            estate.leases.setdefault(lease, {}).update(bits)
        for accounts, names in leaf.answers:
            estate.silent |= dict.fromkeys(names, accounts)
            self._answers |= dict.fromkeys(names, (estate, accounts))

    def _granted(self, leaf: LeaseGranted) -> None:
        estate = self.found.get(leaf.holder)
        if estate is not None:
            estate.last_ms = leaf.at_ms
            estate.leases.setdefault(leaf.lease, {}).update(leaf.bits)
            estate.add(leaf.bits)

    def _closed_lease(self, leaf: LeaseClosed) -> None:
        estate = self.found.get(leaf.holder)
        if estate is not None:
            estate.last_ms = leaf.at_ms
            estate.closing.setdefault(leaf.lease, {}).update(leaf.returned)
            for account in leaf.returned:
                estate.leases.get(leaf.lease, {}).pop(account, None)
            estate.add({account: -bits for account, bits in leaf.returned.items()})

    def _opened(self, leaf: Opened) -> None:
        estate = self.found.get(leaf.holder)
        if estate is not None:
            self._answers[leaf.answer] = estate, leaf.accounts
            estate.silent[leaf.answer] = leaf.accounts

    def _renewed(self, leaf: Renewed) -> None:
        if leaf.answer in self._answers:
            estate, _ = self._answers[leaf.answer]
            self._answers[leaf.answer] = estate, leaf.accounts
            estate.silent[leaf.answer] = leaf.accounts

    def _released(self, leaf: Released) -> None:
        self._charge(leaf, leaf.charged_bits, silent=leaf.outcome is None)

    def _closed(self, leaf: Closed) -> None:
        self._charge(leaf, leaf.parting_bits)

    def _charge(self, leaf: Released | Closed | Settled, bits: int, *, silent: bool = False) -> None:
        if leaf.answer in self._answers:
            estate, accounts = self._answers[leaf.answer]
            estate.last_ms = leaf.at_ms
            estate.add(dict.fromkeys(accounts, -bits))
            if not silent:
                estate.silent.pop(leaf.answer, None)


def known_fences(leaves: Iterable[Leaf]) -> dict[str, int]:
    """The highest fence on the record of every account."""
    fences: dict[str, int] = {}
    for leaf in leaves:
        if isinstance(leaf, (Fences, LeaseGranted)):
            fences |= {account: max(fence, fences.get(account, 0)) for account, fence in leaf.fences.items()}
    return fences


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a recovery did."""

    returned_bits: Mapping[str, int]  # by account
    stale: Sequence[str]  # holders that lived longer than the log knows: it was restored, and proves nothing of them


async def recover(*, ledger: Ledger, audit: AuditLog, clock: Clock, holders: Collection[str] | None = None) -> Recovery:
    """Settle the estates of these holders, or of all that are on the record. They must be dead.

    Raises `LedgerUnavailable` and `AuditFailed`. A crash here: what is on the record as closed is told to the ledger again
    by the next recovery, and the ledger closes it once.
    """
    found = await asyncio.to_thread(lambda: Estates(audit.recent()).found)
    returned: dict[str, int] = {}
    stale = []
    for estate in found.values():
        if holders is not None and estate.holder not in holders:
            continue
        if await _is_stale(estate, ledger=ledger, clock=clock):
            stale.append(estate.holder)
            continue
        at_ms = int(clock.wall_s() * 1000)
        unrecorded = await _unrecorded(estate, ledger=ledger)
        returns = estate.returns() | {lease.lease: _whole(lease, estate) for lease in unrecorded}
        late = [leaf for lease in unrecorded for leaf in _granted_late(lease, at_ms=at_ms)]
        closed_late = [
            leaf
            for lease, bits in returns.items()
            for leaf in parts.lease_closed(at_ms=at_ms, lease=lease, holder=estate.holder, returned=bits)
        ]
        if closed_late:
            await audit.append([Entry(leaf) for leaf in (*late, *closed_late)])
        for lease, bits in (*estate.closing.items(), *returns.items()):
            closed = await ledger.close_lease(lease=lease, holder=estate.holder, returned=bits)
            for account in closed:
                returned[account] = returned.get(account, 0) + bits[account]
        await audit.append([Entry(Recovered(at_ms=at_ms, holder=estate.holder))])
    return Recovery(returned_bits={account: bits for account, bits in returned.items() if bits}, stale=stale)


async def _unrecorded(estate: Estate, *, ledger: Ledger) -> Sequence[LeaseState]:
    """The holder's leases that the store has open and the record does not know: it died before they came on the record."""
    found: list[LeaseState] = []
    after = ""
    while page := await ledger.leases(holder=estate.holder, after=after, count_max=LEASES_PAGE):
        found += [
            lease
            for lease in page
            if lease.bits.keys() > lease.returned_bits.keys()
            and lease.lease not in estate.leases
            and lease.lease not in estate.closing
        ]
        after = page[-1].lease
    return found


def _whole(lease: LeaseState, estate: Estate) -> dict[str, int]:
    """What leaves comes on the record after the lease that it is charged to: of an unrecorded lease nothing has left.

    That holds if the record is whole up to the holder's death, so the lease must be no older or younger than the last word
    on it. Of any other, nothing goes back.
    """
    granted_s = datetime.fromisoformat(lease.granted_at).timestamp()
    is_last = abs(granted_s - estate.last_ms / 1000) <= UNRECORDED_S_MAX
    return {account: bits if is_last else 0 for account, bits in lease.bits.items()}


def _granted_late(lease: LeaseState, *, at_ms: int) -> Iterator[LeaseGranted]:
    return parts.lease_granted(at_ms=at_ms, lease=lease.lease, holder=lease.holder, bits=lease.bits, fences={})


async def _is_stale(estate: Estate, *, ledger: Ledger, clock: Clock) -> bool:
    """Whether the store heard from the holder long after its last word here: then this log is an old copy.

    A living holder is never silent for long, neither on the record nor to the store. What both say is compared as ages, so
    that their clocks need not agree.
    """
    idle_s = await ledger.idle_s(estate.holder)
    return idle_s is not None and clock.wall_s() - estate.last_ms / 1000 > idle_s + STALE_S
