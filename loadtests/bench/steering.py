"""`python -m loadtests.bench.steering`: what steering costs the engine, and its tokens a second beside transformers'."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from loadtests.bench.__main__ import cpu_model, positive
from loadtests.bench.peer import REPOSITORY, module
from loadtests.bench.report import Spread, filled, spread_of

DESCRIPTION = """\
Measure the inference server's engine in two ways, in processes without HTTP:

  steering     steps of engines that differ in their steering alone and take turns (python -m inference.bench.overhead)
  generation   tokens a second at batch 1 and 8, the engine and plain transformers in turn, float32, greedy, the same
               prompts and numbers of tokens and threads"""

BEGIN, END = "<!-- engine:begin -->", "<!-- engine:end -->"
BATCHES = (1, 8)
PROMPT_TOKENS = 64
WEIR, TRANSFORMERS = "Weir", "transformers"
PROGRAMS = {WEIR: "inference.bench.generate", TRANSFORMERS: "loadtests.bench.generate"}
TEXT = (
    "The old lighthouse keeper climbed the stairs once more, lit the lamp, and wrote the weather into his book, as he had "
    "every evening for thirty years. That night, however, he found that somebody had already written the weather of the "
    "following day, in a careful hand that was neither his nor his daughter's, and below it a short message. "
)
Line = Mapping[str, Any]  # one measurement of the overhead


class EngineBenchError(Exception):
    """A program under test ended early, or its answers are not what was asked for."""


def main() -> int:
    """Parse, run, report; the exit status."""
    arguments = parsed_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are stopped
    console = Console(stderr=True)
    started_s, load_before = time.monotonic(), os.getloadavg()[0]
    try:
        lines = overhead(arguments)
        answers = list(generations(arguments))
    except (EngineBenchError, subprocess.CalledProcessError) as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("bench: interrupted; all processes stopped")
        return 130
    measured = conditions(arguments, load_before=load_before, elapsed_s=time.monotonic() - started_s)
    report = "\n\n".join([measured, zero_line(lines), overhead_table(lines), generation_table(answers)])
    print(report)
    if arguments.markdown:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), report, begin=BEGIN, end=END))
    return 0 if all(line["is_identical"] for line in lines if line["what"] == "zero") else 1


def parsed_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.steering",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory in HF layout")
    add(
        "--threads",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="of each program (default: all cores)",
    )
    add("--batches", default="1,8,64", metavar="N,N", help="rows of a step (default: %(default)s)")
    add("--steps", type=positive, default=40, metavar="N", help="of each kind of steering (default 40)")
    add("--rounds", type=positive, default=7, metavar="N", help="of generation, to take medians over (default 7)")
    add("--tokens", type=positive, default=64, metavar="N", help="to generate for each prompt (default 64)")
    add("--markdown", type=Path, metavar="FILE", help=f"fill in between {BEGIN} and {END} in FILE")
    arguments = parser.parse_args(words)
    if arguments.markdown:
        try:
            filled(arguments.markdown.read_text(), "", begin=BEGIN, end=END)
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {arguments.markdown}: {error}")
    return arguments


def overhead(arguments: argparse.Namespace) -> list[Line]:
    """The engine's own benchmark."""
    numbers = ["--threads", str(arguments.threads), "--rounds", str(arguments.steps), "--batches", arguments.batches]
    command = module("inference.bench.overhead", "--model", str(arguments.model), *numbers)
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def generations(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Answers of both programs: each is asked in every round, another one first each time."""
    prompts = prompts_of(Tokenizer.from_file(str(arguments.model / "tokenizer.json")))
    with ExitStack() as stack:
        programs = {
            name: stack.enter_context(running(module(program, "--model", str(arguments.model)), arguments.threads))
            for name, program in PROGRAMS.items()
        }
        for program in programs.values():
            asked(program, prompts[:2], 4)  # warms up
        for number in range(arguments.rounds):
            for batch in BATCHES:
                for name in list(programs)[:: 1 if number % 2 else -1]:
                    answer = asked(programs[name], prompts[:batch], arguments.tokens)
                    yield {"name": name, "batch": batch, "round": number, **answer}


def prompts_of(tokenizer: Tokenizer) -> list[list[int]]:
    """As many different prompts as the largest batch has rows, equally long, so that nobody has to pad."""
    ids = tokenizer.encode(TEXT).ids
    return [(ids[7 * row :] + ids)[:PROMPT_TOKENS] for row in range(max(BATCHES))]


@contextmanager
def running(command: Sequence[str], threads: int) -> Iterator[subprocess.Popen[str]]:
    """A program that answers lines; stopped at the end."""
    program = subprocess.Popen(
        [*command, "--threads", str(threads)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


def asked(program: subprocess.Popen[str], prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
    """One question and its answer, which must have the right size."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
    program.stdin.flush()
    line = program.stdout.readline()
    if not line:
        raise EngineBenchError(f"{program.args!r} ended")
    answer: dict[str, Any] = json.loads(line)
    if [len(ids) for ids in answer["ids"]] != [tokens] * len(prompts):
        raise EngineBenchError(f"{program.args!r} did not give {tokens} tokens for each of {len(prompts)} prompts")
    return answer


def zero_line(lines: Sequence[Line]) -> str:
    """The check that steering with strength 0 is no steering."""
    same = all(line["is_identical"] for line in lines if line["what"] == "zero")
    return f"Strength 0 at all layers gives {'the plain logits, bit for bit' if same else '**other logits**'}."


def overhead_table(lines: Sequence[Line]) -> str:
    """A row for every kind of steering and batch."""
    rows = [
        "| step | steering of every row | CPU ms | × none, CPU | wall ms | × none, wall |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for line in lines:
        if line["what"] != "zero":
            step = (
                f"decode, {line['rows']} row{'s' if line['rows'] > 1 else ''}"
                if line["what"] == "decode"
                else "prompt of 256 tokens"
            )
            numbers = f"{line['cpu_ms']:.1f} | {line['cpu_quotient']:.3f} | {line['wall_ms']:.1f} | {line['wall_quotient']:.3f}"
            rows.append(f"| {step} | {line['kind']} | {numbers} |")
    return "\n".join(rows)


def generation_table(answers: Sequence[Mapping[str, Any]]) -> str:
    """A row for every batch: rates, their quotient within rounds, and how many of the tokens are the same."""
    rows = [
        f"| batch | {WEIR} tokens/s | {TRANSFORMERS} tokens/s | quotient | quotient of CPU time | same tokens |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    table = {(answer["name"], answer["batch"], answer["round"]): answer for answer in answers}
    for batch in dict.fromkeys(answer["batch"] for answer in answers):
        rounds = sorted({answer["round"] for answer in answers})
        ours, theirs = ([table[name, batch, number] for number in rounds] for name in (WEIR, TRANSFORMERS))
        pairs = list(zip(ours, theirs, strict=True))
        cells = [
            text(spread_of([rate(answer) for answer in ours]), 1),
            text(spread_of([rate(answer) for answer in theirs]), 1),
            text(spread_of([rate(our) / rate(their) for our, their in pairs]), 2),
            text(spread_of([their["cpu_s"] / our["cpu_s"] for our, their in pairs]), 2),
            f"{100 * agreement(pairs):.0f} %",
        ]
        rows.append(f"| {batch} | {' | '.join(cells)} |")
    return "\n".join(rows)


def rate(answer: Mapping[str, Any]) -> float:
    """New tokens of all rows a second, the prompts' own time included."""
    return float(sum(map(len, answer["ids"])) / answer["wall_s"])


def agreement(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float:
    """Share of tokens on which both agree."""
    tokens = [
        (own, other)
        for ours, theirs in pairs
        for row, other_row in zip(ours["ids"], theirs["ids"], strict=True)
        for own, other in zip(row, other_row, strict=True)
    ]
    return sum(own == other for own, other in tokens) / len(tokens)


def text(spread: Spread | None, digits: int) -> str:
    """A number over the rounds."""
    assert spread is not None
    return spread.text(digits)


def conditions(arguments: argparse.Namespace, *, load_before: float, elapsed_s: float) -> str:
    """What the numbers were measured on, and when."""
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu_model()}, {os.cpu_count()} cores, threads: {arguments.threads}, load "
        f"average before {load_before:.1f}, Linux {platform.release()}, Python {platform.python_version()}, {software}; "
        f"{arguments.model.resolve().name}, float32; {arguments.steps} steps and {arguments.rounds} rounds in {elapsed_s:.0f} s."
    )


if __name__ == "__main__":
    sys.exit(main())
