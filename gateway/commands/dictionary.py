"""`weir dictionary`: an operator's own zstd dictionary."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from gateway.meters.training import train
from gateway.meters.zstd import ZstdMeter
from policy.codelength import BITS_PER_BYTE

SAMPLES_MIN = 20  # zstd refuses to train on a handful
SAMPLE_BYTES_MAX = 1024 * 1024

_DESCRIPTION = """\
Train a zstd dictionary on text files of your own, for the `zstd` code. Texts in your languages and of your kind can make
honest answers a third cheaper.

WARNING. No text that a model server wrote may be among the samples. What is in the dictionary costs nothing to point to,
so a server that once wrote a part of the weights into a training text could later send it for free: the dictionary's own
size in bits would be owed, and nobody would have charged it. Use texts that people wrote, chosen before the model was.

The gateway's code digest changes with the dictionary; charges before and after are not counted under one code."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "dictionary", help="train a zstd dictionary", description="An operator's own dictionary."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    training = commands.add_parser(
        "train",
        help="train one on text files",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_argument("samples", nargs="+", type=Path, help="UTF-8 text files; paragraphs are samples")
    training.add_argument("--out", type=Path, required=True, metavar="FILE")
    training.add_argument("--bytes", type=int, default=32 * 1024, help="its size (default: %(default)s)")
    training.add_argument(
        "--no-backend-wrote-these", action="store_true", required=True, help="say that you have read the warning"
    )
    training.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what it gains on the samples that were held out."""
    try:
        texts = [path.read_text() for path in arguments.samples]
    except (OSError, UnicodeDecodeError) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    samples = [part.encode()[:SAMPLE_BYTES_MAX] for text in texts for part in text.split("\n\n") if part.strip()]
    if len(samples) < SAMPLES_MIN:
        sys.stderr.write(f"{len(samples)} paragraphs are too few; give at least {SAMPLES_MIN}.\n")
        return 1
    learnt, held_out = [s for n, s in enumerate(samples) if n % 10], samples[::10]
    dictionary = train(learnt, size_bytes=arguments.bytes)
    arguments.out.write_bytes(dictionary)
    own, shipped = _bits_per_byte(ZstdMeter(dictionary), held_out), _bits_per_byte(ZstdMeter(), held_out)
    sys.stdout.write(
        f"{arguments.out}: {len(dictionary)} bytes, sha256 {hashlib.sha256(dictionary).hexdigest()}\n"
        f"on every tenth paragraph, held out: {own:.2f} bits a byte; the shipped dictionary {shipped:.2f}\n"
    )
    return 0


def _bits_per_byte(meter: ZstdMeter, samples: list[bytes]) -> float:
    return (
        sum(meter.text_bits(sample) for sample in samples)
        / sum(len(s) * BITS_PER_BYTE for s in samples)
        * BITS_PER_BYTE
    )
