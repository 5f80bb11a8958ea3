"""Steering vectors through the gateway: tenants name handles, backends answer with a closed set of statuses and numbers.

No tensor passes in either direction. Statistics are rounded to fixed point, so that they carry few and priced bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.fields import Handle, Request, Unlisted, parse, upstream_handle
from policy.canonical import Event, Finish, Malformed, Numbers
from policy.limits import CONTRAST_TEXT_CHARS_MAX, CONTRAST_TEXTS_MAX, WIRE_BASE_BYTES
from policy.refusal import Reason, Refused
from policy.release import Outcome, Release

EXTRACT_PATH = "/v1/steering/extract"

STATUSES = ("queued", "running", "succeeded", "failed")
STATISTICS = ("norm", "residual_norm", "mean_pairwise_cosine", "d_prime")
STATISTIC_STEPS_PER_UNIT = 100
STATISTIC_MAX = 1e6
PROGRESS_STEPS = 100

Text = Annotated[str, Meta(min_length=1, max_length=CONTRAST_TEXT_CHARS_MAX)]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=CONTRAST_TEXTS_MAX)]


class ExtractRequest(Request, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/extract`."""

    id: Handle
    positive: Texts
    negative: Texts
    layer: Annotated[int, Meta(ge=0, le=1023)]
    method: Literal["mean_difference"] = "mean_difference"
    token: Literal["last", "mean"] = "last"  # noqa: S105  of the text, not of a session
    chat: bool = False

    @property
    def steers(self) -> bool:
        """See `Request.steers`."""
        return True


class JobResult(Struct):
    """Statistics of an extracted vector."""

    layer: Annotated[int, Meta(ge=0, le=1023)]
    norm: float
    residual_norm: float
    mean_pairwise_cosine: float | None = None  # a single pair has none
    d_prime: float | None = None


class JobAnswer(Struct):
    """What is read of a backend's job."""

    status: Literal["queued", "running", "succeeded", "failed"]
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    result: JobResult | None = None


_REQUEST = msgspec.json.Decoder(ExtractRequest)
_UNLISTED = Unlisted(reasons={}, harmless={}, dropped=frozenset())
_JOB = msgspec.json.Decoder(JobAnswer)


def parse_extract(body: bytes) -> ExtractRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _REQUEST, _UNLISTED)
    if isinstance(request, Refused):
        return request
    if len(request.positive) != len(request.negative):
        message = f"positive has {len(request.positive)} texts and negative {len(request.negative)}: they form pairs."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="negative")
    return request


def model_mark(model: str) -> str:
    """Eight hex digits that lead from a job id back to its model."""
    return hashlib.sha256(model.encode()).hexdigest()[:8]


def extract_call(request: ExtractRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start an extraction. Both ids, the vector's and the job's, are chosen on this side of the backend."""
    job_id = f"job-{model_mark(rules.name)}-{identity.id}"
    fields = {
        "id": upstream_handle(tenant, request.id),
        "job_id": upstream_handle(tenant, job_id),
        "method": request.method,
        "positive": request.positive,
        "negative": request.negative,
        "layer": request.layer,
        "token": request.token,
        "chat": request.chat,
    }
    return _call(
        rules,
        method="POST",
        path=EXTRACT_PATH,
        body=msgspec.json.encode(fields),
        job_id=job_id,
        status=202,
    )


def job_call(job_id: str, rules: ModelRules, *, tenant: str) -> Call:
    """Ask for a job's state."""
    return _call(rules, method="GET", path=f"/v1/jobs/{upstream_handle(tenant, job_id)}", body=b"", job_id=job_id)


def _call(rules: ModelRules, *, method: str, path: str, body: bytes, job_id: str, status: int = 200) -> Call:
    return Call(
        model=rules.name,
        stream=False,
        upstream_method=method,
        upstream_path=path,
        upstream_body=body,
        answer_bytes_max=0,
        tools_declared=frozenset(),
        decoder=JobDecoder(),
        renderer=JobRenderer(job_id),
        status=status,
        stateful=True,
    )


class JobDecoder:
    """A job as numbers: status, progress in percent, and if it succeeded its layer and statistics."""

    def __init__(self) -> None:
        self._body = b""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` over `WIRE_BASE_BYTES`."""
        self._body += chunk
        if len(self._body) > WIRE_BASE_BYTES:
            raise Malformed(f"job over {WIRE_BASE_BYTES} bytes")
        return iter(())

    def eof(self) -> Iterator[Event]:
        """The job's numbers. Raises `Malformed`."""
        try:
            job = _JOB.decode(self._body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise Malformed(f"not the JSON of a job: {type(fault).__name__}") from fault
        numbers = [STATUSES.index(job.status), round(job.progress * PROGRESS_STEPS)]
        if job.result is not None:
            numbers.append(job.result.layer)
            numbers += [_fixed_point(getattr(job.result, name)) for name in STATISTICS]
        return iter((Numbers(tuple(numbers)), Finish(Outcome.STOP)))


class JobRenderer:
    """A job as JSON, from its numbers and the id that the gateway chose."""

    content_type = "application/json"

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        assert release.ending.numbers is not None
        status, progress, *result = release.ending.numbers
        body: dict[str, Any] = {
            "id": self._job_id,
            "object": "job",
            "status": STATUSES[status],
            "progress": progress / PROGRESS_STEPS,
        }
        if result:
            layer, *statistics = result
            values = (_unfix(number) for number in statistics)
            body["result"] = {"layer": layer, **dict(zip(STATISTICS, values, strict=True))}
        return msgspec.json.encode(body)


def _fixed_point(value: float | None) -> int:
    """A statistic as a non-negative integer: 0 for none, else 1 + zigzag of it in steps of 0.01.

    Raises `Malformed` for NaN and the huge.
    """
    if value is None:
        return 0
    if not math.isfinite(value) or abs(value) > STATISTIC_MAX:
        raise Malformed("a statistic is not a sensible number")
    steps = round(value * STATISTIC_STEPS_PER_UNIT)
    return 1 + (2 * steps if steps >= 0 else -2 * steps - 1)


def _unfix(number: int) -> float | None:
    if number == 0:
        return None
    zigzag = number - 1
    steps = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    return steps / STATISTIC_STEPS_PER_UNIT
