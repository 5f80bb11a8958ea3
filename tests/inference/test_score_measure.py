from __future__ import annotations

import base64
import dataclasses
import math
import random
from array import array
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.loading import LoadedModel
from inference.score.answers import Answer
from inference.score.app import ScoreService
from inference.score.digest import digest, measure_document
from inference.score.forward import modelled_bits
from inference.score.measure import (
    END_FLOOR,
    ESCAPE_MASS,
    ESCAPED_BYTE_BITS,
    LOGIT_ERROR_MAX,
    SURCHARGE_BITS,
    charge_bits,
    end_bits,
    token_bits,
)
from inference.score.scorer import QueueFullError, Score, Scorer, StoppedError
from inference.score.segmentation import TokenPath
from inference.score.windows import Window


def path_of(service: ScoreService, text: str, *, question: str | None = None) -> TokenPath:
    if question is None:
        return service.segmenter.path("", text, add_special_tokens=True)
    shown = service.loaded.template.render([{"role": "user", "content": question}])
    return service.segmenter.path(shown, text, add_special_tokens=False)


def scored(service: ScoreService, *paths: TokenPath) -> list[Score]:
    return [future.result(timeout=60) for future in service.scorer.submit(paths)]


def reference_bits(service: ScoreService, path: TokenPath) -> float:
    """The text alone, in one pass, without any surcharge."""
    window = Window(start=0, first_row=path.prompt_tokens - 1, end=len(path.token_ids))
    bits = modelled_bits(service.loaded.model, [(path.token_ids, window)], service.loaded.end_ids)[0]
    return math.fsum(bits) + ESCAPED_BYTE_BITS * path.escapes


@pytest.fixture(scope="module")
def paths(score_service: ScoreService, answers: list[Answer]) -> list[TokenPath]:
    """Answers whole and cut off, junk, repetitions, and nothing at all: every length from 0 tokens up."""
    chosen = random.Random(3)
    texts = [answer.text[: chosen.randrange(1, 300)] for answer in answers]
    texts += [chosen.randbytes(n).decode("latin-1") for n in (1, 20, 50)] + ["the " * 40, "\x04" * 5, "", "\U00040000"]
    return [path_of(score_service, text, question=answers[0].question) for text in texts]


def test_the_masses_of_all_symbols_sum_to_at_most_1_at_every_state_tried(
    score_service: ScoreService, answers: list[Answer], all_logits
):
    loaded = score_service.loaded
    texts = [i for i in range(loaded.tokenizer.vocab_size) if loaded.tokenizer.token_bytes(i)]
    chosen = random.Random(0)
    for answer in answers:
        ids = path_of(score_service, answer.text, question=answer.question).token_ids
        junk = [chosen.randrange(20, 49_152) for _ in range(chosen.randrange(1, 30))]
        for state in (ids[: chosen.randrange(1, 80)].tolist(), junk):
            logits = all_logits(loaded.model, state)[-1:]
            tokens = float(torch.exp2(-token_bits(logits, torch.tensor([texts]))).sum())
            total = tokens + float(torch.exp2(-end_bits(logits, loaded.end_ids))[0]) + 256 * 2**-ESCAPED_BYTE_BITS
            assert 0.9 < total <= 1 + 1e-9
            # What is charged is the sum with every token's surcharge, and that is below 1 without any tolerance.
            assert total * 2**-SURCHARGE_BITS < 1


