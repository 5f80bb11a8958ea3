"""The scripted upstream: says what each request's script asks for, and counts what it has said.

`GET /said` tells its own count, which a run holds against what clients heard and against the gateway's metrics.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Iterator
from typing import cast

import uvloop

from loadtests.bench.chunked import ProtocolError
from loadtests.bench.upstream import MODELS, NOT_FOUND, chunk, response, whole_request
from loadtests.load.script import Kind, Script, completion, events, script_of

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
SAID = re.compile(rb"GET /said[ ?]")


class Count:
    """What has been said since the start."""

    def __init__(self) -> None:
        self.requests = 0
        self.repeated = 0  # requests with a number that was there before: somebody asked twice on its own
        self.whole = 0
        self.whole_text_bytes = 0  # of those: what is said in words
        self.whole_argument_bytes = 0  # and what tools are called with
        self.cut = 0  # the connection ended inside an answer
        self.open = 0
        self.numbers: set[int] = set()

    def began(self, script: Script) -> None:
        """A request came."""
        self.requests += 1
        self.open += 1
        self.repeated += script.number in self.numbers
        self.numbers.add(script.number)

    def ended(self, script: Script, *, whole: bool) -> None:
        """Its answer has been written to its last byte, or cannot be any more."""
        self.open -= 1
        self.cut += not whole
        self.whole += whole
        if whole:
            spoken_bytes = sum(len(piece.encode()) for piece in script.spoken())
            self.whole_text_bytes += spoken_bytes * (script.kind is not Kind.TOOL)
            self.whole_argument_bytes += spoken_bytes * (script.kind is Kind.TOOL)

    def report(self) -> bytes:
        """As JSON."""
        names = ("requests", "repeated", "whole", "whole_text_bytes", "whole_argument_bytes", "cut", "open")
        return json.dumps({name: getattr(self, name) for name in names}).encode()


def main() -> None:
    """`python -m loadtests.load.backend --port 9101`"""
    parser = argparse.ArgumentParser(prog="loadtests.load.backend", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


async def serve(port: int) -> None:
    """Answer on loopback until killed."""
    count = Count()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(count), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._received = bytearray()
        self._script: Script | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ended(whole=False)

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
        script = script_of(body)
        if SAID.match(head):
            self._transport.write(response(self._count.report()))
        elif head.startswith(b"GET "):
            self._transport.write(MODELS)
        elif script is None:
            self._transport.write(NOT_FOUND)
        else:
            self._begin(script)

    def _begin(self, script: Script) -> None:
        self._script = script
        self._count.began(script)
        loop = asyncio.get_running_loop()
        if script.kind is Kind.JSON:
            self._timer = loop.call_later(script.pace_ms / 1000, self._complete, script)
            return
        pieces = [chunk(event) for event in events(script)]
        pieces[-1] += LAST_CHUNK  # in one write: who has seen [DONE] may close before anything else comes
        self._transport.write(STREAM_HEAD + pieces[0])
        self._say(iter(pieces[1:]), due_s=loop.time() + script.pace_ms / 1000, pace_s=script.pace_ms / 1000)

    def _complete(self, script: Script) -> None:
        self._transport.write(response(completion(script)))
        self._ended(whole=True)

    def _say(self, coming: Iterator[bytes], *, due_s: float, pace_s: float) -> None:
        """Pieces keep to a schedule fixed at the start, so that a late one does not delay all that follow."""
        if not pace_s:
            self._transport.write(b"".join(coming))
            self._ended(whole=True)
            return
        piece = next(coming, None)
        if piece is None:
            self._ended(whole=True)
        else:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._say_paced, piece, coming, due_s, pace_s)

    def _say_paced(self, piece: bytes, coming: Iterator[bytes], due_s: float, pace_s: float) -> None:
        self._transport.write(piece)
        self._say(coming, due_s=due_s + pace_s, pace_s=pace_s)

    def _ended(self, *, whole: bool) -> None:
        script, self._script = self._script, None
        if script is not None:
            self._count.ended(script, whole=whole)


if __name__ == "__main__":
    main()
