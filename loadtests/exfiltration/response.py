"""An HTTP/1.1 response with nothing thrown away: what a decoder can look at. Bytes in, any split; no I/O.

Lenient on purpose. It must show what a hostile backend hides in framing that a good client would refuse or skip.
"""

from dataclasses import dataclass, field

LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """One HTTP chunk as framed; a body without chunked coding is a chunk for every arrival."""

    size_line: bytes
    data: bytes
    at_s: float


@dataclass(slots=True)
class Response:
    """Feed it wire bytes with their time of arrival; it is over when `complete`, or when the connection is."""

    interim: list[bytes] = field(default_factory=list)  # heads of 1xx responses
    head: bytes = b""
    chunks: list[Chunk] = field(default_factory=list)
    trailer: bytes = b""
    surplus: bytes = b""  # after the end
    complete: bool = False
    end: str = "open"  # complete, closed, reset, timeout or left
    began_s: float = 0.0  # when the request had been sent
    first_s: float | None = None
    last_s: float = 0.0
    _rest: bytes = b""
    _length: int | None = None
    _chunked: bool = False

    def feed(self, data: bytes, at_s: float) -> None:
        """Take in wire bytes."""
        if self.first_s is None:
            self.first_s = at_s
        self.last_s = at_s
        if self.complete:
            self.surplus += data
            return
        self._rest += data
        if not self.head:
            self._read_head()
        if self.head and not self.complete:
            (self._read_chunks if self._chunked else self._read_plain)(at_s)

    @property
    def status(self) -> int:
        """0 while there is no head."""
        words = self.status_line.split(b" ", 2)
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0

    @property
    def status_line(self) -> bytes:
        """The first line, as it came."""
        return self.head.partition(b"\r\n")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names and values as spelled, in order."""
        return [split_header(line) for line in self.head.split(b"\r\n")[1:] if line]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, in any case."""
        return next((value.strip() for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def body(self) -> bytes:
        """The body so far, chunk framing removed."""
        return b"".join(chunk.data for chunk in self.chunks)

    @property
    def unread_bytes(self) -> int:
        """How much has come that is no whole head or chunk yet."""
        return len(self._rest)

    def _read_head(self) -> None:
        while b"\r\n\r\n" in self._rest:
            head, _, self._rest = self._rest.partition(b"\r\n\r\n")
            if head.split(b" ", 2)[1:2] and head.split(b" ", 2)[1].startswith(b"1"):
                self.interim.append(head)
                continue
            self.head = head
            length = self.header(b"content-length")
            self._length = int(length) if length is not None and length.isdigit() else None
            self._chunked = b"chunked" in (self.header(b"transfer-encoding") or b"").lower()
            if self.status in (204, 304):
                self._length = 0
            return

    def _read_plain(self, at_s: float) -> None:
        data, self._rest = self._rest, b""
        if self._length is not None:
            data, self.surplus = data[: self._length], data[self._length :]
            self._length -= len(data)
            self.complete = self._length == 0
        if data:
            self.chunks.append(Chunk(b"", data, at_s))

    def _read_chunks(self, at_s: float) -> None:
        while (line_end := self._rest.find(b"\r\n")) >= 0:
            line = self._rest[:line_end]
            try:
                size = int(line.partition(b";")[0].strip() or b"0", 16)
            except ValueError:
                return  # not a chunk: whatever comes is never complete
            if size == 0:
                self._read_trailer(line_end + 2)
                return
            data_end = line_end + 2 + size
            if len(self._rest) < data_end + 2:
                return
            self.chunks.append(Chunk(line, self._rest[line_end + 2 : data_end], at_s))
            self._rest = self._rest[data_end + 2 :]

    def _read_trailer(self, start: int) -> None:
        if self._rest.startswith(b"\r\n", start):
            self.complete, self.surplus = True, self._rest[start + 2 :]
        elif (end := self._rest.find(b"\r\n\r\n", start)) >= 0:
            self.complete, self.trailer, self.surplus = True, self._rest[start:end], self._rest[end + 4 :]


def split_header(line: bytes) -> tuple[bytes, bytes]:
    """Name and value, spelled as they came."""
    name, _, value = line.partition(b":")
    return name, value
