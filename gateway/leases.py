"""Keeps this process's purse filled from the ledger: a grant debits the store, durably, before a bit of it may leave.

What a crash means here: everything granted stays spent, until a recovery proves from the audit log what did not leave.
What goes back in an orderly way is written to the log first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.parts import lease_closed, lease_granted
from gateway.ports import (
    AccountLimit,
    Clock,
    Granted,
    Ledger,
    LedgerUnavailable,
    NotGranted,
    OverLimit,
    Wanted,
)
from gateway.record import Alive, Forfeited, Leaf, LeaseClosed
from gateway.vigil import Vigil
from policy.budget import Account, Hold, Purse
from policy.codelength import BITS_PER_BYTE
from policy.leasing import Demand, stock_bits
from policy.limits import FLOW_BLOCK_BYTES, LEASE_MARGIN_S, LEASE_S, LEASES_KEPT

BLOCK_BITS_MIN = BITS_PER_BYTE * FLOW_BLOCK_BYTES  # what a stream reserves at a time


@dataclass(slots=True)
class _Stock:
    """What this holder has had of one account."""

    account: Account
    demand: Demand
    remaining_bits: int  # in the store, when it was last heard
    leases: dict[str, int] = field(default_factory=dict)  # open, oldest first: bits
    granted_bits: int = 0  # sum over the open leases
    counted_bits: int = 0  # of them, what the demand has been told is spent
    block_bits: int = BLOCK_BITS_MIN  # the largest reservation of late
    wanted_bits: int = 0  # to have at hand beyond reservations; 0 near the end of a budget


class Leases:
    """The leases of one process. Methods raise `LedgerUnavailable` when the store does, or when what is held is too old."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        record: Callable[[Leaf], None],
        flush: Callable[[], Awaitable[None]],
        log: Callable[..., None],
    ) -> None:
        self.purse = Purse()
        self.holder = secrets.token_hex(16)
        self._ledger = ledger
        self._clock = clock
        self._record = record
        self._flush = flush
        self._log = log
        self._vigil = Vigil(clock)
        self._stocks: dict[str, _Stock] = {}
        self._registered: dict[str, int] = {}
        self._refilling = asyncio.Lock()  # one grant at a time: those who wait behind it find the purse filled
        self._unanswered: tuple[str, Mapping[str, Wanted]] | None = (
            None  # a lease of which nobody knows if it was granted
        )
        self._closing: dict[str, dict[str, int]] = {}  # on the record as closed; the store has not confirmed it yet
        self._prefetching: asyncio.Task[None] | None = None
        self._granting: asyncio.Task[OverLimit | None] | None = None
        self._holders = 1
        self._until_s = clock.monotonic_s() + LEASE_S

    async def register(self, accounts: Sequence[Account]) -> Sequence[str]:
        """Make accounts known to the store, or change their limits: at start and by a reload, when a policy comes into force.

        Returns the accounts whose limit was raised.
        """
        changed = [account for account in accounts if self._registered.get(account.id) != account.limit_bits]
        if not changed:
            return ()
        limits = [AccountLimit(account=a.id, limit_bits=a.limit_bits, step=a.step) for a in changed]
        raised = await self._ledger.register(limits)
        self._registered |= {account.id: account.limit_bits for account in changed}
        return raised

    def usable(self) -> bool:
        """Whether what is held may be spent now: not if a clock jumped or the machine slept, not without word from the store.

        A process that was stopped or copied must not spend by what it remembers: then it drops everything and begins anew.
        """
        cause = self._vigil.look()
        if cause is not None:
            self._forfeit(cause)
        return self._clock.monotonic_s() < self._until_s

    async def reserve(self, accounts: tuple[Account, ...], *, least_bits: int, most_bits: int) -> Hold | OverLimit:
        """Hold between `least_bits` and `most_bits`, the same in every account, or nothing in any."""
        hold = self.purse.reserve(accounts, most_bits) if self.usable() else None
        if hold is None:
            over = await self.fill(accounts, bits=most_bits)
            # No await from here to the reservation: nobody can take what is being counted.
            affordable_bits = min(self.purse.balance_bits(account.id) for account in accounts)
            if over is not None and affordable_bits < least_bits:
                return over
            hold = self.purse.reserve(accounts, min(most_bits, affordable_bits))
            assert hold is not None
        self._prefetch(accounts)
        return hold

    async def fill(self, accounts: tuple[Account, ...], *, bits: int) -> OverLimit | None:
        """Have `bits` in every account's purse. On return they are there, until the caller awaits again.

        `OverLimit` if the store has no more; whatever it still had is in the purse then.
        """
        async with self._refilling:
            if not self.usable():
                await self._hear()
            while short := self.purse.short(accounts, bits):
                over = await self._fetch(short, bits)
                if over is not None:
                    return over
            return None

    async def refresh(self) -> None:
        """Hear from the store how it stands, and give back what is not needed. Every few seconds."""
        self._look_closely()
        self._record(Alive(at_ms=self._now_ms(), holder=self.holder))
        await self._hear()
        await self.tidy()

    async def tidy(self) -> None:
        """Close leases that are used up, and give back what is held for nothing: other holders may need it."""
        async with self._refilling:  # what is being fetched for somebody must be there when they look
            self._look_closely()  # no await from here: what a copy of this process may be spending must not go back
            for stock in self._stocks.values():
                self._plan(stock)
                self._close_used_up(stock)
                self._give_back(stock, self._excess_bits(stock))
            for name in [name for name, stock in self._stocks.items() if not self._matters(stock)]:
                del self._stocks[name]
                self._registered.pop(name, None)
        await self._confirm()

    async def close(self) -> None:
        """Give back what is left of every lease. Only when nothing can leave any more, and nobody asks for more."""
        await self._finish_granting()
        self._look_closely()
        for stock in self._stocks.values():
            self._give_back(stock, self.purse.balance_bits(stock.account.id))
            for lease in list(stock.leases):
                self._close_lease(stock, lease, 0)
        self._stocks.clear()
        await self._confirm()

    def open_leases(self) -> dict[str, dict[str, int]]:
        """The open leases: their bits by account."""
        leases: dict[str, dict[str, int]] = {}
        for name, stock in self._stocks.items():
            for lease, bits in stock.leases.items():
                leases.setdefault(lease, {})[name] = bits
        return leases

    def left_s(self) -> float:
        """For how long what is held may still be used if the store does not answer again; 0 if that is over."""
        return max(self._until_s - self._clock.monotonic_s(), 0.0)

    def unspent_bits(self) -> dict[str, int]:
        """What this holder has been granted and has neither charged nor given back, by account."""
        return {name: bits for name in self._stocks if (bits := self.purse.unspent_bits(name))}

    async def _hear(self) -> None:
        sent_s = self._clock.monotonic_s()
        self._holders = await self._ledger.beat(self.holder)
        states = {state.account: state for state in await self._ledger.states(list(self._stocks))}
        for stock in self._stocks.values():
            state = states.get(stock.account.counted_in)
            if state is not None:
                stock.remaining_bits = state.limit_bits - state.debited_bits
        self._heard(sent_s)

    def _heard(self, sent_s: float) -> None:
        """Counted from when the store was asked: it may have answered at once, and the answer taken long."""
        self._until_s = max(self._until_s, sent_s + LEASE_S * (1 - 1 / 1000) - LEASE_MARGIN_S)

    def _stock(self, account: Account) -> _Stock:
        stock = self._stocks.get(account.id)
        if stock is None:
            demand = Demand(now_s=self._clock.monotonic_s())
            stock = self._stocks[account.id] = _Stock(account, demand, account.limit_bits)
        stock.account = account  # its limit may have changed
        return stock

    async def _fetch(self, accounts: Sequence[Account], bits: int) -> OverLimit | None:
        """One grant for what these accounts lack of `bits`, and for some traffic beyond it. Under the lock."""
        await self.register([account for account in accounts if account.id not in self._registered])
        wanted = {}
        for account in accounts:
            stock = self._stock(account)
            stock.block_bits = max(stock.block_bits, bits)
            self._plan(stock)
            lack_bits = max(bits - self.purse.balance_bits(account.id), 0) + stock.wanted_bits
            wanted[account.id] = Wanted(least_bits=1, most_bits=max(lack_bits, 1))
        # A task of its own: if the caller is cancelled, a grant that happens must still reach the purse.
        self._granting = asyncio.ensure_future(self._grant(wanted))
        return await asyncio.shield(self._granting)

    async def _finish_granting(self) -> None:
        """Have the answer to whatever was asked for: what it brings goes back as well. Without one it stays spent."""
        if self._prefetching is not None:
            self._prefetching.cancel()
        if self._granting is not None:
            await asyncio.wait([self._granting])
        if self._unanswered is not None:
            with suppress(LedgerUnavailable):
                await self._grant(self._unanswered[1])

    async def _grant(self, wanted: Mapping[str, Wanted]) -> OverLimit | None:
        lease, asked = self._unanswered or (secrets.token_hex(16), wanted)
        self._unanswered = lease, asked
        holder, sent_s = self.holder, self._clock.monotonic_s()
        try:
            answer = await self._ledger.grant(lease=lease, holder=holder, wanted=asked)
        except NotGranted:
            if self._awaits(lease):
                self._unanswered = None
            raise
        except KeyError as unknown:  # the store has lost the account itself; it is told of it again
            if self._awaits(lease):
                self._unanswered = None
            for name in asked:
                self._registered.pop(name, None)
            raise LedgerUnavailable(str(unknown)) from unknown
        if not self._awaits(lease):
            return None  # whoever asked for it as well has taken it; or it was forfeited meanwhile, and nobody uses it
        self._unanswered = None
        self._heard(sent_s)
        if isinstance(answer, OverLimit):
            return answer if asked is wanted else None  # an earlier question's answer says nothing about this one
        self._take(answer)
        return None

    def _awaits(self, lease: str) -> bool:
        """Whether nobody has had the answer for this lease yet: who went away while asking is answered all the same."""
        return self._unanswered is not None and self._unanswered[0] == lease

    def _take(self, granted: Granted) -> None:
        late_bits = {name: bits for name, bits in granted.bits.items() if name not in self._stocks}
        for name in granted.bits.keys() - late_bits.keys():
            stock, bits = self._stocks[name], granted.bits[name]
            self.purse.credit(name, bits)
            stock.granted_bits += bits
            stock.leases[granted.lease] = bits
            stock.remaining_bits = granted.remaining_bits[name]
        at_ms, lease, holder = self._now_ms(), granted.lease, self.holder
        self._put(lease_granted(at_ms=at_ms, lease=lease, holder=holder, bits=granted.bits, fences=granted.fences))
        if late_bits:  # of a window that is over meanwhile: nobody will use them
            self._closing.setdefault(granted.lease, {}).update(late_bits)
            self._put(lease_closed(at_ms=at_ms, lease=lease, holder=holder, returned=late_bits))

    def _put(self, leaves: Iterable[Leaf]) -> None:
        for leaf in leaves:
            self._record(leaf)

    def _prefetch(self, accounts: tuple[Account, ...]) -> None:
        """Ask for more before the stock runs out, so that no answer waits for the store."""
        if self._refilling.locked() or (self._prefetching is not None and not self._prefetching.done()):
            return
        low = []
        for account in accounts:
            stock = self._stocks.get(account.id)
            if stock is not None and self.purse.balance_bits(account.id) * 2 < stock.wanted_bits:
                low.append(account)
        if low:
            self._prefetching = asyncio.create_task(self._fetch_ahead(low))

    async def _fetch_ahead(self, accounts: Sequence[Account]) -> None:
        async with self._refilling:
            with suppress(LedgerUnavailable):  # whoever needs it will find out, and say so
                await self._fetch(accounts, 0)

    def _plan(self, stock: _Stock) -> None:
        """Decide how much to hold of an account, by what is spent of it and by what is left."""
        now_s = self._clock.monotonic_s()
        spent_bits = self._spent_bits(stock)
        stock.demand.spend(spent_bits - stock.counted_bits, now_s=now_s)
        stock.counted_bits = spent_bits
        stock.wanted_bits = stock_bits(
            demand_bits=stock.demand.bits(now_s=now_s),
            block_bits=stock.block_bits,
            remaining_bits=stock.remaining_bits,
            holders=self._holders,
            limit_bits=stock.account.limit_bits,
        )

    def _close_used_up(self, stock: _Stock) -> None:
        """The oldest leases whose bits have all left: what is unspent fits into younger ones.

        The youngest are kept, so that what answers get back when they are settled has a lease to go back through.
        """
        kept = 0 if self._over(stock) else LEASES_KEPT
        for lease, bits in list(stock.leases.items())[: max(len(stock.leases) - kept, 0)]:
            if bits > self._spent_bits(stock):
                return
            self._close_lease(stock, lease, 0)

    def _excess_bits(self, stock: _Stock) -> int:
        """What should go back: all of a window that is over; else what is far more than will be needed."""
        keep_bits = 0 if self._over(stock) else stock.wanted_bits
        balance_bits = self.purse.balance_bits(stock.account.id)
        if balance_bits <= 2 * keep_bits:
            return 0
        stock.block_bits = BLOCK_BITS_MIN  # a large answer of long ago is no reason to hold much
        return balance_bits - keep_bits

    def _give_back(self, stock: _Stock, bits: int) -> None:
        """Through the youngest leases. A lease closes once, so what is not given back through it must have been spent.

        Where it was not, the lease goes back whole, if it is all there.
        """
        for lease, granted_bits in reversed(list(stock.leases.items())):
            if bits <= 0:
                return
            part_bits = min(granted_bits, bits)
            if granted_bits - part_bits > self._spent_bits(stock):
                part_bits = granted_bits
            if part_bits <= self.purse.balance_bits(stock.account.id):
                self._close_lease(stock, lease, part_bits)
                bits -= part_bits

    def _close_lease(self, stock: _Stock, lease: str, returned_bits: int) -> None:
        """On the record and out of the purse at once; the store is told when the record is durable."""
        name = stock.account.id
        granted_bits = stock.leases.pop(lease)
        self.purse.debit(name, returned_bits)
        stock.granted_bits -= granted_bits
        stock.counted_bits -= granted_bits - returned_bits  # neither closing nor going back is spending; see `_plan`
        self._closing.setdefault(lease, {})[name] = returned_bits
        self._record(LeaseClosed(at_ms=self._now_ms(), lease=lease, holder=self.holder, returned={name: returned_bits}))

    def _spent_bits(self, stock: _Stock) -> int:
        """How much of what the open leases brought has left. Below zero if refunds came after their leases were closed."""
        return stock.granted_bits - self.purse.unspent_bits(stock.account.id)

    def _over(self, stock: _Stock) -> bool:
        return stock.account.expires_s is not None and self._clock.wall_s() >= stock.account.expires_s

    def _matters(self, stock: _Stock) -> bool:
        return not self._over(stock) or self.purse.unspent_bits(stock.account.id) > 0

    async def _confirm(self) -> None:
        """Tell the store of the leases that are closed. A crash before it: recovery reads them in the log, and tells it."""
        closing, holder = dict(self._closing), self.holder
        if not closing:
            return
        await self._flush()  # what the log does not know as returned must not be returned
        answers = await asyncio.gather(
            *(self._ledger.close_lease(lease=lease, holder=holder, returned=r) for lease, r in closing.items()),
            return_exceptions=True,
        )
        for lease, answer in zip(closing, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer  # it and the rest are tried again
            self._closing.pop(lease, None)

    def _look_closely(self) -> None:
        for look in (self._vigil.look, self._vigil.look_at_boot):
            if (cause := look()) is not None:
                self._forfeit(cause)

    def _forfeit(self, cause: str) -> None:
        """Nothing that is held may be spent, nor given back: a copy of this process may be spending it."""
        successor = secrets.token_hex(16)
        self._record(Forfeited(at_ms=self._now_ms(), holder=self.holder, successor=successor, cause=cause))
        self._log("leases forfeited", cause=cause, bits=self.unspent_bits())
        self.purse.forfeit()
        self.holder = successor
        self._stocks.clear()
        self._closing.clear()
        self._unanswered = None
        self._until_s = self._clock.monotonic_s() + LEASE_S

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
