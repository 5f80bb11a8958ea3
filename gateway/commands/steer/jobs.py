"""`weir steer jobs` and `job`: what is running, how it ended, and its end if that is wanted."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from rich.table import Table

from gateway.commands.steer.following import cancel, follow
from gateway.commands.steer.tables import (
    calibration_table,
    evaluation_table,
    extraction_table,
    jobs_table,
    selection_table,
)
from gateway.commands.steer.terminal import Terminal

_TABLES: Mapping[str, Callable[[dict[str, Any]], Table]] = MappingProxyType(
    {
        "extract": extraction_table,
        "select": selection_table,
        "calibrate": calibration_table,
        "evaluate": evaluation_table,
    }
)

_JOBS = (
    "List the jobs of a model server. A gateway has no list: there, remember the ids, and ask with `weir steer job`."
)
_JOB = """\
Show a job and its result. --follow waits for it, with a bar; Ctrl-C then cancels it, as --cancel does."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands."""
    listing = parsers.add_parser("jobs", help="the jobs of a model server", description=_JOBS)
    listing.set_defaults(act=_list)
    job = parsers.add_parser("job", help="one job", description=_JOB)
    job.add_argument("id", metavar="ID")
    choice = job.add_mutually_exclusive_group()
    choice.add_argument("--follow", action="store_true", help="wait until it is over")
    choice.add_argument("--cancel", action="store_true", help="end it")
    job.set_defaults(act=_job)
    return [listing, job]


def _list(_: argparse.Namespace, terminal: Terminal) -> int:
    found = terminal.server.get("/v1/jobs")
    terminal.show(found, jobs_table(found["data"]))
    return 0


def _job(arguments: argparse.Namespace, terminal: Terminal) -> int:
    job = terminal.server.get(f"/v1/jobs/{quote(arguments.id, safe='')}")
    if arguments.cancel:
        job = cancel(terminal, job)
    elif arguments.follow:
        job = follow(terminal, job, what=job["kind"])
    parts: list[Table] = [jobs_table([job])]
    if job["status"] == "succeeded" and job["kind"] in _TABLES:
        parts.append(_TABLES[job["kind"]](job["result"]))
    terminal.show(job, *parts)
    return 0
