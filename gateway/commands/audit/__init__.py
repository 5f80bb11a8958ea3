"""`weir audit`: what operators and auditors do with the log of a gateway. One module a command; only `rekey` writes to the log."""

from __future__ import annotations

import argparse
import os
import sys

from gateway.audit.proof import BadProof
from gateway.commands.audit import checking, export, folding, proving, rekeying, showing
from gateway.key_files import KeyFileError
from gateway.ports import AuditFailed, LedgerUnavailable

_DESCRIPTION = """\
Read the audit log of a gateway: the directory that `audit.directory` of its policy names, or a copy of it. But for `rekey`,
nothing is written there, and no lock is taken: the gateway may be running. A copy that was made meanwhile is as good; records
that it has above its checkpoint, and a last one that is torn, are normal and said.

What the log is, what it proves to whom, and how to verify it without Weir: docs/audit.md."""

_EPILOG = """\
examples:
  weir audit verify ./var/audit --key log.vkey --since checkpoint.june
  weir audit show ./var/audit chatcmpl-4f1c... --key anna.key
  weir audit show ./var/audit --tenant acme --day 2026-11-03 --key anna.key
  weir audit prove ./var/audit chatcmpl-4f1c... -o answer.tlog-proof
  weir audit check-proof answer.tlog-proof --key log.vkey
  weir audit fold ./var/audit --policy weir.yaml
  weir audit export ./var/audit --from 2026-11-01 --to 2026-12-01 --tenant acme
  weir audit rekey ./var/audit --prepare

exit status: 0 in order, 1 found wrong, 2 wrong usage, 78 the policy has mistakes"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "audit",
        help="verify the audit log, read it, prove what is in it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (checking, showing, proving, folding, export, rekeying):
        command.add(commands)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit status."""
    try:
        status: int = arguments.act(arguments)
    except (AuditFailed, BadProof, KeyFileError, LedgerUnavailable) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    except BrokenPipeError:
        # Whoever reads has seen enough (`export | head`). What is buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as fault:
        sys.stderr.write(f"{fault.filename}: {fault.strerror}\n")
        return 1
    return status
