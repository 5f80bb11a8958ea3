"""An HTTP/1.1 client that sends exactly the bytes it is told and shows exactly what came back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 20.0


@dataclass(kw_only=True)
class Response:
    """What came back. `complete` is False if the connection ended before the framing said so."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = True
    raw_head: bytes = b""

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The body as an OpenAI error; fails if it has another shape."""
        assert self.header("Content-Type") == "application/json"
        document = self.json
        assert document.keys() == {"error"}
        error = document["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        return error

    @property
    def events(self) -> list[dict[str, Any] | str]:
        return events(self.body)

    @property
    def text(self) -> str:
        return text_of(self.events)


def events(body: bytes) -> list[dict[str, Any] | str]:
    """The complete SSE events of a body: documents, and the word `[DONE]`."""
    blocks = body.split(b"\n\n")[:-1]
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    data = [block.removeprefix(b"data: ") for block in blocks]
    return ["[DONE]" if item == b"[DONE]" else json.loads(item) for item in data]


def text_of(items: list[dict[str, Any] | str]) -> str:
    """All content of a stream's chunks, concatenated."""
    choices = [choice for item in items if isinstance(item, dict) for choice in item.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)


@dataclass
class Connection:
    """One TCP connection to a gateway."""

    address: tuple[str, int]
    _buffer: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(self.address, timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> Response:
        """Status line and headers. `ConnectionError` if the connection ends before."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                raise ConnectionError(f"the connection ended after {self._buffer!r}")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (item.partition(":") for item in lines)]
        return Response(line=line, headers=headers, raw_head=head)

    def pieces(self, response: Response) -> Iterator[bytes]:
        """The body as it comes; sets `complete` at the end."""
        length = response.header("Content-Length")
        if length is not None:
            yield from self._sized(response, int(length))
        elif response.header("Transfer-Encoding") == "chunked":
            yield from self._chunked(response)
        else:
            while self._more():
                pass
            data, self._buffer = self._buffer, b""
            yield data

    def response(self) -> Response:
        """A whole response, as far as it came."""
        response = self.head()
        for piece in self.pieces(response):
            response.body += piece
        return response

    def _sized(self, response: Response, length: int) -> Iterator[bytes]:
        while len(self._buffer) < length:
            if not self._more():
                response.complete = False
                break
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        yield data

    def _chunked(self, response: Response) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    response.complete = False
                    return
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(self._buffer) < size + 2:
                if not self._more():
                    response.complete = False
                    return
            data, self._buffer = self._buffer[:size], self._buffer[size + 2 :]
            if size == 0:
                return
            yield data

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)


def request(
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: bytes | dict[str, Any] = b"",
    *,
    key: str | None = None,
    content_type: str | None = "application/json",
    headers: str = "",
) -> bytes:
    """The bytes of a request with its length."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n"
    if key is not None:
        lines += f"Authorization: Bearer {key}\r\n"
    if body:
        lines += f"Content-Length: {len(body)}\r\n"
        if content_type is not None:
            lines += f"Content-Type: {content_type}\r\n"
    return (lines + headers + "\r\n").encode() + body


def chat(text: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """A chat request's body for the test model."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
