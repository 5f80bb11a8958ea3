"""`weir steer list`, `show`, `delete` and `combine`: the vectors that there are."""

from __future__ import annotations

import argparse

from gateway.commands.steer.tables import extraction_table, figures, vector_table, vectors_table
from gateway.commands.steer.terminal import Terminal

_COMBINE = """\
Make a direction as a weighted sum of stored ones, without its parts along others if asked (Gram-Schmidt), of length 1 if
asked."""

_COMBINE_EXAMPLES = """\
examples:
  weir steer combine glad-and-formal mood:1 formality:0.5
  weir steer combine mood-only mood --orthogonal-to formality --normalize"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the commands."""
    listing = parsers.add_parser("list", help="the vectors that there are", description="List vectors.")
    listing.set_defaults(act=_list)
    show = parsers.add_parser(
        "show",
        help="what one of them is",
        description="Show what is known of a vector: a model server tells how it was made, on what, and its figures at "
        "each layer; a gateway tells its kind and layers.",
    )
    show.add_argument("name", metavar="NAME")
    show.set_defaults(act=_show)
    delete = parsers.add_parser("delete", help="delete vectors", description="Delete vectors. There is no way back.")
    delete.add_argument("names", metavar="NAME", nargs="+")
    delete.set_defaults(act=_delete)
    combine = parsers.add_parser(
        "combine",
        help="make a vector from others",
        description=_COMBINE,
        epilog=_COMBINE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    combine.add_argument("name", metavar="NAME", help="of the vector that is made")
    combine.add_argument("terms", metavar="VECTOR[:WEIGHT]", nargs="+", type=_term, help="weight 1 if none is given")
    combine.add_argument("--orthogonal-to", action="append", default=[], metavar="VECTOR", help="may be repeated")
    combine.add_argument("--normalize", action="store_true", help="to length 1")
    combine.set_defaults(act=_combine)
    return [listing, show, delete, combine]


def _list(_: argparse.Namespace, terminal: Terminal) -> int:
    found = terminal.server.vectors()
    terminal.show({"object": "list", "data": found}, vectors_table(found))
    return 0


def _show(arguments: argparse.Namespace, terminal: Terminal) -> int:
    vector = terminal.server.vector(arguments.name)
    rows = [row for row in figures(vector) if {"norm", "residual_norm"} <= row.keys()]
    parts = [vector_table(vector)]
    if rows:
        rows = [{"mean_pairwise_cosine": None, "d_prime": None, **row} for row in rows]
        parts.append(extraction_table({"layers": rows, "selected_layer": vector.get("selected_layer")}))
    terminal.show(vector, *parts)
    return 0


def _delete(arguments: argparse.Namespace, terminal: Terminal) -> int:
    for name in arguments.names:
        terminal.show(terminal.server.delete(terminal.server.vector_path(name)), f"{name} is deleted.")
    return 0


def _combine(arguments: argparse.Namespace, terminal: Terminal) -> int:
    body = terminal.server.request(
        id=arguments.name,
        terms=[{"id": name, "weight": weight} for name, weight in arguments.terms],
        orthogonal_to=arguments.orthogonal_to,
        normalize=arguments.normalize,
    )
    vector = terminal.server.post("/v1/steering/vectors/combine", body)
    terminal.show(vector, vectors_table([vector]))
    return 0


def _term(text: str) -> tuple[str, float]:
    name, colon, weight = text.partition(":")
    try:
        return name, float(weight) if colon else 1.0
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{text!r} is not VECTOR or VECTOR:WEIGHT") from fault
