"""`weir steer extract` and `select`: vectors from contrasting texts."""

from __future__ import annotations

import argparse
from typing import Any

from gateway.commands.steer.following import run_job
from gateway.commands.steer.tables import extraction_table, selection_table
from gateway.commands.steer.terminal import Terminal
from gateway.commands.steer.texts import add_contrast, add_method_params, contrast, layers, params, token

_EXTRACT = """\
Make a vector from two sides of texts that differ in one thing, and wait for it. Layers are block outputs, counted from 0.
With several layers the vector has a direction at each of them, made in one pass, and `add` would use all: choose with
--layer when you use it. Ctrl-C cancels the job."""

_EXTRACT_EXAMPLES = """\
examples:
  weir steer extract mood --dataset sentiment --layer 18 --token mean
  weir steer extract mood.everywhere --dataset sentiment --layers all
  weir steer extract polite --positive polite.txt --negative rude.txt --layer 12 --method logistic --param c=0.5
  weir steer extract no-mood --dataset sentiment --layer 18 --method leace"""

_SELECT = """\
Fit a direction at every layer and token that is asked for, judge each on texts that were held out, and store the best.
By d′ (how far apart the sides are), or by what it does to refusals (Arditi et al.), which needs harmful and harmless
instructions and --chat."""

_SELECT_EXAMPLES = """\
examples:
  weir steer select mood --dataset sentiment --layers 6-24 --token last --token mean
  weir steer select refusal --dataset harmfulness --chat --by refusal"""

METHODS = "mean_difference, pca, pca_centred, logistic, lat, actadd, ccs, leace, erase_mean, refusal"


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands."""
    raw = argparse.RawDescriptionHelpFormatter
    extract = parsers.add_parser(
        "extract", help="make a vector", description=_EXTRACT, epilog=_EXTRACT_EXAMPLES, formatter_class=raw
    )
    extract.add_argument("name", metavar="NAME", help="of the vector that is made")
    add_contrast(extract)
    extract.add_argument("--method", default="mean_difference", metavar="METHOD", help=f"{METHODS}")
    extract.add_argument(
        "--layers", "--layer", type=layers, required=True, metavar="LAYERS", help="18, 6,12,18, 10-20 or all"
    )
    extract.add_argument(
        "--token", type=token, metavar="TOKEN", help="last (the default), mean, post_instruction, all, or an index"
    )
    extract.add_argument("--unpaired", action="store_true", help="the texts of the two sides are no pairs")
    add_method_params(extract)
    extract.set_defaults(act=_extract)
    select = parsers.add_parser(
        "select",
        help="make the best of many vectors",
        description=_SELECT,
        epilog=_SELECT_EXAMPLES,
        formatter_class=raw,
    )
    select.add_argument("name", metavar="NAME", help="of the vector that is made")
    add_contrast(select)
    select.add_argument("--method", default="mean_difference", metavar="METHOD", help="one that finds a direction")
    select.add_argument("--layers", "--layer", type=layers, default="all", metavar="LAYERS", help="default: all")
    select.add_argument("--token", action="append", type=token, metavar="TOKEN", help="may be repeated; default: last")
    select.add_argument("--by", choices=["d_prime", "refusal"], default="d_prime", help="default: %(default)s")
    select.add_argument("--unpaired", action="store_true", help="the texts of the two sides are no pairs")
    add_method_params(select)
    select.set_defaults(act=_select)
    return [extract, select]


def extract_request(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The fields of an extraction at `arguments.layers`."""
    one = isinstance(arguments.layers, list) and len(arguments.layers) == 1
    return {
        "id": name,
        "method": arguments.method,
        "layer": arguments.layers[0] if one else None,
        "layers": None if one else arguments.layers,
        "token": arguments.token,
        "params": params(arguments),
        "paired": False if arguments.unpaired else None,
        **contrast(arguments),
    }


def select_request(arguments: argparse.Namespace, name: str, *, tokens: list[str | int] | None) -> dict[str, Any]:
    """The fields of a selection among `arguments.layers` and tokens."""
    return {
        "id": name,
        "method": arguments.method,
        "layers": arguments.layers,
        "tokens": tokens,
        "params": params(arguments),
        "paired": False if arguments.unpaired else None,
        **contrast(arguments),
    }


def _extract(arguments: argparse.Namespace, terminal: Terminal) -> int:
    body = terminal.server.request(**extract_request(arguments, arguments.name))
    job = run_job(terminal, "/v1/steering/extract", body, what=f"extracting {arguments.name}")
    result = job["result"]
    terminal.show(job, extraction_table(result))
    where = f" --layer {result['selected_layer']}" if len(result["layers"]) > 1 else ""
    terminal.note(f'{arguments.name} is stored. Try it: weir steer try {arguments.name} "How was your day?"{where}')
    return 0


def _select(arguments: argparse.Namespace, terminal: Terminal) -> int:
    fields = select_request(arguments, arguments.name, tokens=arguments.token) | {"by": arguments.by}
    job = run_job(
        terminal, "/v1/steering/select", terminal.server.request(**fields), what=f"selecting {arguments.name}"
    )
    result = job["result"]
    terminal.show(job, selection_table(result))
    position = "" if result["position"] is None else f", token {result['position']}"
    terminal.note(f"{arguments.name} is stored: layer {result['layer']}{position}, score {result['score']:.2f}.")
    return 0
