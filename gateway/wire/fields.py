"""Request fields shared by the generation dialects: their types, bounds and sanitised form. Unknown fields are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import ModelRules
from gateway.wire.easysteer import FIELD, SteerVectorRequest, translate
from gateway.wire.handles import tenant_space, upstream_handle
from gateway.wire.steering_spec import Steering, fingerprint_of, in_space
from policy.limits import (
    ANSWER_BYTES_MAX,
    BYTES_PER_TOKEN_MAX,
    STOP_STRING_CHARS_MAX,
    STOP_STRINGS_MAX,
)
from policy.refusal import Reason, Refused

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=0, le=1_000_000)]
TokensMax = Annotated[int, Meta(ge=1, le=1_000_000)]
Stop = Annotated[str, Meta(min_length=1, max_length=STOP_STRING_CHARS_MAX)]
Stops = Annotated[list[Stop], Meta(max_length=STOP_STRINGS_MAX)]


class Unlisted(Struct, frozen=True, kw_only=True):
    """What to do about fields that are on no list: say why, or drop those that ask for nothing. All others are refused by name."""

    reasons: Mapping[str, str]
    harmless: Mapping[str, tuple[Any, ...]]  # values at which a field asks for nothing; some clients always send them
    dropped: frozenset[str]  # about the end user; the backend has no need of them


REFUSED_FIELDS = {
    "seed": "the gateway chooses the seed, so that an answer can be checked later",
    "logprobs": "log-probabilities are not released",
    "top_logprobs": "log-probabilities are not released",
    "prompt_logprobs": "log-probabilities are not released",
    "n": "one answer per request; send several requests",
    "best_of": "one answer per request",
    "echo": "the prompt is not repeated",
    "logit_bias": "it is not supported",
    "store": "answers are not stored for later retrieval",
    "service_tier": "there is one tier",
}
OPENAI = Unlisted(
    reasons=REFUSED_FIELDS,
    harmless={"n": (1, None), "logprobs": (False, None, 0), "echo": (False, None), "store": (False, None)},
    dropped=frozenset({"user", "metadata"}),
)


class StreamOptions(Struct, forbid_unknown_fields=True):
    """OpenAI `stream_options`."""

    include_usage: bool = False


class Request(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A request of any dialect."""

    model: Annotated[str, Meta(max_length=256)]

    @property
    def steers(self) -> bool:
        """Whether it asks for steering, which not every tenant may."""
        return False


class Sampling(Request, forbid_unknown_fields=True, omit_defaults=True):
    """What chat and text completions have in common. Subclasses add the prompt."""

    max_tokens: TokensMax | None = None
    max_completion_tokens: TokensMax | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Meta(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=0, le=0)] | None = None
    steering: Steering | None = None
    steer_vector_request: SteerVectorRequest | None = None  # EasySteer's spelling; see `in_own_spelling`

    @property
    def steers(self) -> bool:
        """See `Request.steers`."""
        return self.steering is not None

    @property
    def gates(self) -> int:
        """How many gates its steering has."""
        return self.steering.gates if self.steering is not None else 0


