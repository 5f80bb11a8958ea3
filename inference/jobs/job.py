"""One job: what it does, how far it is, and what came of it. Values only."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class JobKind(enum.StrEnum):
    EXTRACT = "extract"
    SELECT = "select"
    CALIBRATE = "calibrate"
    EVALUATE = "evaluate"
    ORTHOGONALIZE = "orthogonalize"


class Status(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
"""States that a job never leaves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One state of a job; the next state is a new value. `progress` is in 0..1 and never falls."""

    id: str
    kind: JobKind
    created_s: int  # Unix time
    status: Status = Status.QUEUED
    progress: float = 0.0
    result: dict[str, Any] | None = None  # of a job that succeeded; JSON
    error: dict[str, str] | None = None  # of a job that failed: code, message

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def document(self) -> dict[str, Any]:
        """As clients see it, and as it lies on disk."""
        return {
            "id": self.id,
            "object": "job",
            "kind": self.kind,
            "status": self.status,
            "progress": self.progress,
            "created_s": self.created_s,
            "result": self.result,
            "error": self.error,
        }


def job_of(document: dict[str, Any]) -> Job:
    """The inverse of `document`. Raises ValueError for what is no job."""
    try:
        job = Job(
            id=str(document["id"]),
            kind=JobKind(document["kind"]),
            created_s=int(document["created_s"]),
            status=Status(document["status"]),
            progress=float(document["progress"]),
            result=document["result"],
            error=document["error"],
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"no job: {error!r}") from error
    if not 0 <= job.progress <= 1:
        raise ValueError("progress is outside 0..1")
    if not isinstance(job.result, dict | None) or not isinstance(job.error, dict | None):
        raise ValueError("result and error must be objects")  # noqa: TRY004 - a fault of the file, not of a caller
    return job
