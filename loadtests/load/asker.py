"""One question and its answer, seen as a client sees it: what came, when, and whether it is what the upstream said."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from loadtests.bench.chunked import ProtocolError
from loadtests.bench.client import Connection
from loadtests.bench.response import Response
from loadtests.load.script import Kind, Script, heard
from loadtests.load.site import Place

CONNECT_TIMEOUT_S = 20.0  # a machine that is overloaded on purpose
REFUSALS = frozenset({429, 503})


class End(Enum):
    """How an exchange ended."""

    GOOD = "good"  # the whole answer, every byte of it as it was said
    REFUSED = "refused"  # before the upstream was asked
    FAILED = "failed"  # the gateway says that the upstream failed, before the first byte
    BROKEN = "broken"  # inside the answer; what had come was the beginning of what was said
    WRONG = "wrong"  # text that nobody said, or in another order, or a whole answer with something missing
    LOST = "lost"  # no end at all: no connection, a closed one without a word, or time ran out


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What one question came to."""

    end: End
    latency_s: float
    first_s: float | None = None  # until the first text
    gaps_s: tuple[float, ...] = ()  # between two arrivals of a stream's text
    text_bytes: int = 0  # heard, whole or not
    reason: str = ""  # the code of a refusal or an error


class Timed(Connection):
    """Also knows when its bytes arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals_s: list[float] = []

    @property
    def response(self) -> Response:
        """The answer as far as it has come."""
        return self._response

    def data_received(self, data: bytes) -> None:
        self.arrivals_s.append(time.perf_counter())
        super().data_received(data)


class Asker:
    """Keeps connections for reuse, as a client library does."""

    def __init__(self, place: Place, *, timeout_s: float = 120.0) -> None:
        self._place = place
        self._timeout_s = timeout_s
        self._idle: list[Timed] = []

    async def ask(self, script: Script, *, key: str) -> Exchange:
        """Ask and judge. Never raises for what the other side does."""
        sent_s = time.perf_counter()
        try:
            connection = await self._connection()
        except (OSError, TimeoutError) as error:
            return Exchange(end=End.LOST, latency_s=time.perf_counter() - sent_s, reason=f"connect: {error!r}")
        connection.arrivals_s.clear()
        sent_s = time.perf_counter()
        broken = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.exchange(self._request(script, key), streaming=script.kind is not Kind.JSON)
        except TimeoutError:
            broken = f"no end in {self._timeout_s:g} s"
        except ProtocolError as error:
            broken = str(error)
        latency_s = time.perf_counter() - sent_s
        if broken or not connection.usable:
            connection.abort()
        else:
            self._idle.append(connection)
        return judged(script, connection, latency_s=latency_s, sent_s=sent_s, broken=broken)

    def close(self) -> None:
        """Drop the connections that are kept."""
        while self._idle:
            self._idle.pop().abort()

    async def _connection(self) -> Timed:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                Timed, self._place.host, self._place.port
            )
        return connection

    def _request(self, script: Script, key: str) -> bytes:
        body = script.body(self._place.model)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._place.host}:{self._place.port}\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def judged(script: Script, connection: Timed, *, latency_s: float, sent_s: float, broken: str) -> Exchange:
    """Hold what has come against what the script says."""
    response, arrivals_s = connection.response, connection.arrivals_s
    if broken and response.status == 0:
        return Exchange(end=End.LOST, latency_s=latency_s, reason=broken)
    if response.status != 200:
        refused = response.status in REFUSALS
        return Exchange(
            end=End.LOST if broken else End.REFUSED if refused else End.FAILED,
            latency_s=latency_s,
            reason=broken or code_of(bytes(response.body), response.status),
        )
    expected = "".join(script.spoken())
    try:
        text = "" if broken and script.kind is Kind.JSON else heard(bytes(response.body), script.kind)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        return Exchange(end=End.WRONG, latency_s=latency_s, reason=f"no answer: {error!r}")
    if broken:
        end = End.BROKEN if expected.startswith(text) else End.WRONG
        end = End.LOST if broken.startswith("no end") and end is End.BROKEN else end
    else:
        end = End.GOOD if text == expected else End.WRONG
    first_s = connection.first_text_s - sent_s if connection.first_text_s else None
    return Exchange(
        end=end,
        latency_s=latency_s,
        first_s=first_s,
        gaps_s=gaps(arrivals_s) if script.kind is not Kind.JSON else (),
        text_bytes=len(text.encode()),
        reason=broken or ("" if end is End.GOOD else f"heard {text[:60]!r}"),
    )


def gaps(arrivals_s: Sequence[float]) -> tuple[float, ...]:
    """Between arrivals of a stream, the head and what came with it left out."""
    return tuple(after - before for before, after in pairwise(arrivals_s[1:]))


def code_of(body: bytes, status: int) -> str:
    """The code in an OpenAI error body, or the status."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return str(status)
