"""The client of the open streams: opens so many, lets them come, and says how many chunks came and how far apart.

Runs as a process of its own: `python -m loadtests.bench.held PLAN`, PLAN being the JSON of `Holding`. It prints
`{"ready": true}` when a first small lot of streams has come to its end, waits for a line, opens all, prints `{"open": N}`
when each has its first text, waits for a line, counts for some seconds, prints its `Held` and leaves with all of them open.
"""

import asyncio
import json
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

OPEN_TIMEOUT_S = 180.0  # the slowest peer needs tens of milliseconds for each
TEXT = re.compile(rb'"content"\s*:\s*"[^"]')
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
GAPS_KEPT = 200_000  # of millions: a sample by chance is as good
SPREAD_S = 0.002  # between two that are opened, so that nobody's accept queue decides


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What is to be held open."""

    host: str
    port: int
    request: str
    streams: int
    warmups: int  # streams that are opened, read for a moment and dropped, so that pools and caches are there before
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the counted seconds gave."""

    streams: int  # that were open all the time
    chunks: int  # pieces of text that arrived
    silent: int  # streams of which nothing arrived
    gap_p50_ms: float
    gap_p99_ms: float
    elapsed_s: float


class Stream(asyncio.Protocol):
    """One connection with one stream on it."""

    def __init__(self, request: bytes, counting: "Counting") -> None:
        self._request = request
        self._counting = counting
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self.chunks = 0
        self._last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        pieces = len(TEXT.findall(data))
        if not self.began.done():
            status = STATUS.match(data)
            if status is not None and status[1] != b"200":
                self.began.set_exception(ConnectionError(f"status {status[1].decode()}: {data[-200:]!r}"))
            elif pieces:
                self.began.set_result(None)
        if self._counting.on and pieces:
            self.chunks += pieces
            self._counting.gap(now_s - self._last_s)
        if pieces:
            self._last_s = now_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.began.done():
            self.began.set_exception(ConnectionError("closed before the first text"))


class Counting:
    """The gaps of all streams together."""

    def __init__(self) -> None:
        self.on = False
        self.gaps_s: list[float] = []
        self._seen = 0

    def gap(self, gap_s: float) -> None:
        """Reservoir sampling: each of all gaps is kept with the same chance."""
        self._seen += 1
        if len(self.gaps_s) < GAPS_KEPT:
            self.gaps_s.append(gap_s)
        elif (place := random.randrange(self._seen)) < GAPS_KEPT:
            self.gaps_s[place] = gap_s


def main() -> None:
    """Run the plan given as the only argument."""
    uvloop.run(run(Holding(**json.loads(sys.argv[1]))))


async def run(plan: Holding) -> None:
    """Warm up, open, count."""
    counting = Counting()
    try:
        for stream in await opened(plan, plan.warmups, counting):
            stream.transport.abort()
        say({"ready": True})
        await asyncio.to_thread(sys.stdin.readline)
        streams = await opened(plan, plan.streams, counting)
    except (OSError, TimeoutError) as error:
        say({"fault": str(error) or repr(error)})
        return
    say({"open": len(streams)})
    await asyncio.to_thread(sys.stdin.readline)
    counting.on, start_s = True, time.perf_counter()
    await asyncio.sleep(plan.seconds)
    counting.on = False
    gaps_s = sorted(counting.gaps_s) or [0.0]
    held = Held(
        streams=sum(not stream.lost for stream in streams),
        chunks=sum(stream.chunks for stream in streams),
        silent=sum(stream.chunks == 0 for stream in streams),
        gap_p50_ms=gaps_s[len(gaps_s) // 2] * 1e3,
        gap_p99_ms=gaps_s[len(gaps_s) * 99 // 100] * 1e3,
        elapsed_s=time.perf_counter() - start_s,
    )
    say(asdict(held))
    await asyncio.to_thread(sys.stdin.readline)  # memory is read while they are still open


async def opened(plan: Holding, count: int, counting: Counting) -> list[Stream]:
    """So many streams, each with its first text. Raises OSError or TimeoutError if one does not come to that."""
    loop, streams = asyncio.get_running_loop(), []
    async with asyncio.timeout(OPEN_TIMEOUT_S):
        for _ in range(count):
            _, stream = await loop.create_connection(
                lambda: Stream(plan.request.encode(), counting), plan.host, plan.port
            )
            streams.append(stream)
            await asyncio.sleep(SPREAD_S)
        for stream in streams:
            await stream.began
    return streams


def say(words: dict[str, object]) -> None:
    """One line."""
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main()
