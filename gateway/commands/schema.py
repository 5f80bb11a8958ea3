"""`weir schema`: the JSON Schema of policy files, for editors."""

from __future__ import annotations

import argparse
import json
import sys

from policy.document import json_schema


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "schema",
        help="print the JSON Schema of policy files",
        description="Print the JSON Schema of policy files. Editors use it through the modeline"
        " '# yaml-language-server: $schema=...' for completion and checking.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print it."""
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0
