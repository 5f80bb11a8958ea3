"""The requests that start a job: extract, select, calibrate, evaluate, orthogonalize. Handles in, a job's id out.

Texts, numbers and words of closed lists reach the backend; what comes back is a job (`gateway.wire.jobs`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.fields import Request, Unlisted, parse
from gateway.wire.handles import Handle, upstream_handle
from gateway.wire.jobs import JobId, job_answer, new_job_id
from gateway.wire.results import JobKind
from gateway.wire.steering_spec import Layer, Layers, Place, Scale, Steering, contradiction, in_space
from policy.limits import (
    CONTRAST_TEXT_CHARS_MAX,
    CONTRAST_TEXTS_MAX,
    FIRST_WORDS_MAX,
    JOB_ANSWER_TOKENS_MAX,
    JOB_PROMPTS_MAX,
    ORTHOGONAL_VECTORS_MAX,
    SCALES_TRIED_MAX,
    SELECT_TOKENS_MAX,
)
from policy.refusal import Reason, Refused

EXTRACT_PATH = "/v1/steering/extract"
SELECT_PATH = "/v1/steering/select"
CALIBRATE_PATH = "/v1/steering/calibrate"
EVALUATE_PATH = "/v1/steering/evaluate"
ORTHOGONALIZE_PATH = "/v1/steering/orthogonalize"

Text = Annotated[str, Meta(min_length=1, max_length=CONTRAST_TEXT_CHARS_MAX)]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=CONTRAST_TEXTS_MAX)]
Prompts = Annotated[list[Text], Meta(min_length=1, max_length=JOB_PROMPTS_MAX)]
Words = Annotated[list[Text], Meta(min_length=1, max_length=FIRST_WORDS_MAX)]
Labels = Annotated[list[bool], Meta(min_length=1, max_length=CONTRAST_TEXTS_MAX)]
Dataset = Literal["formality", "harmfulness", "language", "sentiment"]
Method = Literal[
    "mean_difference", "pca", "pca_centred", "logistic", "lat", "actadd", "ccs", "leace", "erase_mean", "refusal"
]
Token = Literal["last", "mean", "post_instruction", "all"] | Place
Metric = Literal["refusal", "kl", "cross_entropy", "propensity"]
Small = Annotated[int, Meta(ge=1, le=1000)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Nats = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(gt=0, le=1)]
AnswerTokens = Annotated[int, Meta(ge=1, le=JOB_ANSWER_TOKENS_MAX)]


class MethodParams(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What single methods may be told. Which of them takes which is the model server's to say."""

    c: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    seed: Seed | None = None
    rounds: Small | None = None
    restarts: Small | None = None
    penalty: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    labels: Labels | None = None
    induce_min: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    kl_nats_max: Nats | None = None
    depth_max: Share | None = None
    first_words: Words | None = None


