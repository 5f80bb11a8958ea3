"""Chunked transfer coding, decoded from any split of the bytes (RFC 9112 §7.1). No I/O."""

SIZE_LINE_BYTES_MAX = 256  # a size is 16 hex digits at most; the rest is room for chunk extensions, which we skip
CHUNK_BYTES_MAX = 16 << 20  # far above any answer here; a larger size is a framing fault, not data


class ProtocolError(Exception):
    """The peer's bytes are not HTTP/1.1 as RFC 9112 frames it."""


class ChunkedBody:
    """Feed wire bytes in any split; read `body`; stop when `complete`. Bytes after the end stay in `rest`."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self.rest = bytearray()
        self._in_trailers = False

    def feed(self, data: bytes) -> None:
        """Decode what is whole. Raises ProtocolError as soon as the framing is known to be wrong."""
        self.rest += data
        at = 0
        while not self.complete:
            line_end = self.rest.find(b"\r\n", at)
            if line_end < 0:
                if len(self.rest) - at > SIZE_LINE_BYTES_MAX:
                    raise ProtocolError("chunk size line without end")
                break
            if self._in_trailers:
                self.complete = line_end == at
                at = line_end + 2
                continue
            size = chunk_size(bytes(self.rest[at:line_end]))
            data_start, data_end = line_end + 2, line_end + 2 + size
            if size == 0:
                self._in_trailers = True
                at = data_start
                continue
            if len(self.rest) < data_end + 2:
                break
            if self.rest[data_end : data_end + 2] != b"\r\n":
                raise ProtocolError(f"chunk of {size} bytes does not end in CRLF")
            self.body += self.rest[data_start:data_end]
            at = data_end + 2
        del self.rest[:at]


def chunk_size(line: bytes) -> int:
    """The size that a chunk's first line states, extensions skipped."""
    digits = line.partition(b";")[0].strip(b" \t")
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise ProtocolError(f"not a chunk size: {line[:40]!r}")
    size = int(digits, 16)
    if size > CHUNK_BYTES_MAX:
        raise ProtocolError(f"chunk of {size} bytes is over the limit of {CHUNK_BYTES_MAX}")
    return size
