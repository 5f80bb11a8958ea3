"""`make attack`: every covert channel that is known, tried through a plain proxy and through the gateway."""

import argparse
import asyncio
import json
import os
import platform
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from loadtests.bench.peer import PeerError
from loadtests.exfiltration import report
from loadtests.exfiltration.channel import Channel
from loadtests.exfiltration.roster import CHANNELS
from loadtests.exfiltration.runner import rows
from loadtests.exfiltration.verdict import Row, Verdict

DESCRIPTION = """\
Try to steal bits. A hostile backend hides random secret bits in its answers, one channel after the other; a colluding
client digs them out. Every theft runs twice:

  plain     through a reverse proxy that forwards bytes as they come. It must succeed there, or it proves nothing
  Weir      through a gateway process started from this checkout. Decoded bits must never exceed charged bits, and
            channels that must be closed must decode nothing at all

Charges are read from the gateway's admin port. All traffic stays on loopback. docs/attacks.md says what each row does
and how decoded bits are counted."""

EPILOG = """\
examples:
  python -m loadtests.exfiltration                                     everything, below six minutes
  python -m loadtests.exfiltration --quick                             without the slow rows, below three minutes
  python -m loadtests.exfiltration --only cookies,gaps,silence         these
  python -m loadtests.exfiltration --markdown docs/attacks.md          and fill the table of the documentation

exit status: 0 all passed, 1 a row failed or proves nothing or the gateway did not start, 2 usage, 130 interrupted"""

CAPTION = """\
priced rows: decoded <= charged after settlement. Ticks: decoded <= charged for everything but text. 0: must decode nothing."""


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    if arguments.list:
        listing()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # unwinds: children are stopped
    console = Console(stderr=True)
    began_s = time.monotonic()
    done: list[Row] = []
    try:
        asyncio.run(run(arguments, done, console))
    except PeerError as fault:
        console.print(f"exfiltration: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("exfiltration: interrupted; all processes stopped")
        return 130
    publish(done, arguments, seconds=time.monotonic() - began_s)
    return 1 if any(row.verdict in (Verdict.FAIL, Verdict.BLUNT) for row in done) else 0


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line, with the channels chosen."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.exfiltration",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME,…", help="these channels, by name (see --list)")
    parser.add_argument("--list", action="store_true", help="name every channel with what it hides bits in, and stop")
    parser.add_argument("--quick", action="store_true", help="leave out slow rows that are not named")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), metavar="N", help="of the secrets, to repeat a run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help=f"replace what stands between {report.BEGIN} and {report.END} in FILE by the table",
    )
    arguments = parser.parse_args(words)
    names = arguments.only.split(",") if arguments.only else []
    if unknown := set(names) - CHANNELS.keys():
        parser.error(f"unknown channel {', '.join(sorted(unknown))}; --list names all")
    arguments.channels = [
        channel
        for channel in CHANNELS.values()
        if channel.name in names or (not names and not (arguments.quick and channel.slow))
    ]
    if arguments.markdown:
        try:
            report.filled(arguments.markdown.read_text(), "")  # know before the minutes of stealing, not after
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def listing() -> None:
    """All channels."""
    for channel in CHANNELS.values():
        print(f"{channel.name:26} {channel.residual.value:8} {channel.what}")


async def run(arguments: argparse.Namespace, done: list[Row], console: Console) -> None:
    """Steal; `done` gets the rows."""
    channels: list[Channel] = arguments.channels
    with (
        tempfile.TemporaryDirectory(prefix="weir-attack-") as directory,
        console.status("starting the gateway") as status,
    ):
        progress = rows(channels, directory=Path(directory), seed=arguments.seed, quick=arguments.quick)
        try:
            async for row in progress:
                done.append(row)
                following = channels[len(done)].name if len(done) < len(channels) else "stopping"
                status.update(f"{len(done)} of {len(channels)} done; {following}")
                if row.verdict is not Verdict.PASS:
                    console.print(
                        f"{row.channel}: {row.verdict.value}: {row.why}",
                        style=report.STYLES[row.verdict],
                        markup=False,
                        soft_wrap=True,
                    )
        finally:
            await progress.aclose()


def publish(done: Sequence[Row], arguments: argparse.Namespace, *, seconds: float) -> None:
    """The table to stdout, and to the files that were asked for."""
    counts = {verdict: sum(row.verdict is verdict for row in done) for verdict in Verdict}
    summary = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    conditions = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, seed {arguments.seed}: {summary} in {seconds:.0f} s."
    )
    # A pipe has no width of its own; rich would fold the table to 80 columns there.
    Console(width=None if sys.stdout.isatty() else 220).print(report.table(done, caption=f"{conditions}\n{CAPTION}"))
    if arguments.json:
        figures = [asdict(row) | {"verdict": row.verdict.value} for row in done]
        arguments.json.write_text(json.dumps({"conditions": conditions, "rows": figures}, indent=2) + "\n")
    if arguments.markdown:
        document = arguments.markdown.read_text()
        arguments.markdown.write_text(report.filled(document, report.markdown(done, conditions)))


if __name__ == "__main__":
    sys.exit(main())
