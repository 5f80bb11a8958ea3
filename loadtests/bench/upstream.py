"""The inference server of the benchmark: canned OpenAI answers, as cheap as Python can send them.

A plain asyncio.Protocol on uvloop, so that on a small machine the upstream takes little from the proxy under test.
Pace belongs to the process and not to the request, since a gateway is free to drop headers it does not know.
"""

import argparse
import asyncio
import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO, cast

import uvloop

from loadtests.bench import answer
from loadtests.bench.chunked import ChunkedBody, ProtocolError

HEAD_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 4 << 20  # the benchmark sends a few hundred bytes; this only bounds a runaway peer
ASKS_FOR_STREAM = re.compile(rb'"stream"\s*:\s*true')
NUMBER = re.compile(rb"#(\d{8})")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)


def main() -> None:
    """`python -m loadtests.bench.upstream --port 9101 [--pace-ms 5] [--arrivals FILE]`"""
    parser = argparse.ArgumentParser(prog="loadtests.bench.upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace-ms", type=float, default=0, help="time between two tokens of a stream; 0 sends at once")
    parser.add_argument("--arrivals", type=Path, help="where to write when each numbered request came, a line for each")
    arguments = parser.parse_args()
    with arguments.arrivals.open("w", buffering=1) if arguments.arrivals else nullcontext() as arrivals:
        uvloop.run(serve(port=arguments.port, pace_s=arguments.pace_ms / 1000, arrivals=arrivals))


async def serve(*, port: int, pace_s: float, arrivals: TextIO | None = None) -> None:
    """Answer on loopback until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace_s=pace_s, arrivals=arrivals), "127.0.0.1", port)
    await server.serve_forever()


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, *, pace_s: float, arrivals: TextIO | None = None) -> None:
        self._pace_s = pace_s
        self._arrivals = arrivals
        self._received = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            request = whole_request(bytes(self._received))
        except ProtocolError:
            self._transport.abort()
            return
        if request is None:
            return
        self._received.clear()
        head, body = request
        if self._arrivals is not None and (number := NUMBER.search(body)):
            self._arrivals.write(f"{int(number[1])} {time.perf_counter()}\n")
        if head.startswith(b"GET "):
            self._transport.write(MODELS)
        elif not head.startswith(b"POST /v1/chat/completions"):
            self._transport.write(NOT_FOUND)
        elif not ASKS_FOR_STREAM.search(body):
            self._transport.write(COMPLETION)
        elif self._pace_s:
            self._transport.write(STREAM_HEAD + STREAM_CHUNKS[0])
            self._send_next(1, due_s=asyncio.get_running_loop().time() + self._pace_s)
        else:
            self._transport.write(STREAM_HEAD + STREAM_CHUNKS[0])
            self._transport.write(STREAM_FIRST_HALF)
            self._transport.write(STREAM_SECOND_HALF)

    def _send_next(self, index: int, *, due_s: float) -> None:
        """Tokens keep to a schedule fixed at the start, so that a late one does not delay all that follow."""
        loop = asyncio.get_running_loop()
        if index <= answer.TOKENS:
            self._timer = loop.call_at(due_s, self._send_paced, index, due_s)
        else:
            self._timer = None
            self._transport.write(b"".join(STREAM_CHUNKS[index:]))

    def _send_paced(self, index: int, due_s: float) -> None:
        self._transport.write(STREAM_CHUNKS[index])
        self._send_next(index + 1, due_s=due_s + self._pace_s)


def whole_request(received: bytes) -> tuple[bytes, bytes] | None:
    """Head and decoded body of the one request in `received`, None while it is incomplete."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        if len(received) > HEAD_BYTES_MAX:
            raise ProtocolError("request head over the limit")
        return None
    if len(received) > HEAD_BYTES_MAX + BODY_BYTES_MAX:
        raise ProtocolError("request body over the limit")
    head, rest = received[: head_end + 2], received[head_end + 4 :]
    if length := CONTENT_LENGTH.search(head):
        return (head, rest) if len(rest) >= int(length[1]) else None
    if CHUNKED.search(head):
        chunked = ChunkedBody()
        chunked.feed(rest)
        return (head, bytes(chunked.body)) if chunked.complete else None
    return head, b""


def response(body: bytes, *, status: str = "200 OK") -> bytes:
    """A whole JSON response with Content-Length."""
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


MODELS = response(b'{"object":"list","data":[{"id":"bench","object":"model"}]}')  # also the answer to /readyz
NOT_FOUND = response(b'{"error":{"message":"no such route"}}', status="404 Not Found")
COMPLETION = response(answer.completion())
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_CHUNKS = [*(chunk(event) for event in answer.stream_events()), b"0\r\n\r\n"]
STREAM_FIRST_HALF = b"".join(STREAM_CHUNKS[1 : answer.TOKENS // 2])
STREAM_SECOND_HALF = b"".join(STREAM_CHUNKS[answer.TOKENS // 2 :])

if __name__ == "__main__":
    main()
