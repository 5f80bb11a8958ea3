"""The bodies of requests: every field that exists, its type, and nothing else. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inference.limits import (
    CACHE_SALT_CHARS_MAX,
    DESCRIPTION_CHARS_MAX,
    MESSAGES_MAX,
    SCALE_ABS_MAX,
    SPEC_VECTORS_MAX,
    STOP_BYTES_MAX,
    STOP_STRINGS_MAX,
    TOOLS_MAX,
)
from inference.server.compat.easysteer import SteerVectorRequest
from inference.server.errors import bad_request, from_validation
from inference.steering.spec import SteeringSpec
from inference.steering.vector import ID_PATTERN

Identifier = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}\Z")]
_StopString = Annotated[str, Meta(min_length=1, max_length=STOP_BYTES_MAX)]
_FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen body that refuses fields it does not know."""


class ContentPart(Strict, frozen=True):
    type: Literal["text"]
    text: str


class CalledFunction(Strict, frozen=True):
    name: _FunctionName
    arguments: str


class CallInHistory(Strict, frozen=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Strict, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[CallInHistory] | None = None
    tool_call_id: str | None = None


class Function(Strict, frozen=True):
    name: _FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict, frozen=True):
    type: Literal["function"]
    function: Function


class StreamOptions(Strict, frozen=True):
    include_usage: bool = False


class Generation(Strict, frozen=True, kw_only=True):
    """What chat and plain completions have in common. None and absent mean the same."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    seed: int | None = None
    stop: _StopString | Annotated[list[_StopString], Meta(max_length=STOP_STRINGS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    steering: SteeringSpec | None = None
    steer_vector_request: SteerVectorRequest | None = None  # EasySteer's spelling of it
    cache_salt: Annotated[str, Meta(min_length=1, max_length=CACHE_SALT_CHARS_MAX)] | None = None


class ChatRequest(Generation, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionRequest(Generation, frozen=True, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1)]


class UploadRequest(Strict, frozen=True, kw_only=True):
    id: Identifier
    layer: int
    vector: list[float]


class DescribeRequest(Strict, frozen=True, kw_only=True):
    """What is absent stays; null takes it away."""

    description: Annotated[str, Meta(max_length=DESCRIPTION_CHARS_MAX)] | UnsetType | None = UNSET
    scale_default: Annotated[float, Meta(ge=-SCALE_ABS_MAX, le=SCALE_ABS_MAX)] | UnsetType | None = UNSET


_Weight = Annotated[float, Meta(ge=-SCALE_ABS_MAX, le=SCALE_ABS_MAX)]


class Term(Strict, frozen=True):
    id: Identifier
    weight: _Weight = 1.0


class CombineRequest(Strict, frozen=True, kw_only=True):
    id: Identifier
    terms: Annotated[list[Term], Meta(min_length=1, max_length=SPEC_VECTORS_MAX)]
    orthogonal_to: Annotated[list[Identifier], Meta(max_length=SPEC_VECTORS_MAX)] = []
    normalize: bool = False


class OrthogonalizeRequest(Strict, frozen=True, kw_only=True):
    model: Identifier
    vectors: Annotated[list[Identifier], Meta(min_length=1, max_length=SPEC_VECTORS_MAX)]
    job_id: Identifier | None = None


def is_identifier(text: str) -> bool:
    """Whether a text from a path or a query could be an `Identifier`."""
    return ID_PATTERN.fullmatch(text) is not None


def template_message(message: Message) -> dict[str, Any]:
    """As templates expect it: content is one text, and OpenAI's newer role name is the one that models know."""
    document = without_none(message)
    parts = message.content
    document["content"] = parts if isinstance(parts, str) else "".join(part.text for part in parts or ())
    document["role"] = "system" if message.role == "developer" else message.role
    return document


def without_none(value: msgspec.Struct) -> dict[str, Any]:
    """A body as plain objects, without the fields that were not given."""

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: clean(inner) for key, inner in item.items() if inner is not None}
        return [clean(inner) for inner in item] if isinstance(item, list) else item

    cleaned: dict[str, Any] = clean(msgspec.to_builtins(value))
    return cleaned


_Body = TypeVar("_Body", bound=Strict)


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Raises ApiError 400 for what is not JSON (NaN and Infinity are not) or not of this kind."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from error
