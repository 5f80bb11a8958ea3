"""Two processes that ask each other: every call is answered, or fails; nothing that is not understood is passed over."""

import asyncio
import contextlib
import socket
import struct

import msgspec
import pytest

from gateway.host.channel import CALLS_MAX, FRAME_BYTES_MAX, ChannelBroken, open_channel
from gateway.ports import AuditFailed, LedgerUnavailable

FAULTS = (LedgerUnavailable, AuditFailed, KeyError, ValueError)


class Double(msgspec.Struct, tag=True):
    number: int


class Fail(msgspec.Struct, tag=True):
    name: str


class Wait(msgspec.Struct, tag=True):
    pass


class Echo(msgspec.Struct, tag=True):
    data: bytes


class Unknown(msgspec.Struct, tag=True):
    pass


class Side:
    """One end, which answers everything but `Unknown`, and the order in which it was asked."""

    def __init__(self):
        self.asked = []
        self.bugs = []
        self.go_on = asyncio.Event()

    async def double(self, asked):
        self.asked.append(asked.number)
        await asyncio.sleep(0)
        return 2 * asked.number

    async def fail(self, asked):
        faults = {fault.__name__: fault for fault in (*FAULTS, ZeroDivisionError)}
        raise faults[asked.name]("why")

    async def wait(self, _):
        self.asked.append("wait")
        await self.go_on.wait()
        return "waited"

    async def echo(self, asked):
        return asked.data

    async def open(self, end):
        answers = {Double: self.double, Fail: self.fail, Wait: self.wait, Echo: self.echo}
        self.channel = await open_channel(end, answers=answers, faults=FAULTS, bug=self.bugs.append)
        return self


@pytest.fixture
async def sides():
    one, other = socket.socketpair()
    pair = await Side().open(one), await Side().open(other)
    yield pair
    for side in pair:
        side.go_on.set()
        side.channel.close()
        await side.channel.lost()


@pytest.fixture
async def half():
    """A channel whose other end is a bare socket."""
    one, other = socket.socketpair()
    side = await Side().open(one)
    yield side, other
    other.close()
    side.go_on.set()
    await side.channel.lost()


async def test_both_sides_may_ask(sides):
    one, other = sides
    answers = await asyncio.gather(one.channel.call(Double(3), int), other.channel.call(Double(4), int))
    assert answers == [6, 8]


async def test_many_calls_are_open_at_once_and_begin_in_the_order_in_which_they_were_made(sides):
    one, other = sides
    waiting = asyncio.ensure_future(one.channel.call(Wait(), str))
    assert await asyncio.gather(*(one.channel.call(Double(n), int) for n in range(500))) == [2 * n for n in range(500)]
    assert other.asked == ["wait", *range(500)]
    other.go_on.set()
    assert await waiting == "waited"


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_crosses_as_what_it_is(sides, fault):
    one, _ = sides
    with pytest.raises(fault) as raised:
        await one.channel.call(Fail(fault.__name__), int)
    assert type(raised.value) is fault
    assert raised.value.args == ("why",)
    assert await one.channel.call(Double(1), int) == 2


async def test_a_bug_in_an_answer_is_told_where_it_happened_and_breaks_the_channel(sides):
    one, other = sides
    with pytest.raises(ChannelBroken):
        await one.channel.call(Fail("ZeroDivisionError"), int)
    assert [type(bug) for bug in other.bugs] == [ZeroDivisionError]


async def test_large_frames_cross_whole(sides):
    one, other = sides
    data = bytes(range(256)) * 4096 * 8
    assert await asyncio.gather(*(side.channel.call(Echo(data), bytes) for side in (one, other, one))) == [data] * 3


async def test_a_frame_beyond_the_limit_is_not_sent(sides):
    one, _ = sides
    with pytest.raises(ChannelBroken):
        await one.channel.call(Echo(bytes(FRAME_BYTES_MAX)), bytes)


async def test_when_the_other_side_is_gone_every_waiting_call_fails_and_every_later_one(half):
    side, other = half
    calls = [asyncio.ensure_future(side.channel.call(Double(n), int)) for n in range(5)]
    await asyncio.sleep(0.01)
    other.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ChannelBroken] * 5
    await side.channel.broken()
    with pytest.raises(ChannelBroken):
        await side.channel.call(Double(1), int)


async def test_a_channel_is_lost_when_what_came_over_it_is_done(sides):
    one, other = sides
    asking = asyncio.ensure_future(one.channel.call(Wait(), str))
    while not other.asked:  # noqa: ASYNC110  the other side is not told that it is looked at
        await asyncio.sleep(0)
    one.channel.close()
    await other.channel.broken()
    lost = asyncio.ensure_future(other.channel.lost())
    await asyncio.sleep(0.01)
    assert not lost.done()
    other.go_on.set()
    await lost
    with pytest.raises(ChannelBroken):
        await asking


async def test_a_cancelled_call_leaves_the_channel_in_order(sides):
    one, other = sides
    for _ in range(3):
        asking = asyncio.ensure_future(one.channel.call(Wait(), str))
        await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
    other.go_on.set()
    assert await one.channel.call(Double(1), int) == 2


async def test_more_calls_than_may_be_open_wait_for_their_turn(sides):
    one, other = sides
    calls = [asyncio.ensure_future(one.channel.call(Wait(), str)) for _ in range(CALLS_MAX + 50)]
    while len(other.asked) < CALLS_MAX:  # noqa: ASYNC110  as above
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert len(other.asked) == CALLS_MAX
    other.go_on.set()
    assert set(await asyncio.gather(*calls)) == {"waited"}


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack(">IBQ", FRAME_BYTES_MAX + 1, 0, 1),
        struct.pack(">IBQ", 0, 7, 1),
        struct.pack(">IBQ", 1, 0, 1) + b"\xc1",
        struct.pack(">IBQ", 3, 2, 1) + b"\x92\xa0\xa0",
        struct.pack(">IBQ", 14, 0, 1) + msgspec.msgpack.encode(Unknown()),
    ],
    ids=["too large", "unknown kind", "no msgpack", "unknown fault", "unknown question"],
)
async def test_what_cannot_be_read_breaks_the_channel(half, junk):
    side, other = half
    waiting = asyncio.ensure_future(side.channel.call(Double(1), int))
    await asyncio.sleep(0)
    other.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(other, junk)
    with pytest.raises(ChannelBroken):
        await waiting
    await side.channel.broken()


async def test_a_frame_may_come_in_pieces_of_any_size(half):
    _side, other = half
    payload = msgspec.msgpack.encode(Double(21))
    frame = struct.pack(">IBQ", len(payload), 0, 9) + payload
    other.setblocking(False)
    loop = asyncio.get_running_loop()
    for data in (*(frame[n : n + 1] for n in range(len(frame))), frame + frame[:5], frame[5:]):
        await loop.sock_sendall(other, data)
        await asyncio.sleep(0)
    answer = struct.pack(">IBQ", 1, 1, 9) + msgspec.msgpack.encode(42)
    received = b""
    while len(received) < 3 * len(answer):
        received += await loop.sock_recv(other, 4096)
    assert received == answer * 3
