"""After an answer: the cheapest code is what it costs, and the difference goes back to where it was charged."""

import asyncio

import pytest

from gateway import settle
from gateway.metrics import Metrics
from gateway.ports import ScorerFailed
from gateway.record import Settled
from gateway.settle import Settler
from policy.budget import Purse
from policy.canonical import Finish, TextDelta
from policy.limits import SETTLE_INLINE_BYTES_MAX
from policy.release import Outcome


def settler(fakes, *meters, scorer=None):
    leaves = []
    return Settler(meters=meters, scorer=scorer, clock=fakes.Clock(), metrics=Metrics(), record=leaves.append), leaves


class Scorer:
    """Answers each batch with the next of its scripted scores; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def score(self, items):
        self.asked.append(items)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def scored(settling, *, batches):
    """Run the scoring worker until the scripted scorer has been asked so often, and a little longer."""
    running = asyncio.create_task(settling.score())
    async with asyncio.timeout(5):
        while len(settling._scorer.asked) < batches:  # noqa: ASYNC110  the settler has no event to wait for
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
    running.cancel()


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
    settling, leaves = settler(fakes, fakes.Meter(5, "language_model"), fakes.Meter(2, "zstd"))
    session, purse = closed(fakes, "x" * 100)
    charged = session.charged_bits
    before = purse.balance_bits(fakes.account().id)
    settling.settle(session)
    (leaf,) = leaves
    assert (leaf.code, leaf.refunded_bits, leaf.charged_bits) == ("zstd", 600, charged - 600)
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
    charged = session.charged_bits
    settling.settle(session)
    assert leaves[0].refunded_bits == 800 < charged


def test_steady_ticks_are_refunded_by_the_adaptive_code_even_where_raw_is_the_only_text_code(fakes):
    settling, leaves = settler(fakes)
    session, _ = closed(fakes, "x" * 40_000)
    charged, saving = session.charged_bits, session.ticks.saving_bits()
    settling._apply(session, settling._cheapest(bytes(session.text)))
    assert saving > 0
    assert (leaves[0].code, leaves[0].refunded_bits, leaves[0].charged_bits) == ("raw", saving, charged - saving)


def test_the_ticks_of_an_answer_that_was_left_keep_the_fixed_code(fakes):
    settling, leaves = settler(fakes)
    session, _ = closed(fakes, "x" * 40_000)
    session.ending = None
    settling._apply(session, settling._cheapest(bytes(session.text)))
    assert leaves[0].refunded_bits == 0


async def test_the_language_model_refunds_what_zstd_left(fakes):
    scorer = Scorer([50])
    settling, leaves = settler(fakes, fakes.Meter(2, "zstd"), scorer=scorer)
    session, purse = closed(fakes, "x" * 100)
    charged, before = session.charged_bits, purse.balance_bits(fakes.account().id)
    settling.settle(session)
    await scored(settling, batches=1)
    assert [(leaf.code, leaf.refunded_bits) for leaf in leaves] == [("zstd", 600), ("language_model", 150)]
    assert leaves[-1].charged_bits == charged - 750
    assert purse.balance_bits(fakes.account().id) == before + 750
    assert scorer.asked[0][0].text == b"x" * 100


@pytest.mark.parametrize("bits", [200, 10**9, None])
async def test_a_score_that_is_no_better_changes_nothing(fakes, bits):
    settling, leaves = settler(fakes, fakes.Meter(2, "zstd"), scorer=Scorer([bits]))
    session, _ = closed(fakes, "x" * 100)
    settling.settle(session)
    await scored(settling, batches=1)
    assert [leaf.code for leaf in leaves] == ["zstd"]


async def test_a_scorer_that_fails_costs_its_batch_the_refund_and_the_next_one_nothing(fakes, monkeypatch):
    monkeypatch.setattr(settle, "SCORER_PAUSE_S", 0.001)
    settling, leaves = settler(fakes, fakes.Meter(2, "zstd"), scorer=Scorer(ScorerFailed("timeout"), [10]))
    first, _ = closed(fakes, "x" * 100)
    settling.settle(first)
    running = asyncio.create_task(settling.score())
    async with asyncio.timeout(5):
        while not settling._scorer.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    second, _ = closed(fakes, "y" * 100)
    settling.settle(second)
    await scored(settling, batches=2)
    assert [leaf.code for leaf in leaves] == ["zstd", "zstd", "language_model"]


def test_beyond_a_full_queue_texts_keep_what_zstd_left(fakes, monkeypatch):
    monkeypatch.setattr(settle, "SCORE_QUEUE_BYTES_MAX", 250)
    settling, leaves = settler(fakes, fakes.Meter(2, "zstd"), scorer=Scorer())
    for _ in range(5):
        settling.settle(closed(fakes, "x" * 100)[0])
    assert len(settling._unscored) == 2
    assert len(leaves) == 5


@pytest.mark.parametrize("case", ["renewed", "empty"])
def test_what_cannot_be_settled_keeps_its_raw_charge(fakes, case):
    settling, leaves = settler(fakes, fakes.Meter(1))
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
    assert leaves[0].refunded_bits == 7 * (SETTLE_INLINE_BYTES_MAX + 1) + session.ticks.saving_bits()


def test_a_text_of_exactly_the_inline_size_is_settled_at_once(fakes):
    settling, leaves = settler(fakes, fakes.Meter(1))
    session, _ = closed(fakes, "x" * SETTLE_INLINE_BYTES_MAX)
    settling.settle(session)
    assert len(leaves) == 1


def test_beyond_a_full_queue_answers_keep_their_raw_charge(fakes, monkeypatch):
    monkeypatch.setattr(settle, "SETTLE_QUEUE_ANSWERS_MAX", 2)
    settling, leaves = settler(fakes, fakes.Meter(1))
    session, _ = closed(fakes, "x" * (SETTLE_INLINE_BYTES_MAX + 1))
    for _ in range(5):
        settling.settle(session)
    assert settling._long.qsize() == 2
    assert leaves == []
