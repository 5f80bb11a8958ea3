"""`python -m loadtests.answers`: ask real questions, read from the gateway's metrics what their answers cost."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS = Path(__file__).with_name("prompts.txt")
BEGIN, END = "<!-- answers:begin -->", "<!-- answers:end -->"
MODEL, KEY = "smollm2-135m-instruct", "answers"
HEADERS = {"Authorization": f"Bearer {KEY}", "Accept-Encoding": "identity"}
CONCURRENCY = 16  # the model server's batch
TOKENS_MAX = 200
READY_S_MAX, SETTLED_S_MAX = 120.0, 600.0
STILL_S = 30  # longer than a batch takes
CODES = ("raw", "zstd", "language_model")
AIMS = {"raw": 8.3, "zstd": 3.0, "language_model": 0.6}  # bits a byte

_POLICY = """\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
models:
  {model}:
    upstream: http://127.0.0.1:{upstream}
    weights: {{parameters: 70e9}}
    theft_compression: 1
    budgets: [{{window: lifetime, fraction: 100%}}]
tenants:
  answers: {{keys: ["sha256:{digest}"], models: [{model}]}}
meters: [raw, zstd, language_model]
scorer: {{address: "unix:{directory}/score.sock"}}
audit: {{directory: {directory}/audit}}
ledger: sqlite:{directory}/ledger.db
"""
_DESCRIPTION = """\
Start a model server, a scorer and a gateway on loopback, ask the questions of loadtests/answers/prompts.txt (streamed,
temperature 0.8), wait until every answer is settled, and print the bits charged per byte of text under each code, and which
share of the bytes on the wire cost nothing. All figures are the gateway's own metrics. Takes about five minutes for 200."""


def main() -> int:
    """Measure and print; exit status 0 if every answer arrived whole and was settled."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.answers",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=200, help="how many questions (default: %(default)s)")
    parser.add_argument("--how", choices=("whole", "streamed", "both"), default="both", help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=REPOSITORY / "var/models" / MODEL, help="prepared on first use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"fill the table between {BEGIN} and {END}")
    arguments = parser.parse_args()
    prompts = PROMPTS.read_text().splitlines()[: arguments.count]
    prepare = [sys.executable, "-m", "inference", "prepare", "--out", str(arguments.model)]
    subprocess.run(prepare, cwd=REPOSITORY, check=True)
    runs = {}
    for how in ("whole", "streamed") if arguments.how == "both" else (arguments.how,):
        with tempfile.TemporaryDirectory(prefix="weir-answers-") as name:
            runs[how] = asyncio.run(_measure(Path(name), arguments.model, prompts, stream=how == "streamed"))
    _print(runs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(runs, indent=2) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), markdown(runs)))
    return 0 if all(figures["whole"] == len(prompts) for figures in runs.values()) else 1


async def _measure(directory: Path, model: Path, prompts: list[str], *, stream: bool) -> dict[str, float]:
    port, admin, upstream = _free_ports(3)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    text = _POLICY.format(port=port, admin=admin, upstream=upstream, model=MODEL, digest=digest, directory=directory)
    (directory / "weir.yaml").write_text(text)
    commands = {
        "model server": [
            "inference",
            "serve",
            "--model",
            str(model),
            "--listen",
            f"127.0.0.1:{upstream}",
            "--state",
            str(directory / "state"),
        ],
        "scorer": ["inference", "score", "--model", str(model), "--listen", f"unix:{directory}/score.sock"],
        "gateway": ["gateway", "serve", "--policy", str(directory / "weir.yaml")],
    }
    with _running(directory, commands) as children:
        async with aiohttp.ClientSession() as session:
            await _until_ready(session, f"http://127.0.0.1:{admin}/readyz", children, directory)
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            whole = await _ask_all(session, url, prompts, stream=stream)
            return {
                "questions": len(prompts),
                "whole": whole,
                **await _settled(session, f"http://127.0.0.1:{admin}/metrics"),
            }


async def _ask_all(session: aiohttp.ClientSession, url: str, prompts: list[str], *, stream: bool) -> int:
    room = asyncio.Semaphore(CONCURRENCY)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=len(prompts))

        async def ask(prompt: str) -> bool:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0.8,
                "max_tokens": TOKENS_MAX,
                "stream": stream,
            }
            async with room, session.post(url, json=body, headers=HEADERS) as answer:
                end = b"data: [DONE]\n\n" if stream else b"}"
                whole = answer.status == 200 and (await answer.read()).endswith(end)
            progress.advance(task)
            return whole

        return sum(await asyncio.gather(*(ask(prompt) for prompt in prompts)))


async def _settled(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The figures, once no answer waits for the scorer any more."""
    deadline = time.monotonic() + SETTLED_S_MAX
    still, before, metrics = 0, (-1.0, -1.0), ""
    while time.monotonic() < deadline and still < STILL_S:
        await asyncio.sleep(1)
        async with session.get(url) as answer:
            metrics = await answer.text()
        # A batch that is being scored is no longer in the backlog, so wait until the refunds stand still as well.
        now = (_sum(metrics, "weir_settle_backlog_answers"), _sum(metrics, "weir_refunded_bits_total"))
        still = still + 1 if now == before and now[0] == 0 else 0
        before = now
    text_bytes = _sum(metrics, "weir_released_text_bytes_total")
    bits = _sum(metrics, "weir_charged_bits_total")
    figures = {
        "text_bytes": text_bytes,
        "received_bytes": _sum(metrics, "weir_received_wire_bytes_total"),
        "sent_bytes": _sum(metrics, "weir_sent_wire_bytes_total"),
    }
    figures["scorer_errors"] = _sum(metrics, "weir_scorer_errors_total")
    for code in CODES:
        bits -= _sum(metrics, "weir_refunded_bits_total", f'code="{code}"') if code != "raw" else 0
        figures[f"{code}_bits_per_byte"] = bits / text_bytes
    figures["free_share_received"] = 1 - text_bytes / figures["received_bytes"]
    figures["free_share_sent"] = 1 - text_bytes / figures["sent_bytes"]
    return figures


