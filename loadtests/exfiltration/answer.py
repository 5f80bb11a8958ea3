"""What a client understands of a response body: the text, and everything beside it that JSON can say."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadtests.exfiltration.response import Response


@dataclass(frozen=True, slots=True)
class Said:
    """One JSON object of an answer, and when its last byte came."""

    body: dict[str, Any]
    at_s: float


def objects(response: Response) -> list[Said]:
    """The JSON objects of a body: one, or one for each SSE event."""
    if b"event-stream" in (response.header(b"content-type") or b""):
        return list(_events(response))
    found = _object(response.body)
    return [Said(found, response.last_s)] if found is not None else []


def first(response: Response) -> dict[str, Any]:
    """The first object, or an empty one."""
    return next((said.body for said in objects(response)), {})


def text_of(response: Response) -> str:
    """The text that a client would show."""
    return "".join(text for text, _ in texts(response))


def texts(response: Response) -> list[tuple[str, float]]:
    """Pieces of text and when each came."""
    pieces = []
    for said in objects(response):
        for choice in said.body.get("choices") or ():
            message = choice.get("delta") or choice.get("message") or {}
            text = message.get("content") or choice.get("text")
            if text:
                pieces.append((str(text), said.at_s))
    return pieces


def finish_of(response: Response) -> str | None:
    """The finish reason, if there was one."""
    found = None
    for said in objects(response):
        for choice in said.body.get("choices") or ():
            found = choice.get("finish_reason") or found
    return found


def calls_of(response: Response) -> list[dict[str, Any]]:
    """Tool calls in the order of their index, fragments joined."""
    calls: dict[int, dict[str, Any]] = {}
    for said in objects(response):
        for choice in said.body.get("choices") or ():
            message = choice.get("delta") or choice.get("message") or {}
            for position, part in enumerate(message.get("tool_calls") or ()):
                index = part.get("index", position)
                call = calls.setdefault(index, {"id": None, "name": None, "arguments": ""})
                function = part.get("function") or {}
                call["id"] = part.get("id") or call["id"]
                call["name"] = function.get("name") or call["name"]
                call["arguments"] += function.get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def error_of(response: Response) -> dict[str, Any]:
    """The error object of a refusal or of a broken stream; empty if there is none."""
    for said in objects(response):
        error = said.body.get("error")
        if isinstance(error, dict):
            return error
    return {}


def _events(response: Response) -> Iterator[Said]:
    buffer = b""
    for chunk in response.chunks:
        buffer += chunk.data.replace(b"\r\n", b"\n")
        *blocks, buffer = buffer.split(b"\n\n")
        for block in blocks:
            lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            found = _object(b"\n".join(lines))
            if found is not None:
                yield Said(found, chunk.at_s)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
