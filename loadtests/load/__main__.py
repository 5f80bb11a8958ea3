"""`make load`: many users of many tenants, by locust, on a gateway that is started for it or on one of yours."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loadtests.bench.__main__ import positive
from loadtests.bench.peer import REPOSITORY
from loadtests.load.shapes import SHAPES
from loadtests.load.site import Place, Wanted, started
from loadtests.load.verdict import Check, at_rest, books_in_order, nothing_left_open, same_bytes, told

STOP_S = 60  # after the run, for answers that are still coming: none may be cut, or bytes could not be compared
USERS = Path(__file__).with_name("users.py")

DESCRIPTION = f"""\
Users ask a gateway as people and programs do: chats that are streamed (six of ten), whole answers (three) and tool calls
(one), each as one of many tenants, with a pause after each answer. Locust runs them and takes the times:

  json            whole answers
  TTFT            from the question to the first piece of text of a stream
  total           from the question to the end of a stream
  stream: head    until the head of its answer: locust's own figure, which excludes the text
  refused         429 and 503 by their codes: counted apart, no failures

Without --host a gateway is started with a scripted upstream behind it: two auditors, zstd settlement, a budget for each
tenant. Every answer is then compared byte by byte with what the upstream said, and in the end the counts of upstream,
gateway and users must be equal, nothing may be left open, the audit log must verify and be at one with the ledger.

With --host it is your own gateway and your own engine; answers must be whole and end with [DONE].

shapes: {"; ".join(f"{name}: {what}" for name, what in SHAPES.items())}"""

EPILOG = """\
examples:
  python -m loadtests.load                                          a minute of 60 users
  python -m loadtests.load --users 300 --shape spike --seconds 120  does it ride out a rush?
  python -m loadtests.load --streams-max 5 --refused-max 1          tenants beyond their limit: what is refused, and how fast?
  python -m loadtests.load --host http://127.0.0.1:8080 --key "$KEY" --model smollm2 --users 8 --ttft-ms 2000
  locust -f loadtests/load/users.py --host … --key … --unchecked    the same users, with locust's own page