def _sum(metrics: str, name: str, label: str = "") -> float:
    pattern = rf"^{name}(?:\{{([^}}]*)\}})? ([0-9.e+-]+)$"
    return sum(float(value) for labels, value in re.findall(pattern, metrics, flags=re.MULTILINE) if label in labels)


@contextmanager
def _running(directory: Path, commands: dict[str, list[str]]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    children = {}
    try:
        for name, command in commands.items():
            with (directory / f"{name}.log").open("wb") as log:
                children[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
                )
        yield children
    finally:
        for child in reversed(children.values()):
            child.send_signal(signal.SIGTERM)
        for child in children.values():
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


async def _until_ready(
    session: aiohttp.ClientSession, url: str, children: dict[str, subprocess.Popen[bytes]], directory: Path
) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        for name, child in children.items():
            if child.poll() is not None:
                raise SystemExit(f"The {name} ended:\n{(directory / f'{name}.log').read_text()[-3000:]}")
        try:
            async with session.get(url) as answer:
                if answer.status == 200 and (directory / "score.sock").exists():
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit(f"Not ready after {READY_S_MAX:.0f} s.")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _rows(runs: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = [
        [code, *(f"{run[f'{code}_bits_per_byte']:.2f}" for run in runs.values()), str(AIMS[code])] for code in CODES
    ]
    rows.append(
        ["envelope, of what the backend sent", *(f"{run['free_share_received']:.1%}" for run in runs.values()), "98.5%"]
    )
    rows.append(["envelope, of what the client got", *(f"{run['free_share_sent']:.1%}" for run in runs.values()), ""])
    return rows


def _print(runs: dict[str, dict[str, float]]) -> None:
    table = Table(title="bits charged a byte of text, everything included")
    table.add_column("code")
    for how, run in runs.items():
        table.add_column(f"{how}: {run['whole']:.0f} of {run['questions']:.0f} answers", justify="right")
    table.add_column("aim", justify="right")
    for row in _rows(runs):
        table.add_row(*row)
    Console().print(table)
    Console().print("scorer errors:", int(sum(run["scorer_errors"] for run in runs.values())))


def markdown(runs: dict[str, dict[str, float]]) -> str:
    """The table as Markdown."""
    head = [f"{how}: {run['whole']:.0f} answers, {run['text_bytes']:,.0f} bytes" for how, run in runs.items()]
    lines = [
        f"Temperature 0.8, at most {TOKENS_MAX} tokens, {CONCURRENCY} at once. Bits charged a byte of text, everything included.",
        "",
    ]
    lines += [f"| code | {' | '.join(head)} | aim |", f"| --- |{' --: |' * (len(head) + 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(runs)]
    return "\n".join(lines)


def filled(document: str, table: str) -> str:
    """`document` with `table` between its markers. Raises ValueError where it does not have them."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
