"""`POST /v1/messages`: the Anthropic dialect. The question goes to the backend in the chat dialect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.chat import (
    CalledFunction,
    CalledTool,
    ChatMessage,
    ChatRequest,
    NamedFunction,
    TextPart,
    Tool,
    ToolChoice,
    ToolFunction,
    ToolName,
    chat_call,
    contradiction,
)
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.fields import REFUSED_FIELDS, Request, Stops, TokensMax, TopK, TopP, Unlisted, parse
from gateway.wire.generation import Heeded
from gateway.wire.messages_answer import StreamRenderer, WholeRenderer
from policy.limits import MESSAGES_MAX, TOOLS_MAX
from policy.refusal import Reason, Refused

PATH = "/v1/messages"

Id = Annotated[str, Meta(max_length=128)]

_STATELESS = "nothing is kept between requests"
_UNLISTED = Unlisted(
    reasons=REFUSED_FIELDS
    | {
        "container": _STATELESS,
        "context_management": _STATELESS,
        "mcp_servers": "the gateway calls no other servers",
        "output_config": "it is not supported",
    },
    harmless={
        "container": (None,),
        "mcp_servers": ([], None),
        "service_tier": ("auto", "standard_only", None),
        "speed": ("standard", None),
        "inference_geo": (None,),
        "cache_control": (None, {"type": "ephemeral"}),
    },
    dropped=frozenset({"metadata"}),
)


class TextBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text. `cache_control`, a hint, and citations of earlier answers are not passed on; nor are they anywhere below."""

    text: str
    cache_control: Any = None
    citations: Any = None


class ToolUseBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A tool call in the conversation so far."""

    id: Id
    name: ToolName
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResultBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    """What a tool gave. The chat dialect has no field for `is_error`; the content says it."""

    tool_use_id: Id
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


class ThinkingBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    """What a model thought earlier is not for the next turn: accepted, because clients send answers back whole, and dropped."""

    thinking: str
    signature: str | None = None


class AnthropicMessage(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock]


class AnthropicTool(Struct, forbid_unknown_fields=True):
    """A declared tool. The tools that Anthropic runs itself do not exist here."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Any = None


class AnthropicToolChoice(Struct, forbid_unknown_fields=True):
    """Which tool must be called, if any."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, forbid_unknown_fields=True):
    """A hint, which no field of the chat dialect carries on; `disabled` keeps reasoning out of the answer."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokensMax | None = None
    display: Any = None


class MessagesRequest(Request, forbid_unknown_fields=True, kw_only=True):
    """The allow-list of a Messages request."""

    max_tokens: TokensMax
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    system: str | list[TextBlock] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop_sequences: Stops | None = None
    stream: bool | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None


_REQUEST = msgspec.json.Decoder(MessagesRequest)
_CHOICES: dict[str, Literal["none", "auto", "required"]] = {"auto": "auto", "any": "required", "none": "none"}


def parse_request(body: bytes) -> MessagesRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _REQUEST, _UNLISTED)
    if isinstance(request, Refused):
        return request
    if request.tool_choice is not None and (request.tool_choice.type == "tool") != (
        request.tool_choice.name is not None
    ):
        message = "tool_choice.name: it is needed for the type 'tool', and for no other."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="tool_choice.name")
    return contradiction(_in_chat(request)) or request


def sanitise(request: MessagesRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The same question in the chat dialect, for one backend."""
    asked = _in_chat(request)
    renderer = (StreamRenderer if asked.stream else WholeRenderer)(identity=identity, model=rules.name)
    unwanted = request.thinking is not None and request.thinking.type == "disabled"
    heeded = Heeded(usage=rules.usage and rules.usage_claimed, reasoning=rules.reasoning and not unwanted)
    return chat_call(asked, rules, identity, tenant=tenant, heeded=heeded, renderer=renderer)


def _in_chat(request: MessagesRequest) -> ChatRequest:
    messages = [ChatMessage(role="system", content=_content(request.system))] if request.system else []
    for message in request.messages:
        messages += _turn(message)
    choice = request.tool_choice
    named = choice.name if choice is not None else None
    return ChatRequest(
        model=request.model,
        messages=messages,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences or None,
        stream=request.stream,
        tools=[
            Tool(
                function=ToolFunction(
                    name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
                )
            )
            for tool in request.tools or ()
        ],
        tool_choice=ToolChoice(function=NamedFunction(name=named))
        if named is not None
        else _CHOICES[choice.type]
        if choice is not None
        else None,
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
    )


def _turn(message: AnthropicMessage) -> list[ChatMessage]:
    """A turn as chat messages: what tools gave, each by itself, then what was said, with the calls that were made."""
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    texts, calls, results = [], [], []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block)
            case ToolUseBlock():
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(CalledTool(id=block.id, function=CalledFunction(name=block.name, arguments=arguments)))
            case ToolResultBlock():
                content = _content(block.content or "")
                results.append(ChatMessage(role="tool", content=content, tool_call_id=block.tool_use_id))
            case ThinkingBlock():
                pass
    if texts or calls or not results:
        said = _content(texts) if texts or not calls else None
        results.append(ChatMessage(role=message.role, content=said, tool_calls=calls or None))
    return results


def _content(content: str | list[TextBlock]) -> str | list[TextPart]:
    if isinstance(content, str):
        return content
    if len(content) <= 1:
        return "".join(block.text for block in content)  # engines agree on strings more than on lists
    return [TextPart(type="text", text=block.text) for block in content]
