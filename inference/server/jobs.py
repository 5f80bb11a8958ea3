"""Jobs over HTTP: list, look, follow, cancel; and the one way in which routes open them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from aiohttp import web

from inference.jobs.chore import JobChore, Work
from inference.jobs.job import Job, JobKind
from inference.jobs.table import JobExistsError, JobsFullError, WatchersFullError
from inference.limits import JOB_SILENCE_S_MAX, WRITE_TIMEOUT_S
from inference.server.errors import ApiError, json_response
from inference.server.render import sse_event
from inference.server.service import SERVICE, Service

SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
_STILL_HERE = b":\n\n"  # a comment: WHATWG HTML, 9.2.6, recommends one against proxies that drop silent connections


async def start_job(service: Service, *, kind: JobKind, job_id: str | None, work: Work) -> web.Response:
    """Queue checked work as a chore of the engine: 202 and the job. Raises ApiError 409 or 503."""

    def enter() -> Job:
        # In one thread, whatever becomes of the client meanwhile: a job that is entered and never queued waits for ever.
        job = service.jobs.open(job_id or f"job-{secrets.token_hex(8)}", kind=kind)
        service.engine.add_chore(JobChore(work, jobs=service.jobs, job_id=job.id))
        return job

    try:
        job = await asyncio.to_thread(enter)
    except JobExistsError as error:
        raise ApiError(409, f"job {job_id!r} exists already", code="job_exists", param="job_id") from error
    except JobsFullError as error:
        raise ApiError(503, "too many jobs are waiting; try again later", code="jobs_full") from error
    return json_response(job.document(), status=202)


async def list_jobs(request: web.Request) -> web.Response:
    jobs = request.app[SERVICE].jobs.all()
    return json_response({"object": "list", "data": [job.document() for job in jobs]})


async def get_job(request: web.Request) -> web.Response:
    return json_response(_job(request).document())


async def cancel_job(request: web.Request) -> web.Response:
    """The job as it is now: cancelled, or running until its next piece, or what it had come to before."""
    job_id = _job(request).id
    job = await asyncio.to_thread(request.app[SERVICE].jobs.cancel, job_id)
    return json_response((job or _job(request)).document())


async def follow_job(request: web.Request) -> web.StreamResponse:
    """Server-sent events: the job now, then after changes, last its last state. A slow reader sees fewer of them.

    A job that waits or works in long pieces is not silent for longer than `JOB_SILENCE_S_MAX`.
    """
    jobs = request.app[SERVICE].jobs
    job = _job(request)
    changed = asyncio.Event()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jobs.watching(job.id, _waker(changed)))
        except WatchersFullError as error:
            raise ApiError(503, "too many streams follow this job", code="job_watchers_full") from error
        response = web.StreamResponse(headers=SSE_HEADERS)
        await response.prepare(request)
        shown: Job | None = None
        while shown is None or not shown.is_over:
            changed.clear()
            now = jobs.get(job.id)
            if now is None:  # forgotten, so it was over long ago
                break
            if now != shown:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await response.write(sse_event(now.document()))
                shown = now
                continue
            if not await _set_within(changed, JOB_SILENCE_S_MAX):
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await response.write(_STILL_HERE)
    return response


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _waker(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended, and this stream with it
            loop.call_soon_threadsafe(event.set)

    return wake


def _job(request: web.Request) -> Job:
    job = request.app[SERVICE].jobs.get(request.match_info["id"])
    if job is None:
        raise ApiError(404, "no such job", code="job_not_found")
    return job
