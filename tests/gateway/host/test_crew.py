"""Processes that are kept alive: replaced at once when one dies, later and later when it keeps dying."""

import asyncio
import sys
import textwrap
import time

import pytest

from gateway.clock import SystemClock
from gateway.host import crew as crew_module
from gateway.host.crew import Crew
from gateway.host.orders import Done, Drain, Serving
from gateway.host.process import CannotServe

SERVES = """\
import msgspec, socket, struct, sys, time
end = socket.socket(fileno=int(sys.argv[4]))
question = msgspec.msgpack.encode({"type": "Serving"})
end.sendall(struct.pack(">IBQ", len(question), 0, 1) + question)
end.recv(100)
"""
DRAINS = """\
head = end.recv(1000)
number = struct.unpack(">IBQ", head[:13])[2]
end.sendall(struct.pack(">IBQ", 1, 1, number) + b"\\x80")
"""


class Keeper:
    """What a keeper does for a crew, and a diary of it."""

    def __init__(self, count):
        self.diary = []
        self.died_at_s = []
        self.crew = Crew(
            count=count,
            listener=None,
            answers=lambda worker: {Serving: lambda _: self.serves(worker)},
            died=self.died,
            changed=lambda count: self.diary.append(("serving", count)),
            clock=SystemClock(),
        )

    async def serves(self, worker):
        self.crew.serves(worker)
        return Done()

    async def died(self, worker):
        assert worker.number not in self.crew.workers
        self.died_at_s.append(time.monotonic())


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Have workers run this instead of a gateway."""

    def program(text):
        path = tmp_path / "worker"
        path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(text))
        path.chmod(0o700)
        monkeypatch.setattr(crew_module.sys, "executable", str(path))

    return program


async def deaths(keeper, count):
    async with asyncio.timeout(20):
        while len(keeper.died_at_s) < count:  # noqa: ASYNC110  polls
            await asyncio.sleep(0.01)


async def test_a_crew_whose_workers_cannot_begin_does_not_begin(program):
    program("import sys; sys.exit(5)")
    with pytest.raises(CannotServe, match="ended with status 5 before it served"):
        await Keeper(2).crew.run()


async def test_who_dies_once_is_replaced_at_once_and_who_keeps_dying_ever_later(program, monkeypatch):
    monkeypatch.setattr(crew_module, "WORKER_RESTART_S_MAX", 1.5)
    program(SERVES)
    keeper = Keeper(1)
    running = asyncio.create_task(keeper.crew.run())
    await deaths(keeper, 4)
    first, second, third, fourth = keeper.died_at_s[:4]
    assert second - first < 0.9
    assert 1.0 <= third - second < 1.5
    assert 1.5 <= fourth - third < 2.5
    assert keeper.diary[:3] == [("serving", 1), ("serving", 0), ("serving", 1)]
    keeper.crew.kill()
    await running


async def test_a_crew_that_drains_ends_when_all_have_ended_and_replaces_nobody(program):
    program(SERVES + DRAINS)
    keeper = Keeper(3)
    running = asyncio.create_task(keeper.crew.run())
    await keeper.crew.all_serve()
    keeper.crew.drain()
    await running
    assert len(keeper.died_at_s) == 3
    assert keeper.crew.workers == {}


async def test_a_worker_that_lives_without_its_channel_is_ended(program, monkeypatch):
    monkeypatch.setattr(crew_module, "WORKER_OBEYS_S_MAX", 0.2)
    program(SERVES + "end.close(); time.sleep(60)")
    keeper = Keeper(1)
    running = asyncio.create_task(keeper.crew.run())
    await deaths(keeper, 1)
    keeper.crew.kill()
    await running


async def test_a_worker_that_does_not_obey_is_ended(program, monkeypatch):
    monkeypatch.setattr(crew_module, "WORKER_OBEYS_S_MAX", 0.2)
    program(SERVES + "time.sleep(60)")
    keeper = Keeper(1)
    running = asyncio.create_task(keeper.crew.run())
    await keeper.crew.all_serve()
    assert await keeper.crew.ask_all(Drain(), Done) == [], "figures do not wait for it"
    keeper.crew.drain()
    async with asyncio.timeout(5):
        await running
