from __future__ import annotations

import threading
import time

from inference.engine import Engine
from inference.loading import LoadedModel
from inference.request import EndReason, EngineRequest, Refused, RefusedReason
from inference.sampling import SamplingParams
from inference.steering.applied import Applied

PROMPTS = [
    "The old lighthouse keeper",
    "Q: What is 2 + 2? A:",
    "Once upon a time, in a small village by the sea, there lived a girl who",
    "import numpy as np\n\ndef",
    "Dear Sir or Madam,",
    "The three laws of thermodynamics are",
    "Yesterday",
    "Roses are red, violets are blue, " * 12,
]


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch_of_eight(start):
    alone = [start(prompt, seed=i, max_tokens=24).wait().token_ids for i, prompt in enumerate(PROMPTS)]
    together = [start(prompt, seed=i, max_tokens=24) for i, prompt in enumerate(PROMPTS)]
    assert [run.wait().token_ids for run in together] == alone
    assert start(PROMPTS[0], seed=99, max_tokens=24).wait().token_ids != alone[0]


def test_a_prompt_longer_than_one_piece_gives_the_same_tokens_while_others_decode(start):
    long_prompt = "The committee met again on Tuesday and decided nothing. " * 45  # several pieces of 256 tokens
    alone = start(long_prompt, seed=4, max_tokens=6).wait().token_ids
    other = start(PROMPTS[2], seed=1, max_tokens=200)
    assert start(long_prompt, seed=4, max_tokens=6).wait().token_ids == alone
    other.handle.cancel()
    other.wait()


def test_requests_join_and_leave_between_steps(start):
    first = start(PROMPTS[0], max_tokens=300)
    while len(first.token_ids) < 3:
        time.sleep(0.01)
    second = start(PROMPTS[1], max_tokens=3).wait()
    assert second.reason is EndReason.LENGTH
    assert len(second.token_ids) == 3
    assert first.reason is None  # still running: the second neither waited for it nor stopped it
    first.handle.cancel()
    first.wait()


def test_a_cancelled_request_leaves_no_residue(start, engine: Engine):
    other = start(PROMPTS[3], seed=3, max_tokens=40)
    cancelled = start(PROMPTS[0], max_tokens=1000)
    while not cancelled.token_ids:
        time.sleep(0.01)
    cancelled.handle.cancel()
    cancelled.handle.cancel()
    assert cancelled.wait().reason is EndReason.CANCELLED
    stopped_at = len(cancelled.token_ids)
    assert other.wait().reason is EndReason.LENGTH
    assert len(cancelled.token_ids) == stopped_at
    assert engine.active_requests == 0
    assert engine.kv_tokens_reserved == 0
    assert start(PROMPTS[3], seed=3, max_tokens=40).wait().token_ids == other.token_ids


def test_a_request_ends_with_the_token_its_owner_refuses(start):
    seen: list[int] = []

    def third(token_id: int) -> bool:
        seen.append(token_id)
        return len(seen) == 3

    run = start(PROMPTS[0], max_tokens=50, on_token=third).wait()
    assert (run.reason, len(run.token_ids)) == (EndReason.STOPPED, 3)


def test_an_owner_that_raises_ends_its_step_as_failed_and_the_engine_lives_on(start, engine: Engine):
    def broken(token_id: int) -> bool:
        raise RuntimeError("owner's bug")

    assert start(PROMPTS[0], on_token=broken).wait().reason is EndReason.FAILED
    assert start(PROMPTS[0], max_tokens=2).wait().reason is EndReason.LENGTH
    assert engine.kv_tokens_reserved == 0


def _request(prompt_tokens: int, max_tokens: int) -> EngineRequest:
    return EngineRequest(
        prompt_ids=(5,) * prompt_tokens,
        max_tokens=max_tokens,
        sampling=SamplingParams(seed=0),
        steering=None,
        on_token=lambda _: False,
        on_end=lambda *_: None,
    )


