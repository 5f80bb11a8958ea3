"""`weir audit export`: records as JSON lines, for other programs."""

from __future__ import annotations

import argparse
import sys

from gateway.audit.reading import LogDirectory
from gateway.commands.audit.reader import directory, leaves, moment
from gateway.record import Opened

_DESCRIPTION = """\
Print records as they stand in the log, one JSON object a line, each with its number in the log before it. They hold charges,
sizes, times and commitments, and no content. With --tenant: the records of that tenant's answers, and no others."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = parsers.add_parser("export", help="print records as JSON lines", description=_DESCRIPTION)
    directory(parser)
    parser.add_argument("--from", dest="start", type=moment, metavar="TIME", help="from this day or moment on (UTC)")
    parser.add_argument("--to", dest="end", type=moment, metavar="TIME", help="before this day or moment (UTC)")
    parser.add_argument("--tenant", metavar="NAME", help="of this tenant's answers only")
    parser.set_defaults(act=act)


def act(arguments: argparse.Namespace) -> int:
    """Print; returns the exit status."""
    answers: set[str] = set()
    for record, leaf in leaves(LogDirectory(arguments.directory), what="reading"):
        if isinstance(leaf, Opened) and leaf.tenant == arguments.tenant:
            answers.add(leaf.answer)
        if arguments.tenant is not None and getattr(leaf, "answer", None) not in answers:
            continue
        if (arguments.start is None or leaf.at_ms >= arguments.start) and (
            arguments.end is None or leaf.at_ms < arguments.end
        ):
            sys.stdout.write(f'{{"number":{record.number},{record.line.decode()[1:]}\n')
    return 0
