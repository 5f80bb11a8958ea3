"""What one process puts on the record at a time: leaves, encoded, and what was said, sealed to the auditors or left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from gateway.audit.sealing import SALT_BYTES, Content, Sealer, commitment
from gateway.ports import Clock
from gateway.record import Entry, Leaf, Sealed

BATCH_ID_BYTES = 16
CONTENT_BYTES_TOGETHER = 8 * 1024 * 1024  # and one more, of 4 MiB at most: what a worker's channel carries at once

_encode = msgspec.json.Encoder(order="deterministic").encode


class Batch(Struct, frozen=True, array_like=True):
    """Leaves as they stand in a log, JSON, one a line. If they have content, the last is `Sealed` and commits to `ciphertext`."""

    lines: bytes
    ciphertext: bytes = b""


class Scribe:
    """Writes the batches of one process. Without a sealer the log keeps no content, and says nothing of it."""

    def __init__(self, *, sealer: Sealer | None, clock: Clock) -> None:
        self._sealer = sealer
        self._clock = clock

    def batches(self, entries: Sequence[Entry]) -> Iterator[Batch]:
        """The entries, in order; in one batch unless they say very much."""
        if self._sealer is None:
            yield Batch(b"\n".join([_encode(entry.leaf) for entry in entries]))
            return
        salts = os.urandom(SALT_BYTES * len(entries))  # in one call, which costs more than what it returns
        lines: list[bytes] = []
        contents: list[Content] = []
        together_bytes = 0
        for number, entry in enumerate(entries):
            leaf = entry.leaf
            if entry.content is not None:
                salt = salts[SALT_BYTES * number : SALT_BYTES * (number + 1)]
                content = Content(salt=salt, data=_bytes(entry.content))
                contents.append(content)
                together_bytes += len(content.data)
                leaf = msgspec.structs.replace(leaf, content=commitment(content))
            lines.append(_encode(leaf))
            if together_bytes > CONTENT_BYTES_TOGETHER:
                yield self._batch(lines, contents)
                lines, contents, together_bytes = [], [], 0
        if lines:
            yield self._batch(lines, contents)

    def _batch(self, lines: list[bytes], contents: Sequence[Content]) -> Batch:
        if not contents:
            return Batch(b"\n".join(lines))
        assert self._sealer is not None
        batch = os.urandom(BATCH_ID_BYTES).hex()
        ciphertext = self._sealer.seal(contents, batch=batch, now_s=self._clock.monotonic_s())
        leaf: Leaf = Sealed(
            at_ms=int(self._clock.wall_s() * 1000),
            batch=batch,
            sha256=hashlib.sha256(ciphertext).hexdigest(),
            bytes=len(ciphertext),
        )
        return Batch(b"\n".join([*lines, _encode(leaf)]), ciphertext)


def _bytes(content: object) -> bytes:
    return content if isinstance(content, bytes) else msgspec.json.encode(content)
