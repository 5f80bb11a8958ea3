"""The jobs, run to their end on SmolLM2: what they store, what they answer, and what they measure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch

from inference.extraction import calibrating
from inference.extraction.answers import answer_plainly, compare
from inference.extraction.calibrating import Calibration, calibrate
from inference.extraction.divergence import kl_nats, quantile
from inference.extraction.evaluation import Evaluation, Metric, Sample, evaluate
from inference.extraction.extraction import Extraction, extract
from inference.extraction.interventions import Interventions
from inference.extraction.methods import Method, Params
from inference.extraction.post_instruction import post_instruction_tokens
from inference.extraction.propensity import log_odds
from inference.extraction.refusal import FIRST_WORDS, Rule, refusal_scores
from inference.extraction.samples import Samples, activations
from inference.extraction.selection import By, Selection, select
from inference.extraction.strength import strength_max
from inference.jobs.chore import JobChore, JobError
from inference.jobs.job import JobKind, Status
from inference.jobs.table import JobTable
from inference.kv import KvCache
from inference.model import Span
from inference.passages import Passage, Positions, Which
from inference.steering.applied import Applied
from inference.steering.spans import SteeredSpan
from inference.steering.spec import Apply, SteeringSpec, VectorUse
from inference.steering.table import SteeringTable
from inference.steering.vector import Kind
from tests.inference.extraction.pieces import run

LAST = Positions(which=Which.LAST)


def an_extraction(loaded, samples, **changes) -> Extraction:
    fields = {
        "vector_id": "found",
        "method": Method.MEAN_DIFFERENCE,
        "params": Params(),
        "layers": (12, 16),
        "at": LAST,
        "samples": samples,
        "side_names": ("glad", "sour"),
        "provenance": {"method": "mean_difference", "model_digest": loaded.vectors_digest},
    }
    return Extraction(**{**fields, **changes})


def test_an_extraction_at_several_layers_is_one_object_with_figures_for_each(lab, loaded, store, sentiment):
    train, _ = sentiment
    result = run(extract(an_extraction(loaded, train), lab=lab, store=store))
    vector = store.get("found")
    assert (vector.kind, vector.layers) == (Kind.DIRECTION, (12, 16))
    alone = run(extract(an_extraction(loaded, train, vector_id="one", layers=(16,)), lab=lab, store=store))
    assert torch.equal(store.get("one").tensors["direction.16"], vector.tensors["direction.16"])
    assert [row["layer"] for row in result["layers"]] == [12, 16]
    assert result["layers"][1] == alone["layers"][0]
    assert (result["selected_layer"], result["position"]) == (16, None)
    means = vector.metadata["projection_means"]
    assert (means["glad"], means["sour"]) == (means["positive"], means["negative"])
    assert means["glad"] - means["sour"] == pytest.approx(vector.metadata["norm"], rel=1e-5)
    assert vector.metadata["d_prime"] == result["layers"][1]["d_prime"] > 2
    json.dumps(result, allow_nan=False)


QUESTIONS = [
    "How was your day?",
    "What do you think of the weather?",
    "Tell me about your family.",
    "What are you doing tonight?",
    "How do you feel about the future?",
    "Describe the street you live on.",
    "What happened at work?",
    "Tell me about your holiday.",
]
HAPPY_WORDS = ["happy", "great", "wonderful", "excited", "joyful", "good", "amazing", "delighted"]
SAD_WORDS = ["sad", "terrible", "awful", "depressed", "miserable", "bad", "hopeless", "lonely"]


def happy_samples(loaded) -> Samples:
    def side(mood: str):
        for question in QUESTIONS:
            system = f"You are extremely {mood}. Everything you say is full of {mood} feeling."
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            yield tuple(loaded.tokenizer.encode(loaded.template.render(messages), add_special_tokens=False))

    return Samples(positive=tuple(side("happy")), negative=tuple(side("sad")), is_paired=True)


def test_an_extracted_happy_vector_shifts_the_words_of_feeling_both_ways(lab, loaded, store, at):
    jobs = JobTable()
    jobs.open("j", kind=JobKind.EXTRACT)
    extraction = an_extraction(loaded, happy_samples(loaded), vector_id="happy", layers=(20,))
    for _ in JobChore(extract(extraction, lab=lab, store=store), jobs=jobs, job_id="j"):
        assert jobs.get("j").status is Status.RUNNING
    job = jobs.get("j")
    assert (job.status, job.progress) == (Status.SUCCEEDED, 1.0)
    assert job.result["layers"][0]["mean_pairwise_cosine"] > 0.5
    assert job.result["layers"][0]["d_prime"] > 2

    shown = loaded.template.render([{"role": "user", "content": "How do you feel today?"}]) + "I feel"
    ids = tuple(loaded.tokenizer.encode(shown, add_special_tokens=False))
    steering_at = at(SteeringSpec(vectors=[VectorUse(id="happy", op="add")]))

    def log_odds_at(scale: float) -> float:
        first = [[loaded.tokenizer.encode(f" {word}", add_special_tokens=True)[0] for word in side] for side in SIDES]
        return log_odds(run(lab.last_logits([ids], steering=steering_at(scale))), *first).item()

    minus, plain, plus = map(log_odds_at, (-1.0, 0.0, 1.0))
    print(f"log odds of happy against sad words: {minus:.2f} {plain:.2f} {plus:.2f}")  # noqa: T201 - shown with -s
    assert plus - plain > 1.0
    assert plain - minus > 1.0


SIDES = (HAPPY_WORDS, SAD_WORDS)


@pytest.mark.parametrize("method", [Method.PCA, Method.PCA_CENTRED, Method.LOGISTIC, Method.LAT, Method.CCS])
def test_directions_without_a_natural_length_are_unit_vectors(lab, loaded, store, sentiment, method):
    train, _ = sentiment
    result = run(extract(an_extraction(loaded, train, method=method, layers=(16,)), lab=lab, store=store))
    assert result["layers"][0]["norm"] == pytest.approx(1.0)
    assert float(store.get("found").tensors["direction.16"].norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", [Method.LEACE, Method.ERASE_MEAN])
def test_an_eraser_takes_the_difference_out_of_the_running_model(lab, loaded, store, sentiment, at, method):
    train, _ = sentiment
    run(extract(an_extraction(loaded, train, method=method, layers=(16,)), lab=lab, store=store))
    vector = store.get("found")
    assert vector.kind is Kind.ERASER
    assert vector.metadata["layer_figures"][0]["mean_square_displacement"] > 0
    steering = at(SteeringSpec(vectors=[VectorUse(id="found", op=method.value)]))(1.0)
    ends = {}
    for name, texts in (("positive", train.positive), ("negative", train.negative)):
        rows = []
        for ids in texts:
            cache = KvCache(
                loaded.config, capacity=len(ids), dtype=torch.float32, device=torch.device("cpu"), layers_share=True
            )
            span = SteeredSpan(token_ids=ids, start=0, prompt_tokens=len(ids), steering=steering, applied=Applied())
            table = SteeringTable([span], device=torch.device("cpu"))
            outputs = loaded.model.block_outputs(
                torch.tensor(ids), [Span(cache, len(ids))], layers={16}, steering=table
            )
            rows.append(outputs[16][-1])
        ends[name] = torch.stack(rows).double().mean(0)
    plain = vector.metadata["norm"]
    assert float((ends["positive"] - ends["negative"]).norm()) < 1e-4 * plain


def test_actadd_stores_the_difference_at_every_token_of_one_pair(lab, loaded, store, encode):
    [positive, negative] = encode(["I love you very much", "I hate you very much"])
    pair = Samples(positive=(positive,), negative=(negative,), is_paired=True)
    extraction = an_extraction(loaded, pair, method=Method.ACTADD, layers=(6,), at=Positions(which=Which.ALL))
    result = run(extract(extraction, lab=lab, store=store))
    vector = store.get("found")
    assert vector.kind is Kind.POSITIONAL
    difference = vector.tensors["direction.6"]
    assert difference.shape == (len(positive), 576)
    assert float(difference[0].norm()) == 0.0  # "I" on both sides, and nothing before it
    assert float(difference[1].norm()) > 1
    assert result["layers"][0]["norm"] == pytest.approx(float(difference.norm(dim=-1).max()), rel=1e-5)
    assert result["layers"][0]["d_prime"] is None


def test_equal_sides_fail_with_the_reason_and_store_nothing(lab, loaded, store):
    same = Samples(positive=((5, 6),), negative=((5, 6),), is_paired=True)
    for method in (Method.MEAN_DIFFERENCE, Method.LEACE, Method.ACTADD):
        with pytest.raises(JobError) as failed:
            run(extract(an_extraction(loaded, same, method=method), lab=lab, store=store))
        assert failed.value.code == "degenerate"
    assert store.all() == []


def test_a_cancelled_extraction_stops_between_pieces_and_leaves_nothing(lab, loaded, store, sentiment):
    train, _ = sentiment
    jobs = JobTable()
    jobs.open("j", kind=JobKind.EXTRACT)
    chore = JobChore(extract(an_extraction(loaded, train), lab=lab, store=store), jobs=jobs, job_id="j")
    for _ in itertools.islice(chore, 2):
        assert jobs.get("j").status is Status.RUNNING
    before = loaded.model.forward_passes
    jobs.cancel("j")
    assert list(chore) == []
    assert jobs.get("j").status is Status.CANCELLED
    assert loaded.model.forward_passes == before
    assert store.all() == []


def a_selection(loaded, train, test, **changes) -> Selection:
    fields = {
        "vector_id": "winner",
        "method": Method.MEAN_DIFFERENCE,
        "params": Params(),
        "layers": (4, 16),
        "places": (LAST, Positions(which=Which.MEAN)),
        "train": train,
        "test": test,
        "by": By.D_PRIME,
        "rule": Rule(),
        "refusal_ids": (),
        "side_names": ("positive", "negative"),
        "provenance": {"model_digest": loaded.vectors_digest},
    }
    return Selection(**{**fields, **changes})


@pytest.fixture(scope="module")
def interventions(loaded) -> Interventions:
    return Interventions(config=loaded.config, model_digest=loaded.vectors_digest)


def test_selection_by_separation_stores_the_candidate_that_separates_held_out_texts_most(
    lab, loaded, store, sentiment, interventions
):
    train, test = sentiment
    result = run(select(a_selection(loaded, train, test), lab=lab, store=store, interventions=interventions))
    rows = result["candidates"]
    assert [(row["layer"], row["position"]) for row in rows] == [(4, -1), (16, -1), (4, None), (16, None)]
    assert result["score"] == max(row["score"] for row in rows)
    assert all(row["is_eligible"] for row in rows)
    winner = store.get("winner")
    assert winner.layers == (result["layer"],) == (16,)
    held_out = run(activations(test, layers=(16,), at=LAST, lab=lab)).sides(16)
    vector = winner.tensors["direction.16"].double()
    positive, negative = held_out.positive @ vector, held_out.negative @ vector
    again = float(positive.mean() - negative.mean()) / float(((positive.var() + negative.var()) / 2).sqrt())
    assert result["score"] == pytest.approx(again, rel=1e-4) == pytest.approx(winner.metadata["held_out_d_prime"])
    assert (winner.metadata["token"], winner.metadata["position"]) == ("last", -1)


def refusal_ids(loaded) -> tuple[int, ...]:
    return tuple(loaded.tokenizer.encode(word, add_special_tokens=False)[0] for word in FIRST_WORDS)


def test_refusal_selection_scores_by_the_rule_and_stores_the_least_bypass(
    lab, loaded, store, harmfulness, interventions
):
    train, test = harmfulness
    tail = post_instruction_tokens(loaded.template, loaded.tokenizer)
    assert tail == 6  # end of turn, newline, start of turn, "ass", "istant", newline
    # SmolLM2 hardly refuses, so nothing induces refusal; the rule is widened until it has something to choose from.
    rule = Rule(induce_min=-100.0, kl_nats_max=0.5, depth_max=0.6)
    selection = a_selection(
        loaded,
        train,
        test,
        by=By.REFUSAL,
        rule=rule,
        layers=(10, 14, 20),
        places=(Positions(which=Which.EACH_OF_TAIL, tokens=2),),
        refusal_ids=refusal_ids(loaded),
    )
    result = run(select(selection, lab=lab, store=store, interventions=interventions))
    rows = result["candidates"]
    assert [(row["layer"], row["position"]) for row in rows] == [
        (10, -2),
        (10, -1),
        (14, -2),
        (14, -1),
        (20, -2),
        (20, -1),
    ]
    eligible = [row for row in rows if row["is_eligible"]]
    assert eligible
    assert result["score"] == max(row["score"] for row in eligible) == -min(row["bypass"] for row in eligible)
    for row in rows:
        if row["layer"] == 20:  # too deep: nothing is computed
            assert (row["kl_nats"], row["induce"], row["bypass"], row["is_eligible"]) == (None, None, None, False)
        elif row["kl_nats"] >= 0.5:
            assert (row["induce"], row["is_eligible"]) == (None, False)
        else:
            assert math.isfinite(row["bypass"])
    winner = store.get("winner")
    assert (winner.layers, winner.metadata["position"]) == ((result["layer"],), result["position"])
    # The winner's own scores, measured again through the stored vector.
    vector, layer = winner.tensors[f"direction.{result['layer']}"], result["layer"]
    [row] = [row for row in rows if (row["layer"], row["position"]) == (layer, result["position"])]
    plain = run(lab.last_logits(test.negative))
    ablated = run(lab.last_logits(test.negative, steering=interventions.ablate(vector, layer)))
    assert float(kl_nats(plain, ablated).mean()) == pytest.approx(row["kl_nats"], rel=1e-3)
    bypassed = run(lab.last_logits(test.positive, steering=interventions.ablate(vector, layer)))
    assert float(refusal_scores(bypassed, refusal_ids(loaded)).mean()) == pytest.approx(row["bypass"], rel=1e-3)


def test_a_model_that_does_not_refuse_has_no_eligible_refusal_direction_by_the_papers_rule(
    lab, loaded, store, harmfulness, interventions
):
    train, test = harmfulness
    selection = a_selection(
        loaded, train, test, by=By.REFUSAL, layers=(14,), places=(LAST,), refusal_ids=refusal_ids(loaded)
    )
    with pytest.raises(JobError, match="none of 1 candidates") as failed:
        run(select(selection, lab=lab, store=store, interventions=interventions))
    assert failed.value.code == "nothing_eligible"
    assert store.all() == []


PROMPTS = ["How was your day?", "Tell me about your family.", "What do you think of the weather?"]


@pytest.fixture
def steering_at(lab, loaded, store, sentiment, at):
    """(spec, strength → steering) of a sentiment vector."""
    train, _ = sentiment
    run(extract(an_extraction(loaded, train, vector_id="mood", layers=(16,)), lab=lab, store=store))
    spec = SteeringSpec(vectors=[VectorUse(id="mood", op="add")])
    return spec, at(spec)


def test_calibration_hits_the_target_when_it_is_measured_again(lab, loaded, encode, steering_at):
    spec, at_scale = steering_at
    prompts = encode(PROMPTS, chat=True)
    calibration = Calibration(
        prompts=prompts,
        answer_tokens=12,
        end_ids=loaded.end_ids,
        target_nats=1.0,
        quantile=0.95,
        tolerance=0.02,
        scale_max=strength_max(spec),
        steering_at=at_scale,
    )
    result = run(calibrate(calibration, lab=lab))
    assert set(result) == {"scale", "kl_nats", "kl_mean_nats", "relative_dose", "evaluations"}
    assert result["kl_nats"] == pytest.approx(1.0, rel=0.02)
    # Again, with none of the lab's code: the model's logits at every position, text by text.
    found = []
    steering = at_scale(result["scale"])
    for passage in run(answer_plainly(prompts, tokens_max=12, end_ids=loaded.end_ids, lab=lab)).passages:
        n = len(passage.token_ids)
        span = SteeredSpan(
            token_ids=passage.token_ids,
            start=0,
            prompt_tokens=passage.prompt_tokens,
            steering=steering,
            applied=Applied(),
        )
        logits = []
        for table in (None, SteeringTable([span], device=torch.device("cpu"))):
            cache = KvCache(loaded.config, capacity=n, dtype=torch.float32, device=torch.device("cpu"))
            every = loaded.model.logits(torch.tensor(passage.token_ids), [Span(cache, n)], steering=table, every=True)
            logits.append(every[passage.prompt_tokens - 1 : -1].double().log_softmax(-1))
        found.append((logits[0].exp() * (logits[0] - logits[1])).sum(-1))
    assert float(torch.cat(found).quantile(0.95)) == pytest.approx(result["kl_nats"], rel=1e-3)


def test_calibration_refuses_what_cannot_be_reached(lab, loaded, encode, steering_at):
    _, at_scale = steering_at
    calibration = Calibration(
        prompts=encode(PROMPTS[:1], chat=True),
        answer_tokens=4,
        end_ids=loaded.end_ids,
        target_nats=5.0,
        quantile=0.95,
        tolerance=0.02,
        scale_max=0.01,
        steering_at=at_scale,
    )
    with pytest.raises(JobError) as failed:
        run(calibrate(calibration, lab=lab))
    assert failed.value.code == "unreachable"


def test_a_scale_at_which_a_single_token_is_no_number_is_too_large(lab, loaded, encode, steering_at, monkeypatch):
    _, at_scale = steering_at
    seen: list[float] = []

    def broken_above_a_half(plain, scale, *, lab):
        compared = yield from compare(plain, at_scale(scale), lab=lab)
        seen.append(scale)
        kl = torch.full_like(compared.kl_nats, 2 * scale)
        if scale > 0.5:
            kl[0] = math.nan
        return dataclasses.replace(compared, kl_nats=kl)

    monkeypatch.setattr(calibrating, "compare", broken_above_a_half)
    calibration = Calibration(
        prompts=encode(PROMPTS[:1], chat=True),
        answer_tokens=24,
        end_ids=loaded.end_ids,
        target_nats=1.2,
        quantile=0.5,
        tolerance=0.02,
        scale_max=4.0,
        steering_at=lambda scale: scale,
    )
    with pytest.raises(JobError) as failed:  # 0.6 would be the scale, and its mean no number
        run(calibrate(calibration, lab=lab))
    assert (failed.value.code, max(seen)) == ("unreachable", 1.0)


def words(loaded, prompt, texts) -> tuple[Passage, ...]:
    ids = [tuple(loaded.tokenizer.encode(f" {text}", add_special_tokens=False)) for text in texts]
    return tuple(Passage(token_ids=(*prompt, *answer), prompt_tokens=len(prompt)) for answer in ids)


GLAD, SOUR = ["happy", "great", "good", "wonderful"], ["sad", "terrible", "bad", "lonely"]


def an_evaluation(loaded, encode, at_scale, **changes) -> Evaluation:
    shown = [loaded.template.render([{"role": "user", "content": text}]) + "I feel" for text in PROMPTS]
    prefixed = [tuple(loaded.tokenizer.encode(text, add_special_tokens=False)) for text in shown]
    fields = {
        "metrics": frozenset(Metric),
        "scales": (-1.0, 0.0, 1.0),
        "steering_at": at_scale,
        "prompts": encode(PROMPTS, chat=True),
        "samples": tuple(
            Sample(positive=words(loaded, prompt, GLAD), negative=words(loaded, prompt, SOUR)) for prompt in prefixed
        ),
        "answer_tokens": 8,
        "end_ids": loaded.end_ids,
        "decode": loaded.tokenizer.decode,
        "rope_nats": 0.1,
        "seed": 0,
    }
    return Evaluation(**{**fields, **changes})


def test_evaluation_at_scale_zero_is_exactly_the_plain_model_and_a_mood_moves_its_words_both_ways(
    lab, loaded, encode, steering_at
):
    _, at_scale = steering_at
    result = run(evaluate(an_evaluation(loaded, encode, at_scale), lab=lab))
    down, plain, up = result["points"]
    assert (plain["kl_mean_nats"], plain["kl_p95_nats"], plain["relative_dose"]) == (0.0, 0.0, 0.0)
    assert plain["cross_entropy_nats"] < min(down["cross_entropy_nats"], up["cross_entropy_nats"])
    assert 0 < up["kl_mean_nats"] < up["kl_p95_nats"]
    assert 0.001 < up["relative_dose"] < 2
    assert down["propensity"] < plain["propensity"] < up["propensity"]
    assert plain["refusal_rate"] == 0.0
    assert plain["prompts"] == 3
    assert 0 < result["sign_symmetry"] <= 1
    assert result["steerability"]["mean"] > 0
    assert result["steerability"]["share_negative"] == 0.0
    assert result["bayes"]["better"] > 0.8
    print(result)  # noqa: T201 - shown with -s
    json.dumps(result, allow_nan=False)


def test_a_propensity_of_single_words_is_the_same_as_that_of_whole_answers(lab, loaded, encode, steering_at):
    _, at_scale = steering_at
    evaluation = an_evaluation(loaded, encode, at_scale, metrics=frozenset({Metric.PROPENSITY}), scales=(1.0,))
    [prompt] = encode(["It was a"])
    single = Sample(positive=words(loaded, prompt, ["good"]), negative=words(loaded, prompt, ["bad"]))
    longer = Sample(positive=words(loaded, prompt, ["good day"]), negative=words(loaded, prompt, ["bad day"]))
    words_only = run(evaluate(_with(evaluation, (single,)), lab=lab))
    mixed = run(evaluate(_with(evaluation, (single, longer)), lab=lab))
    alone = run(evaluate(_with(evaluation, (longer,)), lab=lab))
    found = (words_only["points"][0]["propensity"] + alone["points"][0]["propensity"]) / 2
    assert mixed["points"][0]["propensity"] == pytest.approx(found, abs=1e-4)
    assert mixed["steerability"] is None  # one scale has no slope
    assert mixed["points"][0]["kl_mean_nats"] is None


def _with(evaluation: Evaluation, samples) -> Evaluation:
    return Evaluation(**{**{f: getattr(evaluation, f) for f in evaluation.__dataclass_fields__}, "samples": samples})


def test_divergence_sees_an_operation_that_acts_on_the_answer_only(lab, loaded, store, encode, at, steering_at):
    del steering_at
    prompts = encode(PROMPTS[:2], chat=True)
    plain = run(answer_plainly(prompts, tokens_max=6, end_ids=loaded.end_ids, lab=lab))
    spec = SteeringSpec(vectors=[VectorUse(id="mood", op="add", scale=4.0, apply=Apply(generation="all"))])
    compared = run(compare(plain, at(spec)(1.0), lab=lab))
    first = [0, len(plain.passages[0].answer_ids)]  # the first answer token follows the prompt, which is plain
    assert compared.kl_nats[first].tolist() == [0.0, 0.0]
    assert quantile(compared.kl_nats, 0.95) > 0.001
    assert compared.applied.prompt_tokens == 0
