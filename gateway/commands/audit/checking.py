"""`weir audit verify`: is this log whole, signed, the one that was there before, and does it add up?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.audit.note import NOTE_BYTES_MAX
from gateway.audit.quorum import POLICY_BYTES_MAX, BadQuorum, Quorum, parse
from gateway.audit.verification import OldCheckpoint, Summary, Verification, read_verifier
from gateway.clock import SystemClock
from gateway.commands.audit.reader import directory, progress, read_bytes, time_text
from gateway.commands.check import bytes_text
from gateway.ports import AuditFailed

_DESCRIPTION = """\
Verify the whole log:
  - the checkpoint is signed by the log's key, and continues every older checkpoint that you kept (--since)
  - the tree made anew from all records has the signed root, and every file of the tree is of that tree; none is missing,
    none is strange
  - the segments have whole frames, in order, with the records of the tree, and every sealed batch that a record commits to
  - records are readable, at most 2 KB, in order of time; for every process that served, charges, refunds, leases and tallies
    add up to what it said of itself; nothing left for an answer that had ended
  - each key that the log had was named by the one before it, which signed that (`weir audit rekey`)
  - what witnesses have cosigned is a beginning of this log; with --witnesses, their cosignatures are true and a quorum, and the
    file is the one that was in force

Each thing found wrong is one line: where, and what. Bring the key that you were given when the log was made: the log.vkey in
the directory can be changed by whoever changes the log. Keep the `tree/checkpoint` of each visit and bring it again: only an
older checkpoint shows that the log was not rolled back, or replaced by another with the same key."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = parsers.add_parser(
        "verify",
        help="verify the whole log",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    directory(parser)
    parser.add_argument(
        "--key", metavar="VKEY", help="the log's public key, or a file that has it, as you were given it"
    )
    parser.add_argument(
        "--since", type=Path, nargs="+", action="extend", default=[], metavar="CHECKPOINT", help="older checkpoints"
    )
    parser.add_argument(
        "--witnesses",
        type=Path,
        metavar="FILE",
        help="the witnesses' file of the policy (audit.witnesses.policy): check the cosignatures",
    )
    parser.add_argument(
        "--content-kept",
        type=_duration,
        metavar="DURATION",
        help="for how long the policy has content kept (audit.content_kept, such as 90d); default: for good",
    )
    parser.set_defaults(act=act)


def act(arguments: argparse.Namespace) -> int:
    """Verify and print; returns the exit status."""
    verifier = read_verifier(arguments.key) if arguments.key is not None else None
    since = [OldCheckpoint(name=str(path), data=read_bytes(path, count_max=NOTE_BYTES_MAX)) for path in arguments.since]
    quorum = _quorum(arguments.witnesses) if arguments.witnesses is not None else None
    with progress("verifying") as (begins, advance):
        verification = Verification(
            arguments.directory,
            verifier=verifier,
            since=since,
            content_kept_s=arguments.content_kept,
            now_s=SystemClock().wall_s(),
            quorum=quorum,
            begins=begins,
            progress=advance,
        )
    findings = verification.findings
    console = Console(highlight=False)
    for remark in findings.remarks:
        console.print(f"note: {escape(remark)}", soft_wrap=True)
    for finding in findings.all:
        console.print(f"[red]WRONG[/red] {escape(str(finding))}", soft_wrap=True)
    if findings.more:
        console.print(f"[red]WRONG[/red] and {findings.more} more", soft_wrap=True)
    console.print(_table(verification.summary))
    if findings.all:
        sys.stderr.write(
            f"{arguments.directory}: {len(findings.all) + findings.more} findings; do not rely on this log\n"
        )
        return 1
    console.print("in order")
    return 0


def _quorum(path: Path) -> Quorum:
    try:
        return parse(read_bytes(path, count_max=POLICY_BYTES_MAX))
    except BadQuorum as mistake:
        raise AuditFailed(f"{path}: {mistake}") from mistake


def _table(summary: Summary) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    span = f"{time_text(summary.first_ms)} to {time_text(summary.last_ms)} UTC" if summary.last_ms else "-"
    witnessed = f"{summary.witnessed:,}"
    if summary.witnessed_s is not None:
        witnessed += f", at {time_text(summary.witnessed_s * 1000)} UTC"
    for name, value in (
        ("records", f"{summary.records:,}"),
        ("of them signed", f"{summary.signed:,}"),
        ("time", span),
        ("holders of leases", f"{summary.holders:,}"),
        ("answers", f"{summary.answers:,}"),
        ("text released", bytes_text(8 * summary.text_bytes)),
        ("charged when it left", f"{summary.released_bits:,} bits"),
        ("refunded since", f"{summary.refunded_bits:,} bits"),
        ("keys, one after the other", f"{summary.keys:,}"),
        ("older checkpoints continued", f"{summary.checkpoints:,}"),
        ("witnessed, records", witnessed),
        ("segments", f"{summary.segments:,}"),
        ("sealed batches", f"{summary.sealed:,} ({bytes_text(8 * summary.sealed_bytes)})"),
        ("sealed batches deleted", f"{summary.deleted:,}"),
    ):
        table.add_row(name, value)
    return table


def _duration(text: str) -> int:
    number, unit = text[:-1], _UNITS.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: a number and one of {', '.join(_UNITS)}, such as 90d")
    return int(number) * unit