Asked = TypeVar("Asked", bound=Request)
Sampled = TypeVar("Sampled", bound=Sampling)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `([^`]{0,80})`(?: - at `([^`]*)`)?")
_PATH = re.compile(r" - at `\$\.?([^`]*)`")


def parse(body: bytes, decoder: msgspec.json.Decoder[Asked], unlisted: Unlisted = OPENAI) -> Asked | Refused:
    """Decode a request body, or say what is wrong with it in the client's terms."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        return _retry_without_harmless(body, decoder, unlisted, fault)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        return Refused(reason=Reason.INVALID_JSON, message=f"The request body is not valid JSON: {fault}")


def _retry_without_harmless(
    body: bytes, decoder: msgspec.json.Decoder[Asked], unlisted: Unlisted, fault: msgspec.ValidationError
) -> Asked | Refused:
    """Drop fields that ask for nothing (`n: 1`) and try again; the slow path of clients that send them."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        return Refused(reason=Reason.INVALID_JSON, message=f"The request body is not valid JSON: {broken}")
    if not isinstance(fields, dict):
        return Refused(reason=Reason.INVALID_REQUEST, message="The request body must be a JSON object.")
    kept = {name: value for name, value in fields.items() if not _asks_for_nothing(name, value, unlisted)}
    if len(kept) < len(fields):
        return parse(msgspec.json.encode(kept), decoder, unlisted)
    return _refusal(fault, unlisted)


def _asks_for_nothing(name: str, value: Any, unlisted: Unlisted) -> bool:
    idle_values = unlisted.harmless.get(name, ())
    return name in unlisted.dropped or any(type(value) is type(idle) and value == idle for idle in idle_values)


def _refusal(fault: msgspec.ValidationError, unlisted: Unlisted) -> Refused:
    text = str(fault)
    unknown = _UNKNOWN_FIELD.search(text)
    if unknown is None:
        where = _PATH.search(text)
        param = where.group(1) if where else None
        message = _PATH.sub("", text)
        return Refused(
            reason=Reason.INVALID_REQUEST, message=f"{param or 'The request body'}: {message}.", param=param or None
        )
    name, where_in = unknown.group(1), (unknown.group(2) or "").removeprefix("$").removeprefix(".")
    path = f"{where_in}.{name}" if where_in else name
    why = (
        unlisted.reasons.get(name, "it is not on this gateway's list of request fields")
        if not where_in
        else "unknown field"
    )
    return Refused(reason=Reason.UNSUPPORTED_FIELD, message=f"'{path}' is not supported: {why}.", param=path)


def in_own_spelling(request: Sampled) -> Sampled | Refused:
    """The request with its steering in our own words, whichever it came in: nothing behind this knows of others."""
    if request.steer_vector_request is None:
        return request
    if request.steering is not None:
        return Refused(reason=Reason.INVALID_REQUEST, message=f"{FIELD}: not beside 'steering'.", param=FIELD)
    steering = translate(request.steer_vector_request)
    if isinstance(steering, Refused):
        return steering
    return msgspec.structs.replace(request, steering=steering, steer_vector_request=None)


def tokens_max(request: Sampling, rules: ModelRules, *, param: str = "max_tokens") -> int | Refused:
    """The token limit sent upstream: the client's, or the policy's default; over the policy's maximum is refused.

    `param`: what the client's dialect calls it.
    """
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if asked is None:
        return min(rules.tokens_default, rules.tokens_max)
    if asked > rules.tokens_max:
        message = f"{param}: {asked} is over this model's limit of {rules.tokens_max}."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param=param)
    return asked


def answer_bytes_max(tokens: int) -> int:
    """How long an answer of so many tokens may be, in bytes. A backend that says more is cut with `length`."""
    return min(tokens * BYTES_PER_TOKEN_MAX, ANSWER_BYTES_MAX)


def upstream_fields(request: Sampling, *, tokens: int, seed: int, rules: ModelRules, tenant: str) -> dict[str, Any]:
    """The sampling fields of the upstream body, by construction: only what is named here reaches a backend."""
    stream = bool(request.stream)
    model = derived_model(request, tenant=tenant) or rules.name
    fields: dict[str, Any] = {"model": model, "max_tokens": tokens, "seed": seed, "stream": stream}
    for name in ("temperature", "top_p", "top_k", "stop"):
        value = getattr(request, name)
        if value is not None:
            fields[name] = value
    if stream and rules.usage and rules.usage_claimed:
        fields["stream_options"] = {"include_usage": True}
    if rules.token_ids:
        fields["return_token_ids"] = True
    if rules.cache_salted:
        fields["cache_salt"] = tenant_space(tenant)
    steering = in_space(request.steering, tenant=tenant)
    if steering is not None:
        fields["steering"] = steering
    return fields


def derived_model(request: Sampling, *, tenant: str) -> str | None:
    """The tenant's own model that the backend is asked for instead of the policy's, from which it was derived."""
    derived = request.steering.model if request.steering is not None else None
    return None if derived is None else upstream_handle(tenant, derived)


def fingerprint(request: Sampling, *, tenant: str) -> str | None:
    """Names the vectors that a request asks for, and the derived model if there is one; None if it asks for no vector."""
    return fingerprint_of(in_space(request.steering, tenant=tenant), derived=derived_model(request, tenant=tenant))
