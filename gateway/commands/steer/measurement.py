"""A measurement as it is kept: the figures, and everything that somebody needs to take it again."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.commands.steer.report import render
from gateway.commands.steer.server import Refused, Server, Undecided
from gateway.commands.steer.terminal import Terminal, json_text


def measurement(
    server: Server,
    *,
    kind: str,
    title: str,
    requests: Mapping[str, Any],
    jobs: Mapping[str, str],
    vectors: Sequence[str],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """A document. What a gateway does not tell (digests, provenance) is null, not guessed."""
    told = (server.capabilities or {}).get("model", {})
    return {
        "object": "steering.measurement",
        "kind": kind,
        "title": title,
        "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "made_by": f"weir {version('weir')}",
        "server": {"url": server.url, "is_gateway": server.is_gateway},
        "model": {
            "id": server.model,
            "digest": told.get("digest"),
            "layers": told.get("layers"),
            "dtype": told.get("dtype"),
        },
        "requests": dict(requests),
        "jobs": dict(jobs),
        "vectors": [_vector(server, name) for name in vectors],
        "datasets": _datasets(server, requests),
        "result": dict(result),
    }


def write_files(arguments: argparse.Namespace, terminal: Terminal, document: Mapping[str, Any]) -> None:
    """Write what --output and --report ask for. Raises `Undecided`."""
    if arguments.output is not None:
        _write(terminal, arguments.output, json_text(document) + "\n")
    if arguments.report is not None:
        _write(terminal, arguments.report, render(document))


def _write(terminal: Terminal, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise Undecided(f"{path}: {fault.strerror}") from fault
    terminal.note(f"{path} is written.")


def _vector(server: Server, name: str) -> dict[str, Any]:
    try:
        return server.vector(name)
    except Refused:  # deleted meanwhile: the figures still stand
        return {"id": name}


def _datasets(server: Server, requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the server says of the datasets that were used; of a gateway's, their names."""
    names = {request["dataset"] for request in requests.values() if request.get("dataset")}
    if server.is_gateway or not names:
        return [{"id": name} for name in sorted(names)]
    return [one for one in server.get("/v1/steering/datasets")["data"] if one["id"] in names]
