"""`weir ledger`: look at the ledger of a policy, and put right by hand what only a person can know."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.clock import SystemClock
from gateway.commands.check import MISTAKES, bytes_text
from gateway.commands.status import SHARE_RED, SHARE_YELLOW
from gateway.config import ConfigError, load
from gateway.ports import (
    AccountFrozen,
    AccountLimit,
    AccountState,
    LeaseState,
    Ledger,
    LedgerUnavailable,
    OverLimit,
    Wanted,
)
from gateway.serving import serving
from gateway.stores import open_ledger
from policy.budget import Account
from policy.rules import MemoryLedger, Policy, SqliteLedger

PAGE_LEASES = 1000
BITS_MAX = 2**63 - 1  # what a ledger counts
REASON_CHARACTERS_MAX = 200

_DESCRIPTION = """\
Look at the ledger that a policy names, and put right by hand what only a person can know. The gateway may be running:
every command is one short transaction of the same store. Sizes in tables are rounded; --json and export are exact."""

_EPILOG = """\
examples:
  weir ledger show                                      what is spent, and what gateways hold
  weir ledger limits                                    the policy's limits against those in force
  weir ledger grant model:m/lifetime/ever 16000000 --reason "2 MB of answers sent by mail"
  weir ledger thaw model:m/lifetime/ever --lost 400000  after a restored backup
  weir ledger export > ledger.jsonl                     everything, for an auditor

exit status: 0 done, 1 refused or failed, 2 wrong usage, 78 the policy has mistakes"""


class Refusal(Exception):
    """The command cannot be carried out. The message is one line for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A policy's ledger, and the accounts that the policy has now."""

    ledger: Ledger
    accounts: Mapping[str, Account]  # by what counts them: the series of a sliding window, else the account itself

    async def state(self, name: str) -> AccountState | None:
        """One account as the ledger has it."""
        return next((state for state in await self.ledger.states([name]) if state.account == name), None)

    async def leases(self) -> AsyncIterator[LeaseState]:
        """All leases, page by page."""
        after = ""
        while page := await self.ledger.leases(after=after, count_max=PAGE_LEASES):
            for lease in page:
                yield lease
            after = page[-1].lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one holder has of one account."""

    holder: str
    account: str
    leases: int
    bits: int
    oldest: str


Act = Callable[[Books, argparse.Namespace], Awaitable[None]]


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "ledger",
        help="look at the ledger, and put it right by hand",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="whose ledger (default: %(default)s)"
    )

    def command(name: str, act: Act, *, help: str, description: str) -> argparse.ArgumentParser:  # noqa: A002
        made = commands.add_parser(name, parents=[common], help=help, description=description)
        made.set_defaults(run=run, act=act)
        return made

    shown = command(
        "show",
        _show,
        help="accounts and what gateways hold",
        description="Show the accounts of the policy: the limit in force, what is debited (what left, and what gateways"
        " hold), the fence (how many grants there were), and whether the account is frozen; then the open leases by holder.",
    )
    shown.add_argument("--all", action="store_true", help="also accounts of past periods and earlier policies")
    shown.add_argument("--json", action="store_true", help="exact figures, for programs")
    granted = command(
        "grant",
        _grant,
        help="debit what left some other way",
        description="Debit bits that left without the gateway, so that the budget counts them. It is a lease that nobody"
        " gives back, held by operator:USER with the reason. Refused, with what remains, if the limit does not allow it.",
    )
    granted.add_argument("account", metavar="ACCOUNT", help="as `weir ledger show` spells it")
    granted.add_argument("bits", metavar="BITS", type=_bits, help="a byte has 8")
    granted.add_argument("--reason", required=True, type=_reason, metavar="TEXT", help="one line, kept with the lease")
    limits = command(
        "limits",
        _limits,
        help="the policy's limits against those in force",
        description="Hold the limits of the policy file against those that the ledger has. A gateway registers them when it"
        " starts or takes the policy again; --apply does it without one. Usage is never touched.",
    )
    limits.add_argument("--apply", action="store_true", help="register the policy's limits")
    limits.add_argument("--yes", action="store_true", help="with --apply: even where that raises a limit")
    limits.add_argument("--json", action="store_true", help="exact figures, for programs")
    thawed = command(
        "thaw",
        _thaw,
        help="let a frozen account grant again",
        description="An account freezes when the ledger has forgotten grants: after a restored backup, or a failover that"
        " lost some. Debit what it forgot, up to the limit, and let grants go on. docs/operations.md says how to find the figure.",
    )
    thawed.add_argument("account", metavar="ACCOUNT", help="as `weir ledger show` spells it")
    thawed.add_argument("--lost", required=True, type=_bits, metavar="BITS", help="debited once, and forgotten since")
    command(
        "export",
        _export,
        help="everything as JSON lines",
        description="Print every account, then every lease, as one JSON object a line. A lease's `bits` are what was debited;"
        " `returned_bits` has the accounts in which it is closed.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit status."""
    try:
        config = load(arguments.policy)
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    clock = SystemClock()
    accounts = serving(config.policy, parameters=config.parameters).accounts.all(now_s=clock.wall_s())
    try:
        check_exists(config.policy)
        ledger = open_ledger(config.policy, codes="", clock=clock)
        books = Books(ledger=ledger, accounts={account.counted_in: account for account in accounts})
        asyncio.run(_act(books, arguments))
    except (Refusal, LedgerUnavailable) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    except BrokenPipeError:
        # Whoever reads has seen enough (`export | head`). What is buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def check_exists(policy: Policy) -> None:
    """Opening would make an empty one: of a path that is wrong, say."""
    if isinstance(policy.ledger, MemoryLedger):
        raise Refusal("`ledger: memory` is inside the gateway; `weir status` shows it")
    if isinstance(policy.ledger, SqliteLedger) and not Path(policy.ledger.path).exists():
        raise Refusal(f"{policy.ledger.path}: there is no ledger yet; the gateway makes it when it first starts")


