"""A guard before a store: it remembers how far every account had come, and notices when the store has forgotten.

A store that is restored from a backup, or fails over to a standby that lagged, forgets grants that it acknowledged, and
would grant the same bits again. Fences count the grants of an account, so such a store shows a fence that cannot be.

What cannot be is judged against what was known when a question was *sent*: answers overtake one another, and one that was
given before another may come after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    Granted,
    LeaseState,
    Ledger,
    LedgerUnavailable,
    OverLimit,
    Wanted,
)

LEASES_REMEMBERED_MAX = 10_000  # a lease whose answer was lost is asked for again within seconds, if ever

OnFrozen = Callable[
    [Mapping[str, int], Mapping[str, int]], None
]  # the fences that were seen, and those that were shown


@dataclass(slots=True)
class _Asked:
    """A lease that this process has asked for."""

    before: Mapping[str, int]  # the fences that were known when it was first asked for: its own lie above
    times: int = 0
    fences: Mapping[str, int] | None = None  # as first answered: it can have no others
    condemned: bool = False  # answered with fences that cannot be


@dataclass(frozen=True, slots=True)
class _Held:
    """A lease that was granted and believed."""

    lease: str
    holder: str
    bits: Mapping[str, int]
    fences: Mapping[str, int]


class FencedLedger:
    """The `Ledger` port around another ledger, whose forgotten accounts it freezes.

    `fences` are those that the audit log knows. `on_frozen` is called once for each account and fence, when the store has
    frozen it. Leases are first asked for, and accounts registered, through this object.
    """

    def __init__(self, ledger: Ledger, *, fences: Mapping[str, int], on_frozen: OnFrozen) -> None:
        self._ledger = ledger
        self._on_frozen = on_frozen
        self._fences = dict(fences)
        self._limits: dict[str, AccountLimit] = {}
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._frozen: dict[str, int] = {}  # accounts that were frozen from here, and the fence that was named
        self._owed: dict[str, tuple[int, int]] = {}  # accounts yet to be frozen: the fence seen, and the one shown
        self._latest: dict[str, _Held] = {}  # of every account, the last lease from here
        self._last: _Held | None = None  # of all of them
        self._doubted = False  # something was forgotten, and perhaps more than was noticed

    @property
    def fences(self) -> Mapping[str, int]:
        """The highest fence seen of every account."""
        return dict(self._fences)

    def forget_all_but(self, accounts: Collection[str]) -> None:
        """Only these accounts, and the series of the steps among them, are still in use: periods that are over are not."""
        self._limits = {name: limit for name, limit in self._limits.items() if name in accounts}
        counted = {self._counted_in(name) for name in accounts}
        self._fences = {name: fence for name, fence in self._fences.items() if name in counted}
        self._frozen = {name: fence for name, fence in self._frozen.items() if name in counted}
        self._latest = {name: held for name, held in self._latest.items() if name in counted}

    async def check(self) -> None:
        """Ask the store whether it still knows what was granted last. To be called whenever limits are refreshed.

        Fences alone tell nothing once other gateways have driven them beyond those seen here; a lease is known or is not.
        A store forgets from some moment on, so the last lease stands for all before it.
        """
        await self._freeze()
        if self._last is not None and not await self._knows(self._last):
            self._doubted = True
        if not self._doubted:
            return
        for name, held in list(self._latest.items()):
            if not await self._knows(held) and self._latest.get(name) is held:
                shown = {state.account: state.fence for state in await self._ledger.states([name])}
                self._owe({name: shown.get(name, 0)}, seen=held.fences)
        await self._freeze()
        self._doubted = False

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`. An account that is new to the store although it was seen before is frozen."""
        self._limits |= {limit.account: limit for limit in limits}
        raised = await self._ledger.register(limits)
        seen_before = {self._counted_in(limit.account) for limit in limits} & self._fences.keys()
        if seen_before:
            await self.states(seen_before)
        return raised

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`. What a store granted that had forgotten others stays spent and is not used."""
        await self._freeze()
        asked = self._ask(lease, wanted)
        try:
            answer = await self._ledger.grant(lease=lease, holder=holder, wanted=wanted)
        except KeyError:
            forgotten = [self._limits[name] for name in wanted if name in self._limits]
            if len(forgotten) < len(wanted):
                raise
            await self.register(forgotten)
            try:
                answer = await self._ledger.grant(lease=lease, holder=holder, wanted=wanted)
            except KeyError as fault:
                raise LedgerUnavailable("the ledger has forgotten accounts twice in a moment") from fault
        if isinstance(answer, OverLimit):
            if asked.times == 1:  # otherwise another question may have been answered, or may yet be
                self._asked.pop(lease, None)
            return answer
        await self._believe(asked, _Held(lease, holder, answer.bits, answer.fences))
        return answer

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """See `Ledger.close_lease`."""
        return await self._ledger.close_lease(lease=lease, holder=holder, returned=returned)

    async def beat(self, holder: str) -> int:
        """See `Ledger.beat`."""
        return await self._ledger.beat(holder)

    async def idle_s(self, holder: str) -> float | None:
        """See `Ledger.idle_s`."""
        return await self._ledger.idle_s(holder)

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """See `Ledger.states`. Accounts that the store has forgotten grants of are frozen before it returns, and so shown."""
        await self._freeze()
        before = dict(self._fences)
        states = await self._ledger.states(accounts)
        forgotten = {}
        for state in states:
            seen = before.get(state.account, 0)
            if state.fence >= seen:
                self._see(state.account, state.fence)
            elif not state.frozen or self._frozen.get(state.account) != seen:
                forgotten[state.account] = state.fence
        if not forgotten:
            return states
        self._owe(forgotten, seen=before)
        await self._freeze()
        return await self._ledger.states(accounts)

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """See `Ledger.freeze`."""
        await self._ledger.freeze(fences)

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """See `Ledger.thaw`."""
        return await self._ledger.thaw(account, lost_bits=lost_bits)

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """See `Ledger.leases`."""
        return await self._ledger.leases(holder=holder, after=after, count_max=count_max)

    async def close(self) -> None:
        """See `Ledger.close`."""
        await self._ledger.close()

    def _ask(self, lease: str, wanted: Collection[str]) -> _Asked:
        if lease not in self._asked:
            counted = {self._counted_in(name) for name in wanted}
            self._asked[lease] = _Asked(before={name: self._fences.get(name, 0) for name in counted})
            while len(self._asked) > LEASES_REMEMBERED_MAX:
                self._asked.popitem(last=False)
        asked = self._asked[lease]
        asked.times += 1
        return asked

    async def _believe(self, asked: _Asked, answered: _Held) -> None:
        """Raise `AccountFrozen` if a store that forgets nothing cannot have answered this."""
        if asked.condemned:
            raise AccountFrozen(f"lease {answered.lease} was granted by a store that had forgotten others")
        expected = asked.fences
        forgotten = {
            name: fence
            for name, fence in answered.fences.items()
            if (fence != expected.get(name) if expected is not None else fence <= asked.before.get(name, 0))
        }
        if forgotten:
            asked.condemned = True
            self._owe(forgotten, seen=expected or asked.before)
            await self._freeze()
            raise AccountFrozen(f"the ledger has forgotten grants of {', '.join(sorted(forgotten))}")
        if expected is None:
            asked.fences = answered.fences
            self._last = answered
            self._latest |= dict.fromkeys(answered.fences, answered)
        for name, fence in answered.fences.items():
            self._see(name, fence)

    async def _knows(self, held: _Held) -> bool:
        """Whether the store still has a lease as it was granted."""
        before = held.lease[:-1] + chr(ord(held.lease[-1]) - 1) + "\uffff"  # hardly anything lies between the two
        page = await self._ledger.leases(holder=held.holder, after=before, count_max=1)
        return any((lease.lease, dict(lease.bits)) == (held.lease, dict(held.bits)) for lease in page)

    def _owe(self, shown: Mapping[str, int], *, seen: Mapping[str, int]) -> None:
        for name, fence in shown.items():
            self._owed[name] = max(seen[name], self._fences.get(name, 0)), fence
            self._latest.pop(name, None)  # it is not to be held against the store once more after a thaw
        if self._last is not None and shown.keys() & self._last.fences.keys():
            self._last = None
        self._doubted = True

    async def _freeze(self) -> None:
        """Have the store freeze what it has forgotten. Until that is done nothing else is asked of it."""
        if not self._owed:
            return
        owed = dict(self._owed)
        seen = {name: fence for name, (fence, _) in owed.items()}
        try:
            await self._ledger.freeze(seen)
        except KeyError:  # it has forgotten even the accounts
            await self._ledger.register(
                [limit for name, limit in self._limits.items() if self._counted_in(name) in seen]
            )
            await self._ledger.freeze(seen)
        self._owed = {name: debt for name, debt in self._owed.items() if owed.get(name) != debt}
        news = {name: fence for name, fence in seen.items() if self._frozen.get(name) != fence}
        self._frozen |= seen
        if news:
            self._on_frozen(news, {name: owed[name][1] for name in news})

    def _see(self, account: str, fence: int) -> None:
        if fence > self._fences.get(account, 0):
            self._fences[account] = fence

    def _counted_in(self, name: str) -> str:
        limit = self._limits.get(name)
        return name if limit is None or limit.step is None else limit.step.series
