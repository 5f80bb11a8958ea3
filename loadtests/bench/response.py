"""One HTTP/1.1 response, read from any split of the bytes: just enough to time it and to trust it. No I/O."""

from loadtests.bench.chunked import ChunkedBody, ProtocolError

HEAD_BYTES_MAX = 64 << 10  # servers commonly cap a head at 8 to 64 KiB


class Response:
    """Feed wire bytes until `complete`; `status` is 0 until the head is there."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self.keep_alive = True
        self._head = bytearray()
        self._chunked: ChunkedBody | None = None
        self._plain = bytearray()
        self._plain_bytes: int | None = None  # None: the body ends where the connection does

    @property
    def body(self) -> bytearray:
        """The decoded body as far as it has come."""
        return self._plain if self._chunked is None else self._chunked.body

    def feed(self, data: bytes) -> None:
        """Raises ProtocolError on bad framing, also on bytes after the end: nobody asked for a second answer."""
        if self.complete:
            raise ProtocolError(f"{len(data)} bytes after the end of the response")
        if self.status == 0:
            self._head += data
            head_end = self._head.find(b"\r\n\r\n")
            if head_end < 0:
                if len(self._head) > HEAD_BYTES_MAX:
                    raise ProtocolError("response head over the limit")
                return
            data = bytes(self._head[head_end + 4 :])
            self._read_head(bytes(self._head[:head_end]))
        if self._chunked is not None:
            self._chunked.feed(data)
            self.complete = self._chunked.complete
            surplus = len(self._chunked.rest) if self.complete else 0
        else:
            self._plain += data
            self.complete = self._plain_bytes is not None and len(self._plain) >= self._plain_bytes
            surplus = len(self._plain) - (self._plain_bytes or 0) if self.complete else 0
        if surplus:
            raise ProtocolError(f"{surplus} bytes after the end of the response")

    def feed_eof(self) -> None:
        """The connection ended. Only a body without declared length is complete by that (RFC 9112 §6.3)."""
        self.keep_alive = False
        if self.complete:
            return
        if self.status == 0 or self._chunked is not None or self._plain_bytes is not None:
            raise ProtocolError(f"connection closed inside a response, after {len(self.body)} bytes of body")
        self.complete = True

    def _read_head(self, head: bytes) -> None:
        status_line, *lines = head.split(b"\r\n")
        version, _, rest = status_line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ProtocolError(f"not an HTTP/1.1 status line: {status_line[:80]!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip().lower()
        self.status = int(rest[:3])
        self.keep_alive = headers.get(b"connection") != b"close" and version != b"HTTP/1.0"
        if headers.get(b"transfer-encoding") == b"chunked":
            self._chunked = ChunkedBody()
        elif (length := headers.get(b"content-length")) is not None:
            if not length.isdigit():
                raise ProtocolError(f"not a content length: {length[:40]!r}")
            self._plain_bytes = int(length)
