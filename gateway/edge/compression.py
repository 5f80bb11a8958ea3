"""Compressing a response body as the client asked, flushed at every release so that nothing waits for the next one.

The compressed length is a function of what is released, which has been charged: it tells nobody anything new.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from backports.zstd import ZstdCompressor

ZSTD_LEVEL = 3  # a stream is compressed a few hundred bytes at a time: higher levels gain nothing
GZIP_LEVEL = 6
_GZIP_WBITS = 31  # RFC 1952 framing


class Encoder(Protocol):
    """One body's content coding."""

    coding: str

    def encode(self, data: bytes, *, last: bool) -> bytes:
        """All of `data`, decodable at once by the other side."""


class ZstdEncoder:
    """RFC 8878."""

    coding = "zstd"

    def __init__(self) -> None:
        self._compressor = ZstdCompressor(level=ZSTD_LEVEL)

    def encode(self, data: bytes, *, last: bool) -> bytes:
        """See `Encoder.encode`."""
        if last:
            return self._compressor.compress(data, mode=ZstdCompressor.FLUSH_FRAME)
        return self._compressor.compress(data, mode=ZstdCompressor.FLUSH_BLOCK)


class GzipEncoder:
    """RFC 1952."""

    coding = "gzip"

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(GZIP_LEVEL, wbits=_GZIP_WBITS)

    def encode(self, data: bytes, *, last: bool) -> bytes:
        """See `Encoder.encode`."""
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def negotiate(accept_encoding: str | None) -> Encoder | None:
    """The best coding that the client accepts (RFC 9110, section 12.5.3); None for identity."""
    accepted = _accepted(accept_encoding or "")
    if "zstd" in accepted:
        return ZstdEncoder()
    if "gzip" in accepted:
        return GzipEncoder()
    return None


def _accepted(header: str) -> set[str]:
    codings = set()
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if parameters.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}:
            codings.add(coding.strip())
    return codings
