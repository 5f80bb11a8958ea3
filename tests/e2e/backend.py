"""A backend that says whatever bytes a test gives it, over real sockets, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
SSE = "text/event-stream"


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request as it stood on the wire."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Exchange:
    """One request being answered. `cancelled` is set if the gateway closed the connection before the script ended."""

    def __init__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.keep_alive = True
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self, content_type: str = SSE, status: str = "200 OK", headers: str = "") -> None:
        """A chunked head; send body bytes with `chunk`, end with `finish`."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        await self.send(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.send(b"0\r\n\r\n")

    def abort(self) -> None:
        """Reset the connection."""
        self.keep_alive = False
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection cleanly, whatever was promised."""
        self.keep_alive = False
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def for_ever(self) -> None:
        """Say nothing more; ends when the gateway gives up."""
        await asyncio.Event().wait()


Script = Callable[[Exchange], Awaitable[None]]


class Gate:
    """Opened by a test, waited for by scripts."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def passed(self) -> None:
        await self._event.wait()


@dataclass
class Backend:
    """Runs in a thread with its own event loop. `script` answers every request but the health probe."""

    script: Script = field(default_factory=lambda: say("Hello from the backend."))
    port: int = 0
    exchanges: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="backend", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Received]:
        return [exchange.request for exchange in self.exchanges]

    def gate(self) -> Gate:
        return Gate(self.loop)

    def start(self) -> None:
        async def listen() -> asyncio.Server:
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)

        self._server = self._run(listen())
        self.port = self._server.sockets[0].getsockname()[1]

    def down(self) -> None:
        """Refuse connections and drop those that are open. `start` listens on the same port again."""

        async def drop() -> None:
            assert self._server is not None
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._run(drop())

    def close(self) -> None:
        self.down()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self, what: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await what

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        received = Received(head=head, body=await _body(reader, head))
        if received.line == "GET /readyz HTTP/1.1":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            return True
        exchange = Exchange(received, writer)
        self.exchanges.append(exchange)
        script = asyncio.ensure_future(self.script(exchange))
        gone = asyncio.ensure_future(_gone(reader))
        await asyncio.wait({script, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not script.done() or isinstance(script.exception(), ConnectionError):
            exchange.cancelled.set()
        for waiting in (script, gone):
            waiting.cancel()
        await asyncio.gather(script, gone, return_exceptions=True)
        return exchange.keep_alive and not exchange.cancelled.is_set()


async def _gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read(1)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.partition(b":")[2]))
        assert not line.startswith(b"transfer-encoding:"), "the gateway sends bodies with their length"
    return b""


def response(body: bytes, *, content_type: str = JSON, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole response with its length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def text_event(text: str, **extra: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], **extra})


def finish_event(reason: str = "stop", **extra: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **extra})


DONE = b"data: [DONE]\n\n"


def whole_body(text: str, *, reason: str = "stop", usage: tuple[int, int] = (3, 5)) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "backend-id",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
        }
    ).encode()


def say(text: str, *, pieces: int = 8, reason: str = "stop", usage: tuple[int, int] = (3, 5)) -> Script:
    """Streamed in so many pieces, or whole, as the request asks."""
    size = max(-(-len(text) // pieces), 1)
    parts = [text[start : start + size] for start in range(0, len(text), size)]

    async def script(exchange: Exchange) -> None:
        if exchange.request.json.get("stream"):
            counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
            await stream(exchange, parts, ending=[finish_event(reason), event({"choices": [], "usage": counts}), DONE])
        else:
            await exchange.send(response(whole_body(text, reason=reason, usage=usage)))

    return script


async def stream(exchange: Exchange, texts: Iterable[str], *, ending: Sequence[bytes] | None = None) -> None:
    """A whole stream: head, text, ending."""
    await exchange.begin()
    await rest(exchange, texts, ending=ending)


async def rest(exchange: Exchange, texts: Iterable[str] = (), *, ending: Sequence[bytes] | None = None) -> None:
    """What follows the head of a stream."""
    for text in texts:
        await exchange.chunk(text_event(text))
    for data in ending if ending is not None else [finish_event(), DONE]:
        await exchange.chunk(data)
    await exchange.finish()


def raw(data: bytes) -> Script:
    """Exactly these bytes, then the end of the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.close()

    return script
