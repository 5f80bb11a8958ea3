"""Jobs and their state, kept in memory: a restart forgets jobs, never vectors."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from inference.limits import JOBS_KEPT_MAX, JOBS_WAITING_MAX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One state of a job; the next state is a new value. `progress` is in 0..1 and never falls."""

    id: str
    status: str = "queued"  # queued, running, succeeded, failed
    progress: float = 0.0
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None  # code, message

    @property
    def is_over(self) -> bool:
        return self.status in ("succeeded", "failed")


class JobExistsError(Exception):
    """A job of that id is known already."""


class JobsFullError(Exception):
    """`JOBS_WAITING_MAX` jobs are not over yet."""


class JobTable:
    """All jobs known. Thread-safe: the engine's thread writes, the event loop reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}  # oldest first

    def open(self, job_id: str) -> Job:
        """Enter a queued job. Raises JobExistsError or JobsFullError."""
        with self._lock:
            if job_id in self._jobs:
                raise JobExistsError(job_id)
            if sum(not job.is_over for job in self._jobs.values()) >= JOBS_WAITING_MAX:
                raise JobsFullError
            while len(self._jobs) >= JOBS_KEPT_MAX:
                del self._jobs[next(key for key, job in self._jobs.items() if job.is_over)]
            self._jobs[job_id] = Job(id=job_id)
            return self._jobs[job_id]

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def progress(self, job_id: str, *, fraction: float) -> None:
        self._replace(job_id, status="running", progress=fraction)

    def succeed(self, job_id: str, result: dict[str, Any]) -> None:
        self._replace(job_id, status="succeeded", progress=1.0, result=result)

    def fail(self, job_id: str, *, code: str, message: str) -> None:
        self._replace(job_id, status="failed", error={"code": code, "message": message})

    def _replace(self, job_id: str, **changes: Any) -> None:
        with self._lock:
            self._jobs[job_id] = dataclasses.replace(self._jobs[job_id], **changes)
