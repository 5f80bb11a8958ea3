"""`weir serve`: run the gateway."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import sys
from pathlib import Path

from gateway import log
from gateway.commands.check import MISTAKES
from gateway.config import ConfigError, load

GC_THRESHOLDS = (20_000, 20, 50)  # an answer makes a few hundred objects, nearly all freed by reference counts
AUDIT_FAILED = 74  # EX_IOERR of sysexits.h

_DESCRIPTION = """\
Run the gateway until SIGTERM or SIGINT, then drain: new requests are refused, open answers may finish, unused budget
goes back to the ledger. SIGHUP takes the policy file again; a file with mistakes changes nothing.

Logs are JSON lines on standard error. Health, metrics and figures are on the admin address of the policy:
/livez, /readyz, /metrics, /status.json. Paths in the policy are relative to the working directory."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "serve", help="run the gateway", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns the exit status."""
    import uvloop

    from gateway.edge import strict  # noqa: F401  before anything imports aiohttp
    from gateway.ports import AuditFailed, LedgerUnavailable

    # A connection is a descriptor; the usual soft limit of 1024 would be reached long before the gateway's own cap.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    path: Path = arguments.policy
    try:
        config = load(path)
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    log.configure()

    async def serve() -> None:
        from gateway.app import Gateway

        gc.freeze()  # what start-up made stays: it need not be looked at again and again
        gc.set_threshold(*GC_THRESHOLDS)

        await Gateway(path=path, config=config).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except AuditFailed as fault:
        # The rest of the process must not get a chance to send what was not recorded: no cleanup, no flushing of sockets.
        log.problem("audit log failed; stopping", error=str(fault))
        os._exit(AUDIT_FAILED)
    except (LedgerUnavailable, OSError) as fault:
        log.problem("cannot serve", error=str(fault))
        return 1
    return 0