def test_a_request_that_can_never_fit_the_memory_is_refused_with_the_numbers(engine: Engine, loaded: LoadedModel):
    before = loaded.model.forward_passes
    refused = engine.submit(_request(3000, 1097))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.KV_MEMORY
    assert all(number in refused.message for number in ("3000", "1097", "4096"))
    assert loaded.model.forward_passes == before


def test_requests_beyond_the_memory_wait_until_others_leave(start, engine: Engine):
    large = [start(PROMPTS[0], max_tokens=1800), start(PROMPTS[1], max_tokens=1800)]
    while not all(run.token_ids for run in large):
        time.sleep(0.01)
    waiting = start(PROMPTS[2], max_tokens=1000)
    time.sleep(0.2)
    assert waiting.token_ids == []
    assert engine.kv_tokens_reserved <= 4096
    large[0].handle.cancel()
    while not waiting.token_ids:
        time.sleep(0.01)
    for run in (large[1], waiting):
        run.handle.cancel()
        run.wait()


def test_a_full_queue_refuses(loaded: LoadedModel):
    engine = Engine(loaded.model, batch_rows_max=1, kv_tokens_max=100)  # never started: everything waits
    refusals = [engine.submit(_request(1, 1)) for _ in range(257)]
    assert [isinstance(refusal, Refused) for refusal in refusals] == [False] * 256 + [True]
    assert refusals[-1].reason is RefusedReason.QUEUE_FULL


def test_stopping_ends_every_request_once_and_refuses_new_ones(loaded: LoadedModel):
    engine = Engine(loaded.model, batch_rows_max=1, kv_tokens_max=4096)
    ends: list[EndReason] = []
    began = threading.Event()

    def on_token(_: int) -> bool:
        began.set()
        return False

    for _ in range(3):
        engine.submit(
            EngineRequest(
                prompt_ids=(5, 6),
                max_tokens=1000,
                sampling=SamplingParams(seed=0),
                steering=None,
                on_token=on_token,
                on_end=lambda reason, _: ends.append(reason),
            )
        )
    engine.start()
    assert began.wait(30)
    engine.stop()
    assert ends == [EndReason.CANCELLED] * 3
    refused = engine.submit(_request(1, 1))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.STOPPING


def test_a_chore_runs_between_the_steps_of_requests(start, engine: Engine):
    pieces: list[int] = []
    finished = threading.Event()

    def chore():
        for _ in range(5):
            pieces.append(len(run.token_ids))
            yield
        finished.set()

    run = start(PROMPTS[0], max_tokens=400)
    while not run.token_ids:
        time.sleep(0.01)
    engine.add_chore(chore())
    assert finished.wait(30)
    assert len(set(pieces)) == 5  # a token of the request came between any two pieces
    run.handle.cancel()
    run.wait()


def test_a_callback_that_fails_ends_the_engine_for_all_to_see_and_leaves_nobody_waiting(loaded: LoadedModel):
    engine = Engine(loaded.model, batch_rows_max=4, kv_tokens_max=1000)
    ended: list[EndReason] = []
    everybody = threading.Event()

    def fails(_: EndReason, __: Applied) -> None:
        raise ValueError("a bug of the caller's")

    def notes(reason: EndReason, _: Applied) -> None:
        ended.append(reason)
        everybody.set()

    def request(max_tokens: int, on_end) -> EngineRequest:
        return EngineRequest(
            prompt_ids=(1, 2, 3),
            max_tokens=max_tokens,
            sampling=SamplingParams(seed=0, temperature=0.0, top_k=0, top_p=1.0),
            steering=None,
            on_token=lambda _: False,
            on_end=on_end,
        )

    unlucky = engine.submit(request(2, fails))
    assert not isinstance(unlucky, Refused)
    unlucky.cancel()
    engine.submit(request(900, notes))
    assert not engine.has_failed
    engine.start()
    assert everybody.wait(60)
    assert ended == [EndReason.CANCELLED]
    assert engine.has_failed
    refused = engine.submit(request(1, notes))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.STOPPING
    engine.stop()
