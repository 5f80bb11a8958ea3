"""`weir status`: a live table of a running gateway's budgets."""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.commands.check import bytes_text

REQUEST_S_MAX = 5.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
SHARE_YELLOW, SHARE_RED = 0.7, 0.9
DEFAULT_ADMIN = "http://127.0.0.1:9090"

_DESCRIPTION = """\
Show the budgets of a running gateway: for each account its limit, what left (used), what is held for open answers
(reserved), the rate, and for models the days to theft that the caps guarantee. Without --once the table follows the
gateway until Ctrl-C. --json also has what this gateway has been granted by the ledger and has not used (leased)."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "status",
        help="watch the budgets of a running gateway",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--admin", default=DEFAULT_ADMIN, metavar="URL", help="admin address (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="print the table once and end")
    parser.add_argument("--json", action="store_true", help="print the figures once as JSON and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it; returns the exit status."""
    try:
        snapshot = fetch(arguments.admin, "/status.json")
        if arguments.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(snapshot)).decode() + "\n")
            return 0
        if arguments.once:
            Console().print(_table(snapshot, None))
            return 0
        return _follow(arguments.admin, snapshot, max(arguments.interval, 0.1))
    except (OSError, ValueError, HTTPException) as fault:
        sys.stderr.write(
            f"{arguments.admin}: {reason(fault)}\nIs the gateway running, and is this its admin address?\n"
        )
        return 1
    except KeyboardInterrupt:
        return 0


def _follow(admin: str, snapshot: dict[str, Any], interval_s: float) -> int:
    with Live(_table(snapshot, None), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            before, snapshot = snapshot, fetch(admin, "/status.json")
            live.update(_table(snapshot, before), refresh=True)


def fetch(admin: str, path: str) -> dict[str, Any]:
    """A JSON document of the admin server. Raises `OSError` or `ValueError`; `reason` puts them into words."""
    if not admin.startswith(("http://", "https://")):
        raise ValueError("the address must begin with http:// or https://")
    with urllib.request.urlopen(f"{admin.rstrip('/')}{path}", timeout=REQUEST_S_MAX) as answer:  # noqa: S310
        document: dict[str, Any] = msgspec.json.decode(answer.read(ANSWER_BYTES_MAX))
    return document


def reason(fault: Exception) -> str:
    """What went wrong, for people."""
    return str(fault.reason) if isinstance(fault, urllib.error.URLError) else str(fault)


def _table(snapshot: dict[str, Any], before: dict[str, Any] | None) -> Table:
    days = {model["name"]: model["days_to_theft"] for model in snapshot["models"]}
    title = f"{snapshot['answers_in_flight']} answers in flight, policy {snapshot['policy'][:16]}"
    if snapshot["ledger_fault"]:
        title += f"\nTHE LEDGER DOES NOT ANSWER: {snapshot['ledger_fault']}"
    table = Table(title=title)
    table.add_column("account", overflow="fold")
    table.add_column("window", no_wrap=True)
    for heading in ("limit", "used", "", "reserved", "rate", "days to theft"):
        table.add_column(heading, justify="right", no_wrap=True)
    for account in snapshot["accounts"]:
        share = account["used_bits"] / account["limit_bits"] if account["limit_bits"] else 1.0
        is_model = account["owner"] == "model"
        to_theft = days[account["name"]] if is_model else None
        table.add_row(
            f"{account['owner']} {_name(account)}" + (" FROZEN: see weir ledger thaw" if account["frozen"] else ""),
            account["window"],
            bytes_text(account["limit_bits"]),
            bytes_text(account["used_bits"]),
            f"{share:.1%}",
            bytes_text(account["reserved_bits"]),
            _rate(account, snapshot, before),
            ("never" if to_theft is None else f"{to_theft:,.1f}") if is_model else "",
            style="red" if share > SHARE_RED else "yellow" if share > SHARE_YELLOW else None,
        )
    return table


def _name(account: dict[str, Any]) -> str:
    """A tenant's share of a model is one account, its budget for all models another."""
    of_model = account["owner"] == "tenant" and account["model"] is not None
    return f"{account['name']}/{account['model']}" if of_model else str(account["name"])


def _rate(account: dict[str, Any], snapshot: dict[str, Any], before: dict[str, Any] | None) -> str:
    if before is None or snapshot["now"] <= before["now"]:
        return "-"
    used = {earlier["id"]: earlier["used_bits"] for earlier in before["accounts"]}
    gained = account["used_bits"] - used.get(account["id"], account["used_bits"])
    return f"{bytes_text(max(int(gained / (snapshot['now'] - before['now'])), 0))}/s"
