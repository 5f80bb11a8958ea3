"""`weir claims`: what a running gateway may say, with its conditions."""

from __future__ import annotations

import argparse
import sys
from http.client import HTTPException

import msgspec
from rich.console import Console

from gateway.commands.status import DEFAULT_ADMIN, fetch, reason

_DESCRIPTION = """\
Print the claims of a running gateway, model by model:
  C1  everything released was one of at most 2^B transcripts       (from the budgets in force)
  C2  bits charged so far, and what that says about a theft        (from the ledger)
  C3  the same text raw, and the ratio                             (an observation, no guarantee)
  C4  days until the caps add up to the weights, compressed        (from the budgets in force, never from usage)
and the conditions that all of them rest on. docs/theory.md says why they are true."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "claims",
        help="print what a running gateway may claim",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--admin", default=DEFAULT_ADMIN, metavar="URL", help="admin address (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch and print; returns the exit status."""
    try:
        document = fetch(arguments.admin, "/claims")
    except (OSError, ValueError, HTTPException) as fault:
        sys.stderr.write(
            f"{arguments.admin}: {reason(fault)}\nIs the gateway running, and is this its admin address?\n"
        )
        return 1
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
        return 0
    console = Console(highlight=False)
    for model in document["models"]:
        console.print(f"[bold]{model['model']}[/bold]")
        lines = [("C1", claim["text"]) for claim in model["C1"]] + [("C2", claim["text"]) for claim in model["C2"]]
        lines += [("C3", model["C3"]["text"]), ("C4", model["C4"]["text"])]
        for name, text in lines:
            console.print(f"  {name}  {text}", soft_wrap=True)
        console.print("  Conditions: " + " ".join(model["conditions"]) + "\n", soft_wrap=True)
    console.print(f"policy {document['policy']}, codes {document['codes']}", soft_wrap=True)
    return 0
