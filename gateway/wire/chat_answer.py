"""Releases as answers of the OpenAI chat dialect, streamed and whole."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.dialect import Identity
from gateway.wire.errors import error_event, refusal_of
from gateway.wire.steering_report import steering_body
from policy.release import Ending, Release, ToolCall, Usage


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
        """One release: at most one chunk of reasoning and one of text, and at the end the ending's chunks."""
        out = [] if self._started else [self._chunk(b'{"role":"assistant","content":""}')]
        self._started = True
        if release.reasoning:
            out.append(self._chunk(b'{"reasoning_content":' + msgspec.json.encode(release.reasoning) + b"}"))
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
            report = steering_body(ending.numbers, flags=ending.flags, fingerprint=self._fingerprint)
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
        if release.reasoning:
            message["reasoning_content"] = release.reasoning
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
            body["steering"] = steering_body(ending.numbers, flags=ending.flags, fingerprint=self._fingerprint)
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
