"""A job's work as a chore of the engine: piece by piece, cancellable between pieces, and never a fault of the engine.

Work is a generator. It yields how far it is (0..1) after every piece, which should take no longer than a step of the
requests (tens of milliseconds, a piece of a prompt), and returns the job's result. It raises JobError for what a user
can understand; whatever else it raises ends in the log and as `internal_error`.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import Any

from inference.jobs.table import JobTable
from inference.steering.store import ExistsError, StoreFullError

_log = logging.getLogger("inference.jobs")

Work = Generator[float, None, dict[str, Any]]
"""Yields the fraction that is done, returns the result."""


class JobError(Exception):
    """The job cannot succeed, and why. `code` is stable and for machines."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class JobChore(Iterator[None]):
    """Runs `work` as job `job_id`, which is queued. One `next` is one piece; `close` ends it as interrupted."""

    def __init__(self, work: Work, *, jobs: JobTable, job_id: str) -> None:
        self._work, self._jobs, self._job_id = work, jobs, job_id

    def __next__(self) -> None:
        jobs, job_id = self._jobs, self._job_id
        if jobs.is_unwanted(job_id):
            self._close_work()
            jobs.stopped(job_id)
            raise StopIteration
        try:
            jobs.progress(job_id, fraction=0.0)  # running from its first piece on, not from behind it
            jobs.progress(job_id, fraction=next(self._work))
        except StopIteration as end:
            self._succeed(end.value)
        except JobError as error:
            self._fail(error.code, str(error))
        except ExistsError as error:  # stored under the same id while this job waited or ran
            self._fail("vector_exists", f"vector {str(error)!r} exists already")
        except StoreFullError as error:
            self._fail("store_full", str(error))
        except Exception:  # noqa: BLE001 - a job's fault ends the job, never the engine's thread
            _log.exception("job failed", extra={"job": job_id})
            self._fail("internal_error", "the job failed; the server's log has the reason")

    def close(self) -> None:
        self._close_work()
        self._jobs.interrupt(self._job_id)

    def _succeed(self, result: dict[str, Any]) -> None:
        try:
            self._jobs.succeed(self._job_id, result)
        except (TypeError, ValueError):  # not JSON: NaN, most likely
            _log.exception("a job's result cannot be written", extra={"job": self._job_id})
            self._fail("internal_error", "the job's result is no number; the server's log has the reason")
        raise StopIteration

    def _close_work(self) -> None:
        try:
            self._work.close()
        except Exception:  # noqa: BLE001 - as above: it must not reach the engine
            _log.exception("a job did not end well", extra={"job": self._job_id})

    def _fail(self, code: str, message: str) -> None:
        self._jobs.fail(self._job_id, code=code, message=message)
        raise StopIteration
