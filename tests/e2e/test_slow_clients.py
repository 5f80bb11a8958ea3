"""Clients that are slow on purpose: each is cut at its deadline, holds next to nothing, and keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.backend import JSON, Backend, Exchange, event, rest, say, text_event, whole_body
from tests.e2e.hurried import program
from tests.e2e.processes import BOB, Gateway, policy, until
from tests.e2e.wire import chat, request

HEAD_S, BODY_S, KEEPALIVE_S, WRITE_S = 1.0, 1.0, 1.5, 1.0
LATE_S = 1.0  # how much after its deadline a client may be cut: a test machine is busy
LIMITS = {
    "CLIENT_HEAD_S_MAX": HEAD_S,
    "REQUEST_BODY_S_MAX": BODY_S,
    "CLIENT_KEEPALIVE_S_MAX": KEEPALIVE_S,
    "CLIENT_WRITE_S_MAX": WRITE_S,
    "CLIENT_LINGER_S_MAX": 0.2,
    "CLIENT_SEND_BUFFER_BYTES": 4096,
}
GROWTH_BYTES_MAX = 20 * 1024 * 1024
GOOD_S_MAX = 1.0
LONG = "\x01" * 60_000  # six bytes each as JSON: more than all buffers between gateway and client hold


def hurry(backend: Backend, directory: Path, **limits: float) -> Gateway:
    rules = policy(backend.url, directory)
    rules["models"]["m"]["answer_tokens_max"] = 4096
    rules["tenants"]["alice"]["streams_max"] = 400
    rules["tenants"]["bob"]["streams_max"] = 3
    return Gateway(directory, rules, program=program(**{**LIMITS, **limits})).start()


@pytest.fixture(scope="module")
def hurried_of_module(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = hurry(backend_of_module, tmp_path_factory.mktemp("slow"))
    yield gateway
    gateway.close()


@pytest.fixture
def hurried(hurried_of_module: Gateway, backend: Backend) -> Iterator[Gateway]:
    """A gateway with short deadlines. After each test nothing is left of the slow clients."""
    backend.script = say("Hello.")
    assert hurried_of_module.ask().status == 200
    yield hurried_of_module
    hurried_of_module.idle()
    until(lambda: connections(hurried_of_module) == 0, what="no connection is left", seconds=5)
    assert "Traceback" not in (hurried_of_module.directory / "gateway.log").read_text()


def connections(gateway: Gateway) -> int:
    """Those with clients that the process still holds."""
    rows = [line.split() for line in Path(f"/proc/{gateway.pid}/net/tcp").read_text().splitlines()[1:]]
    local, state, inode, listening, orphan = 1, 3, 9, "0A", "0"
    port = f":{gateway.port:04X}"
    return sum(row[local].endswith(port) and row[state] != listening and row[inode] != orphan for row in rows)


def resident_bytes(gateway: Gateway) -> int:
    pages = int(Path(f"/proc/{gateway.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Asks for a short answer over and over, and looks at the gateway's memory."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked = self.growth_bytes = 0
        self.slowest_s = 0.0
        self.wrong: list[str] = []

    def __enter__(self) -> Watch:
        for _ in range(20):
            self._gateway.ask("short")
        self._before_bytes = resident_bytes(self._gateway)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            began_s = time.monotonic()
            try:
                answer = self._gateway.ask("short")
                if answer.status != 200:
                    self.wrong.append(answer.line)
            except OSError as fault:
                self.wrong.append(repr(fault))
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.growth_bytes = max(self.growth_bytes, resident_bytes(self._gateway) - self._before_bytes)
            self.asked += 1

    def check(self, record: Callable[[str, object], None]) -> None:
        record("asked", self.asked)
        record("slowest_ms", round(self.slowest_s * 1000))
        record("growth_kib", self.growth_bytes // 1024)
        assert self.wrong == []
        assert self.asked >= 10
        assert self.slowest_s < GOOD_S_MAX
        assert self.growth_bytes < GROWTH_BYTES_MAX


async def talk(exchange: Exchange) -> None:
    """Short answers to short questions; whoever asks for a long one gets more than it will read."""
    if "short" in exchange.request.json["messages"][0]["content"]:
        await say("Hello.")(exchange)
        return
    if not exchange.request.json.get("stream"):
        body = whole_body(LONG)
        await exchange.begin(JSON)
        await exchange.chunk(body)
        await exchange.finish()
        return
    await exchange.begin()
    await exchange.chunk(text_event(LONG[:30_000]))
    await rest(exchange, [LONG[30_000:]])


HEAD = request(key="alice-key", headers="Content-Type: application/json\r\nContent-Length: 1000\r\n")


class Opened(socket.socket):
    """A client's connection. Its deadlines run from when it was opened, however long its sixty neighbours took."""

    def __init__(self) -> None:
        super().__init__()
        self.opened_s = time.monotonic()