async def _act(books: Books, arguments: argparse.Namespace) -> None:
    try:
        await arguments.act(books, arguments)
    finally:
        await books.ledger.close()


async def _show(books: Books, arguments: argparse.Namespace) -> None:
    names = {name for account in books.accounts.values() for name in (account.id, account.counted_in)}
    states = sorted(await books.ledger.states(), key=lambda state: (state.account not in names, state.account))
    shown = [state for state in states if arguments.all or state.account in names]
    held: dict[tuple[str, str], list[LeaseState]] = {}
    async for lease in books.leases():
        for account in lease.bits.keys() - lease.returned_bits.keys():
            held.setdefault((lease.holder, account), []).append(lease)
    holdings = [
        Holding(
            holder=holder,
            account=account,
            leases=len(leases),
            bits=sum(lease.bits[account] for lease in leases),
            oldest=min(lease.granted_at for lease in leases),
        )
        for (holder, account), leases in sorted(held.items())
    ]
    if arguments.json:
        _print_json({"accounts": shown, "open_leases": holdings})
        return
    table = _table("account", "limit", "debited", "", "fence", "", "series")
    for state in shown:
        share = state.debited_bits / state.limit_bits if state.limit_bits else 1.0
        table.add_row(
            escape(state.account),
            bytes_text(state.limit_bits),
            bytes_text(state.debited_bits),
            f"{share:.1%}",
            f"{state.fence:,}",
            "FROZEN" if state.frozen else "",
            escape(state.series or ""),
            style="red" if state.frozen or share > SHARE_RED else "yellow" if share > SHARE_YELLOW else None,
        )
    console = Console(highlight=False)
    console.print(table)
    if len(shown) < len(states):
        console.print(f"{len(states) - len(shown)} more of past periods or earlier policies: --all shows them")
    if holdings:
        table = _table("holder", "open leases", "bits", "oldest", "of account")
        for holding in holdings:
            sums = f"{holding.leases:,}", bytes_text(holding.bits), holding.oldest
            table.add_row(escape(holding.holder), *sums, escape(holding.account))
        console.print(table)


