"""All jobs known, in memory and as one JSON file each.

A job is written when it is entered, when it starts and when it ends, not at every piece: after a crash a job that was
not over is reported as failed with the code `interrupted`, whatever its progress was. What it has stored by then (a
vector) is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inference.durable import open_directory, remove_file, set_aside, write_file
from inference.jobs.job import Job, JobKind, Status, job_of
from inference.limits import JOB_WATCHERS_MAX, JOBS_KEPT_MAX, JOBS_WAITING_MAX

_SUFFIX = ".json"
_log = logging.getLogger("inference.jobs")
_INTERRUPTED = {"code": "interrupted", "message": "the server ended while the job was waiting or running"}


class JobExistsError(Exception):
    """A job of that id is known already."""


class JobsFullError(Exception):
    """`JOBS_WAITING_MAX` jobs are not over yet."""


class WatchersFullError(Exception):
    """`JOB_WATCHERS_MAX` streams follow that job already."""


class JobTable:
    """Thread-safe: the engine's thread writes, the event loop reads. Without a directory nothing outlives the process.

    A state is on disk before it can be seen. If the disk refuses, `open` raises OSError and nothing has changed; later
    states are then kept in memory and the log says so, since the work itself went on.
    """

    def __init__(self, directory: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._directory, self._clock = directory, clock
        self._writing = threading.Lock()  # held across disk writes
        self._lock = threading.Lock()  # guards what follows; never held across a disk write
        self._jobs: dict[str, Job] = {}  # oldest first
        self._unwanted: set[str] = set()  # running jobs that somebody has cancelled
        self._lingering: set[str] = set()  # cancelled while they waited; the engine still holds their work
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        if directory is not None:
            self._jobs = _read_all(directory)
            for job in [job for job in self._jobs.values() if not job.is_over]:
                self._change(job.id, status=Status.FAILED, error=_INTERRUPTED)

    def open(self, job_id: str, *, kind: JobKind) -> Job:
        """Enter a queued job. Raises JobExistsError, JobsFullError or OSError."""
        with self._writing:
            known = self.all()
            if self.get(job_id) is not None:
                raise JobExistsError(job_id)
            with self._lock:
                lingering = set(self._lingering)
            # Whoever opens and cancels in turn must not fill the engine's queue with work that nobody wants.
            if sum(not job.is_over for job in known) + len(lingering) >= JOBS_WAITING_MAX:
                raise JobsFullError
            job = Job(id=job_id, kind=kind, created_s=int(self._clock()))
            self._write(job)
            over = [job for job in known if job.is_over and job.id not in lingering]
            self._forget(over[: max(0, len(known) + 1 - JOBS_KEPT_MAX)])
            with self._lock:
                self._jobs[job_id] = job
            return job

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def progress(self, job_id: str, *, fraction: float) -> None:
        """The job runs and is that far; less than before counts as before. No effect on a job that is over."""
        job = self._jobs[job_id]
        further = max(job.progress, min(fraction, 1.0))
        if job.status is Status.QUEUED:
            with self._writing:
                self._change(job_id, status=Status.RUNNING, progress=further)
        elif further > job.progress:
            with self._lock:
                if not self._jobs[job_id].is_over:
                    self._jobs[job_id] = dataclasses.replace(self._jobs[job_id], progress=further)
            self._tell(job_id)

    def succeed(self, job_id: str, result: dict[str, Any]) -> None:
        """`result`: JSON. No effect on a job that is over."""
        with self._writing:
            self._change(job_id, status=Status.SUCCEEDED, progress=1.0, result=result)

    def fail(self, job_id: str, *, code: str, message: str) -> None:
        """No effect on a job that is over."""
        with self._writing:
            self._change(job_id, status=Status.FAILED, error={"code": code, "message": message})

    def interrupt(self, job_id: str) -> None:
        """The server is ending, and this job with it."""
        self.fail(job_id, **_INTERRUPTED)

    def cancel(self, job_id: str) -> Job | None:
        """A waiting job is cancelled at once, a running one before its next piece; one that is over stays as it is.

        Returns the job as it is now; None if there is none.
        """
        with self._writing:
            job = self.get(job_id)
            if job is not None and job.status is Status.QUEUED:
                with self._lock:
                    self._lingering.add(job_id)
                self._change(job_id, status=Status.CANCELLED)
            elif job is not None and not job.is_over:
                with self._lock:
                    self._unwanted.add(job_id)
            return self.get(job_id)

    def is_unwanted(self, job_id: str) -> bool:
        """Whether a job has been cancelled; who runs it stops and says so with `stopped`."""
        with self._lock:
            return job_id in self._unwanted or self._jobs[job_id].status is Status.CANCELLED

    def stopped(self, job_id: str) -> None:
        """A job that was unwanted runs no more."""
        with self._writing:
            self._change(job_id, status=Status.CANCELLED)
            with self._lock:
                self._lingering.discard(job_id)

    @contextlib.contextmanager
    def watching(self, job_id: str, notify: Callable[[], None]) -> Iterator[None]:
        """Call `notify`, from any thread, after every change of a job. Raises WatchersFullError.

        Nothing is queued for a watcher: it looks at the job when it has time, so a slow one costs what a fast one does.
        """
        with self._lock:
            watchers = self._watchers.setdefault(job_id, [])
            if len(watchers) >= JOB_WATCHERS_MAX:
                raise WatchersFullError
            watchers.append(notify)
        try:
            yield
        finally:
            with self._lock:
                watchers.remove(notify)
                if not watchers:
                    self._watchers.pop(job_id, None)

    @property
    def watchers(self) -> int:
        """Streams that follow any job."""
        with self._lock:
            return sum(map(len, self._watchers.values()))

    def _change(self, job_id: str, **changes: Any) -> None:
        old = self.get(job_id)
        if old is None or old.is_over:
            return
        new = dataclasses.replace(old, **changes)
        try:
            self._write(new)
        except OSError:
            _log.exception("a job's state could not be written", extra={"job": job_id, "status": new.status})
        with self._lock:
            self._jobs[job_id] = new
            if new.is_over:
                self._unwanted.discard(job_id)
        self._tell(job_id)

    def _tell(self, job_id: str) -> None:
        with self._lock:
            watchers = list(self._watchers.get(job_id, ()))
        for notify in watchers:
            notify()

    def _write(self, job: Job) -> None:
        if self._directory is not None:
            content = json.dumps(job.document(), allow_nan=False).encode()
            write_file(self._directory / f"{job.id}{_SUFFIX}", content)

    def _forget(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._directory is not None:
                remove_file(self._directory / f"{job.id}{_SUFFIX}")
            with self._lock:
                del self._jobs[job.id]


def _read_all(directory: Path) -> dict[str, Job]:
    open_directory(directory)
    found: list[Job] = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            document = json.loads(path.read_bytes())
            if not isinstance(document, dict) or f"{document.get('id')}{_SUFFIX}" != path.name:
                raise ValueError("the file does not hold the job of its name")
            found.append(job_of(document))
        except (OSError, ValueError, RecursionError) as error:
            _log.error("a job cannot be read and is forgotten", extra={"file": str(path), "reason": str(error)})
            with contextlib.suppress(OSError):  # then it is reported at every start
                set_aside(path)
    return {job.id: job for job in sorted(found, key=lambda job: (job.created_s, job.id))}