def opened(gateway: Gateway, data: bytes = b"", *, buffer_bytes: int = 2048) -> Opened:
    """A connection that has sent this, and takes in no more unread than its buffer holds."""
    connection = Opened()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.connect(gateway.address)
    connection.sendall(data)
    connection.setblocking(False)
    return connection


@contextlib.asynccontextmanager
async def clients(gateway: Gateway, count: int, data: bytes = b"") -> AsyncIterator[list[Opened]]:
    made = await asyncio.to_thread(lambda: [opened(gateway, data) for _ in range(count)])
    try:
        yield made
    finally:
        for connection in made:
            connection.close()


async def drip(connection: Opened, data: bytes, *, every_s: float = 0.1) -> tuple[float, bytes]:
    """Send a byte now and then until the other side ends it; how long it was open, and what the other side said."""
    loop = asyncio.get_running_loop()
    answer = asyncio.ensure_future(heard(connection))
    for start in range(len(data)):
        if answer.done():
            break
        with contextlib.suppress(OSError):
            await loop.sock_sendall(connection, data[start : start + 1])
        await asyncio.wait({answer}, timeout=every_s)
    async with asyncio.timeout(10):
        said = await answer
    return time.monotonic() - connection.opened_s, said


async def heard(connection: socket.socket, *, bytes_max: int = 65536, every_s: float = 0.0) -> bytes:
    """Everything until the end, however it comes."""
    loop, said = asyncio.get_running_loop(), b""
    with contextlib.suppress(ConnectionError):
        while data := await loop.sock_recv(connection, bytes_max):
            said += data
            await asyncio.sleep(every_s)
    return said


def is_late(said: bytes) -> bool:
    return said[8:13] == b" 408 " and b'"code":"request_timeout"' in said


def cut_at(deadline_s: float, ended: list[tuple[float, bytes]]) -> None:
    for seconds, _ in ended:
        assert deadline_s <= seconds <= deadline_s + LATE_S


@pytest.mark.parametrize("count", [60])
async def test_heads_that_drip_are_408_at_their_deadline(hurried: Gateway, count: int) -> None:
    async with clients(hurried, count, b"P") as slow:
        ended = await asyncio.gather(*(drip(one, request(key=hurried.key)[1:] * 3) for one in slow))
    cut_at(HEAD_S, ended)
    assert {said for _, said in ended if not is_late(said)} == set()


async def test_a_second_head_that_drips_is_408_too(hurried: Gateway) -> None:
    with hurried.connect() as connection:
        connection.send(request(body=chat(), key=hurried.key))
        assert connection.response().status == 200
        connection.send(b"POST ")
        began_s = time.monotonic()
        assert connection.response().status == 408
        assert time.monotonic() - began_s == pytest.approx(HEAD_S, abs=0.5)


async def test_who_never_says_a_word_is_closed_without_one(hurried: Gateway) -> None:
    began_s = time.monotonic()
    async with clients(hurried, 50) as silent:
        assert set(await asyncio.gather(*(heard(one) for one in silent))) == {b""}
    assert time.monotonic() - began_s <= HEAD_S + LATE_S


