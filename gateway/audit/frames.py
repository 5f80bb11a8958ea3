"""The bytes of a segment file. Pure.

A segment is a head (magic, and the number of its first leaf in the log), then frames of `marker, length, offset, CRC-32,
payload`. Two kinds: leaves, one JSON object a line; and a ciphertext, which stands before the leaves that commit to it. Zeros
after the last frame are space that was laid out ahead.

What is flushed together is one write of one or several frames, and a power cut may leave its end and not its beginning. So
every frame says, as its offset, how many bytes of its write are before it: a whole frame behind a broken place proves damage
only if its write began behind that place too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"WEIRLOG3"
LEAVES = b"\xf5wf\n"  # 0xf5 occurs in no JSON, so that a search for frames finds frames
CIPHERTEXT = b"\xf5wc\n"
FRAME_BYTES_MAX = 80 * 1024 * 1024  # a ciphertext has 65 MiB at most; a length beyond this is damage
_HEAD = struct.Struct("<8sQ")
_FRAME = struct.Struct("<4sIII")
HEAD_BYTES = _HEAD.size


class Frame(NamedTuple):
    """A whole frame of a segment."""

    kind: bytes
    payload: bytes
    end: int  # where the next one begins
    write: int  # where the write began that it is part of


def head(first_leaf: int) -> bytes:
    """How a segment begins whose first leaf has this number."""
    return _HEAD.pack(MAGIC, first_leaf)


def first_leaf_of(data: bytes) -> int | None:
    """The number of a segment's first leaf. None if this is not the beginning of a segment."""
    if len(data) < _HEAD.size:
        return None
    magic, first_leaf = _HEAD.unpack_from(data)
    return int(first_leaf) if magic == MAGIC else None


def unfinished_head(data: bytes) -> bool:
    """Whether this is a segment that a crash left before its head was whole: cut off, or laid out and not written."""
    return (len(data) < HEAD_BYTES and MAGIC.startswith(data[: len(MAGIC)])) or (
        len(data) <= HEAD_BYTES and not any(data)
    )


def frame(kind: bytes, payload: bytes, *, offset: int = 0) -> bytes:
    """One frame, behind so many bytes of the same write."""
    return _FRAME.pack(kind, len(payload), offset, _checksum(payload, offset)) + payload


def frames(data: bytes) -> Iterator[Frame]:
    """The frames of a segment, up to the first that is not whole."""
    offset = HEAD_BYTES
    while (found := frame_at(data, offset)) is not None:
        yield found
        offset = found.end


def frame_at(data: bytes, offset: int) -> Frame | None:
    """The frame that begins at this place, if a whole one does."""
    if len(data) - offset < _FRAME.size:
        return None
    kind, length, before, checksum = _FRAME.unpack_from(data, offset)
    if kind not in (LEAVES, CIPHERTEXT) or length > FRAME_BYTES_MAX:
        return None
    begin = offset + _FRAME.size
    payload = data[begin : begin + length]
    if len(payload) < length or _checksum(payload, before) != checksum:
        return None
    return Frame(kind, payload, begin + length, offset - before)


def later_write(data: bytes, offset: int) -> bool:
    """Whether a whole frame of a write that began behind this place is there: then what stands here is damage, and no torn end."""
    for kind in (LEAVES, CIPHERTEXT):
        later = data.find(kind, offset + 1)
        while later != -1:
            found = frame_at(data, later)
            if found is not None and found.write > offset:
                return True
            later = data.find(kind, later + 1)
    return False


def _checksum(payload: bytes, offset: int) -> int:
    return zlib.crc32(payload, zlib.crc32(offset.to_bytes(4, "little")))
