"""What an honest server would say, as raw bytes: the cover under which everything else is hidden."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

TEXT = "A weir holds a river back and measures what passes over it, so that nobody has to guess."
JSON_TYPE = b"Content-Type: application/json"
STREAM_TYPE = b"Content-Type: text/event-stream"
ENVELOPE: dict[str, Any] = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": "target"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}


def compact(value: object) -> bytes:
    """JSON without spaces, as inference servers send it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chat(text: str | None = TEXT, *, finish: str = "stop", message: dict[str, Any] | None = None, **extra: Any) -> Any:
    """A `chat.completion`; `message` adds to the message, `extra` to the object."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **(message or {})},
        "finish_reason": finish,
    }
    return {"object": "chat.completion", **ENVELOPE, "choices": [choice], "usage": USAGE, **extra}


def whole(
    body: object = None, *, status: bytes = b"HTTP/1.1 200 OK", headers: Iterable[bytes] = (), type_: bytes = JSON_TYPE
) -> bytes:
    """A response with Content-Length. `body` is bytes, or an object to be written as JSON."""
    data = body if isinstance(body, bytes) else compact(chat() if body is None else body)
    return b"\r\n".join((status, type_, *headers, b"Content-Length: %d" % len(data), b"", data))


def event(delta: dict[str, Any], *, finish: str | None = None, **extra: Any) -> bytes:
    """One `data:` event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return data({"object": "chat.completion.chunk", **ENVELOPE, "choices": [choice], **extra})


def data(value: object) -> bytes:
    """A value as an SSE event."""
    return b"data: " + compact(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def closing(*, finish: str = "stop", **extra: Any) -> list[bytes]:
    """The events that end a stream."""
    return [event({}, finish=finish, **extra), DONE]


def events(text: str = TEXT) -> list[bytes]:
    """A whole stream with the text in one delta."""
    return [event({"content": text}), *closing()]


def chunk(payload: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\n" + STREAM_TYPE + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def stream(payloads: Sequence[bytes]) -> bytes:
    """A chunked response, one chunk for each payload."""
    return STREAM_HEAD + b"".join(map(chunk, payloads)) + LAST_CHUNK
