"""Tool calls as text: how tools are told to a model, and how its answer is read back.

The spelling `<tool_call>{"name": …, "arguments": …}</tool_call>` is that of Hermes and Qwen2.5.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """The tools of one request. `forced` None: the model decides; "": some tool must be called; else this one."""

    declarations: tuple[dict[str, Any], ...]
    forced: str | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(declaration["function"]["name"] for declaration in self.declarations)

    @property
    def forced_beginning(self) -> str:
        """Text put into the model's mouth, so that a forced call is not left to its goodwill."""
        if self.forced is None:
            return ""
        only = self.forced or (next(iter(self.names)) if len(self.names) == 1 else "")
        return f'{OPENING}\n{{"name": ' + (f'{json.dumps(only)}, "arguments": {{' if only else '"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call the model made: a declared name and its arguments as compact JSON."""

    name: str
    arguments: str


def described(choice: ToolChoice) -> str:
    """System text for templates without a place for tools."""
    lines = [json.dumps(declaration["function"], ensure_ascii=False) for declaration in choice.declarations]
    return (
        "You may call functions. Their signatures, one JSON object per line:\n"
        + "\n".join(lines)
        + "\nTo call one, answer with its name and arguments as JSON inside a tag, and nothing else:\n"
        + f'{OPENING}{{"name": "<function name>", "arguments": <object>}}{CLOSING}'
    )


def tool_call_text(name: str, arguments: str) -> str:
    """How an earlier call of a conversation is shown to the model again; `arguments` is JSON text."""
    return f'{OPENING}{{"name": {json.dumps(name)}, "arguments": {arguments}}}{CLOSING}'


def read_tool_calls(text: str, names: frozenset[str]) -> tuple[str, list[ToolCall]]:
    """Split an answer into plain text and calls. A tag that holds no call of a declared tool stays text as it is."""
    content: list[str] = []
    calls: list[ToolCall] = []
    while OPENING in text:
        before, _, rest = text.partition(OPENING)
        parsed = _read_one(rest, names)
        content.append(before)
        if parsed is None:
            content.append(OPENING)
            text = rest
        else:
            call, text = parsed
            calls.append(call)
    content.append(text)
    joined = "".join(content)
    return (joined.strip() if calls else joined), calls


def is_complete_call(text: str, names: frozenset[str]) -> bool:
    """Whether text after the opening tag already holds a whole call (its closing tag may be missing)."""
    return _read_one(text, names) is not None


def _read_one(text: str, names: frozenset[str]) -> tuple[ToolCall, str] | None:
    stripped = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(stripped)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in names or not isinstance(value.get("arguments"), dict):
        return None
    rest = stripped[end:].lstrip()
    arguments = json.dumps(value["arguments"], ensure_ascii=False, separators=(",", ":"))
    return ToolCall(name=value["name"], arguments=arguments), rest.removeprefix(CLOSING)


def declared(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None) -> ToolChoice | None:
    """Combine the fields `tools` and `tool_choice` of a request. Raises ValueError with a sentence for the client."""
    if choice not in (None, "none", "auto") and not tools:
        raise ValueError("tool_choice needs tools")
    if not tools or choice == "none":
        return None
    if choice in (None, "auto"):
        return ToolChoice(declarations=tuple(tools))
    if choice == "required":
        return ToolChoice(declarations=tuple(tools), forced="")
    if not isinstance(choice, dict) or choice.get("type") != "function" or set(choice) != {"type", "function"}:
        raise ValueError('tool_choice is "none", "auto", "required" or {"type": "function", "function": {"name": …}}')
    function = choice["function"]
    name = function.get("name") if isinstance(function, dict) and set(function) == {"name"} else None
    wanted = ToolChoice(declarations=tuple(tools), forced=name)
    if not isinstance(name, str) or name not in wanted.names:
        raise ValueError("tool_choice names a function that tools does not declare")
    return wanted
