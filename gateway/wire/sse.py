"""Server-sent events (WHATWG HTML, section 9.2) as a push parser: bytes in, the `data` of each event out.

Comments, event names, ids and retry hints are read and dropped: a backend must not be able to say anything with them.
"""

from __future__ import annotations

from collections.abc import Iterator

from policy.canonical import Malformed
from policy.limits import EVENT_BYTES_MAX


class EventParser:
    """Feed it any split of the bytes; it yields the data of every event completed by them."""

    __slots__ = ("_buffer", "_carriage_return", "room_bytes")

    def __init__(self, *, room_bytes: int) -> None:
        self.room_bytes = room_bytes  # how much more may come; whoever reads the events may add to it
        self._buffer = b""
        self._carriage_return = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take in bytes, yield data. Raises `Malformed` at an event over `EVENT_BYTES_MAX`, after yielding those before it."""
        if b"\r" in chunk or self._carriage_return:
            chunk = self._normalise(chunk)
        *blocks, self._buffer = (self._buffer + chunk).split(b"\n\n")
        for block in blocks:
            self.room_bytes -= (
                len(block) + 2
            )  # counted block by block, so that it does not depend on how they were split
            if self.room_bytes < 0:
                raise Malformed("more bytes on the wire than an answer of so many tokens needs")
            if block.startswith(b"data: ") and b"\n" not in block and len(block) <= EVENT_BYTES_MAX:
                yield block[6:]  # nearly every event of every engine
            elif (data := _data_of(block)) is not None:
                yield data
        if len(self._buffer.removesuffix(b"\n")) > EVENT_BYTES_MAX:
            raise Malformed(f"event over {EVENT_BYTES_MAX} bytes")

    def _normalise(self, chunk: bytes) -> bytes:
        """CR LF and CR become LF. A CR at the end of a chunk waits for the LF that may follow it."""
        if self._carriage_return:
            chunk = b"\r" + chunk
        self._carriage_return = chunk.endswith(b"\r")
        if self._carriage_return:
            chunk = chunk[:-1]
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(block: bytes) -> bytes | None:
    if len(block) > EVENT_BYTES_MAX:
        raise Malformed(f"event over {EVENT_BYTES_MAX} bytes")
    lines = [
        line[5:].removeprefix(b" ") if line.startswith(b"data:") else b""
        for line in block.split(b"\n")
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines) if lines else None
