"""After an answer: the cheapest code is what it costs, and the difference goes back to where it was charged."""

import asyncio

import pytest

from gateway import settle
from gateway.metrics import Metrics
from gateway.record import Settled
from gateway.settle import Settler
from policy.budget import Purse
from policy.canonical import Finish, TextDelta
from policy.limits import SETTLE_INLINE_BYTES_MAX
from policy.release import Outcome


def settler(fakes, *meters):
    leaves = []
    return Settler(meters=meters, clock=fakes.Clock(), metrics=Metrics(), record=leaves.append), leaves


def closed(fakes, text, *, purse=None):
    """A session that has said `text` and ended."""
    purse = purse or Purse()
    purse.credit(fakes.account().id, 1 << 30)
    session = fakes.session(purse=purse, call=fakes.chat_call(tokens=4096))
    for part in [text[at : at + 4000] for at in range(0, len(text), 4000)]:
        session.answer.add(TextDelta(part))
    session.answer.add(Finish(Outcome.STOP))
    tick = 1
    while session.ending is None:
        session.collect(tick, at_ms=0)
        tick += 1
    session.hold.close()
    return session, purse


def test_the_cheapest_code_is_charged_and_the_rest_refunded(fakes):
    settling, leaves = settler(fakes, fakes.Meter(5, "zstd"), fakes.Meter(2, "other"))
    settling._metrics = None
    session, purse = closed(fakes, "x" * 100)
    session.metrics.settled_bits.setdefault("other", session.metrics.settled_bits["zstd"])
    session.metrics.refunded_bits.setdefault("other", session.metrics.refunded_bits["zstd"])
    before = purse.balance_bits(fakes.account().id)
    settling.settle(session)
    (leaf,) = leaves
    assert (leaf.code, leaf.refunded_bits, leaf.charged_bits) == ("other", 600, session.charged_bits - 600)
    assert purse.balance_bits(fakes.account().id) == before + 600


def test_a_code_dearer_than_raw_changes_nothing(fakes):
    settling, leaves = settler(fakes, fakes.Meter(9))
    session, purse = closed(fakes, "x" * 100)
    before = purse.balance_bits(fakes.account().id)
    settling.settle(session)
    assert leaves == [
        Settled(at_ms=1_000_000_000, answer="abc123", code="raw", charged_bits=session.charged_bits, refunded_bits=0)
    ]
    assert purse.balance_bits(fakes.account().id) == before


def test_a_refund_never_exceeds_what_the_text_was_charged(fakes):
    settling, leaves = settler(fakes, fakes.Meter(0))
    session, _ = closed(fakes, "x" * 100)
    settling.settle(session)
    assert leaves[0].refunded_bits == 800 < session.charged_bits


@pytest.mark.parametrize("case", ["renewed", "empty", "no meters"])
def test_what_cannot_be_settled_keeps_its_raw_charge(fakes, case):
    settling, leaves = settler(fakes, *([] if case == "no meters" else [fakes.Meter(1)]))
    session, purse = closed(fakes, "" if case == "empty" else "x" * 100)
    session.renewed = case == "renewed"
    before = purse.balance_bits(fakes.account().id)
    settling.settle(session)
    assert leaves == []
    assert purse.balance_bits(fakes.account().id) == before


async def test_long_texts_are_settled_off_the_event_loop(fakes):
    settling, leaves = settler(fakes, fakes.Meter(1))
    session, _ = closed(fakes, "x" * (SETTLE_INLINE_BYTES_MAX + 1))
    settling.settle(session)
    assert leaves == []
    running = asyncio.create_task(settling.run())
    async with asyncio.timeout(5):
        while not leaves:  # noqa: ASYNC110  the settler has no event to wait for
            await asyncio.sleep(0.001)
    running.cancel()
    assert leaves[0].refunded_bits == 7 * (SETTLE_INLINE_BYTES_MAX + 1)


def test_a_text_of_exactly_the_inline_size_is_settled_at_once(fakes):
    settling, leaves = settler(fakes, fakes.Meter(1))
    session, _ = closed(fakes, "x" * SETTLE_INLINE_BYTES_MAX)
    settling.settle(session)
    assert len(leaves) == 1


def test_beyond_a_full_queue_answers_keep_their_raw_charge(fakes, monkeypatch):
    monkeypatch.setattr(settle, "QUEUE_ANSWERS_MAX", 2)
    settling, leaves = settler(fakes, fakes.Meter(1))
    session, _ = closed(fakes, "x" * (SETTLE_INLINE_BYTES_MAX + 1))
    for _ in range(5):
        settling.settle(session)
    assert settling._queue.qsize() == 2
    assert leaves == []
