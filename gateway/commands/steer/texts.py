"""Texts for jobs: a dataset that comes with the server, or files with a text a line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gateway.commands.steer.server import Undecided

DATASETS = "sentiment, formality, language, harmfulness"


def add_contrast(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options for two sides of texts."""
    group = parser.add_argument_group("texts")
    group.add_argument("--dataset", metavar="NAME", help=f"one that comes with the server: {DATASETS}")
    group.add_argument("--positive", type=Path, metavar="FILE", help="a text a line")
    group.add_argument("--negative", type=Path, metavar="FILE", help="a text a line, the partner of the same line")
    group.add_argument("--chat", action="store_true", help="each text is what a user says, in the chat template")
    return group


def contrast(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request."""
    fields: dict[str, Any] = {"dataset": arguments.dataset, "chat": arguments.chat or None}
    for side in ("positive", "negative"):
        path: Path | None = getattr(arguments, side)
        fields[side] = None if path is None else lines(path)
    return fields


def add_prompts(group: argparse._ArgumentGroup) -> None:
    """Options for prompts."""
    group.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line")


def prompts(arguments: argparse.Namespace) -> list[str] | None:
    """The prompts that were given, if any."""
    found = [*(arguments.prompt or []), *(lines(arguments.prompts) if arguments.prompts is not None else [])]
    return found or None


def lines(path: Path) -> list[str]:
    """The texts of a file; empty lines are none. Raises `Undecided`."""
    try:
        # Whole lines: the space before a word is part of it.
        found = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise Undecided(f"{path}: {fault.strerror if isinstance(fault, OSError) else 'not UTF-8'}") from fault
    if not found:
        raise Undecided(f"{path}: no text in it; a text a line is wanted")
    return found


def add_method_params(parser: argparse.ArgumentParser) -> None:
    """What single methods or operations may be told."""
    parser.add_argument(
        "--param", action="append", type=parameter, metavar="NAME=VALUE", help="of the method, such as c=0.5; repeated"
    )


def parameter(text: str) -> tuple[str, Any]:
    """A name and a value, which is JSON if it can be, otherwise a word."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def params(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The parameters that were given, if any."""
    return dict(arguments.param) if arguments.param else None


def token(text: str) -> str | int:
    """A token's word, or its index."""
    try:
        return int(text)
    except ValueError:
        return text


def layers(text: str) -> list[int] | str:
    """`18`, `6,12,18`, `10-20` or `all`."""
    if text == "all":
        return text
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: give layers as 18, 6,12,18, 10-20 or all")
        found += range(int(first), int(last or first) + 1)
    return found
