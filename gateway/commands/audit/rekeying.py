"""`weir audit rekey`: another key for the log, without losing the chain. The one command that writes to a log."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from gateway.audit.keys import EPOCHS, KEY, VERIFIER, prepare, prepared, signer_of
from gateway.audit.log import SignedLog
from gateway.audit.note import Verifier
from gateway.audit.segments import locked
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.ports import AuditFailed
from policy.rules import Audit

_DESCRIPTION = """\
Give the log another key: every few years, when somebody leaves who could read it, or after a break-in. The log goes on, under
its name: the old key signs for the last time, a record that names the new one; from there on checkpoints are signed by the
new key, and the old one is gone from this machine. Whoever knows the old key can follow it to the new one.

The gateway must be stopped, and this must be run as the user that it runs as:

  1. weir audit rekey DIRECTORY --prepare     while the gateway runs: makes the new key and prints its public half
  2. give that to the auditors and to whoever runs witnesses, by a way that you trust
  3. stop the gateway; weir audit rekey DIRECTORY; start the gateway

Without the old key no other can be named: then this log has come to its end, and another one begins in a new directory.
A change that is broken off is finished by running this again, or by the next start of the gateway."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = parsers.add_parser(
        "rekey",
        help="give the log another key",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="the audit directory itself, not a copy")
    parser.add_argument(
        "--prepare", action="store_true", help="only make the new key, and print its public half; the gateway may run"
    )
    parser.set_defaults(act=act)


def act(arguments: argparse.Namespace) -> int:
    """Change the key, or prepare it; returns the exit status."""
    directory: Path = arguments.directory
    _assert_ours(directory)
    if arguments.prepare:
        key = prepare(directory, origin=signer_of(directory).name).verifier
        sys.stdout.write(f"{key}\n")
        sys.stderr.write(
            "This will be the log's key. Give it to the auditors and to whoever runs witnesses; then stop the gateway and run\n"
            f"  weir audit rekey {directory}\n"
        )
        return 0
    _assert_stopped(directory)
    before, after, size = asyncio.run(_rekey(directory))
    sys.stdout.write(
        f"{before} signed the first {size} records, and nothing more\n{after} signs what follows\n"
        f"{directory / VERIFIER} has the new key: give it to the auditors and to whoever runs witnesses.\n"
        f"{directory / EPOCHS / str(size)} shows that the old key named it: it belongs to the log, and to every copy.\n"
        "Old copies of log.key, in backups too, are worth nothing to you any more, and something to a thief: destroy them.\n"
    )
    return 0


async def _rekey(directory: Path) -> tuple[Verifier, Verifier, int]:
    """The key before, the key now, and how many records the log had when it changed."""
    before, waiting = signer_of(directory).verifier, prepared(directory)
    log = SignedLog(Audit(directory=str(directory)), clock=SystemClock(), metrics=Metrics())
    try:
        # Else it was under way, and opening the log has finished it.
        if log.verifier == before and (waiting is None or waiting.verifier != before):
            await log.rekey()
        return before, log.verifier, log.size
    finally:
        await log.close()


def _assert_ours(directory: Path) -> None:
    """A key that the gateway cannot read, or a log that it did not begin, would only be found out when it starts."""
    path = directory / KEY
    try:
        owner = path.stat().st_uid
    except FileNotFoundError as fault:
        raise AuditFailed(f"{path}: missing; name the `audit.directory` of a policy, as the gateway has it") from fault
    except OSError as fault:
        raise AuditFailed(f"{path}: {fault.strerror}") from fault
    if owner != os.geteuid():
        raise AuditFailed(
            f"{path}: belongs to user {owner}, and this runs as {os.geteuid()}: run it as the gateway's own user,"
            f" sudo -u '#{owner}' weir audit rekey {directory}"
        )


def _assert_stopped(directory: Path) -> None:
    try:
        os.close(locked(directory))
    except AuditFailed as fault:
        raise AuditFailed(f"{fault}; stop it, run `weir audit rekey {directory}`, and start it again") from fault
