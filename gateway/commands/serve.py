"""`weir serve`: run the gateway."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from gateway import log
from gateway.commands.check import MISTAKES
from gateway.config import ConfigError, load
from policy.limits import WORKERS_MAX

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_DESCRIPTION = """\
Run the gateway until SIGTERM or SIGINT, then drain: new requests are refused, open answers may finish, unused budget
goes back to the ledger. SIGHUP takes the policy file again; a file with mistakes changes nothing.

Logs are JSON lines on standard error. Health, metrics and figures are on the admin address of the policy:
/livez, /readyz, /metrics, /status.json. Paths in the policy are relative to the working directory.

One process uses one CPU. With --workers N, N processes answer on the public address, and one more, the keeper, has the
ledger, the audit log and the admin address, replaces workers that die, and takes all signals."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "serve", help="run the gateway", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that serve, or `auto`: one for each CPU (default: %(default)s, which needs no keeper)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns the exit status."""
    from gateway.edge import strict  # noqa: F401  before anything imports aiohttp
    from gateway.host import process

    path: Path = arguments.policy
    workers: int = arguments.workers
    try:
        config = load(path)
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    log.configure()

    async def serve() -> None:
        from gateway.app import Gateway
        from gateway.keeper import Keeper

        if workers == 1:
            await Gateway(path=path, config=config).run()
        else:
            await Keeper(path=path, config=config, workers=workers).run()

    return process.run(serve)


def _workers(word: str) -> int:
    count = _cpus() if word == "auto" else int(word)
    if not 1 <= count <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"{count} is not between 1 and {WORKERS_MAX}")
    return count


def _cpus() -> int:
    """How many CPUs this process may use: those it is bound to, and no more than its control group may take the time of."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return bound
    return bound if quota == "max" else min(bound, max(math.ceil(int(quota) / int(period)), 1))
