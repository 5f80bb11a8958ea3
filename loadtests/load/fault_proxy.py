"""A TCP proxy between gateway and upstream that harms answers: it resets, stalls, babbles, starts late or hangs up.

It sits on loopback in the process of the run. Each request that goes through draws one `Harm`; bytes to the upstream pass.
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import cast

LINGER_NOT = struct.pack("ii", 1, 0)  # on, for no time: closing sends RST instead of FIN (socket(7))


class Harm(Enum):
    """What is done to an answer."""

    NONE = "none"
    RESET = "reset"  # the connection is aborted inside the answer
    HANG_UP = "hang up"  # it is closed cleanly inside the answer
    STALL = "stall"  # nothing more comes, for longer than the gateway waits
    GARBAGE = "garbage"  # bytes that are no HTTP, no UTF-8 and no JSON
    LATE = "late"  # the first byte takes a while, but less than the gateway waits
    TOO_LATE = "too late"  # and longer than that


@dataclass(frozen=True, kw_only=True)
class Timing:
    """In seconds. What is late stays below the gateway's patience, what is too late goes beyond."""

    late_s: float
    too_late_s: float
    stall_s: float


class FaultProxy:
    """Listens on a port of its own until closed. `weights` may be changed while it runs: none means that all is well."""

    def __init__(self, *, upstream_port: int, timing: Timing, seed: int = 0) -> None:
        self.weights: Mapping[Harm, float] = {Harm.NONE: 1.0}
        self.done: Counter[Harm] = Counter()  # harms that were drawn
        self.open = 0  # connections
        self.timing = timing
        self.upstream_port = upstream_port
        self.random = random.Random(seed)
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> None:
        """On loopback."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Front(self), "127.0.0.1", port)

    def close(self) -> None:
        """Accept nothing more."""
        if self._server is not None:
            self._server.close()

    def draw(self) -> Harm:
        """For one answer."""
        harm = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        self.done[harm] += 1
        return harm


class _Front(asyncio.Protocol):
    """A connection of the gateway's."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._early = bytearray()  # before the way to the upstream is open
        self._back: _Back | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._proxy.open += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self._back = await loop.create_connection(
                lambda: _Back(self._proxy, self), "127.0.0.1", self._proxy.upstream_port
            )
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            self._back.transport.abort()
        elif self._early:
            self._back.asked(bytes(self._early))

    def data_received(self, data: bytes) -> None:
        if self._back is None:
            self._early += data
        else:
            self._back.asked(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.open -= 1
        if self._back is not None:
            self._back.transport.abort()


class _Back(asyncio.Protocol):
    """The connection to the upstream that belongs to one of the gateway's."""

    def __init__(self, proxy: FaultProxy, front: _Front) -> None:
        self._proxy = proxy
        self._front = front
        self._harm = Harm.NONE
        self._room = 0  # bytes that still pass unharmed
        self._held: bytearray | None = None  # what is not let through yet
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def asked(self, data: bytes) -> None:
        """Bytes of a request. One that begins draws what will become of its answer."""
        if data.startswith(b"POST "):
            self._harm = self._proxy.draw()
            self._room = self._proxy.random.randrange(1, 4000)
            self._held = None
            if self._harm in (Harm.LATE, Harm.TOO_LATE):
                timing = self._proxy.timing
                self._hold(timing.late_s if self._harm is Harm.LATE else timing.too_late_s)
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            return
        if self._harm in (Harm.NONE, Harm.LATE, Harm.TOO_LATE) or len(data) < self._room:
            self._room -= len(data)
            self._front.transport.write(data)
            return
        self._front.transport.write(data[: self._room])
        rest = data[self._room :]
        if self._harm is Harm.RESET:
            connection = self._front.transport.get_extra_info("socket")
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT
            )  # or else it ends as if all were well
            self._front.transport.abort()
        elif self._harm is Harm.HANG_UP:
            self._front.transport.close()
        elif self._harm is Harm.GARBAGE:
            self._front.transport.write(bytes(self._proxy.random.choices(range(0x80, 0x100), k=64)))
            self._harm = Harm.NONE  # what follows passes: nobody should trust it any more
            self._front.transport.write(rest)
        else:
            self._hold(self._proxy.timing.stall_s)
            assert self._held is not None
            self._held += rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._front.transport.close()

    def _hold(self, seconds: float) -> None:
        self._held = bytearray()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._let_through)

    def _let_through(self) -> None:
        held, self._held, self._harm = self._held, None, Harm.NONE
        if held and not self._front.transport.is_closing():
            self._front.transport.write(bytes(held))
