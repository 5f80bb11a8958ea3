"""The bytes of a segment file. Pure.

A segment is a head (magic, and the number of its first leaf in the log), then frames of `marker, length, CRC-32, payload`.
Two kinds: leaves, one JSON object a line; and a ciphertext, which stands before the leaves that commit to it. Zeros after the
last frame are space that was laid out ahead.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"WEIRLOG2"
LEAVES = b"\xf5wf\n"  # 0xf5 occurs in no JSON, so that a search for frames finds frames
CIPHERTEXT = b"\xf5wc\n"
FRAME_BYTES_MAX = 80 * 1024 * 1024  # a ciphertext has 65 MiB at most; a length beyond this is damage
_HEAD = struct.Struct("<8sQ")
_FRAME = struct.Struct("<4sII")
HEAD_BYTES = _HEAD.size


class Frame(NamedTuple):
    """A whole frame of a segment."""

    kind: bytes
    payload: bytes
    end: int  # where the next one begins


def head(first_leaf: int) -> bytes:
    """How a segment begins whose first leaf has this number."""
    return _HEAD.pack(MAGIC, first_leaf)


def first_leaf_of(data: bytes) -> int | None:
    """The number of a segment's first leaf. None if this is not the beginning of a segment."""
    if len(data) < _HEAD.size:
        return None
    magic, first_leaf = _HEAD.unpack_from(data)
    return int(first_leaf) if magic == MAGIC else None


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return _FRAME.pack(kind, len(payload), zlib.crc32(payload)) + payload


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
    kind, length, checksum = _FRAME.unpack_from(data, offset)
    if kind not in (LEAVES, CIPHERTEXT) or length > FRAME_BYTES_MAX:
        return None
    begin = offset + _FRAME.size
    payload = data[begin : begin + length]
    if len(payload) < length or zlib.crc32(payload) != checksum:
        return None
    return Frame(kind, payload, begin + length)


def whole_frame_after(data: bytes, offset: int) -> bool:
    """Whether a whole frame begins somewhere behind this place: then what stands here is damage, and no torn end."""
    for kind in (LEAVES, CIPHERTEXT):
        later = data.find(kind, offset + 1)
        while later != -1:
            if frame_at(data, later) is not None:
                return True
            later = data.find(kind, later + 1)
    return False
