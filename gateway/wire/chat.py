"""`POST /v1/chat/completions`: the OpenAI chat dialect, streamed and not, with tool calls."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import error_event, refusal_of
from gateway.wire.fields import Sampling, answer_bytes_max, parse, tokens_max, upstream_fields
from gateway.wire.generation import StreamDecoder, WholeDecoder, steering_body
from policy.limits import MESSAGES_MAX, TOOLS_MAX
from policy.refusal import Reason, Refused
from policy.release import Ending, Release, ToolCall, Usage

UPSTREAM_PATH = "/v1/chat/completions"

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Struct, forbid_unknown_fields=True):
    """A text content part; other kinds (remote media above all) do not exist here."""

    type: Literal["text"]
    text: str


class CalledFunction(Struct, forbid_unknown_fields=True):
    """A function call in the conversation so far."""

    name: ToolName
    arguments: str


class CalledTool(Struct, forbid_unknown_fields=True):
    """A tool call in the conversation so far."""

    id: Annotated[str, Meta(max_length=128)]
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=128)] | None = None
    refusal: None = None


class ToolFunction(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A declared function. Its schema passes to the backend unread: it comes from outside."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    """A declared tool."""

    function: ToolFunction
    type: Literal["function"] = "function"


class NamedFunction(Struct, forbid_unknown_fields=True):
    """The function that must be called."""

    name: ToolName


class ToolChoice(Struct, forbid_unknown_fields=True):
    """Must call this tool."""

    function: NamedFunction
    type: Literal["function"] = "function"


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """Only plain text: it asks for nothing, and some clients always send it."""

    type: Literal["text"]


class ChatRequest(Sampling, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of a chat request."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


_REQUEST = msgspec.json.Decoder(ChatRequest)


def parse_request(body: bytes) -> ChatRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _REQUEST)
    if isinstance(request, Refused):
        return request
    names = [tool.function.name for tool in request.tools or ()]
    if len(set(names)) < len(names):
        return Refused(reason=Reason.INVALID_REQUEST, message="tools: two tools have one name.", param="tools")
    if isinstance(request.tool_choice, ToolChoice) and request.tool_choice.function.name not in names:
        message = "tool_choice: this function is not among the declared tools."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="tool_choice")
    return request


def sanitise(request: ChatRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The call for one backend, built field by field from the checked request."""
    tokens = tokens_max(request, rules)
    if isinstance(tokens, Refused):
        return tokens
    fields = upstream_fields(request, tokens=tokens, seed=identity.seed, rules=rules, tenant=tenant)
    fields["messages"] = request.messages
    if request.tools:
        fields["tools"] = request.tools
        if request.tool_choice is not None:
            fields["tool_choice"] = request.tool_choice
        if request.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = request.parallel_tool_calls
    stream = bool(request.stream)
    include_usage = rules.usage and (
        not stream or bool(request.stream_options and request.stream_options.include_usage)
    )
    fingerprint = fingerprint_of(fields.get("steering"))
    renderer = (StreamRenderer if stream else WholeRenderer)(
        identity=identity, model=rules.name, usage=include_usage, fingerprint=fingerprint
    )
    return Call(
        model=rules.name,
        stream=stream,
        upstream_method="POST",
        upstream_path=UPSTREAM_PATH,
        upstream_body=msgspec.json.encode(fields),
        answer_bytes_max=answer_bytes_max(tokens),
        tools_declared=frozenset(tool.function.name for tool in request.tools or ()),
        decoder=(StreamDecoder if stream else WholeDecoder)(usage=include_usage),
        renderer=renderer,
    )


def fingerprint_of(steering: Any) -> str:
    """Names a steering spec as it was sent: SHA-256 of its canonical JSON, 16 hex digits."""
    return hashlib.sha256(msgspec.json.encode(steering, order="sorted")).hexdigest()[:16]


class StreamRenderer:
    """Releases as `chat.completion.chunk` events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, identity: Identity, model: str, usage: bool, fingerprint: str) -> None:
        self._id = identity.id
        head = {
            "id": f"chatcmpl-{identity.id}",
            "object": "chat.completion.chunk",
            "created": identity.created_s,
            "model": model,
        }
        self._head = msgspec.json.encode(head)[:-1]  # an open object: `{"id":...`
        self._usage = usage
        self._fingerprint = fingerprint
        self._started = False

    def release(self, release: Release) -> bytes:
        """One release: at most one text chunk, and at the end the ending's chunks."""
        out = [] if self._started else [self._chunk(b'{"role":"assistant","content":""}')]
        self._started = True
        if release.text:
            out.append(self._chunk(b'{"content":' + msgspec.json.encode(release.text) + b"}"))
        if release.ending is not None:
            out += self._ending(release.ending)
        return b"".join(out)

    def _chunk(self, delta: bytes, finish: bytes = b"null", extra: bytes = b"") -> bytes:
        choice = b'{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + finish + b"}"
        return b"data: " + self._head + b',"choices":[' + choice + b"]" + extra + b"}\n\n"

    def _ending(self, ending: Ending) -> list[bytes]:
        refused = refusal_of(ending)
        if refused is not None:
            return [error_event(refused)]
        out = []
        for index, call in enumerate(ending.tool_calls):
            part = {"index": index, **tool_call_body(call, answer_id=self._id, index=index)}
            out.append(self._chunk(b'{"tool_calls":[' + msgspec.json.encode(part) + b"]}"))
        extra = b""
        if ending.numbers is not None:
            report = steering_body(ending.numbers, fingerprint=self._fingerprint)
            extra = b',"steering":' + msgspec.json.encode(report)
        out.append(self._chunk(b"{}", finish=msgspec.json.encode(ending.outcome.value), extra=extra))
        if self._usage and ending.usage is not None:
            usage = msgspec.json.encode(usage_body(ending.usage))
            out.append(b"data: " + self._head + b',"choices":[],"usage":' + usage + b"}\n\n")
        out.append(b"data: [DONE]\n\n")
        return out


class WholeRenderer:
    """One release, the last, as a `chat.completion`."""

    content_type = "application/json"

    def __init__(self, *, identity: Identity, model: str, usage: bool, fingerprint: str) -> None:
        self._identity = identity
        self._model = model
        self._usage = usage
        self._fingerprint = fingerprint

    def release(self, release: Release) -> bytes:
        """The whole body."""
        ending = release.ending
        assert ending is not None
        message: dict[str, Any] = {"role": "assistant", "content": release.text, "refusal": None}
        if ending.tool_calls:
            message["content"] = release.text or None
            message["tool_calls"] = [
                tool_call_body(call, answer_id=self._identity.id, index=index)
                for index, call in enumerate(ending.tool_calls)
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending.outcome.value}
        body: dict[str, Any] = {
            "id": f"chatcmpl-{self._identity.id}",
            "object": "chat.completion",
            "created": self._identity.created_s,
            "model": self._model,
            "choices": [choice],
        }
        if self._usage and ending.usage is not None:
            body["usage"] = usage_body(ending.usage)
        if ending.numbers is not None:
            body["steering"] = steering_body(ending.numbers, fingerprint=self._fingerprint)
        return msgspec.json.encode(body)


def tool_call_body(call: ToolCall, *, answer_id: str, index: int) -> dict[str, Any]:
    """A tool call with the gateway's own id."""
    return {
        "id": f"call_{answer_id}_{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def usage_body(usage: Usage) -> dict[str, int]:
    """Token counts; the total is the gateway's sum."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
