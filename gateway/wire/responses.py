"""`POST /v1/responses`: the OpenAI Responses dialect, without state: the whole conversation comes with every request."""

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
from gateway.wire.fields import Request, Temperature, TokensMax, TopP, Unlisted, parse
from gateway.wire.generation import Heeded
from gateway.wire.responses_answer import StreamRenderer, WholeRenderer
from policy.limits import MESSAGES_MAX, TOOLS_MAX
from policy.refusal import Reason, Refused

PATH = "/v1/responses"

Id = Annotated[str, Meta(max_length=128)]

_STATELESS = "answers are not stored; send the whole conversation as `input`"
_UNLISTED = Unlisted(
    reasons={
        "store": _STATELESS,
        "previous_response_id": _STATELESS,
        "conversation": _STATELESS,
        "background": _STATELESS,
        "prompt": "prompts are not stored; send `instructions` and `input`",
        "include": "nothing beyond the answer is released, log-probabilities least of all",
        "top_logprobs": "log-probabilities are not released",
        "logprobs": "log-probabilities are not released",
        "truncation": "the conversation is not shortened; send less of it",
        "service_tier": "there is one tier",
        "seed": "the gateway chooses the seed, so that an answer can be checked later",
    },
    harmless={
        "store": (False, None),
        "previous_response_id": (None,),
        "conversation": (None,),
        "background": (False, None),
        "prompt": (None,),
        "include": ([], None),
        "top_logprobs": (0, None),
        "truncation": ("disabled", None),
        "service_tier": ("auto", "default", None),
        "max_tool_calls": (None,),
    },
    dropped=frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}),
)


class ContentPart(Struct, forbid_unknown_fields=True):
    """Text, in or out. Images and files do not exist here."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
    text: str
    annotations: list[Any] | None = None  # of an earlier answer; not passed on
    logprobs: list[Any] | None = None  # likewise


class InputItem(Struct, forbid_unknown_fields=True):
    """A message, a function call, its output, or reasoning of an earlier answer. `_FIELDS` says which fields which must have."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: Id | None = None
    name: ToolName | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: None = None
    id: Id | None = None  # the gateway's own, of an earlier answer; not passed on
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class FunctionTool(Struct, forbid_unknown_fields=True):
    """A declared function. The tools that OpenAI runs itself do not exist here."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Struct, forbid_unknown_fields=True):
    """Must call this function."""

    type: Literal["function"]
    name: ToolName


class TextFormat(Struct, forbid_unknown_fields=True):
    """Only plain text."""

    type: Literal["text"]


class TextConfig(Struct, forbid_unknown_fields=True):
    """`text`: what it may say asks for nothing."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Struct, forbid_unknown_fields=True):
    """`reasoning`: a hint, which no field of the chat dialect carries on. Policy decides whether reasoning is released."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None


class ResponseStreamOptions(Struct, forbid_unknown_fields=True):
    """Obfuscation pads events to hide their length; here that is quantised and charged."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Request, forbid_unknown_fields=True, kw_only=True):
    """The allow-list of a Responses request."""

    input: Annotated[str, Meta(min_length=1)] | Annotated[list[InputItem], Meta(min_length=1, max_length=MESSAGES_MAX)]
    instructions: str | None = None
    max_output_tokens: TokensMax | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None


_REQUEST = msgspec.json.Decoder(ResponsesRequest)


def parse_request(body: bytes) -> ResponsesRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _REQUEST, _UNLISTED)
    if isinstance(request, Refused):
        return request
    if not isinstance(request.input, str):
        for index, item in enumerate(request.input):
            for name in _FIELDS[item.type]:
                if getattr(item, name) is None:
                    param = f"input[{index}].{name}"
                    message = f"{param}: an item of type {item.type} needs it."
                    return Refused(reason=Reason.INVALID_REQUEST, message=message, param=param)
    return contradiction(_in_chat(request)) or request


def sanitise(request: ResponsesRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The same question in the chat dialect, for one backend."""
    asked = _in_chat(request)
    choice = request.tool_choice
    renderer = (StreamRenderer if asked.stream else WholeRenderer)(
        identity=identity,
        model=rules.name,
        usage=rules.usage,
        asked={
            "max_output_tokens": request.max_output_tokens,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "temperature": request.temperature,
            "tool_choice": msgspec.to_builtins(choice) if choice is not None else "auto",
            "top_p": request.top_p,
        },
    )
    heeded = Heeded(usage=rules.usage and rules.usage_claimed, reasoning=rules.reasoning)
    return chat_call(
        asked, rules, identity, tenant=tenant, heeded=heeded, renderer=renderer, tokens_param="max_output_tokens"
    )


def _in_chat(request: ResponsesRequest) -> ChatRequest:
    messages = [ChatMessage(role="system", content=request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        messages.append(ChatMessage(role="user", content=request.input))
    else:
        for item in request.input:
            _add(messages, item)
    choice = request.tool_choice
    return ChatRequest(
        model=request.model,
        messages=messages,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        tools=[
            Tool(
                function=ToolFunction(
                    name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
                )
            )
            for tool in request.tools or ()
        ],
        tool_choice=ToolChoice(function=NamedFunction(name=choice.name)) if isinstance(choice, NamedTool) else choice,
        parallel_tool_calls=request.parallel_tool_calls,
    )


def _add(messages: list[ChatMessage], item: InputItem) -> None:
    """An item as a chat message, or as part of the one before it: calls belong to the assistant's turn."""
    match item.type:
        case "message":
            assert item.role is not None
            messages.append(ChatMessage(role=item.role, content=_content(item.content)))
        case "function_call":
            assert item.call_id is not None
            assert item.name is not None
            function = CalledFunction(name=item.name, arguments=item.arguments or "")
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage(role="assistant"))
            turn = messages[-1]
            turn.tool_calls = [*(turn.tool_calls or ()), CalledTool(id=item.call_id, function=function)]
        case "function_call_output":
            messages.append(ChatMessage(role="tool", content=_content(item.output), tool_call_id=item.call_id))
        case "reasoning":
            pass  # what a model thought earlier is not for the next turn


def _content(content: str | list[ContentPart] | None) -> str | list[TextPart]:
    if content is None or isinstance(content, str):
        return content or ""
    if len(content) == 1:
        return content[0].text  # engines agree on strings more than on lists
    return [TextPart(type="text", text=part.text) for part in content]
