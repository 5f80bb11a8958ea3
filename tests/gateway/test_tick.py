"""One clock for all: what is charged is on the record before it leaves, and nothing leaves that is not."""

import asyncio

import pytest

from gateway.metrics import Metrics
from gateway.ports import AuditFailed
from gateway.record import Released, Stopped
from gateway.tick import Tick
from policy.canonical import Finish, TextDelta
from policy.release import Outcome


def tick_of(fakes, *, audit=None, clock=None, tick_s=None, short=lambda session: None):
    trace = []
    audit = audit or fakes.AuditLog(trace)
    clock = clock or fakes.Clock()
    tick = Tick(
        clock=clock,
        audit=audit,
        metrics=Metrics(),
        tick_s=tick_s or fakes.TICK_S,
        usable=lambda: True,
        short=short,
    )
    return tick, audit, clock


async def waiting(fakes, tick, text="x" * 16, *, number=1):
    """A session with something to say and a client that waits for it."""
    session = fakes.session(number=number, changed=tick.enlist, opened_tick=tick.now)
    session.answer.add(TextDelta(text))
    client = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    return session, client


async def test_a_tick_with_nothing_to_do_writes_nothing(fakes):
    tick, audit, _ = tick_of(fakes)
    await tick.once(1)
    assert audit.calls == 0


async def test_one_flush_serves_every_stream_in_the_order_of_admission(fakes):
    tick, audit, _ = tick_of(fakes)
    clients = [(await waiting(fakes, tick, number=number))[1] for number in (3, 1, 2)]
    tick.record(Stopped(at_ms=0, holder="h"))
    await tick.once(tick.now + 1)
    assert audit.calls == 1
    assert [type(leaf) for leaf in audit.leaves] == [Stopped, Released, Released, Released]
    await asyncio.gather(*clients)


async def test_nothing_is_delivered_while_its_record_is_not_durable(fakes):
    tick, audit, _ = tick_of(fakes)
    audit.gate = asyncio.Event()
    session, client = await waiting(fakes, tick)
    ticking = asyncio.ensure_future(tick.once(tick.now + 1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert session.charged_bits > 0
    assert not client.done()
    audit.gate.set()
    await ticking
    assert (await client).text == "x" * 16


async def test_what_is_recorded_while_a_flush_is_under_way_comes_with_the_next(fakes):
    tick, audit, _ = tick_of(fakes)
    audit.gate = asyncio.Event()
    tick.record(Stopped(at_ms=1, holder="h"))
    ticking = asyncio.ensure_future(tick.once(1))
    await asyncio.sleep(0)
    tick.record(Stopped(at_ms=2, holder="h"))
    audit.gate.set()
    await ticking
    assert [leaf.at_ms for leaf in audit.leaves] == [1]
    await tick.once(2)
    assert [leaf.at_ms for leaf in audit.leaves] == [1, 2]


async def test_a_record_that_fails_ends_the_loop_and_nothing_of_its_tick_leaves(fakes):
    tick, _, _ = tick_of(fakes, audit=fakes.AuditLog([], fail_at=1))
    _, client = await waiting(fakes, tick)
    with pytest.raises(AuditFailed):
        await asyncio.wait_for(tick.run(), 5)
    assert not client.done()
    client.cancel()


@pytest.mark.parametrize("fail_at", range(1, 9))
async def test_whenever_the_record_fails_nothing_is_written_that_is_not_on_it(fakes, fail_at):
    house = fakes.House(fail_at=fail_at)

    async def pause():
        await house.ticks(3)

    steps = [part for _ in range(5) for part in (fakes.sse(fakes.delta("x" * 40)), pause)]
    core = asyncio.create_task(house.tick.run())
    asking = asyncio.create_task(house.ask([*steps, fakes.said("!")]))
    await house.ticks(60)
    recorded = sum(leaf.text_bytes for leaf in house.audit.of(Released))
    client_bytes = sum(event[1] for event in house.trace if event[0] == "write")
    writes = [event for event in house.trace if event[0] == "write"]
    assert len(writes) == len(house.audit.of(Released))
    if core.done():
        assert isinstance(core.exception(), AuditFailed)
        at = house.trace.index(("audit failed",))
        assert not any(event[0] in ("write", "begin", "refuse") for event in house.trace[at:])
    else:
        assert house.audit.calls < fail_at
        assert recorded == 5 * 40 + 1
    assert client_bytes > 0 or recorded == 0
    for task in (core, asking):
        task.cancel()
    await asyncio.gather(core, asking, return_exceptions=True)


async def test_a_session_that_is_no_longer_ready_is_passed_over(fakes):
    tick, audit, _ = tick_of(fakes)
    session, client = await waiting(fakes, tick)
    client.cancel()
    await asyncio.sleep(0)
    await tick.once(tick.now + 1)
    assert session.charged_bits == 0
    assert audit.calls == 0


async def test_a_session_whose_purse_is_empty_is_handed_to_the_refill(fakes):
    short = []
    tick, _, _ = tick_of(fakes, short=short.append)
    session, client = await waiting(fakes, tick)
    session.hold.expires_s = 1
    await tick.once(tick.now + 1)
    assert short == [session]
    assert session.charged_bits == 0
    client.cancel()


async def test_the_loop_sleeps_to_the_next_tick_and_not_a_moment_more(fakes):
    tick, audit, clock = tick_of(fakes)
    running = asyncio.create_task(tick.run())
    for wanted in (1, 2):
        clock.advance(0.004)
        before = tick.now
        _, client = await waiting(fakes, tick, number=wanted)
        await asyncio.wait_for(client, 5)
        assert audit.of(Released)[-1].tick == before + 1
        assert clock.monotonic_s() == (before + 1) * fakes.TICK_S
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_no_two_ticks_have_one_number_whatever_the_length_of_a_tick(fakes):
    """29 × 0.02 / 0.02 is 28.999… in floats: woken exactly on time, the loop must not take tick 29 for tick 28."""
    clock = fakes.Clock(monotonic_s=0.57)
    tick, audit, _ = tick_of(fakes, clock=clock, tick_s=0.02)
    running = asyncio.create_task(tick.run())
    for number in range(40):
        _, client = await waiting(fakes, tick, number=number)
        await asyncio.wait_for(client, 5)
    numbers = [leaf.tick for leaf in audit.of(Released)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert numbers == sorted(set(numbers))


async def test_a_late_tick_is_counted_as_missed(fakes):
    tick, _, clock = tick_of(fakes)
    due = tick.now + 1
    clock.advance(fakes.TICK_S * 4.5)
    await tick.once(due)
    assert tick._metrics.ticks_missed._value.get() == 3


async def test_a_flush_puts_the_rest_on_the_record(fakes):
    tick, audit, _ = tick_of(fakes)
    await tick.flush()
    assert audit.calls == 0
    tick.record(Stopped(at_ms=0, holder="h"))
    await tick.flush()
    assert audit.calls == 1
    await tick.flush()
    assert audit.calls == 1


async def test_an_answer_that_has_ended_is_not_collected_again(fakes):
    tick, audit, _ = tick_of(fakes)
    session, client = await waiting(fakes, tick)
    session.answer.add(Finish(Outcome.STOP))
    tick.enlist(session)
    await tick.once(tick.now + 1)
    await client
    again = asyncio.ensure_future(session.next())
    await asyncio.sleep(0)
    await tick.once(tick.now + 2)
    assert len(audit.of(Released)) == 1
    again.cancel()