exit status: 0 within all thresholds, 1 beyond one, 2 usage"""


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(words)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-locust-")))
        if arguments.host:
            place = None
            host, keys, model = arguments.host, arguments.key, arguments.model
        else:
            wanted = Wanted(tenants=arguments.tenants, streams_max=arguments.streams_max)
            place = stack.enter_context(started(wanted))
            host, keys, model = f"http://{place.host}:{place.port}", list(place.keys), place.model
        results = locust(arguments, directory, host=host, keys=keys, model=model)
        if results is None:
            return 1
        rows = table(results)
        checks = [*thresholds(results, arguments), *(own_checks(place, results) if place is not None else [])]
    return told(
        f"{arguments.users} users, {arguments.shape}, {arguments.seconds:g} s", rows, checks, file=arguments.json
    )


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    who = parser.add_argument_group("who asks")
    who.add_argument("--users", type=positive, default=60, metavar="N", help="at most at once (default 60)")
    who.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long (default 60)")
    who.add_argument("--shape", choices=list(SHAPES), default="steady", help="how many users when (default steady)")
    who.add_argument(
        "--pieces", type=positive, default=60, metavar="N", help="tokens of an answer at most (default 60)"
    )
    who.add_argument("--pace-ms", type=int, default=20, metavar="MS", help="between two of them (default 20)")
    ours = parser.add_argument_group("the gateway that is started")
    ours.add_argument("--tenants", type=positive, default=20, metavar="N", help="(default 20)")
    ours.add_argument(
        "--streams-max", type=positive, default=4096, metavar="N", help="answers at once a tenant (default 4096)"
    )
    yours = parser.add_argument_group("a gateway of yours")
    yours.add_argument("--host", metavar="URL", help="its public address")
    yours.add_argument("--key", action="append", default=[], metavar="KEY", help="a tenant's; repeat for many")
    yours.add_argument("--model", default="load", metavar="NAME", help="that is asked for")
    limits = parser.add_argument_group("thresholds")
    limits.add_argument("--failures-max", type=float, default=0.0, metavar="PART", help="of all answers (default 0)")
    limits.add_argument("--refused-max", type=float, default=0.0, metavar="PART", help="of all questions (default 0)")
    limits.add_argument("--ttft-ms", type=float, metavar="MS", help="95 of 100 streams begin in this (default: any)")
    limits.add_argument("--refusal-ms", type=float, metavar="MS", help="95 of 100 refusals take this (default: any)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args(words)
    if arguments.host and not arguments.key:
        parser.error("--host needs at least one --key")
    return arguments


def locust(
    arguments: argparse.Namespace, directory: Path, *, host: str, keys: Sequence[str], model: str
) -> dict[str, Any] | None:
    """Run the users to their end; None, and what locust said, if they could not."""
    results = directory / "results.json"
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(USERS), "--headless", "--only-summary"),
        *("--host", host, "--model", model, "--users", str(arguments.users), "--run-time", f"{arguments.seconds:g}s"),
        *("--stop-timeout", f"{STOP_S}s", "--shape", arguments.shape, "--loglevel", "WARNING"),
        *("--pieces", str(arguments.pieces), "--pace-ms", str(arguments.pace_ms), "--results", str(results)),
        *(word for key in keys for word in ("--key", key)),
        *(["--unchecked"] if arguments.host else []),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not results.exists():
        print(done.stdout + done.stderr, file=sys.stderr)
        return None
    return dict(json.loads(results.read_text()))


def table(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line for each of locust's rows."""
    rows = sorted(results["rows"], key=lambda row: (row["type"] == "refused", row["name"], row["type"]))
    lines = [
        (
            f"{row['type']} {row['name']}",
            f"{row['count']:,} ({row['per_s']:.1f}/s), p50 {row['p50_ms']:.0f}, p95 {row['p95_ms']:.0f}, "
            f"p99 {row['p99_ms']:.0f} ms" + (f", **{row['failures']} failed**" if row["failures"] else ""),
        )
        for row in rows
    ]
    return [*lines, ("tenants", str(results["tenants"])), *(("failed", error) for error in results["errors"])]


def thresholds(results: Mapping[str, Any], arguments: argparse.Namespace) -> list[Check]:
    """What the caller has set."""
    posts = [row for row in results["rows"] if row["type"] == "POST"]
    answers = sum(row["count"] for row in posts)
    failures = sum(row["failures"] for row in posts)
    refused = sum(row["count"] for row in results["rows"] if row["type"] == "refused")
    asked = answers + refused
    checks = [
        Check(name="somebody was answered", ok=answers > failures, found=f"{answers - failures:,} answers"),
        part("failures", failures, answers, most=arguments.failures_max),
        part("refusals", refused, asked, most=arguments.refused_max),
    ]
    for name, kind, limit_ms in (("TTFT", "TTFT", arguments.ttft_ms), ("refusal", "refused", arguments.refusal_ms)):
        worst = max((row["p95_ms"] for row in results["rows"] if row["type"] == kind), default=0.0)
        if limit_ms is not None:
            found = f"p95 {worst:.0f} ms, at most {limit_ms:g}"
            checks.append(Check(name=f"{name} in time", ok=worst <= limit_ms, found=found))
    return checks


def part(name: str, count: int, of: int, *, most: float) -> Check:
    """So many of all are allowed."""
    return Check(name=f"few {name}", ok=count <= most * of, found=f"{count:,} of {of:,}, at most {most:.1%}")


def own_checks(place: Place, results: Mapping[str, Any]) -> list[Check]:
    """What can be said only with the upstream and the gateway at hand."""
    after, heard = at_rest(place), results["heard_bytes"]
    text_bytes = heard.get("json", 0) + heard.get("stream", 0)
    return [
        *same_bytes(place, after, text_bytes=text_bytes, argument_bytes=heard.get("tool", 0)),
        *nothing_left_open(place, after),
        *books_in_order(place),
    ]


if __name__ == "__main__":
    sys.exit(main())
