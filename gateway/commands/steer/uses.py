"""A steering object out of options: one vector with its operation, or a whole object from a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gateway.commands.steer.server import Undecided
from gateway.commands.steer.texts import layers, parameter, params

SPEC_MARK = "@"

USES_HELP = """\
NAME is a vector, or @FILE with a whole "steering" object as docs/inference.md has it (several vectors, gates, selectors,
"conflict"); the options about its use belong to a NAME.
"""


def add_use(parser: argparse.ArgumentParser) -> None:
    """Options that say how a vector is used."""
    parser.add_argument("name", metavar="NAME|@FILE", help="a vector, or a file with a steering object")
    group = parser.add_argument_group("how it is used")
    group.add_argument("--op", metavar="OP", help="add (the default), ablate, set_projection, cap, rotate, …")
    group.add_argument(
        "--layers", "--layer", type=layers, metavar="LAYERS", help="18, 6,12,18, 10-20 or all; default: the vector's"
    )
    group.add_argument("--point", metavar="POINT", help="block_output (the default), mlp_output, all_writes, …")
    group.add_argument(
        "--apply", type=selection, metavar="WHERE", help="prompt, generation, or JSON with positions, windows, tokens"
    )
    group.add_argument(
        "--when", type=gate, metavar="ID:LAYER:above|below:X", help="a gate, read once from the prompt: mood:18:above:0"
    )
    group.add_argument(
        "--param", action="append", type=parameter, metavar="NAME=VALUE", help="of the operation, such as low=-1"
    )


def use_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The steering object, without a scale unless the file has some. Raises `Undecided`."""
    given = {
        "op": arguments.op,
        "layers": arguments.layers,
        "point": arguments.point,
        "apply": arguments.apply,
        "when": arguments.when,
        "params": params(arguments),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not arguments.name.startswith(SPEC_MARK):
        return {"vectors": [{"id": arguments.name, "op": "add", **given}]}
    if given:
        raise Undecided(f"--{next(iter(given))}: a steering object from a file says itself how its vectors are used")
    return read_spec(Path(arguments.name.removeprefix(SPEC_MARK)))


def read_spec(path: Path) -> dict[str, Any]:
    """A steering object from a file: the object itself, or a request's body that has it. Raises `Undecided`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise Undecided(f"{path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise Undecided(f"{path}: not JSON: {fault}") from fault
    if isinstance(found, dict) and isinstance(found.get("steering"), dict):
        found = found["steering"]
    if not isinstance(found, dict) or not isinstance(found.get("vectors", []), list):
        raise Undecided(f'{path}: a steering object is wanted: {{"vectors": [{{"id": …}}]}}')
    return found


def vector_names(steering: dict[str, Any]) -> list[str]:
    """The vectors that a steering object names first, each once."""
    uses = [use for use in steering.get("vectors", []) if isinstance(use, dict)]
    return list(dict.fromkeys(str(use["id"]) for use in uses if "id" in use))


def selection(text: str) -> dict[str, Any]:
    """`prompt`, `generation`, or the JSON of `apply`."""
    if text in ("prompt", "generation"):
        return {text: "all"}
    try:
        found = json.loads(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{text!r} is neither prompt nor generation nor JSON") from fault
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return found


def gate(text: str) -> dict[str, Any]:
    """`ID:LAYER:above:X` or `ID:LAYER:below:X`."""
    try:
        name, layer, side, threshold = text.split(":")
        if side not in ("above", "below"):
            raise ValueError(side)
        return {"id": name, "layer": int(layer), side: float(threshold)}
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID:LAYER:above:X or ID:LAYER:below:X") from fault
