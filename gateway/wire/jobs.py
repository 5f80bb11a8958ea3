"""Jobs: a backend's account of one, once or as a stream of events, in a closed set of words and numbers.

A job's id is the gateway's. It says of which kind the job is and leads back to its model, so that nobody has to remember
either: which numbers a result may have follows from the kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import error_event, refusal_of
from gateway.wire.handles import model_mark, upstream_handle
from gateway.wire.rejections import JOB_FAULTS, code_index
from gateway.wire.results import JOB_KINDS, RESULTS, JobKind
from gateway.wire.sse import EventParser
from policy.canonical import Event, Finish, Malformed, Numbers, Reached
from policy.limits import JOB_BYTES_MAX, JOB_EVENTS_BYTES_MAX
from policy.release import Outcome, Release

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
SUCCEEDED, FAILED = STATUSES.index("succeeded"), STATUSES.index("failed")
PROGRESS_STEPS = 100  # percent
STEPS_MAX = PROGRESS_STEPS + 2  # of a stream: it is queued, it runs at 0 %, and so on to 100 %

JOB_ID_PATTERN = rf"job-(?:{'|'.join(JOB_KINDS)})-[0-9a-f]{{8}}-[a-z0-9]{{1,64}}"
_JOB_ID = re.compile(rf"job-({'|'.join(JOB_KINDS)})-([0-9a-f]{{8}})-[a-z0-9]{{1,64}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobId:
    """What a job's id says."""

    text: str
    kind: JobKind
    mark: str  # of its model


def new_job_id(kind: JobKind, rules: ModelRules, identity: Identity) -> JobId:
    """The id of a job that is being started."""
    mark = model_mark(rules.name)
    return JobId(text=f"job-{kind}-{mark}-{identity.id}", kind=kind, mark=mark)


def job_id_of(text: str) -> JobId:
    """A job id that a client gives. Raises `ValueError` for what is none."""
    found = _JOB_ID.fullmatch(text)
    if found is None:
        raise ValueError("no job id")
    return JobId(text=text, kind=cast("JobKind", found.group(1)), mark=found.group(2))


def job_call(job: JobId, rules: ModelRules, *, tenant: str, method: Literal["GET", "DELETE"] = "GET") -> Call:
    """Ask for a job's state, or that it be cancelled: the answer is its state either way."""
    return job_answer(job, rules, method=method, path=f"/v1/jobs/{upstream_handle(tenant, job.text)}", body=b"")


def job_answer(job: JobId, rules: ModelRules, *, method: str, path: str, body: bytes, status: int = 200) -> Call:
    """A call that a job answers."""
    return Call(
        model=rules.name,
        stream=False,
        upstream_method=method,
        upstream_path=path,
        upstream_body=body,
        answer_bytes_max=0,
        tools_declared=frozenset(),
        decoder=JobDecoder(job.kind),
        renderer=JobRenderer(job),
        status=status,
        stateful=True,
    )


def events_call(job: JobId, rules: ModelRules, *, tenant: str) -> Call:
    """Follow a job to its end."""
    return Call(
        model=rules.name,
        stream=True,
        upstream_method="GET",
        upstream_path=f"/v1/jobs/{upstream_handle(tenant, job.text)}/events",
        upstream_body=b"",
        answer_bytes_max=0,
        tools_declared=frozenset(),
        decoder=JobEventsDecoder(job.kind),
        renderer=JobEventsRenderer(job),
        stateful=True,
        steps_max=STEPS_MAX,
    )


class _Fault(Struct):
    code: Any = None


class _Job(Struct):
    """What is read of a backend's job."""

    status: Status
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    result: Any = None
    error: _Fault | None = None


_JOB = msgspec.json.Decoder(_Job)


class JobDecoder:
    """A job as numbers: status, progress in percent, then its result if it succeeded or its fault's code if it failed."""

    def __init__(self, kind: JobKind) -> None:
        self._kind = kind
        self._chunks: list[bytes] = []
        self._room_bytes = JOB_BYTES_MAX

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` over `JOB_BYTES_MAX`."""
        self._room_bytes -= len(chunk)
        if self._room_bytes < 0:
            raise Malformed(f"a job over {JOB_BYTES_MAX} bytes")
        self._chunks.append(chunk)
        return iter(())

    def eof(self) -> Iterator[Event]:
        """The job's numbers. Raises `Malformed`."""
        job = _decode(b"".join(self._chunks))
        return iter((Numbers(job_numbers(job, self._kind)), Finish(Outcome.STOP)))


class JobEventsDecoder:
    """The states of a job as they come: how far it is, and the numbers of the state that is its last."""

    def __init__(self, kind: JobKind) -> None:
        self._kind = kind
        self._parser = EventParser(room_bytes=JOB_EVENTS_BYTES_MAX)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Progress, and at the job's end its numbers. What comes after them is not read. Raises `Malformed`."""
        for data in self._parser.feed(chunk):
            job = _decode(data)
            if job.status in ("queued", "running"):
                yield Reached(1 if job.status == "queued" else 2 + _percent(job))
                continue
            yield Numbers(job_numbers(job, self._kind))
            yield Finish(Outcome.STOP)
            return

    def eof(self) -> Iterator[Event]:
        """The body ended before the job did."""
        raise Malformed("the events ended before the job did")


class JobRenderer:
    """A job as JSON, from its numbers and from the id that the gateway chose."""

    content_type = "application/json"

    def __init__(self, job: JobId) -> None:
        self._job = job

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        assert release.ending.numbers is not None
        return job_body(release.ending.numbers, self._job)


class JobEventsRenderer:
    """A job's states as server-sent events, each a whole job object. The last has the result."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, job: JobId) -> None:
        self._job = job
        self._step = 0

    def release(self, release: Release) -> bytes:
        """One event."""
        if release.ending is None:
            self._step += release.quanta
            status, percent = ("queued", 0) if self._step == 1 else ("running", self._step - 2)
            return _event(msgspec.json.encode(_head(self._job, status, percent)))
        refused = refusal_of(release.ending)
        if refused is not None:
            return error_event(refused)
        assert release.ending.numbers is not None
        return _event(job_body(release.ending.numbers, self._job))


def job_numbers(job: _Job, kind: JobKind) -> tuple[int, ...]:
    """Status, percent, and what goes with the status. Raises `Malformed`."""
    numbers = [STATUSES.index(job.status), _percent(job)]
    if job.status == "succeeded":
        numbers += RESULTS[kind].pack(job.result)
    if job.status == "failed":
        numbers.append(code_index(JOB_FAULTS, job.error.code if job.error is not None else None))
    return tuple(numbers)


def job_body(numbers: tuple[int, ...], job: JobId) -> bytes:
    """The released form of `job_numbers`."""
    status, percent, *rest = numbers
    body = _head(job, STATUSES[status], percent)
    if status == SUCCEEDED:
        body["result"] = RESULTS[job.kind].unpack(iter(rest))
    if status == FAILED:
        code, message = JOB_FAULTS[rest[0]]
        body["error"] = {"code": code, "message": message}
    return msgspec.json.encode(body)


def _head(job: JobId, status: str, percent: int) -> dict[str, Any]:
    progress = percent / PROGRESS_STEPS
    return {"id": job.text, "object": "job", "kind": job.kind, "status": status, "progress": progress}


def _percent(job: _Job) -> int:
    return round(job.progress * PROGRESS_STEPS)


def _decode(data: bytes) -> _Job:
    try:
        return _JOB.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Malformed(f"not the JSON of a job: {type(fault).__name__}") from fault


def _event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"
