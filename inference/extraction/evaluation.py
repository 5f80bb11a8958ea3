"""The evaluation job: what a spec does at each of some scales, sample by sample."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.extraction.answers import PlainAnswers, answer_plainly, compare
from inference.extraction.divergence import quantile, token_nats
from inference.extraction.propensity import sign_symmetry, steerability
from inference.extraction.refusal_phrases import is_refusal
from inference.extraction.wilcoxon import bayesian_wilcoxon
from inference.jobs.chore import JobError, Work
from inference.lab import Lab, Pieces, within
from inference.passages import Passage, TokenIds
from inference.steering.applied import Applied
from inference.steering.program import CompiledSteering


class Metric(enum.StrEnum):
    REFUSAL = "refusal"
    KL = "kl"
    CROSS_ENTROPY = "cross_entropy"
    PROPENSITY = "propensity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a propensity: log Σ p(positive answers) − log Σ p(negative answers), each given its prompt."""

    positive: tuple[Passage, ...]
    negative: tuple[Passage, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`samples` belong to the propensity; `prompts` to the other metrics. `decode` turns an answer's ids into text."""

    metrics: frozenset[Metric]
    scales: tuple[float, ...]
    steering_at: Callable[[float], CompiledSteering]
    prompts: tuple[TokenIds, ...]
    samples: tuple[Sample, ...]
    answer_tokens: int
    end_ids: Collection[int]
    decode: Callable[[TokenIds], str]
    rope_nats: float
    seed: int


def evaluate(evaluation: Evaluation, *, lab: Lab) -> Work:
    """The job in pieces: the plain model first, then scale by scale."""
    share = 1 / (len(evaluation.scales) + 1)
    with_propensity = Metric.PROPENSITY in evaluation.metrics
    plain: PlainAnswers | None = None
    if evaluation.metrics & {Metric.KL, Metric.CROSS_ENTROPY}:
        answering = answer_plainly(
            evaluation.prompts, tokens_max=evaluation.answer_tokens, end_ids=evaluation.end_ids, lab=lab
        )
        plain = yield from within(answering, 0.0, share / 2)
    before: Tensor | None = None
    if with_propensity:
        before = yield from within(_propensities(evaluation.samples, None, None, lab), share / 2, share)
    points: list[dict[str, Any]] = []
    curve: list[Tensor] = []
    for number, scale in enumerate(evaluation.scales):
        start = (number + 1) * share
        point, propensities = yield from within(_point(scale, plain, evaluation, lab), start, start + share)
        points.append(point)
        if propensities is not None:
            curve.append(propensities)
    result: dict[str, Any] = {"points": points, "sign_symmetry": None, "steerability": None, "bayes": None}
    if before is not None:
        result |= _across_scales(evaluation, before, torch.stack(curve))
    return result


def _point(
    scale: float, plain: PlainAnswers | None, evaluation: Evaluation, lab: Lab
) -> Pieces[tuple[dict[str, Any], Tensor | None]]:
    steering, applied, metrics = evaluation.steering_at(scale), Applied(), evaluation.metrics
    point: dict[str, Any] = {
        "scale": scale,
        "prompts": len(evaluation.prompts) or len(evaluation.samples),
        "refusal_rate": None,
        "kl_mean_nats": None,
        "kl_p95_nats": None,
        "cross_entropy_nats": None,
        "propensity": None,
    }
    propensities: Tensor | None = None
    if plain is not None:
        compared = yield from within(compare(plain, steering, lab=lab), 0.0, 0.3)
        applied = compared.applied
        if Metric.KL in metrics:
            point["kl_mean_nats"] = _finite(float(compared.kl_nats.mean()), scale)
            point["kl_p95_nats"] = _finite(quantile(compared.kl_nats, 0.95), scale)
        if Metric.CROSS_ENTROPY in metrics:
            point["cross_entropy_nats"] = _finite(float(compared.token_nats.mean()), scale)
    if Metric.REFUSAL in metrics:
        answering = lab.greedy_answers(
            evaluation.prompts,
            tokens_max=evaluation.answer_tokens,
            end_ids=evaluation.end_ids,
            steering=steering,
            applied=applied,
        )
        answers = yield from within(answering, 0.3, 0.7)
        point["refusal_rate"] = sum(is_refusal(evaluation.decode(answer)) for answer in answers) / len(answers)
    if Metric.PROPENSITY in metrics:
        propensities = yield from within(_propensities(evaluation.samples, steering, applied, lab), 0.7, 1.0)
        point["propensity"] = _finite(float(propensities.mean()), scale)
    point["relative_dose"] = applied.relative_dose()
    return point, propensities


def _across_scales(evaluation: Evaluation, before: Tensor, curve: Tensor) -> dict[str, Any]:
    """before [samples]: the plain model's propensities; curve [scales, samples]."""
    means = dict(zip(evaluation.scales, curve.mean(1).tolist(), strict=True)) | {0.0: float(before.mean())}
    slopes = steerability(evaluation.scales, curve)
    # The scale that does most; of two that do the same, the one that is meant.
    strongest = max(evaluation.scales, key=lambda scale: (abs(scale), scale))
    differences = (curve[evaluation.scales.index(strongest)] - before).tolist()
    verdict = bayesian_wilcoxon(differences, rope=evaluation.rope_nats, seed=evaluation.seed)
    return {
        "sign_symmetry": sign_symmetry(list(means), list(means.values())),
        "steerability": None if slopes is None else dataclasses.asdict(slopes),
        "bayes": dataclasses.asdict(verdict),
    }


def _propensities(
    samples: Sequence[Sample], steering: CompiledSteering | None, applied: Applied | None, lab: Lab
) -> Pieces[Tensor]:
    """float64 [samples], in nats."""
    passages = [passage for sample in samples for passage in (*sample.positive, *sample.negative)]
    if all(len(passage.answer_ids) == 1 for passage in passages):
        log_p = yield from _next_token(passages, steering, applied, lab)
    else:
        log_p = yield from _whole_answers(passages, steering, applied, lab)
    sizes = [size for sample in samples for size in (len(sample.positive), len(sample.negative))]
    sums = [part.logsumexp(0) for part in torch.split(log_p, sizes)]
    return torch.stack(sums[0::2]) - torch.stack(sums[1::2])


def _next_token(
    passages: Sequence[Passage], steering: CompiledSteering | None, applied: Applied | None, lab: Lab
) -> Pieces[Tensor]:
    """log p of each passage's one answer token; passages with the same prompt share its run."""
    asked: dict[TokenIds, list[int]] = {}
    places: list[int] = []  # of each passage among the answers to its prompt
    for passage in passages:
        answers = asked.setdefault(passage.token_ids[:-1], [])
        places.append(len(answers))
        answers.append(passage.token_ids[-1])
    most = max(map(len, asked.values()))
    token_ids = torch.tensor([answers + [0] * (most - len(answers)) for answers in asked.values()])

    def log_p(rows: slice, logits: Tensor) -> Tensor:
        wanted = logits.double().gather(-1, token_ids[rows].to(logits.device))
        return (wanted - logits.double().logsumexp(-1, keepdim=True)).cpu()

    found = yield from lab.last_logits(list(asked), steering=steering, applied=applied, reduce=log_p)
    rows = {prompt: row for row, prompt in enumerate(asked)}
    return found[[rows[passage.token_ids[:-1]] for passage in passages], places]


def _whole_answers(
    passages: Sequence[Passage], steering: CompiledSteering | None, applied: Applied | None, lab: Lab
) -> Pieces[Tensor]:
    """log p of each passage's answer, summed over its tokens."""
    states = yield from within(lab.answer_states(passages, steering=steering, applied=applied), 0.0, 0.7)
    token_ids = torch.tensor([i for passage in passages for i in passage.answer_ids], device=states.device)
    parts: list[Tensor] = []

    def take(rows: slice, logits: list[Tensor]) -> None:
        parts.append(token_nats(logits[0], token_ids[rows]).cpu())

    yield from within(lab.distributions([states], take), 0.7, 1.0)
    sizes = [len(passage.answer_ids) for passage in passages]
    return torch.stack([-part.sum() for part in torch.split(torch.cat(parts), sizes)])


def _finite(value: float, scale: float) -> float:
    if not math.isfinite(value):
        raise JobError(f"at scale {scale:g} the model's distributions are no numbers", code="not_finite")
    return value
