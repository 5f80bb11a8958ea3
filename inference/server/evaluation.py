"""The endpoints that say what steering does: calibrate and evaluate. Everything wrong is found before a job exists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from inference.extraction.calibrating import Calibration, calibrate
from inference.extraction.evaluation import Evaluation, Metric, Sample, evaluate
from inference.extraction.strength import at_strength, strength_max
from inference.jobs.chore import Work
from inference.jobs.job import JobKind
from inference.lab import Lab
from inference.limits import EVALUATE_PASSAGES_MAX, PROMPTS_MAX, TARGET_WORDS_MAX
from inference.loading import LoadedModel
from inference.passages import Passage, TokenIds
from inference.server.body import read_body
from inference.server.errors import bad_request
from inference.server.experiment_schema import CalibrateRequest, EvaluateRequest
from inference.server.jobs import start_job
from inference.server.schema import decode
from inference.server.service import SERVICE, Service
from inference.server.texts import answer_ids, known_dataset, token_ids
from inference.steering.compile import compile_spec
from inference.steering.objects import Vectors
from inference.steering.program import CompiledSteering
from inference.steering.spec import SpecError, SteeringSpec
from inference.steering.vector import StoredVector


async def calibrate_steering(request: web.Request) -> web.Response:
    """202 with a queued job."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), CalibrateRequest)
    work = await asyncio.to_thread(_calibrate_work, body, service)
    return await start_job(service, kind=JobKind.CALIBRATE, job_id=body.job_id, work=work)


async def evaluate_steering(request: web.Request) -> web.Response:
    """202 with a queued job."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), EvaluateRequest)
    work = await asyncio.to_thread(_evaluate_work, body, service)
    return await start_job(service, kind=JobKind.EVALUATE, job_id=body.job_id, work=work)


class Strengths:
    """A spec at any strength, with the vectors as they were when it was asked for: deleting one does not end a job.

    Raises ApiError for a spec that would be refused with a prompt: strengths give a scale to uses that lack theirs.
    """

    def __init__(self, spec: SteeringSpec, *, vectors: Vectors, loaded: LoadedModel) -> None:
        self._spec, self._loaded = spec, loaded
        self._vectors = _Remembered(vectors)
        self._compiled(spec)

    def at(self, strength: float) -> CompiledSteering:
        """Raises ApiError for a strength at which the spec cannot be compiled."""
        return self._compiled(at_strength(self._spec, strength))

    def _compiled(self, spec: SteeringSpec) -> CompiledSteering:
        loaded = self._loaded
        try:
            return compile_spec(
                spec,
                store=self._vectors,
                config=loaded.config,
                model_digest=loaded.vectors_digest,
            )
        except SpecError as error:
            raise bad_request(str(error), param=error.param, code=error.code) from error


class _Remembered:
    """A store in which what was once found stays found."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._found: dict[str, StoredVector] = {}

    def get(self, vector_id: str, /) -> StoredVector | None:
        if vector_id not in self._found:
            found = self._vectors.get(vector_id)
            if found is None:
                return None
            self._found[vector_id] = found
        return self._found[vector_id]


def _calibrate_work(body: CalibrateRequest, service: Service) -> Work:
    loaded = service.loaded
    strengths = Strengths(body.steering, vectors=service.store, loaded=loaded)
    most = strength_max(body.steering)
    if most is None:
        message = "no operation of this spec has a scale that could be calibrated"
        raise bad_request(message, param="steering", code="no_scale")
    if (body.prompts is None) == (body.dataset is None):
        raise bad_request("give either prompts or a dataset", param="prompts")
    texts, param = list(body.prompts or ()), "prompts"
    if body.dataset is not None:
        texts, param = _held_out(body.dataset, "both"), "dataset"
    calibration = Calibration(
        prompts=_prompts(texts, param, body, loaded),
        answer_tokens=body.answer_tokens,
        end_ids=loaded.end_ids,
        target_nats=body.target_kl_nats,
        quantile=body.quantile,
        tolerance=body.tolerance,
        scale_max=most,
        steering_at=strengths.at,
    )
    return calibrate(calibration, lab=Lab(loaded.model))


def _evaluate_work(body: EvaluateRequest, service: Service) -> Work:
    loaded = service.loaded
    strengths = Strengths(body.steering, vectors=service.store, loaded=loaded)
    if len(set(body.scales)) != len(body.scales):
        raise bad_request("scales must be distinct", param="scales")
    compiled = {scale: strengths.at(scale) for scale in body.scales}
    if body.dataset is not None and (body.prompts, body.positive, body.negative) != (None, None, None):
        raise bad_request("give texts or a dataset, not both", param="dataset")
    has_contrast, metrics = _metrics(body)
    prompts: tuple[TokenIds, ...] = ()
    if metrics - {Metric.PROPENSITY}:
        prompts = _prompts(*_prompt_texts(body), body, loaded)
    evaluation = Evaluation(
        metrics=metrics,
        scales=tuple(body.scales),
        steering_at=compiled.__getitem__,
        prompts=prompts,
        samples=_samples(body, loaded) if has_contrast and Metric.PROPENSITY in metrics else (),
        answer_tokens=body.answer_tokens,
        end_ids=loaded.end_ids,
        decode=loaded.tokenizer.decode,
        rope_nats=body.rope_nats,
        seed=body.seed,
    )
    return evaluate(evaluation, lab=Lab(loaded.model))


