"""A ledger on PostgreSQL: one statement for each operation, acknowledged when disk and synchronous standbys have it.

The rules are in `postgres.sql`, where they run under the store's locks; connections, and what may be believed of them, are
in `postgres_server`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby

from gateway.ledger.postgres_server import Row, Server
from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    ClockBehind,
    Granted,
    LeaseState,
    OverLimit,
    Wanted,
)
from policy.limits import HOLDER_S


class PostgresLedger:
    """The `Ledger` port on a database. Connects when it is first asked something, and again after every failure."""

    def __init__(self, url: str, *, standbys: int = 0, codes: str = "", log: Callable[..., None]) -> None:
        self._server = Server(url, standbys=standbys, log=log)
        self._codes = codes

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        """See `Ledger.register`."""
        steps = [limit.step for limit in limits]
        rows = await self._server.ask(
            "SELECT raised FROM weir.register($1, $2, $3, $4, $5)",
            [limit.account for limit in limits],
            [limit.limit_bits for limit in limits],
            [step and step.series for step in steps],
            [step and step.number for step in steps],
            [step and step.steps for step in steps],
        )
        return [row["raised"] for row in rows]

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        """See `Ledger.grant`."""
        rows = await self._server.ask(
            "SELECT * FROM weir.grant_lease($1, $2, $3, $4, $5, $6)",
            lease,
            holder,
            self._codes,
            list(wanted),
            [want.least_bits for want in wanted.values()],
            [want.most_bits for want in wanted.values()],
        )
        match rows:
            case [{"outcome": "over", "account": account, "remaining_bits": remaining_bits}]:
                return OverLimit(account=account, remaining_bits=remaining_bits)
            case [{"outcome": "frozen", "account": account}]:
                raise AccountFrozen(f"account {account} is frozen")
            case [{"outcome": "behind", "account": account}]:
                raise ClockBehind(f"account {account} is over; is this gateway's clock behind?")
            case [{"outcome": "unknown", "account": account}]:
                raise KeyError(f"account {account} is not registered")
        return Granted(
            lease=lease,
            bits={row["account"]: row["bits"] for row in rows},
            fences={row["counted"]: row["fence"] for row in rows},
            remaining_bits={row["account"]: row["remaining_bits"] for row in rows},
        )

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        """See `Ledger.close_lease`."""
        rows = await self._server.ask(
            "SELECT * FROM weir.close_lease($1, $2, $3, $4)", lease, holder, list(returned), list(returned.values())
        )
        match rows:
            case [{"outcome": "excess", "account": account, "bits": bits}]:
                raise ValueError(f"lease {lease} cannot return {bits} bits to {account}")
        return [row["account"] for row in rows]

    async def beat(self, holder: str) -> int:
        """See `Ledger.beat`."""
        [row] = await self._server.ask("SELECT weir.beat($1, $2) AS holders", holder, HOLDER_S)
        holders: int = row["holders"]
        return holders

    async def idle_s(self, holder: str) -> float | None:
        """See `Ledger.idle_s`."""
        [row] = await self._server.ask("SELECT weir.idle_s($1) AS idle_s", holder)
        idle_s: float | None = row["idle_s"]
        return idle_s

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        """See `Ledger.states`."""
        rows = await self._server.ask("SELECT * FROM weir.states($1)", None if accounts is None else list(accounts))
        return [AccountState(**row) for row in rows]

    async def freeze(self, fences: Mapping[str, int]) -> None:
        """See `Ledger.freeze`."""
        [row] = await self._server.ask("SELECT weir.freeze($1, $2) AS missing", list(fences), list(fences.values()))
        if row["missing"] is not None:
            raise KeyError(f"account {row['missing']} is not registered")

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        """See `Ledger.thaw`."""
        [row] = await self._server.ask("SELECT weir.thaw($1, $2) AS thawed", account, lost_bits)
        thawed: bool = row["thawed"]
        return thawed

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        """See `Ledger.leases`."""
        rows = await self._server.ask("SELECT * FROM weir.leases($1, $2, $3)", holder, after, count_max)
        return [_lease(list(amounts)) for _, amounts in groupby(rows, key=lambda row: row["lease"])]

    async def close(self) -> None:
        """Let go of the connections. What is asked meanwhile becomes unknown."""
        await self._server.close()


def _lease(rows: Sequence[Row]) -> LeaseState:
    amounts = [row for row in rows if row["account"] is not None]
    return LeaseState(
        lease=rows[0]["lease"],
        holder=rows[0]["holder"],
        codes=rows[0]["codes"],
        granted_at=rows[0]["granted_at"],
        bits={row["account"]: row["bits"] for row in amounts},
        returned_bits={row["account"]: row["returned_bits"] for row in amounts if row["returned_bits"] is not None},
    )
