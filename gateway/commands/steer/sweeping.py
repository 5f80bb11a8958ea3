"""`weir steer sweep`: which layer. Every layer fitted, judged on held-out texts and, if asked, tried."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

from gateway.commands.steer.following import run_job
from gateway.commands.steer.learning import extract_request, select_request
from gateway.commands.steer.measurement import measurement, write_files
from gateway.commands.steer.measuring import add_files
from gateway.commands.steer.server import Refused
from gateway.commands.steer.tables import sweep_table
from gateway.commands.steer.terminal import Terminal
from gateway.commands.steer.texts import add_contrast, add_method_params, contrast, layers, token

EFFECT_SCALES = (-1.0, 0.0, 1.0)

_DESCRIPTION = """\
Look at every layer: fit a direction to the texts at each in one pass (norm, d′), judge each on texts that were held out,
and store the best of them as NAME. --effect also steers at each layer alone, at scales -1, 0 and 1, and measures how much
likelier that makes the positive texts of held-out pairs: separating two sides and being able to steer between them are
different things, and often best at different layers."""

_EXAMPLES = """\
examples:
  weir steer sweep mood --dataset sentiment --report layers.html
  weir steer sweep mood --dataset sentiment --layers 8-20 --token mean --effect -o layers.json"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the command."""
    parser = parsers.add_parser(
        "sweep",
        help="compare layers",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the vector that is made")
    add_contrast(parser)
    parser.add_argument("--method", default="mean_difference", metavar="METHOD", help="one that finds a direction")
    parser.add_argument("--layers", "--layer", type=layers, default="all", metavar="LAYERS", help="default: all")
    parser.add_argument("--token", type=token, default="last", metavar="TOKEN", help="default: %(default)s")
    parser.add_argument("--unpaired", action="store_true", help="the texts of the two sides are no pairs")
    parser.add_argument("--effect", action="store_true", help="steer at each layer too: a job a layer")
    add_method_params(parser)
    add_files(parser)
    parser.set_defaults(act=_sweep)
    return [parser]


def _sweep(arguments: argparse.Namespace, terminal: Terminal) -> int:
    server, name = terminal.server, arguments.name
    select = server.request(**select_request(arguments, name, tokens=[arguments.token]), by="d_prime")
    selected = run_job(terminal, "/v1/steering/select", select, what="judging layers on held-out texts")
    everywhere = f"{name[:40]}.sweep-{secrets.token_hex(4)}"
    extract = server.request(**extract_request(arguments, everywhere))
    fitted = run_job(terminal, "/v1/steering/extract", extract, what="fitting all layers")
    try:
        rows = _rows(fitted["result"], selected["result"])
        effects = _effects(arguments, terminal, everywhere, rows) if arguments.effect else {}
        result = {
            "selected_layer": selected["result"]["layer"],
            "layers": [{**row, "effect": effects.get(row["layer"])} for row in rows],
        }
        document = measurement(
            server,
            kind="sweep",
            title=name,
            requests={"select": select, "extract": extract},
            jobs={"select": selected["id"], "extract": fitted["id"]},
            vectors=[name],
            result=result,
        )
    finally:
        _forget(terminal, everywhere)
    terminal.show(document, sweep_table(result))
    terminal.note(f"{name} is stored: layer {result['selected_layer']}, the largest d′ on held-out texts.")
    write_files(arguments, terminal, document)
    return 0


def _rows(fitted: dict[str, Any], selected: dict[str, Any]) -> list[dict[str, Any]]:
    held_out = {row["layer"]: row["score"] for row in selected["candidates"]}
    return [{**row, "d_prime_held_out": held_out.get(row["layer"])} for row in fitted["layers"]]


def _effects(
    arguments: argparse.Namespace, terminal: Terminal, vector: str, rows: list[dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Steerability at each layer alone."""
    found = {}
    for number, row in enumerate(rows, start=1):
        use = {"id": vector, "op": "add", "layers": [row["layer"]]}
        body = terminal.server.request(
            steering={"vectors": [use]},
            scales=list(EFFECT_SCALES),
            metrics=["propensity"],
            **contrast(arguments),
        )
        what = f"steering at layer {row['layer']} ({number} of {len(rows)})"
        found[row["layer"]] = run_job(terminal, "/v1/steering/evaluate", body, what=what)["result"]["steerability"]
    return found


def _forget(terminal: Terminal, vector: str) -> None:
    """The vector of all layers was a means to an end."""
    try:
        terminal.server.delete(terminal.server.vector_path(vector))
    except Refused as refused:
        terminal.note(f"{vector} could not be deleted: {refused}")
