"""Calls and answers between two processes over one stream socket. Both sides may call, and many calls may be open at once.

A frame is `length, kind, number, payload`; the payload is msgpack. What a call asks for is the type of its argument, so a
side is described by a table from argument types to functions. Both ends are the same program, so whatever is not
understood is a bug: the channel breaks, and every waiting call fails with it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any, TypeVar, cast

import msgspec

FRAME_BYTES_MAX = 24 * 1024 * 1024  # more than the audit log takes in one frame
CALLS_MAX = 1024  # open at once in one direction; a caller beyond it waits

_FRAME = struct.Struct(">IBQ")  # of the payload; kind; number
_CALL, _ANSWER, _FAULT = range(3)

Answers = Mapping[type[msgspec.Struct], Callable[[Any], Awaitable[object]]]
T = TypeVar("T")


class ChannelBroken(Exception):
    """The other side is gone, or said what cannot be read. Whether it did what it was asked is unknown."""


class _Fault(msgspec.Struct, frozen=True, array_like=True):
    name: str
    message: str


class Channel(asyncio.Protocol):
    """One end. `answers` may be asked from the moment it is made; `faults` are the exceptions that cross as what they are."""

    def __init__(
        self, *, answers: Answers, faults: tuple[type[Exception], ...], bug: Callable[[Exception], None]
    ) -> None:
        self._answers = answers
        self._faults = {fault.__name__: fault for fault in faults}
        self._bug = bug  # told what an answering function raised that is not among `faults`
        self._decode_call = msgspec.msgpack.Decoder(reduce(or_, answers) if answers else msgspec.Struct).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._buffer = bytearray()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(CALLS_MAX)
        self._writable = asyncio.Event()
        self._writable.set()
        self._broken: str | None = None
        self._lost = asyncio.Event()
        self._transport: asyncio.Transport

    async def call(self, argument: msgspec.Struct, answer: type[T]) -> T:
        """Ask the other side, whose answer is of this type. Raises `ChannelBroken`, and what the other side raised."""
        await self._writable.wait()
        await self._free.acquire()
        self._number += 1
        number = self._number
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        waiting.add_done_callback(lambda _: self._answered(number))
        if self._broken is None:
            self._send(_CALL, number, argument)
        else:
            waiting.set_exception(ChannelBroken(self._broken))
        # Shielded: a caller that is cancelled leaves its place free only when the other side has done what it was asked.
        return msgspec.msgpack.decode(await asyncio.shield(waiting), type=answer)

    async def broken(self) -> None:
        """Return when it is of no more use."""
        await self._lost.wait()

    async def lost(self) -> None:
        """Return when the channel is broken and nothing that came over it is being done any more."""
        await self._lost.wait()
        while self._answering:
            await asyncio.wait(self._answering)

    def close(self) -> None:
        """Break it, after what was written before has left."""
        self._transport.close()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Made on a socket."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        self._buffer += data
        start = 0
        while self._broken is None and len(self._buffer) - start >= _FRAME.size:
            size, kind, number = _FRAME.unpack_from(self._buffer, start)
            if size > FRAME_BYTES_MAX:
                self._break(f"a frame of {size} bytes came; {FRAME_BYTES_MAX} is the limit")
                return
            end = start + _FRAME.size + size
            if len(self._buffer) < end:
                break
            self._take(kind, number, bytes(memoryview(self._buffer)[start + _FRAME.size : end]))
            start = end
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed its end, or died."""
        self._break("the other side is gone" if exc is None else str(exc))
        self._lost.set()

    def pause_writing(self) -> None:
        """The other side reads slower than this one writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        waiting = self._waiting.get(number) if kind != _CALL else None
        try:
            if kind == _CALL and len(self._answering) < CALLS_MAX:
                # Tasks begin in the order in which they are made, so what they do before they first wait is in order too.
                task = asyncio.get_running_loop().create_task(self._do(number, self._decode_call(payload)))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            elif kind == _ANSWER:
                if waiting is not None and not waiting.done():
                    waiting.set_result(payload)
            elif kind == _FAULT:
                fault = msgspec.msgpack.decode(payload, type=_Fault)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(self._faults[fault.name](fault.message))
            else:
                self._break(f"a frame of kind {kind} came out of place")
        except (msgspec.MsgspecError, KeyError) as unreadable:
            self._break(f"what came cannot be read: {unreadable}")

    def _answered(self, number: int) -> None:
        self._free.release()
        self._waiting.pop(number).exception()  # looked at, because a caller that was cancelled will not

    async def _do(self, number: int, argument: msgspec.Struct) -> None:
        try:
            answer = await self._answers[type(argument)](argument)
        except tuple(self._faults.values()) as fault:
            message = str(fault.args[0]) if fault.args else ""
            self._send(_FAULT, number, _Fault(type(fault).__name__, message))
        except Exception as bug:  # noqa: BLE001  the caller must not go on as if it had been answered
            self._bug(bug)
            self._break(f"{type(argument).__name__} failed")
        else:
            self._send(_ANSWER, number, answer)

    def _send(self, kind: int, number: int, what: object) -> None:
        payload = self._encode(what)
        if len(payload) > FRAME_BYTES_MAX:
            self._break(f"a frame of {len(payload)} bytes was to be sent; {FRAME_BYTES_MAX} is the limit")
        elif self._broken is None:
            self._transport.write(_FRAME.pack(len(payload), kind, number) + payload)

    def _break(self, why: str) -> None:
        if self._broken is not None:
            return
        self._broken = why
        self._writable.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelBroken(why))
        self._transport.abort()


async def open_channel(
    end: socket.socket, *, answers: Answers, faults: tuple[type[Exception], ...], bug: Callable[[Exception], None]
) -> Channel:
    """A channel on one end of a connected stream socket, which belongs to it from here on."""
    end.setblocking(False)
    _, channel = await asyncio.get_running_loop().create_connection(
        lambda: Channel(answers=answers, faults=faults, bug=bug), sock=end
    )
    return channel
