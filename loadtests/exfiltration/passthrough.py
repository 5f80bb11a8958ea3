"""A plain reverse proxy that adds and removes nothing: bytes, boundaries and moments pass as they come.

It is the control of the experiment. A theft that does not succeed through it proves nothing about a gateway.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

RESET = struct.pack("ii", 1, 0)  # SO_LINGER without time: closing sends RST


@asynccontextmanager
async def running(*, port: int, upstream_port: int) -> AsyncIterator[None]:
    """Listen on `port` and join every connection to one of its own to the upstream."""
    sides: set[Side] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientSide(sides, upstream_port=upstream_port), "127.0.0.1", port, backlog=1024
    )
    try:
        yield
    finally:
        server.close()
        for side in tuple(sides):
            side.reset()


class Side(asyncio.Protocol):
    """One end of a joined pair: what it receives, the other one sends, at once."""

    def __init__(self, sides: set[Side]) -> None:
        self.sides = sides
        self.other: Side | None = None
        self.ended = False  # nothing more comes from here
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.sides.add(self)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """An end of file passes on as one; the other direction stays open until it ends as well."""
        self.ended = True
        if self.other is None or self.other.ended:
            return False
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """A reset passes on as one."""
        self.sides.discard(self)
        if self.other is not None and not self.other.transport.is_closing():
            self.other.reset() if exc is not None else self.other.transport.close()

    def pause_writing(self) -> None:
        """A slow reader slows the writer down."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """And lets it go on."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def reset(self) -> None:
        """Break the connection, with RST."""
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()


class ClientSide(Side):
    """The end that was connected to; it opens the other one."""

    def __init__(self, sides: set[Side], *, upstream_port: int) -> None:
        super().__init__(sides)
        self._upstream_port = upstream_port
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read nothing before there is somebody to pass it on to."""
        super().connection_made(transport)
        self.transport.pause_reading()
        self._joining = asyncio.get_running_loop().create_task(self._join())

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(lambda: Side(self.sides), "127.0.0.1", self._upstream_port)
        except OSError:
            self.reset()
            return
        if self.transport.is_closing():
            other.reset()
            return
        self.other, other.other = other, self
        self.transport.resume_reading()
