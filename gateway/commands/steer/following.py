"""A job from here: started, followed to its end with a bar, cancelled by Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.commands.steer.server import Refused, Unreachable
from gateway.commands.steer.terminal import Terminal

POLL_S, POLL_S_MAX = 0.25, 4.0  # each look at a gateway's job is charged, so they grow rarer
CANCEL_S_MAX = 30.0  # a running job ends before its next piece
OVER = ("succeeded", "failed", "cancelled")


class JobFailed(Exception):
    """It ended without a result."""

    def __init__(self, job: dict[str, Any]) -> None:
        error = job.get("error") or {}
        super().__init__(str(error.get("message") or f"the job was {job['status']}"))
        self.job, self.code = job, error.get("code")


class Cancelled(Exception):
    """By whoever sits at the terminal; `job` is how the server left it."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(f"job {job['id']} is {job['status']}")
        self.job = job


def run_job(terminal: Terminal, path: str, body: dict[str, Any], *, what: str) -> dict[str, Any]:
    """Start a job and wait for it: its last state. Raises `JobFailed`, `Cancelled`, `Refused`, `Unreachable`."""
    return follow(terminal, terminal.server.post(path, body), what=what)


def follow(terminal: Terminal, job: dict[str, Any], *, what: str) -> dict[str, Any]:
    """Show a job's progress until it has succeeded. Ctrl-C cancels it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    silent = not terminal.notes.is_terminal
    try:
        with Progress(*columns, console=terminal.notes, transient=True, disable=silent) as progress:
            task = progress.add_task(f"{what}, {job['status']}", total=1.0)
            for state in _states(terminal, job):
                job = state
                progress.update(task, completed=job["progress"], description=f"{what}, {job['status']}")
    except KeyboardInterrupt as interrupt:
        raise Cancelled(cancel(terminal, job)) from interrupt
    if job["status"] != "succeeded":
        raise JobFailed(job)
    return job


def cancel(terminal: Terminal, job: dict[str, Any]) -> dict[str, Any]:
    """Ask for a job's end and wait until it has come, which is soon."""
    path = f"/v1/jobs/{job['id']}"
    job = terminal.server.delete(path)
    deadline_s = time.monotonic() + CANCEL_S_MAX
    while job["status"] not in OVER and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        job = terminal.server.get(path)
    return job


def _states(terminal: Terminal, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The job's states as they come, the last one last: from its events, or asked for if these cannot be had."""
    server, path = terminal.server, f"/v1/jobs/{job['id']}"
    try:
        for job in server.events(f"{path}/events"):  # noqa: PLR1704 - the newest state of the same job
            yield job
    except (Refused, Unreachable):
        pass  # too many watchers, or a stream that was ended by a limit: asking still tells
    wait_s = POLL_S
    while job["status"] not in OVER:
        job = server.get(path)
        yield job
        if job["status"] not in OVER:
            time.sleep(wait_s)
            wait_s = min(wait_s * 1.5, POLL_S_MAX)
