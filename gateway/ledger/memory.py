"""A ledger in memory. It forgets everything when the process ends, so it enforces nothing across restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    Clock,
    ClockBehind,
    Granted,
    LeaseState,
    OverLimit,
    Wanted,
)
from policy.budget import Step
from policy.limits import HOLDER_S


@dataclass(slots=True)
class _Account:
    wanted_limit_bits: int  # what was set; `limit_bits` is never below what is debited
    limit_bits: int
    debited_bits: int = 0
    fence: int = 0
    frozen_fence: int | None = None
    step: Step | None = None
    newest_step: int = 0  # of a series

    def debit(self, bits: int) -> None:
        """Negative: a return. The limit that was set comes back into force as room is made for it."""
        self.debited_bits += bits
        self.limit_bits = max(self.wanted_limit_bits, self.debited_bits)


@dataclass(slots=True)
class _Lease:
    holder: str
    granted_at: str
    bits: Mapping[str, int]
    fences: Mapping[str, int]
    returned_bits: dict[str, int] = field(default_factory=dict)


class MemoryLedger:
    """The `Ledger` port on dictionaries."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._leases: dict[str, _Lease] = {}
        self._holders: dict[str, float] = {}

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`."""
        raised: list[str] = []
        for limit in limits:
            if limit.step is not None:
                series = AccountLimit(account=limit.step.series, limit_bits=limit.limit_bits)
                raised += await self.register([series])
            known = limit.account in self._accounts
            account = self._accounts.setdefault(limit.account, _Account(limit.limit_bits, limit.limit_bits))
            if known and limit.step is None and limit.limit_bits > account.wanted_limit_bits:
                raised.append(limit.account)
            account.step = limit.step
            account.wanted_limit_bits = limit.limit_bits
            account.debit(0)
        return raised

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`."""
        if lease in self._leases:
            return self._granted(lease)
        self._advance(wanted)
        bits: dict[str, int] = {}
        planned_bits: Counter[str] = Counter()  # by where it counts: two steps of one series share one limit
        for name, want in wanted.items():
            counted = self._counted_in(name)
            if counted.frozen_fence is not None:
                raise AccountFrozen(f"account {name} is frozen")
            remaining_bits = self._remaining_bits(name) - planned_bits[self._counted_name(name)]
            if remaining_bits < want.least_bits:
                return OverLimit(account=name, remaining_bits=remaining_bits)
            bits[name] = min(want.most_bits, remaining_bits)
            planned_bits[self._counted_name(name)] += bits[name]
        fences = {}
        for name, amount in bits.items():
            step, counted = self._accounts[name].step, self._counted_in(name)
            self._accounts[name].debit(amount)
            if step is not None:
                counted.debit(amount)
            counted.fence += 1
            fences[self._counted_name(name)] = counted.fence
        self._leases[lease] = _Lease(holder, self._now(), bits, fences)
        return self._granted(lease)

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """See `Ledger.close_lease`."""
        held = self._leases.get(lease)
        if held is None or held.holder != holder:
            return ()
        for name, bits in returned.items():
            if not 0 <= bits <= held.bits.get(name, -1):
                raise ValueError(f"lease {lease} cannot return {bits} bits to {name}")
        closed = [name for name in returned if name not in held.returned_bits]
        for name in closed:
            held.returned_bits[name] = returned[name]
            account = self._accounts[name]
            account.debit(-returned[name])
            if account.step is not None and not self._retired(account.step):
                self._accounts[account.step.series].debit(-returned[name])
        return closed

    async def beat(self, holder: str) -> int:
        """See `Ledger.beat`."""
        now_s = self._clock.wall_s()
        self._holders[holder] = now_s
        return sum(now_s - seen_s < HOLDER_S for seen_s in self._holders.values())

    async def idle_s(self, holder: str) -> float | None:
        """See `Ledger.idle_s`."""
        seen_s = self._holders.get(holder)
        return None if seen_s is None else self._clock.wall_s() - seen_s

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """See `Ledger.states`."""
        names = self._accounts.keys() if accounts is None else {n for n in accounts if n in self._accounts}
        series = {step.series for name in names if (step := self._accounts[name].step) is not None}
        return [self._state(name) for name in sorted(names | series)]

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """See `Ledger.freeze`."""
        for name, fence in fences.items():
            account = self._accounts[name]
            account.frozen_fence = max(fence, account.frozen_fence or 0)

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """See `Ledger.thaw`."""
        frozen = self._accounts.get(account)
        if frozen is None or frozen.frozen_fence is None:
            return False
        frozen.debit(min(lost_bits, max(frozen.limit_bits - frozen.debited_bits, 0)))
        frozen.fence = max(frozen.fence, frozen.frozen_fence) + 1
        frozen.frozen_fence = None
        return True

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """See `Ledger.leases`."""
        names = sorted(name for name, lease in self._leases.items() if name > after and holder in (None, lease.holder))[
            :count_max
        ]
        return [
            LeaseState(
                lease=name,
                holder=self._leases[name].holder,
                codes="",
                granted_at=self._leases[name].granted_at,
                bits=self._leases[name].bits,
                returned_bits=dict(self._leases[name].returned_bits),
            )
            for name in names
        ]

    async def close(self) -> None:
        """Nothing to let go of."""

    def _advance(self, names: Collection[str]) -> None:
        """Let the steps that a newer one pushes out of every window count no more."""
        for name in names:
            step = self._accounts[name].step
            if step is None:
                continue
            series = self._accounts[step.series]
            if step.number < series.newest_step - 1:
                raise ClockBehind(f"account {name} is over; is this gateway's clock behind?")
            if step.number > series.newest_step:
                counted = self._counting(step.series)
                series.newest_step = step.number
                for account in counted:
                    assert account.step is not None
                    if self._retired(account.step):
                        series.debit(-account.debited_bits)

    def _counting(self, series: str) -> list[_Account]:
        return [
            account
            for account in self._accounts.values()
            if account.step is not None and account.step.series == series and not self._retired(account.step)
        ]

    def _retired(self, step: Step) -> bool:
        return step.number <= self._accounts[step.series].newest_step - step.steps

    def _counted_name(self, name: str) -> str:
        step = self._accounts[name].step
        return name if step is None else step.series

    def _counted_in(self, name: str) -> _Account:
        return self._accounts[self._counted_name(name)]

    def _remaining_bits(self, name: str) -> int:
        counted = self._counted_in(name)
        return counted.limit_bits - counted.debited_bits

    def _granted(self, lease: str) -> Granted:
        held = self._leases[lease]
        remaining_bits = {name: self._remaining_bits(name) for name in held.bits}
        return Granted(lease=lease, bits=held.bits, fences=held.fences, remaining_bits=remaining_bits)

    def _state(self, name: str) -> AccountState:
        account = self._accounts[name]
        return AccountState(
            account=name,
            limit_bits=account.limit_bits,
            debited_bits=account.debited_bits,
            fence=account.fence,
            series=account.step.series if account.step is not None else None,
            frozen=account.frozen_fence is not None,
        )

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="milliseconds")
