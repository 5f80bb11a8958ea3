"""`weir audit fold`: what the records add up to, held against the ledger."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.audit.books import Account, Lease
from gateway.audit.books import Books as Records
from gateway.audit.reading import LogDirectory
from gateway.clock import SystemClock
from gateway.commands.audit.reader import leaves
from gateway.commands.audit.sliding import thawed_bits
from gateway.commands.check import MISTAKES
from gateway.commands.ledger import Books, Refusal, check_exists
from gateway.config import ConfigError, load
from gateway.ports import AccountState, AuditFailed, LeaseState
from gateway.record import LeaseGranted
from gateway.stores import open_ledger
from policy.rules import Policy, PostgresLedger

OPERATOR = "operator:"  # how the holders of grants by hand begin

_DESCRIPTION = """\
Add up, account by account, what the log says was granted, given back and spent, and hold what should be debited (granted less
given back, and what operators debited by hand) against what the ledger says. The difference must be 0. While a gateway runs,
grants and returns of a moment are under way: run it again, or when the gateway has stopped. After a crash, start the gateway
first: it settles what its last life left behind.

A ledger on PostgreSQL may be shared: name the audit directories of all its gateways. Leases that none of them knows are then
shown as held elsewhere, and count as such.

Of a sliding window each step is an account. What the ledger forgot in one and was debited by `weir ledger thaw`, which debits the
window as a whole, stands beside it as thawed.

Under the table: leases that the ledger has forgotten, or has with fewer bits, as after a restored backup. --lost prints for each
account what that comes to, as the command that debits it again. If a log is missing, the figures are too small: take the
whole limit then.