async def test_idle_connections_are_closed_after_their_keepalive(hurried: Gateway) -> None:
    async with clients(hurried, 20, request("GET", "/v1/models", key=hurried.key)) as idle:
        began_s = time.monotonic()
        said = await asyncio.gather(*(heard(one) for one in idle))
    assert KEEPALIVE_S - 0.2 <= time.monotonic() - began_s <= KEEPALIVE_S + LATE_S
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in said)


@pytest.mark.parametrize("drips", [True, False])
async def test_bodies_that_drip_or_stall_are_408_at_their_deadline(
    hurried: Gateway, backend: Backend, drips: bool
) -> None:
    before = len(backend.requests)
    async with clients(hurried, 60, HEAD + b'{"model": "m"') as slow:
        ended = await asyncio.gather(*(drip(one, b" " * (100 if drips else 0)) for one in slow))
    cut_at(BODY_S, ended)
    assert {said for _, said in ended if not is_late(said)} == set()
    assert len(backend.requests) == before


async def test_a_body_whose_framing_breaks_off_is_400_at_once(hurried: Gateway) -> None:
    head = request(key=hurried.key, headers="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
    with hurried.connect() as connection:
        connection.send(head + b"1\r\n{\r\n")
        await asyncio.sleep(0.1)
        began_s = time.monotonic()
        connection.send(b"banana\r\n")
        answer = connection.response()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")
        assert time.monotonic() - began_s < BODY_S / 2
        with pytest.raises(ConnectionError):
            connection.response()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("reads", ["nothing", "a byte a second"])
async def test_who_does_not_read_is_cut_and_its_backend_told(
    hurried: Gateway, backend: Backend, streamed: bool, reads: str
) -> None:
    backend.script = talk
    asked = len(backend.requests)
    ask = request(body=chat("long", stream=streamed, max_tokens=4096), key=hurried.key)
    async with clients(hurried, 10, ask) as slow:
        readers = [asyncio.ensure_future(heard(one, bytes_max=1, every_s=1.0)) for one in slow if reads != "nothing"]
        await asyncio.to_thread(until, lambda: len(backend.requests) == asked + 10, what="all are asked")
        assert connections(hurried) == len(slow)
        await asyncio.to_thread(until, lambda: connections(hurried) == 0, what="all are cut", seconds=4 * WRITE_S)
        for reader in readers:
            reader.cancel()
    assert hurried.status()["answers_in_flight"] == 0


async def test_who_reads_slowly_but_reads_gets_all_of_it(hurried: Gateway, backend: Backend) -> None:
    """Slower than one deadline for the whole, faster than one for each piece."""
    backend.script = talk
    ask = request(body=chat("long", max_tokens=4096), key=hurried.key, headers="Connection: close\r\n")
    connection = await asyncio.to_thread(opened, hurried, ask, buffer_bytes=32 * 1024)
    with connection:
        began_s = time.monotonic()
        answer = await heard(connection, bytes_max=16 * 1024, every_s=0.08)
    assert time.monotonic() - began_s > 1.2 * WRITE_S
    assert answer.count(rb"\u0001") == len(LONG)


async def test_requests_without_reading_their_answers_are_stopped(hurried: Gateway) -> None:
    """One after another on one connection, never reading: nothing is answered twice, and the connection does not stay."""
    refused = request("GET", "/v1/nothing", key=hurried.key)
    async with clients(hurried, 10) as rude:
        deadline_s = time.monotonic() + 6 * WRITE_S
        while any(one.fileno() >= 0 for one in rude) and time.monotonic() < deadline_s:
            for one in rude:
                try:
                    one.send(refused)
                except BlockingIOError:
                    continue
                except OSError:
                    one.close()
            await asyncio.sleep(0.0005)
        assert connections(hurried) == 0
        assert all(one.fileno() < 0 for one in rude)


async def test_every_kind_at_once_leaves_memory_flat_and_others_answered(
    hurried: Gateway, backend: Backend, record_property: Callable[[str, object], None]
) -> None:
    """The first round fills what the process keeps for as many clients as there are; from then on nothing may grow."""
    backend.script = talk
    ask = request(body=chat("long", stream=True, max_tokens=4096), key=hurried.key)
    whole = request(body=chat("long", max_tokens=4096), key=hurried.key)

    async def dripping(count: int, data: bytes, rest: bytes = b"") -> int:
        async with clients(hurried, count, data) as slow:
            await asyncio.gather(*(drip(one, rest) for one in slow))
        return count

    async def unread(count: int, data: bytes) -> int:
        async with clients(hurried, count, data):
            await asyncio.sleep(2 * WRITE_S)
        return count

    async def one_of_each() -> int:
        cut = await asyncio.gather(
            dripping(250, b""),
            dripping(250, request("GET", "/v1/models", key=hurried.key)),
            dripping(60, b"P", b"OST / HTTP/1.1\r\n" * 8),
            dripping(60, HEAD + b"{", b" " * 100),
            unread(20, ask),
            unread(20, whole),
        )
        return sum(cut)

    cold_bytes = resident_bytes(hurried)
    await one_of_each()
    record_property("first_round_kib", (resident_bytes(hurried) - cold_bytes) // 1024)
    with Watch(hurried) as watch:
        cut = sum([await one_of_each() for _ in range(3)])
    record_property("cut", cut)
    watch.check(record_property)


def test_connections_beyond_the_cap_are_dropped_until_others_end(backend: Backend, tmp_path: Path) -> None:
    gateway = hurry(backend, tmp_path, CLIENT_CONNECTIONS_MAX=20, CLIENT_HEAD_S_MAX=30.0)
    try:
        until(lambda: gateway.ask().status == 200, what="it serves")
        held = [opened(gateway) for _ in range(20)]
        time.sleep(0.1)
        for _ in range(5):
            with pytest.raises(ConnectionError):
                gateway.ask()
        assert gateway.metric("weir_connections_refused_total") == 5
        held.pop().close()
        answer = until(lambda: answered(gateway), what="there is room again")
        assert answer.status == 200
        for connection in held:
            connection.close()
        assert gateway.admin("/readyz")[0] == 200
    finally:
        gateway.close()


def answered(gateway: Gateway) -> object:
    with contextlib.suppress(ConnectionError):
        return gateway.ask()
    return None


async def test_a_tenants_open_answers_are_capped_and_cost_no_other_tenant(hurried: Gateway, backend: Backend) -> None:
    async def script(exchange: Exchange) -> None:
        if "short" in exchange.request.json["messages"][0]["content"]:
            await say("Hello.")(exchange)
            return
        await exchange.begin()
        await exchange.chunk(event({"choices": [{"index": 0, "delta": {"content": "a" * 64}}]}))
        await exchange.for_ever()

    backend.script = script
    stream = request(body=chat("long", stream=True), key=BOB)
    async with clients(hurried, 3, stream):
        await asyncio.to_thread(until, lambda: hurried.status()["answers_in_flight"] == 3, what="three are open")
        refused = hurried.ask("short", key=BOB)
        assert (refused.status, refused.error["code"]) == (429, "too_many_streams")
        assert hurried.ask("short").status == 200
    await asyncio.to_thread(until, lambda: hurried.ask("short", key=BOB).status == 200, what="there is room again")


async def test_a_tenants_slow_bodies_are_capped_like_its_answers(hurried: Gateway) -> None:
    head = HEAD.replace(b"alice-key", BOB.encode())
    async with clients(hurried, 3, head + b"{"):
        await asyncio.sleep(0.1)
        with hurried.connect() as connection:
            connection.send(head + b"{")
            refused = connection.response()
        assert (refused.status, refused.error["code"]) == (429, "too_many_streams")
        assert refused.header("Connection") == "close"
        assert hurried.ask("short", key=BOB).status == 200, "a body that comes with its head waits for nobody"
