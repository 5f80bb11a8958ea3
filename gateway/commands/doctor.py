"""`weir doctor`: whether the engine is really shut in, and the gateway really stands."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from gateway.commands.check import MISTAKES
from gateway.config import ConfigError, read_policy
from gateway.doctor import unix
from gateway.doctor.engine import engine_side
from gateway.doctor.finding import Finding, Verdict
from gateway.doctor.gateway import gateway_side
from gateway.doctor.targets import Allowed, BadTarget, target

LIMIT_S_MAX = 60.0
_STYLES = {Verdict.OPEN: "bold red", Verdict.WRONG: "bold red", Verdict.UNTESTED: "yellow"}

_DESCRIPTION = """\
Try to get out, and say what was tried and what came of it.

--from engine runs in the engine's place: in its container, in its network namespace, as its user. It tries TCP, UDP, DNS
and ICMP over IPv4 and IPv6, metadata services, proxies, the next hop, Kubernetes, Unix and abstract sockets, RDMA and
vsock. Nothing of it should lead anywhere. Run it once where everything is open, too: what does not answer there proves
nothing here, and --target names what would.

--from gateway runs on the gateway's host, as its user: the backends answer where the policy says and nowhere else, engines
cannot reach the admin port, and clock, disk, ledger and licence are as they should be.

It takes no privileges, changes nothing, and sends no data: connections without a byte, empty datagrams and echo requests,
and one constant DNS question."""

_EPILOG = """\
exit status: 0 nothing is open or wrong, 1 something is, 2 wrong usage, 78 the policy has mistakes"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "doctor",
        help="try to get out another way, and check what the gateway stands on",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--from", dest="side", choices=("engine", "gateway"), required=True, help="whose place this is")
    option(
        "--target", action="append", default=[], metavar="TARGET",
        help="try this too: tcp:ADDRESS:PORT, udp:ADDRESS:PORT, dns:ADDRESS, icmp:ADDRESS, unix:/PATH",
    )  # fmt: skip
    option("--only-targets", action="store_true", help="try the targets and the socket directories, and nothing else")
    option(
        "--allow", action="append", default=[], metavar="WHAT",
        help="what the engine may reach and is not tried: ADDRESS, ADDRESS:PORT, unix:/PATH",
    )  # fmt: skip
    option(
        "--socket-directory", action="append", default=[], metavar="DIR",
        help="where to look for Unix sockets (default: known places and all of /run, /var, /tmp, …)",
    )  # fmt: skip
    option("--timeout", type=_seconds, default=3.0, metavar="SECONDS", help="of each attempt (default: %(default)s)")
    option("--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="with --from gateway (%(default)s)")
    option("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Try everything and print it; returns the exit status."""
    try:
        findings = _from_engine(arguments) if arguments.side == "engine" else _from_gateway(arguments)
    except BadTarget as bad:
        sys.stderr.write(f"{bad}\n")
        return 2
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    bad_findings = [finding for finding in findings if finding.verdict.is_bad]
    if arguments.json:
        document = {"from": arguments.side, "ok": not bad_findings, "findings": findings}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _print(findings, arguments.side)
    return 1 if bad_findings else 0


def _from_engine(arguments: argparse.Namespace) -> list[Finding]:
    return engine_side(
        targets=[target(word) for word in arguments.target],
        only_targets=arguments.only_targets,
        allowed=Allowed(words=frozenset(arguments.allow)),
        directories=tuple(arguments.socket_directory) or (() if arguments.only_targets else unix.DIRECTORIES),
        environment=os.environ,
        limit_s=arguments.timeout,
    )


def _from_gateway(arguments: argparse.Namespace) -> list[Finding]:
    return gateway_side(read_policy(arguments.policy), limit_s=arguments.timeout)


def _print(findings: list[Finding], side: str) -> None:
    table = Table()
    table.add_column("what", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("how", overflow="fold")
    table.add_column("found", no_wrap=True)
    table.add_column("", overflow="fold")
    for finding in findings:
        style = _STYLES.get(finding.verdict)
        table.add_row(finding.kind, finding.target, finding.how, finding.verdict.value, finding.detail, style=style)
    console = Console(highlight=False, markup=False)  # an IPv6 address in brackets is no markup
    console.print(table)
    bad = sum(finding.verdict.is_bad for finding in findings)
    untested = sum(finding.verdict is Verdict.UNTESTED for finding in findings)
    good = len(findings) - bad - untested
    word = "ways out" if side == "engine" else "faults"
    console.print(f"{bad} {word}; {good} attempts found none; {untested} could not tell", soft_wrap=True)


def _seconds(word: str) -> float:
    seconds = float(word)
    if not 0 < seconds <= LIMIT_S_MAX:
        raise argparse.ArgumentTypeError(f"{word} is not between 0 and {LIMIT_S_MAX:g}")
    return seconds
