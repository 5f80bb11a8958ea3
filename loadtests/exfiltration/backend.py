"""The hostile backend: an HTTP server that says exactly the bytes it is told to, when it is told to."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from loadtests.exfiltration import honest

HEAD_BYTES_MAX = 64 << 10
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as the backend sees it. The decoder outside numbers its requests in the prompt."""

    method: str
    path: str
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON body."""
        return json.loads(self.body) if self.body else {}

    @property
    def number(self) -> int:
        """Which request of the theft this is: the last message, the prompt or the input is a number."""
        fields = self.fields
        if "messages" in fields:
            return int(fields["messages"][-1]["content"])
        said = fields.get("input", fields.get("prompt", "0"))
        return int(said[0] if isinstance(said, list) else said)


class Wire:
    """The backend's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.over = False

    async def send(self, data: bytes) -> None:
        """These bytes, now."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """End of file."""
        self.over = True
        self._writer.close()

    async def reset(self) -> None:
        """No end of file: the connection breaks."""
        self.over = True
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Say nothing until the other side has had enough."""
        await self._reader.read(1)
        self.over = True


Act = Callable[[Ask, Wire], Awaitable[None]]


async def be_honest(_: Ask, wire: Wire) -> None:
    """The act between two thefts."""
    await wire.send(honest.whole())


class Backend:
    """Listens on one port; `act` is what it does with a request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.act: Act = be_honest
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Accept connections."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)

    async def refuse(self) -> None:
        """Stop listening, so that connections are refused, and drop those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._connections):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self._connections.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while not wire.over:
                    ask = await _request(reader)
                    if ask.path == "/readyz":
                        await wire.send(honest.whole())
                    else:
                        await self.act(ask, wire)
        except asyncio.CancelledError:
            pass  # the loop is closing; asyncio's stream server would log it as an error
        finally:
            self._connections.discard(writer)
            writer.close()


@asynccontextmanager
async def running(port: int) -> AsyncIterator[Backend]:
    """A backend that listens, for the length of a block."""
    backend = Backend(port)
    await backend.listen()
    try:
        yield backend
    finally:
        await backend.refuse()


async def _request(reader: asyncio.StreamReader) -> Ask:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    method, path, _ = head.split(b" ", 2)
    return Ask(method.decode(), path.decode(), body)
