"""`weir steer`: make vectors, try them, measure what they do. A module a group of commands; none of them knows torch."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from gateway.commands.steer import jobs, learning, measuring, sweeping, trying, vectors
from gateway.commands.steer.address import add_server, address_of
from gateway.commands.steer.following import Cancelled, JobFailed
from gateway.commands.steer.hints import hint
from gateway.commands.steer.server import Refused, Server, Undecided, Unreachable
from gateway.commands.steer.terminal import Terminal

REFUSED, WRONG_USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

_DESCRIPTION = """\
Steer a model: make vectors from contrasting texts, try them, measure what they do. Talks to a gateway, where vectors are
handles of this key's tenant and every figure is charged, or to a model server directly (--url), which tells more.
docs/steering.md is a tutorial."""

_EPILOG = """\
examples:
  weir steer extract mood --dataset sentiment --layer 18 --token mean
  weir steer try mood "How was your day?" --scale 1 --scale -1
  weir steer calibrate mood --dataset sentiment
  weir steer evaluate mood --dataset sentiment --report mood.html
  weir steer sweep mood.best --dataset sentiment --report layers.html
  weir steer list --url http://127.0.0.1:8001

exit status: 0 done, 1 refused by the server or the job failed, 2 wrong usage, 3 no server answers,
130 interrupted; a job that was waited for is then cancelled"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "steer",
        help="make steering vectors, try them, measure what they do",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (learning, vectors, trying, measuring, sweeping, jobs):
        for command in group.add(commands):
            add_server(command)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit status."""
    notes = Console(stderr=True, highlight=False)
    out = Console(highlight=False)
    try:
        server = Server(address_of(arguments))
        terminal = Terminal(server=server, out=out, notes=notes, as_json=arguments.json)
        return _act(arguments, terminal)
    except Undecided as question:
        sys.stderr.write(f"{question}\n")
        return WRONG_USAGE
    except Unreachable as fault:
        sys.stderr.write(f"{fault}\nIs a server running there? `weir up` starts one; --url names another.\n")
        return UNREACHABLE
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED


def _act(arguments: argparse.Namespace, terminal: Terminal) -> int:
    try:
        status: int = arguments.act(arguments, terminal)
    except Refused as refused:
        place = f" ({refused.param})" if refused.param and refused.param not in refused.message else ""
        _complain(arguments, terminal, refused, f"{refused.message}{place}", refused.document())
        return REFUSED
    except JobFailed as failed:
        _complain(arguments, terminal, failed, f"Job {failed.job['id']}: {failed}", failed.job)
        return REFUSED
    except Cancelled as cancelled:
        terminal.show(cancelled.job)
        terminal.note(f"Interrupted: {cancelled}.")
        return INTERRUPTED
    return status


def _complain(
    arguments: argparse.Namespace, terminal: Terminal, fault: Refused | JobFailed, text: str, document: object
) -> None:
    terminal.show(document)
    terminal.note(text)
    names = [str(name) for name in (getattr(arguments, "name", None), *getattr(arguments, "names", [])) if name]
    found = hint(terminal.server, fault, names)
    if found is not None:
        terminal.note(found)
