"""A ledger in memory. It forgets everything when the process ends, so it enforces nothing across restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.ports import AccountLimit, AccountState, Granted, OverLimit, Wanted


@dataclass(slots=True)
class _Account:
    limit_bits: int
    debited_bits: int = 0
    fence: int = 0


@dataclass(slots=True)
class _Lease:
    holder: str
    granted: Granted
    open: bool = field(default=True)


class MemoryLedger:
    """The `Ledger` port on dictionaries."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._leases: dict[str, _Lease] = {}

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`."""
        raised = []
        for limit in limits:
            account = self._accounts.setdefault(limit.account, _Account(limit.limit_bits))
            if limit.limit_bits > account.limit_bits:
                raised.append(limit.account)
            account.limit_bits = max(limit.limit_bits, account.debited_bits)
        return raised

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`."""
        if lease in self._leases:
            return self._leases[lease].granted
        for name, want in wanted.items():
            remaining = self._accounts[name].limit_bits - self._accounts[name].debited_bits
            if remaining < want.least_bits:
                return OverLimit(account=name, remaining_bits=remaining)
        bits: dict[str, int] = {}
        for name, want in wanted.items():
            account = self._accounts[name]
            bits[name] = min(want.most_bits, account.limit_bits - account.debited_bits)
            account.debited_bits += bits[name]
            account.fence += 1
        granted = Granted(lease=lease, bits=bits, fence=max(self._accounts[name].fence for name in wanted))
        self._leases[lease] = _Lease(holder, granted)
        return granted

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> bool:
        """See `Ledger.close_lease`."""
        held = self._leases.get(lease)
        if held is None or held.holder != holder or not held.open:
            return False
        for name, bits in returned.items():
            if not 0 <= bits <= held.granted.bits.get(name, 0):
                raise ValueError(f"lease {lease} cannot return {bits} bits to {name}")
        held.open = False
        for name, bits in returned.items():
            self._accounts[name].debited_bits -= bits
        return True

    async def states(self) -> Sequence[AccountState]:
        """See `Ledger.states`."""
        return [
            AccountState(account=name, limit_bits=account.limit_bits, debited_bits=account.debited_bits)
            for name, account in sorted(self._accounts.items())
        ]

    async def close(self) -> None:
        """Nothing to let go of."""