async def _grant(books: Books, arguments: argparse.Namespace) -> None:
    name = arguments.account
    account = books.accounts.get(name)
    if account is not None and account.step is not None:
        # What leaves now is spent in the step of now, which may be new to the ledger. That must not raise a limit.
        kept = await books.state(name)
        limit_bits = account.limit_bits if kept is None else min(account.limit_bits, kept.limit_bits)
        name = account.id
        await books.ledger.register([AccountLimit(account=name, limit_bits=limit_bits, step=account.step)])
    wanted = Wanted(least_bits=arguments.bits, most_bits=arguments.bits)
    holder = f"operator:{getpass.getuser()} ({arguments.reason})"
    try:
        granted = await books.ledger.grant(
            lease=f"operator-{secrets.token_hex(16)}", holder=holder, wanted={name: wanted}
        )
    except KeyError:
        raise Refusal(_unknown(arguments.account)) from None
    except AccountFrozen:
        raise Refusal(f"{arguments.account} is frozen: `weir ledger thaw` first") from None
    if isinstance(granted, OverLimit):
        raise Refusal(
            f"{arguments.account} has {_text(granted.remaining_bits)} left, less than {_text(arguments.bits)}:"
            " nothing was debited"
        )
    Console(highlight=False).print(
        f"debited {_text(arguments.bits)} from {escape(arguments.account)} as lease {granted.lease};"
        f" {_text(granted.remaining_bits[name])} remain",
        soft_wrap=True,
    )


async def _limits(books: Books, arguments: argparse.Namespace) -> None:
    kept = {state.account: state.limit_bits for state in await books.ledger.states(list(books.accounts))}
    raised = [name for name, account in books.accounts.items() if name in kept and account.limit_bits > kept[name]]
    if arguments.json:
        _print_json(
            [
                {"account": name, "policy_bits": account.limit_bits, "ledger_bits": kept.get(name)}
                for name, account in sorted(books.accounts.items())
            ]
        )
    else:
        table = _table("account", "policy", "ledger", "")
        for name, account in sorted(books.accounts.items()):
            change = _change(account.limit_bits, kept.get(name))
            ledger = bytes_text(kept[name]) if name in kept else "-"
            table.add_row(escape(name), bytes_text(account.limit_bits), ledger, change)
        Console(highlight=False).print(table)
    if not arguments.apply:
        return
    if raised and not arguments.yes:
        raise Refusal(f"this raises {', '.join(raised)}: nothing was changed; --yes if that is decided")
    said = await books.ledger.register(
        [AccountLimit(account=a.id, limit_bits=a.limit_bits, step=a.step) for a in books.accounts.values()]
    )
    sys.stderr.write(f"registered {len(books.accounts)} limits; raised: {', '.join(said) or 'none'}\n")


async def _thaw(books: Books, arguments: argparse.Namespace) -> None:
    before = await books.state(arguments.account)
    if before is None:
        raise Refusal(_unknown(arguments.account))
    if not await books.ledger.thaw(arguments.account, lost_bits=arguments.lost):
        raise Refusal(f"{arguments.account} is not frozen: nothing was changed")
    after = await books.state(arguments.account)
    assert after is not None
    Console(highlight=False).print(
        f"thawed {escape(arguments.account)}: debited {_text(before.debited_bits)} before, {_text(after.debited_bits)} now,"
        f" {_text(after.limit_bits - after.debited_bits)} remain",
        soft_wrap=True,
    )


async def _export(books: Books, _arguments: argparse.Namespace) -> None:
    for state in await books.ledger.states():
        _print_line("account", state)
    async for lease in books.leases():
        _print_line("lease", lease)


def _change(policy_bits: int, ledger_bits: int | None) -> str:
    if ledger_bits is None:
        return "new"
    return "" if policy_bits == ledger_bits else "raised" if policy_bits > ledger_bits else "lowered"


def _print_line(kind: str, value: AccountState | LeaseState) -> None:
    sys.stdout.write(msgspec.json.encode({"type": kind, **msgspec.to_builtins(value)}).decode() + "\n")


def _print_json(document: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")


def _table(first: str, *headings: str) -> Table:
    table = Table()
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _text(bits: int) -> str:
    return f"{bits:,} bits ({bytes_text(bits)})"


def _unknown(account: str) -> str:
    return f"{account} is no account of this ledger: `weir ledger show --all` lists them"


def _bits(text: str) -> int:
    bits = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= bits <= BITS_MAX:
        raise argparse.ArgumentTypeError(f"a whole number of bits, at most {BITS_MAX}")
    return bits


def _reason(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > REASON_CHARACTERS_MAX:
        raise argparse.ArgumentTypeError(f"one line of 1 to {REASON_CHARACTERS_MAX} characters")
    return text.strip()
