"""Releases as answers of the Anthropic dialect: content blocks - thinking, text, tool use - opened and closed in order."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.wire.dialect import Identity
from gateway.wire.errors import anthropic_error_body, refusal_of
from policy.release import Ending, Outcome, Release, ToolCall, Usage

Block = dict[str, Any]
Kind = Literal["thinking", "text"]

STOP_REASONS = {Outcome.STOP: "end_turn", Outcome.LENGTH: "max_tokens", Outcome.TOOL_CALLS: "tool_use"}


class StreamRenderer:
    """Releases as named events."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, identity: Identity, model: str) -> None:
        self._identity = identity
        self._model = model
        self._started = False
        self._index = 0  # of the block that is open, or comes next
        self._open: Kind | None = None

    def release(self, release: Release) -> bytes:
        """One release: the deltas, and the opening and closing of blocks around them."""
        out = []
        if not self._started:
            self._started = True
            message = _message(self._identity, self._model, content=[], ending=None)
            out.append(_event("message_start", message=message))
        if release.reasoning:
            out += self._say("thinking", release.reasoning)
        if release.text:
            out += self._say("text", release.text)
        if release.ending is not None:
            out += self._ending(release.ending)
        return b"".join(out)

    def _say(self, kind: Kind, text: str) -> list[bytes]:
        out = [] if self._open == kind else [*self._close(), self._begin(words(kind, ""))]
        self._open = kind
        return [*out, self._delta({"type": f"{kind}_delta", kind: text})]

    def _begin(self, block: Block) -> bytes:
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: Block) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)

    def _close(self) -> list[bytes]:
        was_open, self._open = self._open is not None, None
        return [self._stop()] if was_open else []

    def _ending(self, ending: Ending) -> list[bytes]:
        refused = refusal_of(ending)
        if refused is not None:
            return [b"event: error\ndata: " + anthropic_error_body(refused) + b"\n\n"]
        out = self._close()
        for number, call in enumerate(ending.tool_calls):
            block = tool_use(call, self._identity, number)
            out.append(self._begin(block | {"input": {}}))
            out.append(self._delta({"type": "input_json_delta", "partial_json": bytes(block["input"]).decode()}))
            out.append(self._stop())
        delta = {"stop_reason": STOP_REASONS[ending.outcome], "stop_sequence": None}
        out.append(_event("message_delta", delta=delta, usage=usage_body(ending.usage)))
        return [*out, _event("message_stop")]


class WholeRenderer:
    """One release, the last, as a message."""

    content_type = "application/json"

    def __init__(self, *, identity: Identity, model: str) -> None:
        self._identity = identity
        self._model = model

    def release(self, release: Release) -> bytes:
        """The whole body."""
        ending = release.ending
        assert ending is not None
        content = [words("thinking", release.reasoning)] if release.reasoning else []
        if release.text:
            content.append(words("text", release.text))
        content += [tool_use(call, self._identity, number) for number, call in enumerate(ending.tool_calls)]
        return msgspec.json.encode(_message(self._identity, self._model, content=content, ending=ending))


def words(kind: Kind, text: str) -> Block:
    """A block of thinking or text. Thinking is not signed: nobody checks it when it comes back."""
    block: Block = {"type": kind, kind: text}
    return block | {"signature": ""} if kind == "thinking" else block


def tool_use(call: ToolCall, identity: Identity, number: int) -> Block:
    """A tool call with the gateway's own id. The dialect's `input` is an object; what is none is wrapped, as Anthropic advises."""
    arguments = call.arguments
    try:
        whole = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError):
        whole = False
    data = arguments.encode() if whole else b"{}" if not arguments else msgspec.json.encode({"INVALID_JSON": arguments})
    return {"type": "tool_use", "id": f"toolu_{identity.id}_{number}", "name": call.name, "input": msgspec.Raw(data)}


def usage_body(usage: Usage | None) -> dict[str, int]:
    """Token counts, or zeros where policy releases none: the dialect has no way to leave them out."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def _message(identity: Identity, model: str, *, content: list[Block], ending: Ending | None) -> Block:
    return {
        "id": f"msg_{identity.id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": STOP_REASONS[ending.outcome] if ending is not None else None,
        "stop_sequence": None,
        "usage": usage_body(ending.usage if ending is not None else None),
    }


def _event(name: str, **fields: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name, **fields}) + b"\n\n"
