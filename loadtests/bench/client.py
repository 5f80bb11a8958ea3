"""The load of the benchmark: N keep-alive connections that ask one question again and again, and time the answers.

Runs as a process of its own, by hand or from the bench: `python -m loadtests.bench.client PLAN`, PLAN being the JSON of
`Plan`. It opens its connections, warms them up, checks the text of those answers in full, prints `{"ready": true}`,
waits for a line on stdin, runs the measured phase and prints its `Outcome` as JSON. One line `{"fault": …}` instead
means that the warm-up went wrong.
"""

import asyncio
import gc
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from loadtests.bench import answer
from loadtests.bench.chunked import ProtocolError
from loadtests.bench.response import Response

CONNECT_TIMEOUT_S = 5.0
EXCHANGE_TIMEOUT_S = 30.0  # a paced stream takes one second; thirty means that it hangs
ERRORS_MAX = 50  # a broken peer should end its phase soon, and the first error says what is wrong
NUMBER = b"#00000000"
FIRST_TEXT = re.compile(rb'"content"\s*:\s*"[^"]')  # the role chunk has empty content and is no token


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One phase of load. It ends after `requests` or after `seconds`, whichever comes first."""

    host: str
    port: int
    request: str  # the whole HTTP request, head and body
    streaming: bool
    connections: int
    warmups: int  # requests per connection before the measured ones
    requests: int
    seconds: float
    numbered: bool = False  # every request carries a number of its own in place of `NUMBER`, and tells when it was sent


@dataclass(kw_only=True)
class Outcome:
    """What the measured phase gave; latencies in seconds, one per good answer."""

    latencies_s: list[float] = field(default_factory=list)
    first_texts_s: list[float] = field(default_factory=list)  # streams: request sent → first byte of text here
    sent_s: dict[str, float] = field(default_factory=dict)  # numbered: when each request was sent, by CLOCK_MONOTONIC
    errors: int = 0
    first_error: str = ""
    elapsed_s: float = 0.0


class ExchangeError(Exception):
    """An answer did not come, or was not the right one."""


def main() -> None:
    """Run the plan given as the only argument."""
    uvloop.run(run(Plan(**json.loads(sys.argv[1]))))


async def run(plan: Plan) -> None:
    """Warm up, report ready, wait for the word, measure, print."""
    numbers = itertools.count(1)
    workers = [Worker(plan, numbers) for _ in range(plan.connections)]
    faults = []
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.warm_up())
    except* (ExchangeError, OSError) as group_of_faults:
        faults = [str(fault) or repr(fault) for fault in group_of_faults.exceptions]
    print(json.dumps({"fault": faults[0]} if faults else {"ready": True}), flush=True)
    if faults or not await asyncio.to_thread(sys.stdin.readline):
        return  # no line: the bench is gone
    gc.freeze()  # the collector's pauses over start-up objects would show in p99
    outcome = Outcome()
    budget = Budget(requests=plan.requests)
    start_s = time.perf_counter()  # never loop.time(): uvloop's is cached and has milliseconds only
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.measure(budget, outcome, end_s=start_s + plan.seconds))
    outcome.elapsed_s = time.perf_counter() - start_s
    print(json.dumps(asdict(outcome)), flush=True)


@dataclass(kw_only=True)
class Budget:
    """How many requests the workers of a phase may still start, together."""

    requests: int


class Worker:
    """One connection's sequence of exchanges; it reconnects when the peer closes."""

    def __init__(self, plan: Plan, numbers: Iterator[int]) -> None:
        self._plan = plan
        self._numbers = numbers
        self._request = plan.request.encode()
        self._connection: Connection | None = None

    async def warm_up(self) -> None:
        """Raises ExchangeError unless every answer carries exactly the upstream's text."""
        expected = "".join(answer.tokens()) if self._plan.streaming else answer.COMPLETION_TEXT
        for _ in range(self._plan.warmups):
            response, _, _ = await self._exchange(Outcome())
            try:
                text = answer.text_of(bytes(response.body), streaming=self._plan.streaming)
            except (ValueError, LookupError, AttributeError) as error:
                raise ExchangeError(f"not an OpenAI answer: {bytes(response.body[:300])!r}") from error
            if text != expected:
                raise ExchangeError(f"the answer's text is not the upstream's: {text[:200]!r}")

    async def measure(self, budget: Budget, outcome: Outcome, *, end_s: float) -> None:
        """Ask until the budget or the time is used up."""
        while budget.requests > 0 and time.perf_counter() < end_s and outcome.errors < ERRORS_MAX:
            budget.requests -= 1
            try:
                _, latency_s, first_text_s = await self._exchange(outcome)
            except (ExchangeError, OSError) as error:
                outcome.errors += 1
                outcome.first_error = outcome.first_error or str(error) or repr(error)
                continue
            outcome.latencies_s.append(latency_s)
            if self._plan.streaming:
                outcome.first_texts_s.append(first_text_s)

    async def _exchange(self, outcome: Outcome) -> tuple[Response, float, float]:
        """One question and its checked answer, with its latency and the time to its first text."""
        loop = asyncio.get_running_loop()
        if self._connection is None or not self._connection.usable:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, self._connection = await loop.create_connection(Connection, self._plan.host, self._plan.port)
        connection = self._connection
        request = self._request
        if self._plan.numbered:
            number = next(self._numbers)
            request = request.replace(NUMBER, b"#%08d" % number)
        sent_s = time.perf_counter()
        if self._plan.numbered:
            outcome.sent_s[str(number)] = sent_s
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
                response = await connection.exchange(request, streaming=self._plan.streaming)
        except (TimeoutError, ProtocolError) as error:
            connection.abort()
            raise ExchangeError(str(error) or f"no whole answer in {EXCHANGE_TIMEOUT_S} s") from error
        latency_s = time.perf_counter() - sent_s
        if response.status != 200:
            raise ExchangeError(f"status {response.status}: {bytes(response.body[:300])!r}")
        if self._plan.streaming and (b"[DONE]" not in response.body or connection.first_text_s == 0):
            raise ExchangeError(f"stream without text or [DONE], {len(response.body)} bytes")
        return response, latency_s, connection.first_text_s - sent_s


class Connection(asyncio.Protocol):
    """One keep-alive connection, one exchange at a time."""

    def __init__(self) -> None:
        self.usable = True
        self.first_text_s = 0.0  # 0: none yet
        self._response = Response()
        self._answered: asyncio.Future[None] | None = None
        self._streaming = False

    async def exchange(self, request: bytes, *, streaming: bool) -> Response:
        """Send and wait for the whole answer. Raises ProtocolError, also when the connection ends first."""
        self._streaming = streaming
        self._response, self.first_text_s = Response(), 0.0
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered
        self.usable = self.usable and self._response.keep_alive
        return self._response

    def abort(self) -> None:
        """Drop the connection with whatever is on it."""
        self.usable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._advance(data)

    def eof_received(self) -> None:
        self._advance(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._advance(None)

    def _advance(self, data: bytes | None) -> None:
        """Take bytes, or None for the end of the connection."""
        self.usable = self.usable and data is not None
        answered = self._answered
        if answered is None or answered.done():
            self.usable = self.usable and data is None
            return
        try:
            if data is None:
                self._response.feed_eof()
            else:
                self._response.feed(data)
        except ProtocolError as fault:
            self.usable = False
            answered.set_exception(fault)
            return
        if self._streaming and not self.first_text_s and FIRST_TEXT.search(self._response.body):
            self.first_text_s = time.perf_counter()
        if self._response.complete:
            answered.set_result(None)


if __name__ == "__main__":
    main()