def test_a_codelength_is_that_of_an_independent_computation_with_the_general_library(
    oracle, score_service: ScoreService, answers: list[Answer]
):
    for answer in answers[:2]:
        path = path_of(score_service, answer.text, question=answer.question)
        with torch.no_grad():
            logits = oracle(torch.tensor([path.token_ids.tolist()])).logits[0].numpy().astype(np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        share = 1 - 2**-10 - 2**-12
        chances = [share * p[i - 1, path.token_ids[i]] for i in range(path.prompt_tokens, len(path.token_ids))]
        chances.append(share * (p[-1, 0] + p[-1, 2]) + 2**-10)
        expected = -sum(map(math.log2, chances))
        (score,) = scored(score_service, path)
        assert math.fsum(score.modelled_bits) == pytest.approx(expected, abs=1e-3)
        assert score.bits == math.ceil(math.fsum(score.modelled_bits) + SURCHARGE_BITS * len(chances))
        assert score.symbols == len(chances) - 1


def test_in_whatever_batch_a_text_is_charged_at_least_its_reference_and_hardly_more(
    score_service: ScoreService, paths: list[TokenPath]
):
    expected = [reference_bits(score_service, path) for path in paths]
    for order in (list(range(len(paths))), list(reversed(range(len(paths))))):
        for i, score in zip(order, scored(score_service, *(paths[i] for i in order)), strict=True):
            assert expected[i] <= score.bits <= expected[i] + 1 + 2 * SURCHARGE_BITS * len(score.modelled_bits)


def test_batches_and_threads_move_the_bits_of_no_symbol_by_anything_near_the_surcharge(
    score_service: ScoreService, paths: list[TokenPath]
):
    model, end_ids = score_service.loaded.model, score_service.loaded.end_ids
    stretches = [
        (p.token_ids, Window(start=0, first_row=p.prompt_tokens - 1, end=len(p.token_ids))) for p in paths[:12]
    ]
    alone = [modelled_bits(model, [stretch], end_ids)[0] for stretch in stretches]
    threads = torch.get_num_threads()
    for others in (1, 2):
        torch.set_num_threads(others)
        for size in (4, 12):
            batches = [stretches[i : i + size] for i in range(0, 12, size)]
            found = [bits for batch in batches for bits in modelled_bits(model, batch, end_ids)]
            worst = max(abs(a - b) for x, y in zip(alone, found, strict=True) for a, b in zip(x, y, strict=True))
            assert worst <= LOGIT_ERROR_MAX / 4  # far inside, or the constant wants a new measurement
    torch.set_num_threads(threads)


@settings(max_examples=30, deadline=None)
@given(
    text=st.text(
        st.one_of(st.characters(codec="utf-8"), st.sampled_from("\x00\x04\u0301\u200d🦉\U0010fffd")), max_size=25
    )
)
def test_every_text_has_a_price_even_the_empty_one(score_service: ScoreService, text: str):
    (score,) = scored(score_service, path_of(score_service, text))
    assert 0 < score.bits < 40 * len(text.encode()) + 40


def test_the_empty_answer_costs_its_end(score_service: ScoreService):
    (score,) = scored(score_service, path_of(score_service, "", question="Hi"))
    assert score.symbols == 0
    assert len(score.modelled_bits) == 1
    assert 5 <= score.bits <= 11  # an empty answer is unlikely, but END has mass 2^-10 everywhere


def test_an_answer_that_was_cut_off_pays_for_its_end_at_most_ten_bits_more(score_service: ScoreService):
    (score,) = scored(
        score_service, path_of(score_service, "The capital of", question="What is the capital of France?")
    )
    assert 8 < score.modelled_bits[-1] <= -math.log2(END_FLOOR)


def test_an_escaped_byte_costs_the_same_everywhere(score_service: ScoreService):
    plain, escaped = scored(score_service, path_of(score_service, "a"), path_of(score_service, "a\x04"))
    assert escaped.modelled_bits == plain.modelled_bits
    assert escaped.symbols == plain.symbols + 1
    assert escaped.bits - plain.bits == ESCAPED_BYTE_BITS == 8 - math.log2(ESCAPE_MASS) == 20


def test_the_models_own_answers_cost_below_six_tenths_of_a_bit_per_byte_and_more_without_their_question(
    score_service: ScoreService, answers: list[Answer]
):
    asked = scored(score_service, *(path_of(score_service, a.text, question=a.question) for a in answers))
    unasked = scored(score_service, *(path_of(score_service, a.text) for a in answers))
    text_bytes = sum(len(answer.text.encode()) for answer in answers)
    per_byte = [sum(score.bits for score in scores) / text_bytes for scores in (asked, unasked)]
    print(f"bits per byte of {len(answers)} answers: {per_byte[0]:.3f}, without the question {per_byte[1]:.3f}")  # noqa: T201 - shown with -s
    assert per_byte[0] <= 0.6
    assert per_byte[0] < per_byte[1]


def test_random_base64_costs_at_least_the_six_bits_a_byte_that_it_carries(score_service: ScoreService):
    text = base64.b64encode(random.Random(1).randbytes(450)).decode()
    (score,) = scored(score_service, path_of(score_service, text, question="Give me random base64."))
    print(f"random base64: {score.bits / len(text):.2f} bits per byte")  # noqa: T201 - shown with -s
    assert score.bits >= 6 * len(text)


@pytest.fixture
def small_service(loaded: LoadedModel) -> Iterator[ScoreService]:
    """The same model with a context of 128 tokens: 96 of the prompt, 32 and then 64 of the text at a time."""
    small = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, context_tokens=128))
    scorer = Scorer(small, batch_tokens_max=300)
    scorer.start()
    yield ScoreService(loaded=small, scorer=scorer, code="", document={})
    scorer.stop()


