"""The bodies of extract, select, calibrate and evaluate: every field that exists, its type, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from inference.extraction.evaluation import Metric
from inference.extraction.methods import Method
from inference.extraction.selection import By
from inference.limits import (
    ANSWER_TOKENS_MAX,
    CONTEXT_TOKENS_MAX,
    EVALUATE_SCALES_MAX,
    EXTRACTION_LAYERS_MAX,
    PAIRS_MAX,
    PROMPTS_MAX,
    SCALE_ABS_MAX,
    SELECT_TOKENS_MAX,
    TARGET_WORDS_MAX,
)
from inference.server.schema import Identifier, Strict
from inference.steering.spec import SteeringSpec

_Text = Annotated[str, Meta(min_length=1)]
Texts = Annotated[list[_Text], Meta(min_length=1, max_length=PAIRS_MAX)]
Prompts = Annotated[list[_Text], Meta(min_length=1, max_length=PROMPTS_MAX)]
Layers = Annotated[list[int], Meta(min_length=1, max_length=EXTRACTION_LAYERS_MAX)] | Literal["all"]
_Index = Annotated[int, Meta(ge=-CONTEXT_TOKENS_MAX, lt=CONTEXT_TOKENS_MAX)]
Token = Literal["last", "mean", "post_instruction", "all"] | _Index
_Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Small = Annotated[int, Meta(ge=1, le=100)]
_Nats = Annotated[float, Meta(gt=0, le=1e6)]
_Scale = Annotated[float, Meta(ge=-SCALE_ABS_MAX, le=SCALE_ABS_MAX)]


class MethodParams(Strict, frozen=True, kw_only=True):
    """Each belongs to some methods only (`methods.PARAMETERS`); what is absent has the default stated there."""

    c: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    seed: _Seed | None = None
    rounds: _Small | None = None
    restarts: _Small | None = None
    penalty: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    labels: Annotated[list[bool], Meta(min_length=1, max_length=PAIRS_MAX)] | None = None
    induce_min: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    kl_nats_max: _Nats | None = None
    depth_max: Annotated[float, Meta(gt=0, le=1)] | None = None
    first_words: Annotated[list[_Text], Meta(min_length=1, max_length=TARGET_WORDS_MAX)] | None = None


class Contrast(Strict, frozen=True, kw_only=True):
    """Two sides of texts: one's own, or those of a dataset. `chat`: each is what a user says."""

    positive: Texts | None = None
    negative: Texts | None = None
    dataset: str | None = None
    chat: bool = False
    job_id: Identifier | None = None


class Learning(Contrast, frozen=True, kw_only=True):
    """`paired`: own texts are pairs, as many on both sides; otherwise two crowds. A dataset says so itself."""

    paired: bool = True


class ExtractRequest(Learning, frozen=True, kw_only=True):
    id: Identifier
    method: Method
    layer: int | None = None
    layers: Layers | None = None
    token: Token | None = None
    params: MethodParams | None = None


class SelectRequest(Learning, frozen=True, kw_only=True):
    id: Identifier
    method: Method = Method.MEAN_DIFFERENCE
    layers: Layers = "all"
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=SELECT_TOKENS_MAX)] | None = None
    by: By = By.D_PRIME
    params: MethodParams | None = None


class CalibrateRequest(Strict, frozen=True, kw_only=True):
    steering: SteeringSpec
    prompts: Prompts | None = None
    dataset: str | None = None
    chat: bool = False
    answer_tokens: Annotated[int, Meta(ge=1, le=ANSWER_TOKENS_MAX)] = 32
    target_kl_nats: _Nats = 1.0
    quantile: Annotated[float, Meta(ge=0, le=1)] = 0.95
    tolerance: Annotated[float, Meta(ge=0.001, le=0.5)] = 0.02
    job_id: Identifier | None = None


class EvaluateRequest(Contrast, frozen=True, kw_only=True):
    """`positive` and `negative` are answers to every prompt, or with `paired` one each; without prompts, texts."""

    steering: SteeringSpec
    scales: Annotated[list[_Scale], Meta(min_length=1, max_length=EVALUATE_SCALES_MAX)]
    metrics: Annotated[list[Metric], Meta(min_length=1, max_length=len(Metric))] | None = None
    prompts: Prompts | None = None
    side: Literal["positive", "negative", "both"] = "both"
    paired: bool = False
    answer_prefix: str = ""
    answer_tokens: Annotated[int, Meta(ge=1, le=ANSWER_TOKENS_MAX)] = 32
    rope_nats: Annotated[float, Meta(ge=0, le=1e6)] = 0.1
    seed: _Seed = 0