class Job(Request, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A request that a job answers."""

    @property
    def steers(self) -> bool:
        """See `Request.steers`."""
        return True


class Contrast(Job, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A job on two sides of texts: the client's, or those of a data set that comes with the model server."""

    positive: Texts | None = None
    negative: Texts | None = None
    dataset: Dataset | None = None
    chat: bool = False


class ExtractRequest(Contrast, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/extract`."""

    id: Handle
    method: Method = "mean_difference"
    layer: Layer | None = None
    layers: Layers | Literal["all"] | None = None
    paired: bool | None = None
    token: Token | None = None
    params: MethodParams | None = None


class SelectRequest(Contrast, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/select`. `id` is that of the vector that will be stored."""

    id: Handle
    method: Method = "mean_difference"
    layers: Layers | Literal["all"] | None = None
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=SELECT_TOKENS_MAX)] | None = None
    paired: bool | None = None
    by: Literal["d_prime", "refusal"] | None = None
    params: MethodParams | None = None


class CalibrateRequest(Job, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/calibrate`: how strong `steering` may be."""

    steering: Steering
    prompts: Prompts | None = None
    dataset: Dataset | None = None
    chat: bool = False
    answer_tokens: AnswerTokens | None = None
    target_kl_nats: Nats | None = None
    quantile: Annotated[float, Meta(ge=0, le=1)] | None = None
    tolerance: Annotated[float, Meta(ge=0.001, le=0.5)] | None = None


class EvaluateRequest(Contrast, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/evaluate`: what `steering` does, scale by scale."""

    steering: Steering
    scales: Annotated[list[Scale], Meta(min_length=1, max_length=SCALES_TRIED_MAX)]
    metrics: Annotated[list[Metric], Meta(min_length=1, max_length=4)] | None = None
    prompts: Prompts | None = None
    side: Literal["positive", "negative", "both"] | None = None
    paired: bool | None = None
    answer_prefix: Annotated[str, Meta(max_length=CONTRAST_TEXT_CHARS_MAX)] | None = None
    answer_tokens: AnswerTokens | None = None
    rope_nats: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    seed: Seed | None = None


class OrthogonalizeRequest(Job, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/orthogonalize`. `id` is that of the derived model."""

    id: Handle
    vectors: Annotated[list[Handle], Meta(min_length=1, max_length=ORTHOGONAL_VECTORS_MAX)]


_UNLISTED = Unlisted(reasons={}, harmless={}, dropped=frozenset())
_EXTRACT = msgspec.json.Decoder(ExtractRequest)
_SELECT = msgspec.json.Decoder(SelectRequest)
_CALIBRATE = msgspec.json.Decoder(CalibrateRequest)
_EVALUATE = msgspec.json.Decoder(EvaluateRequest)
_ORTHOGONALIZE = msgspec.json.Decoder(OrthogonalizeRequest)


def parse_extract(body: bytes) -> ExtractRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _EXTRACT, _UNLISTED)
    if isinstance(request, Refused):
        return request
    if (request.layer is None) == (request.layers is None):
        return _invalid("layer", "give either 'layer' or 'layers'")
    return _texts(request) or request


def parse_select(body: bytes) -> SelectRequest | Refused:
    """Likewise."""
    request = parse(body, _SELECT, _UNLISTED)
    return request if isinstance(request, Refused) else _texts(request) or request


def parse_calibrate(body: bytes) -> CalibrateRequest | Refused:
    """Likewise."""
    request = parse(body, _CALIBRATE, _UNLISTED)
    if isinstance(request, Refused):
        return request
    if (request.prompts is None) == (request.dataset is None):
        return _invalid("prompts", "give either 'prompts' or 'dataset'")
    return _spec(request.steering) or request


def parse_evaluate(body: bytes) -> EvaluateRequest | Refused:
    """Likewise."""
    request = parse(body, _EVALUATE, _UNLISTED)
    return request if isinstance(request, Refused) else _spec(request.steering) or request


def parse_orthogonalize(body: bytes) -> OrthogonalizeRequest | Refused:
    """Likewise."""
    return parse(body, _ORTHOGONALIZE, _UNLISTED)


def extract_call(request: ExtractRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start an extraction. All ids, the vector's and the job's, are chosen on this side of the backend."""
    fields = _fields(request) | {"id": upstream_handle(tenant, request.id)}
    return _start("extract", EXTRACT_PATH, fields, rules, identity, tenant)


def select_call(request: SelectRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start a selection among candidates."""
    fields = _fields(request) | {"id": upstream_handle(tenant, request.id)}
    return _start("select", SELECT_PATH, fields, rules, identity, tenant)


def calibrate_call(request: CalibrateRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start a search for the scale at which the steered model differs from the plain one as much as wanted."""
    fields = _fields(request) | {"steering": in_space(request.steering, tenant=tenant)}
    return _start("calibrate", CALIBRATE_PATH, fields, rules, identity, tenant)


def evaluate_call(request: EvaluateRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start an evaluation."""
    fields = _fields(request) | {"steering": in_space(request.steering, tenant=tenant)}
    return _start("evaluate", EVALUATE_PATH, fields, rules, identity, tenant)


def orthogonalize_call(request: OrthogonalizeRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call:
    """Start the making of a derived model."""
    fields = {
        "model": upstream_handle(tenant, request.id),
        "vectors": [upstream_handle(tenant, handle) for handle in request.vectors],
    }
    return _start("orthogonalize", ORTHOGONALIZE_PATH, fields, rules, identity, tenant)


def _start(
    kind: JobKind, path: str, fields: dict[str, Any], rules: ModelRules, identity: Identity, tenant: str
) -> Call:
    job: JobId = new_job_id(kind, rules, identity)
    body = msgspec.json.encode(fields | {"job_id": upstream_handle(tenant, job.text)})
    return job_answer(job, rules, method="POST", path=path, body=body, status=202)


# What names a thing at the backend, or the backend itself: never copied, always put there by the gateway.
_NAMING = frozenset({"model", "id", "vectors", "steering"})


def _fields(request: Job) -> dict[str, Any]:
    """Texts, numbers and words of closed lists as they were given. What was left out is the model server's to choose."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name not in _NAMING}
    return {name: value for name, value in fields.items() if value is not None}


def _texts(request: ExtractRequest | SelectRequest) -> Refused | None:
    """Both sides of one's own, or a data set."""
    own = (request.positive is not None, request.negative is not None)
    if own != (request.dataset is None,) * 2:
        return _invalid("dataset", "give either 'positive' and 'negative', or 'dataset'")
    return None


def _spec(steering: Steering) -> Refused | None:
    if not steering.vectors:
        return _invalid("steering.vectors", "it names no vector")
    if steering.model is not None:
        return _invalid("steering.model", "jobs are of the model that the policy names")
    return contradiction(steering)


def _invalid(param: str, why: str) -> Refused:
    return Refused(reason=Reason.INVALID_REQUEST, message=f"{param}: {why}.", param=param)