def test_a_text_longer_than_the_context_has_a_price_and_its_beginning_costs_what_it_costs_alone(
    small_service: ScoreService, answers: list[Answer]
):
    ids, _ = small_service.segmenter.cut(" ".join(answer.text for answer in answers[:3]))
    whole, part = (TokenPath(token_ids=array("l", [1, *ids[:n]]), prompt_tokens=1, escapes=0) for n in (300, 150))
    long, short = scored(small_service, whole, part)
    assert len(long.modelled_bits) == 301
    assert long.modelled_bits[:150] == pytest.approx(short.modelled_bits[:150], abs=SURCHARGE_BITS / 4)
    assert sum(long.modelled_bits) / 300 < 4  # bits per token: the windows do remember what was said


def test_of_a_prompt_longer_than_the_context_the_end_is_what_counts(small_service: ScoreService):
    beginning = "It was a bright cold day in April, and the clocks were striking thirteen. " * 100
    end = "The parrot is called Balthazar. The name of the parrot is"
    texts = (small_service.segmenter.path(p, " Balthazar", add_special_tokens=True) for p in (beginning + end, "It is"))
    told, untold = scored(small_service, *texts)
    assert told.bits < untold.bits / 2


def test_a_short_text_does_not_wait_for_a_long_one(loaded: LoadedModel):
    small = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, context_tokens=32))
    scorer = Scorer(small, batch_tokens_max=32)
    long, short = (TokenPath(token_ids=array("l", [1] * n), prompt_tokens=1, escapes=0) for n in (600, 3))
    futures = scorer.submit([long, short])
    scorer.start()
    futures[1].result(timeout=60)
    assert not futures[0].done()
    assert futures[0].cancel()
    assert scorer.submit([short])[0].result(timeout=60).symbols == 2
    scorer.stop()
    assert scorer.active_requests == 0


def test_what_waits_when_the_scorer_stops_fails_and_nothing_is_taken_after(loaded: LoadedModel):
    scorer = Scorer(loaded, batch_tokens_max=64)
    path = TokenPath(token_ids=array("l", [1] * 64), prompt_tokens=1, escapes=0)
    futures = scorer.submit([path] * 40)
    scorer.start()
    scorer.stop()
    assert isinstance(futures[-1].exception(timeout=1), StoppedError)
    with pytest.raises(StoppedError):
        scorer.submit([path])


def test_more_than_an_hour_of_waiting_work_is_refused(loaded: LoadedModel):
    scorer = Scorer(loaded, batch_tokens_max=64)
    vast = TokenPath(token_ids=array("l", [1]) * 5_000_000, prompt_tokens=1, escapes=0)
    scorer.submit([vast])  # an empty queue takes whatever one body can hold
    with pytest.raises(QueueFullError):
        scorer.submit([TokenPath(token_ids=array("l", [1]), prompt_tokens=1, escapes=0)])


def test_a_fault_fails_its_text_and_the_next_is_scored(score_service: ScoreService):
    broken = TokenPath(token_ids=array("l", [10**6, 1]), prompt_tokens=1, escapes=0)
    assert isinstance(score_service.scorer.submit([broken])[0].exception(timeout=60), IndexError)
    assert scored(score_service, path_of(score_service, "fine"))[0].bits > 0


@pytest.mark.parametrize("bits", [math.nan, math.inf, -math.inf])
def test_a_model_that_breaks_down_makes_nothing_cheap(bits: float):
    with pytest.raises(ArithmeticError):
        charge_bits(modelled=[1.0, bits], escapes=0)


def test_a_charge_is_rounded_up_and_holds_two_epsilon_a_symbol():
    assert charge_bits(modelled=[1.0], escapes=0) == 2
    assert charge_bits(modelled=[1.0] * 10_000, escapes=3) == math.ceil(10_000 * (1 + SURCHARGE_BITS) + 60)
    assert math.isclose(SURCHARGE_BITS, 2 * LOGIT_ERROR_MAX * math.log2(math.e) + 2**-20)


def test_the_digest_is_another_one_whenever_anything_that_moves_bits_is_another(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}

    def code(loaded: LoadedModel = loaded, tensors: dict[str, torch.Tensor] = weights) -> str:
        return digest(measure_document(loaded, tensors))

    codes = [
        code(),
        code(tensors={**weights, "a": torch.tensor([0, 0, 1e-30])}),
        code(tensors={**weights, "b": torch.ones(4)}),
        code(tensors={"a": weights["a"]}),
        code(dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, rope_theta=1e4))),
        code(dataclasses.replace(loaded, tokenizer=loaded.tokenizer.literal(), end_ids=frozenset({2}))),
        code(dataclasses.replace(loaded, template=dataclasses.replace(loaded.template, source="other"))),
    ]
    monkeypatch.setattr("inference.score.measure.RULES_VERSION", 2)
    codes.append(code())
    assert len(set(codes)) == len(codes)
    monkeypatch.undo()
    assert code(tensors=dict(reversed(weights.items()))) == codes[0]
