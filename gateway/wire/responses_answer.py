"""Releases as answers of the Responses dialect. Streamed, they are named events that count themselves.

A stream builds its answer up item by item - reasoning, message, calls - and ends with the whole of it once more.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.wire.dialect import Identity
from gateway.wire.errors import refusal_of
from policy.refusal import Refused
from policy.release import Ending, Outcome, Release, ToolCall, Usage

Item = dict[str, Any]
Kind = Literal["reasoning", "message"]

_PART_TYPES = {"reasoning": "reasoning_text", "message": "output_text"}
_DELTAS = {"reasoning": "response.reasoning_text", "message": "response.output_text"}
_ID_PREFIXES = {"reasoning": "rs", "message": "msg"}


class _Shapes:
    """The documents that whole and streamed answers share."""

    def __init__(self, *, identity: Identity, model: str, usage: bool, asked: dict[str, Any]) -> None:
        self._identity = identity
        self._usage = usage
        self._head: dict[str, Any] = {
            "id": f"resp_{identity.id}",
            "object": "response",
            "created_at": identity.created_s,
            "model": model,
            **asked,
        }

    def response(
        self, status: str, *, output: list[Item], usage: Usage | None = None, error: Refused | None = None
    ) -> Item:
        """A response object. What the client asked at length (instructions, tools) is not repeated."""
        return {
            **self._head,
            "status": status,
            "error": {"code": error.code or error.reason.value.code, "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "metadata": {},
            "output": output,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "truncation": "disabled",
            "usage": usage_body(usage) if self._usage and usage is not None else None,
        }

    def words(self, kind: Kind, text: str | None, *, status: str) -> Item:
        """An item of reasoning, or a message; `text` None: before its first part."""
        content = [] if text is None else [part(kind, text)]
        item: Item = {"id": f"{_ID_PREFIXES[kind]}_{self._identity.id}", "type": kind, "status": status}
        if kind == "reasoning":
            return item | {"summary": [], "content": content}
        return item | {"role": "assistant", "content": content}

    def call(self, call: ToolCall, index: int, *, arguments: str, status: str) -> Item:
        """A function call, with ids of the gateway's own."""
        return {
            "id": f"fc_{self._identity.id}_{index}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{self._identity.id}_{index}",
            "name": call.name,
            "arguments": arguments,
        }


class StreamRenderer:
    """Releases as `response.*` events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, identity: Identity, model: str, usage: bool, asked: dict[str, Any]) -> None:
        self._shapes = _Shapes(identity=identity, model=model, usage=usage, asked=asked)
        self._number = 0
        self._open: Kind | None = None  # the item that deltas go to
        self._text: list[str] = []  # of the open item
        self._output: list[Item] = []  # the items that are closed

    def release(self, release: Release) -> bytes:
        """One release: the deltas, and the opening and closing of items around them."""
        out = []
        if self._number == 0:
            started = self._shapes.response("in_progress", output=[])
            out = [self._event("response.created", response=started)]
            out.append(self._event("response.in_progress", response=started))
        if release.reasoning:
            out += self._say("reasoning", release.reasoning)
        if release.text:
            out += self._say("message", release.text)
        if release.ending is not None:
            refused = refusal_of(release.ending)
            out += self._failed(refused) if refused is not None else self._ended(release.ending)
        return b"".join(out)

    def _say(self, kind: Kind, text: str) -> list[bytes]:
        out = [] if self._open == kind else [*self._close("completed"), *self._begin(kind)]
        self._text.append(text)
        out.append(self._at(f"{_DELTAS[kind]}.delta", kind, delta=text, **_logprobs(kind)))
        return out

    def _begin(self, kind: Kind) -> list[bytes]:
        self._open = kind
        item = self._shapes.words(kind, None, status="in_progress")
        return [
            self._event("response.output_item.added", output_index=len(self._output), item=item),
            self._at("response.content_part.added", kind, part=part(kind, "")),
        ]

    def _close(self, status: str) -> list[bytes]:
        kind = self._open
        if kind is None:
            return []
        text = "".join(self._text)
        item = self._shapes.words(kind, text, status=status)
        out = [
            self._at(f"{_DELTAS[kind]}.done", kind, text=text, **_logprobs(kind)),
            self._at("response.content_part.done", kind, part=part(kind, text)),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        self._open = None
        self._text.clear()
        return out

    def _call(self, call: ToolCall, index: int) -> list[bytes]:
        at = {"output_index": len(self._output)}
        begun = self._shapes.call(call, index, arguments="", status="in_progress")
        item = self._shapes.call(call, index, arguments=call.arguments, status="completed")
        self._output.append(item)
        where = {"item_id": item["id"], **at}
        return [
            self._event("response.output_item.added", **at, item=begun),
            self._event("response.function_call_arguments.delta", **where, delta=call.arguments),
            self._event("response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", **at, item=item),
        ]

    def _ended(self, ending: Ending) -> list[bytes]:
        status = status_of(ending)
        out = []
        if not ending.tool_calls and self._open != "message":
            out += [*self._close("completed"), *self._begin("message")]  # an answer without a word is a message as well
        out += self._close(status)
        for index, call in enumerate(ending.tool_calls):
            out += self._call(call, index)
        response = self._shapes.response(status, output=self._output, usage=ending.usage)
        return [*out, self._event(f"response.{status}", response=response)]

    def _failed(self, refused: Refused) -> list[bytes]:
        """What was said is not repeated as an output: it is no answer."""
        return [self._event("response.failed", response=self._shapes.response("failed", output=[], error=refused))]

    def _at(self, name: str, kind: Kind, /, **more: Any) -> bytes:
        """An event about the open item's one part."""
        item_id = self._shapes.words(kind, None, status="")["id"]
        return self._event(name, item_id=item_id, output_index=len(self._output), content_index=0, **more)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        body = msgspec.json.encode({"type": name, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


class WholeRenderer:
    """One release, the last, as a response object."""

    content_type = "application/json"

    def __init__(self, *, identity: Identity, model: str, usage: bool, asked: dict[str, Any]) -> None:
        self._shapes = _Shapes(identity=identity, model=model, usage=usage, asked=asked)

    def release(self, release: Release) -> bytes:
        """The whole body."""
        ending = release.ending
        assert ending is not None
        status = status_of(ending)
        output = []
        if release.reasoning:
            output.append(self._shapes.words("reasoning", release.reasoning, status="completed"))
        if release.text or not ending.tool_calls:
            output.append(self._shapes.words("message", release.text, status=status))
        output += [
            self._shapes.call(call, index, arguments=call.arguments, status="completed")
            for index, call in enumerate(ending.tool_calls)
        ]
        return msgspec.json.encode(self._shapes.response(status, output=output, usage=ending.usage))


def status_of(ending: Ending) -> Literal["completed", "incomplete"]:
    """Of an ending that is complete: the model stopped, or was stopped at `max_output_tokens`."""
    return "incomplete" if ending.outcome is Outcome.LENGTH else "completed"


def part(kind: Kind, text: str) -> Item:
    """A content part."""
    shape: Item = {"type": _PART_TYPES[kind], "text": text}
    return shape | {"annotations": [], "logprobs": []} if kind == "message" else shape


def usage_body(usage: Usage) -> Item:
    """Token counts. The details are not known, so they are zero."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprobs(kind: Kind) -> Item:
    return {"logprobs": []} if kind == "message" else {}