It believes the records; `weir audit verify` says whether they are to be believed."""

SELDOM = ("open leases", "by hand", "elsewhere", "thawed")  # columns that are left out if there is nothing in them
ACCOUNT_WIDTH_MIN = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An account in the log and in the ledger; bits."""

    account: str
    granted_bits: int
    returned_bits: int
    spent_bits: int
    unspent_bits: int
    open_leases: int
    by_hand_bits: int
    elsewhere_bits: int  # of leases that no log has; only a shared ledger may have some
    debited_bits: int
    thawed_bits: int = 0  # forgotten in this step of a sliding window, and debited to the whole window by a thaw

    @property
    def difference_bits(self) -> int:
        """What the ledger has beyond what it should have. Below zero it has forgotten."""
        expected_bits = self.granted_bits - self.returned_bits + self.by_hand_bits + self.elsewhere_bits
        return self.debited_bits + self.thawed_bits - expected_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What a lease has on the record and not in the ledger."""

    lease: str
    holder: str
    account: str
    bits: int
    thaw: str  # the account that is frozen and thawed for it: of a step its series


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = parsers.add_parser(
        "fold",
        help="hold the log's totals against the ledger",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIRECTORY", help="audit directories, or copies")
    parser.add_argument(
        "--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="whose ledger (default: %(default)s)"
    )
    parser.add_argument(
        "--lost", action="store_true", help="print what the ledger has forgotten, for `weir ledger thaw`"
    )
    parser.add_argument("--json", action="store_true", help="exact figures, for programs")
    parser.set_defaults(act=act)


def act(arguments: argparse.Namespace) -> int:
    """Fold and print; returns the exit status."""
    try:
        policy = load(arguments.policy).policy
        check_exists(policy)
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    except Refusal as refusal:
        raise AuditFailed(str(refusal)) from refusal
    fold = Fold(arguments.directories)
    fold.compare(policy)
    if arguments.lost:
        return fold.print_lost()
    if arguments.json:
        fold.print_json()
    else:
        fold.print_table()
    return fold.judge()


class Fold:
    """The logs of all gateways of a ledger."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._contradictions = 0
        self._leases: dict[str, Lease] = {}
        self._accounts: dict[str, Account] = {}
        self._fenced: set[str] = set()  # accounts whose grants are counted: not the steps of a sliding window
        self.rows: list[Row] = []
        self._thawed_bits: Mapping[str, int] = {}  # by series
        self.forgotten: Sequence[Forgotten] = ()
        self.unknown: Sequence[LeaseState] = ()  # leases of the ledger that no log has
        for directory in directories:
            self._read(directory)

    def _read(self, directory: Path) -> None:
        number = 0

        def found(what: str) -> None:
            self._contradictions += 1
            sys.stderr.write(f"{directory}: record {number}: {what}\n")

        records = Records(found)
        for record, leaf in leaves(LogDirectory(directory), what=f"reading {directory}"):
            number = record.number
            records.take(leaf)
            if isinstance(leaf, LeaseGranted):
                self._fenced |= leaf.fences.keys()
        self._leases |= records.leases
        for name, account in records.accounts().items():
            total = self._accounts.setdefault(name, Account())
            total.granted_bits += account.granted_bits
            total.returned_bits += account.returned_bits
            total.spent_bits += account.spent_bits
            total.open_leases += account.open_leases

    def compare(self, policy: Policy) -> None:
        """With the policy's ledger. Raises `LedgerUnavailable`."""
        ledger = open_ledger(policy, codes="", clock=SystemClock())
        states, kept = asyncio.run(_state(Books(ledger=ledger, accounts={})))
        series = {state.series for state in states}
        debited = {state.account: state.debited_bits for state in states if state.account not in series}
        self._thawed_bits = thawed_bits(states, kept.values())
        by_hand: Counter[str] = Counter()
        elsewhere: Counter[str] = Counter()
        self.unknown = [lease for lease in kept.values() if lease.lease not in self._leases]
        shared = isinstance(policy.ledger, PostgresLedger)
        for lease in self.unknown:
            rest = Counter({name: bits - lease.returned_bits.get(name, 0) for name, bits in lease.bits.items()})
            if lease.holder.startswith(OPERATOR):
                by_hand.update(rest)
            elif shared:
                elsewhere.update(rest)
        self.unknown = [lease for lease in self.unknown if not shared and not lease.holder.startswith(OPERATOR)]
        self.rows = [
            self._row(name, debited=debited, by_hand=by_hand, elsewhere=elsewhere)
            for name in sorted(self._accounts.keys() | debited.keys())
        ]
        self.rows = [row for series in self._thawed_bits for row in self._with_thaws(series)] + [
            row for row in self.rows if self._series(row.account) not in self._thawed_bits
        ]
        self.rows.sort(key=lambda row: row.account)
        self.forgotten = list(self._forgotten(kept))

    def _row(
        self, name: str, *, debited: Mapping[str, int], by_hand: Mapping[str, int], elsewhere: Mapping[str, int]
    ) -> Row:
        account = self._accounts.get(name, Account())
        return Row(
            account=name,
            granted_bits=account.granted_bits,
            returned_bits=account.returned_bits,
            spent_bits=account.spent_bits,
            unspent_bits=account.unspent_bits,
            open_leases=account.open_leases,
            by_hand_bits=by_hand.get(name, 0),
            elsewhere_bits=elsewhere.get(name, 0),
            debited_bits=debited.get(name, 0),
        )

    def _with_thaws(self, series: str) -> Iterator[Row]:
        """The steps of a sliding window: what they lack was forgotten, and is debited to the window as far as it was thawed."""
        left_bits = self._thawed_bits[series]
        for row in self.rows:
            if self._series(row.account) == series:
                bits = min(max(-row.difference_bits, 0), left_bits)
                left_bits -= bits
                yield replace(row, thawed_bits=bits)
        if left_bits:  # more than was forgotten
            yield self._row(series, debited={series: left_bits}, by_hand={}, elsewhere={})

    def _series(self, account: str) -> str:
        return account.rpartition("/")[0]

    def _forgotten(self, kept: Mapping[str, LeaseState]) -> Iterator[Forgotten]:
        for name, lease in self._leases.items():
            known = kept[name].bits if name in kept else {}
            for account, bits in lease.bits.items():
                lost_bits = bits - known.get(account, 0)
                if lost_bits > 0:
                    yield Forgotten(
                        lease=name, holder=lease.holder, account=account, bits=lost_bits, thaw=self._thawed(account)
                    )

    def _thawed(self, account: str) -> str:
        series = self._series(account)
        return series if account not in self._fenced and series in self._fenced else account

    def lost(self) -> Mapping[str, int]:
        """What the ledger has forgotten, by the account that is thawed for it; of sliding windows, less what was thawed."""
        lost: Counter[str] = Counter()
        for forgotten in self.forgotten:
            lost[forgotten.thaw] += forgotten.bits
        for series, bits in self._thawed_bits.items():
            lost[series] -= bits
        return +lost

    def print_lost(self) -> int:
        """As commands."""
        for account, bits in sorted(self.lost().items()):
            sys.stdout.write(f"weir ledger thaw {shlex.quote(account)} --lost {bits}\n")
        if not self.lost():
            sys.stderr.write("the ledger has every lease that is on the record, or it was thawed\n")
        return 0

    def print_json(self) -> None:
        """For programs."""
        document = {
            "accounts": [{**msgspec.to_builtins(row), "difference_bits": row.difference_bits} for row in self.rows],
            "forgotten": self.forgotten,
            "unrecorded": self.unknown,
        }
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")

    def print_table(self) -> None:
        """For people."""
        figures = {
            "granted": [row.granted_bits for row in self.rows],
            "returned": [row.returned_bits for row in self.rows],
            "spent": [row.spent_bits for row in self.rows],
            "unspent": [row.unspent_bits for row in self.rows],
            "open leases": [row.open_leases for row in self.rows],
            "by hand": [row.by_hand_bits for row in self.rows],
            "elsewhere": [row.elsewhere_bits for row in self.rows],
            "thawed": [row.thawed_bits for row in self.rows],
            "ledger": [row.debited_bits for row in self.rows],
            "difference": [row.difference_bits for row in self.rows],
        }
        shown = {name: column for name, column in figures.items() if any(column) or name not in SELDOM}
        table = Table(caption="bits")
        table.add_column("account", overflow="fold", min_width=ACCOUNT_WIDTH_MIN)
        for heading in shown:
            table.add_column(
                heading, justify="right", overflow="fold"
            )  # a figure that is cut off would be another figure
        for number, row in enumerate(self.rows):
            cells = (f"{column[number]:,}" for column in shown.values())
            table.add_row(escape(row.account), *cells, style="red" if row.difference_bits else None)
        console = Console(highlight=False)
        console.print(table)
        for one in self.forgotten:
            console.print(
                f"forgotten by the ledger: {one.bits:,} bits of {escape(one.account)}, lease {one.lease} of {one.holder}",
                soft_wrap=True,
            )
        for lease in self.unknown:
            console.print(
                f"not on the record: lease {lease.lease} of {escape(lease.holder)}, granted {lease.granted_at};"
                " a gateway that was killed puts it there when it starts again",
                soft_wrap=True,
            )

    def judge(self) -> int:
        """The exit status; says on standard error what is wrong."""
        differing = [row for row in self.rows if row.difference_bits]
        for row in differing:
            which = "more" if row.difference_bits > 0 else "less"
            sys.stderr.write(
                f"{row.account}: the ledger has {abs(row.difference_bits)} bits {which} debited than the log accounts for\n"
            )
        return 1 if differing or self._contradictions else 0


async def _state(books: Books) -> tuple[Sequence[AccountState], Mapping[str, LeaseState]]:
    """All accounts, and the leases by id."""
    try:
        states = await books.ledger.states()
        leases = {lease.lease: lease async for lease in books.leases()}
    finally:
        await books.ledger.close()
    return states, leases
