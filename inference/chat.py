"""Messages → the text of a prompt, through the model's own chat template, run in a sandbox."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.tools import ToolChoice, described, tool_call_text

Message = Mapping[str, Any]


class TemplateError(Exception):
    """The template refused these messages (wrong order of roles, for example); the message is fit for the client."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """One model's template. `bos`, `eos`: token texts the template may write."""

    source: str
    bos: str
    eos: str

    @property
    def renders_tools(self) -> bool:
        """Whether the template has a place for tool declarations of its own."""
        return "tools" in self.source

    def render(self, messages: Sequence[Message], *, tools: ToolChoice | None = None) -> str:
        """Text up to where the assistant begins to speak, a forced beginning included. Raises TemplateError."""
        if self.renders_tools:
            declared = tools.declarations if tools else None
            text = self._run([_with_parsed_arguments(message) for message in messages], declared)
        else:
            plain = [_without_tool_fields(message) for message in messages]
            text = self._run(_with_system_text(plain, described(tools)) if tools else plain, None)
        return text + (tools.forced_beginning if tools else "")

    def _run(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        try:
            template = _environment().from_string(self.source)
            return template.render(
                messages=messages, tools=tools, add_generation_prompt=True, bos_token=self.bos, eos_token=self.eos
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise TemplateError(f"the chat template refused the messages: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise
    # Jinja's own filter escapes for HTML; models were trained on plain JSON.
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _without_tool_fields(message: Message) -> Message:
    """For templates that know roles and content only: calls become tags, results come from the user."""
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ()
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    tags = [tool_call_text(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return {"role": message["role"], "content": "\n".join([content, *tags] if content else tags)}


def _with_parsed_arguments(message: Message) -> Message:
    """Templates with tools expect arguments as an object, the API carries them as a string of JSON."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    parsed = []
    for call in calls:
        function = dict(call["function"])
        try:
            function["arguments"] = json.loads(function["arguments"])
        except ValueError as error:
            raise TemplateError("tool_calls[].function.arguments is not JSON") from error
        parsed.append({**call, "function": function})
    return {**message, "content": message.get("content") or "", "tool_calls": parsed}


def _with_system_text(messages: Sequence[Message], text: str) -> list[Message]:
    if messages and messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
