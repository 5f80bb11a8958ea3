"""`POST /v1/chat/completions`: the OpenAI chat dialect. Every engine speaks it, so the other dialects ask in it as well."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.chat_answer import StreamRenderer, WholeRenderer
from gateway.wire.dialect import Call, Identity, ModelRules, Renderer
from gateway.wire.fields import (
    Sampling,
    answer_bytes_max,
    fingerprint,
    in_own_spelling,
    parse,
    tokens_max,
    upstream_fields,
)
from gateway.wire.generation import Heeded, Room, StreamDecoder, WholeDecoder
from gateway.wire.steering_spec import contradiction as steering_contradiction
from policy.limits import MESSAGES_MAX, TOOLS_MAX
from policy.refusal import Reason, Refused

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
    return contradiction(request) or steering_contradiction(request.steering) or in_own_spelling(request)


def contradiction(request: ChatRequest) -> Refused | None:
    """What a request says against itself."""
    names = [tool.function.name for tool in request.tools or ()]
    if len(set(names)) < len(names):
        return Refused(reason=Reason.INVALID_REQUEST, message="tools: two tools have one name.", param="tools")
    if isinstance(request.tool_choice, ToolChoice) and request.tool_choice.function.name not in names:
        message = "tool_choice: this function is not among the declared tools."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="tool_choice")
    return None


def sanitise(request: ChatRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The call for one backend, built field by field from the checked request."""
    stream = bool(request.stream)
    steered = fingerprint(request, tenant=tenant)
    usage = usage_wanted(request, rules)
    heeded = Heeded(
        usage=usage and rules.usage_claimed,
        reasoning=rules.reasoning,
        steering=steered is not None,
        gates=request.gates,
    )
    renderer = (StreamRenderer if stream else WholeRenderer)(
        identity=identity, model=rules.name, usage=usage, fingerprint=steered or ""
    )
    return chat_call(request, rules, identity, tenant=tenant, heeded=heeded, renderer=renderer)


def usage_wanted(request: Sampling, rules: ModelRules) -> bool:
    """Streams carry token counts only if they were asked for."""
    return rules.usage and (not request.stream or bool(request.stream_options and request.stream_options.include_usage))


def chat_call(
    request: ChatRequest,
    rules: ModelRules,
    identity: Identity,
    *,
    tenant: str,
    heeded: Heeded,
    renderer: Renderer,
    tokens_param: str = "max_tokens",
) -> Call | Refused:
    """A call in the chat dialect, whatever dialect its answer is rendered in."""
    tokens = tokens_max(request, rules, param=tokens_param)
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
    return Call(
        model=rules.name,
        stream=stream,
        upstream_method="POST",
        upstream_path=UPSTREAM_PATH,
        upstream_body=msgspec.json.encode(fields),
        answer_bytes_max=answer_bytes_max(tokens),
        tools_declared=frozenset(tool.function.name for tool in request.tools or ()),
        decoder=(StreamDecoder if stream else WholeDecoder)(heeded, Room(tokens=tokens, token_ids=rules.token_ids)),
        renderer=renderer,
        reasoning=heeded.reasoning,
    )