def _metrics(body: EvaluateRequest) -> tuple[bool, frozenset[Metric]]:
    """Whether there are two sides to prefer one of, and what is asked for: if nothing is named, all that is possible."""
    if (body.positive is None) != (body.negative is None):
        missing = "positive" if body.positive is None else "negative"
        raise bad_request("a propensity needs both sides", param=missing)
    has_contrast = body.positive is not None
    if body.dataset is not None:
        has_contrast = known_dataset(body.dataset).is_paired
    elif not has_contrast and body.prompts is None:
        raise bad_request("give prompts, two sides of texts, or a dataset", param="prompts")
    if body.metrics is None:
        return has_contrast, frozenset(Metric) - (frozenset() if has_contrast else {Metric.PROPENSITY})
    if Metric.PROPENSITY in body.metrics and not has_contrast:
        raise bad_request("a propensity needs positive and negative, or a dataset of pairs", param="metrics")
    return has_contrast, frozenset(body.metrics)


def _prompt_texts(body: EvaluateRequest) -> tuple[list[str], str]:
    """Texts, and the field they came from."""
    if body.dataset is not None:
        return _held_out(body.dataset, body.side), "dataset"
    if body.prompts is not None:
        return list(body.prompts), "prompts"
    sides = {"positive": body.positive or [], "negative": body.negative or []}
    return [text for name, side in sides.items() if body.side in (name, "both") for text in side], "positive"


def _held_out(dataset: str, side: str) -> list[str]:
    found = known_dataset(dataset)
    sides = {"positive": found.positive.test, "negative": found.negative.test}
    return [text for name, texts in sides.items() if side in (name, "both") for text in texts]


def _prompts(
    texts: Sequence[str], param: str, body: CalibrateRequest | EvaluateRequest, loaded: LoadedModel
) -> tuple[TokenIds, ...]:
    if len(texts) > 2 * PROMPTS_MAX:
        raise bad_request(f"{len(texts)} prompts, at most {2 * PROMPTS_MAX} are possible", param=param)
    return tuple(
        token_ids(text, chat=body.chat, param=param, loaded=loaded, answer_tokens=body.answer_tokens) for text in texts
    )


def _samples(body: EvaluateRequest, loaded: LoadedModel) -> tuple[Sample, ...]:
    """What a propensity compares. Without prompts, whole texts with each other: of each the first token is given."""
    if body.dataset is not None:
        found = known_dataset(body.dataset)
        return _text_pairs(found.positive.test, found.negative.test, ("dataset", "dataset"), body, loaded)
    positive, negative = body.positive or [], body.negative or []
    if body.prompts is None:
        if len(positive) != len(negative):
            raise bad_request("texts are compared pair by pair: as many on both sides are needed", param="negative")
        return _text_pairs(positive, negative, ("positive", "negative"), body, loaded)
    if body.paired and not len(body.prompts) == len(positive) == len(negative):
        raise bad_request("with paired every prompt has one answer on each side", param="paired")
    if not body.paired and max(len(positive), len(negative)) > TARGET_WORDS_MAX:
        message = f"at most {TARGET_WORDS_MAX} answers on a side can be tried on every prompt"
        raise bad_request(message, param="positive", code="too_many_answers")
    answers = [
        [answer_ids(text, param=param, loaded=loaded) for text in side]
        for param, side in (("positive", positive), ("negative", negative))
    ]
    per_prompt = 2 if body.paired else len(positive) + len(negative)
    _check_passages(len(body.prompts) * per_prompt)
    longest = max(len(ids) for side in answers for ids in side)
    samples = []
    for i, text in enumerate(body.prompts):
        prompt = token_ids(
            text,
            chat=body.chat,
            param="prompts",
            loaded=loaded,
            ending=body.answer_prefix,
            answer_tokens=longest,
        )
        chosen = [[side[i]] if body.paired else side for side in answers]
        samples.append(
            Sample(
                positive=tuple(_passage(prompt, answer) for answer in chosen[0]),
                negative=tuple(_passage(prompt, answer) for answer in chosen[1]),
            )
        )
    return tuple(samples)


def _text_pairs(
    positive: Sequence[str],
    negative: Sequence[str],
    params: tuple[str, str],
    body: EvaluateRequest,
    loaded: LoadedModel,
) -> tuple[Sample, ...]:
    _check_passages(len(positive) + len(negative))

    def passages(texts: Sequence[str], param: str) -> list[Passage]:
        ids = [token_ids(text, chat=body.chat, param=param, loaded=loaded) for text in texts]
        if min(map(len, ids)) < 2:
            raise bad_request("a text of one token has no probability: the first is given", param=param)
        return [Passage(token_ids=one, prompt_tokens=1) for one in ids]

    sides = (passages(positive, params[0]), passages(negative, params[1]))
    return tuple(Sample(positive=(one,), negative=(other,)) for one, other in zip(*sides, strict=True))


def _check_passages(count: int) -> None:
    if count > EVALUATE_PASSAGES_MAX:
        message = f"prompts times answers are {count} texts to run, at most {EVALUATE_PASSAGES_MAX} are possible"
        raise bad_request(message, param="prompts", code="too_many_passages")


def _passage(prompt: TokenIds, answer: TokenIds) -> Passage:
    return Passage(token_ids=(*prompt, *answer), prompt_tokens=len(prompt))
