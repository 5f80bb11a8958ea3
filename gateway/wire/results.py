"""What each kind of job may answer with: the layouts of its numbers. What the fields mean: docs/api.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from gateway.wire.fixed_point import Count, Fixed, Flag, Layout, Maybe, Record, Rows
from gateway.wire.steering_report import DOSE
from policy.limits import (
    RESULT_CANDIDATES_MAX,
    RESULT_LAYERS_MAX,
    SCALES_TRIED_MAX,
    STEERING_LAYER_MAX,
    STEERING_POSITION_MAX,
    STEERING_SCALE_MAX,
    TOKENS_REPORTED_MAX,
)

JobKind = Literal["extract", "select", "calibrate", "evaluate", "orthogonalize"]
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)

_LAYER = Count(most=STEERING_LAYER_MAX)
_POSITION = Maybe(Count(most=STEERING_POSITION_MAX, signed=True))
_COUNT = Count(most=TOKENS_REPORTED_MAX)
_SCALE = Fixed(most=STEERING_SCALE_MAX, per_unit=10_000, signed=True)
_SHARE = Fixed(most=1, per_unit=1000)
_NATS = Fixed(most=1000, per_unit=1000)  # mean logarithms of probabilities; logits end near 100
_SIGNED = Fixed(most=1e6, per_unit=1000, signed=True)
_HUNDREDTHS = Fixed(most=1e6, per_unit=100, signed=True)
_MILLIONTHS = Fixed(most=1000, per_unit=1_000_000)


def _record(**fields: Layout) -> Record:
    return Record(MappingProxyType(fields))


RESULTS: Mapping[JobKind, Record] = MappingProxyType(
    {
        "extract": _record(
            layers=Rows(
                _record(
                    layer=_LAYER,
                    norm=_HUNDREDTHS,
                    residual_norm=_HUNDREDTHS,
                    mean_pairwise_cosine=Maybe(_HUNDREDTHS),
                    d_prime=Maybe(_HUNDREDTHS),
                ),
                most=RESULT_LAYERS_MAX,
            ),
            selected_layer=_LAYER,
            position=_POSITION,
        ),
        "select": _record(
            layer=_LAYER,
            position=_POSITION,
            score=_SIGNED,
            candidates=Rows(
                _record(
                    layer=_LAYER,
                    position=_POSITION,
                    score=_SIGNED,
                    bypass=Maybe(_SIGNED),
                    induce=Maybe(_SIGNED),
                    kl_nats=Maybe(_NATS),
                    is_eligible=Flag(),
                ),
                most=RESULT_CANDIDATES_MAX,
            ),
        ),
        "calibrate": _record(scale=_SCALE, kl_nats=_NATS, kl_mean_nats=_NATS, relative_dose=DOSE, evaluations=_COUNT),
        "evaluate": _record(
            points=Rows(
                _record(
                    scale=_SCALE,
                    prompts=_COUNT,
                    refusal_rate=Maybe(_SHARE),
                    kl_mean_nats=Maybe(_NATS),
                    kl_p95_nats=Maybe(_NATS),
                    cross_entropy_nats=Maybe(_NATS),
                    propensity=Maybe(_SIGNED),
                    relative_dose=DOSE,
                ),
                most=SCALES_TRIED_MAX,
            ),
            sign_symmetry=Maybe(_SIGNED),
            steerability=Maybe(_record(mean=_SIGNED, sd=_SIGNED, share_negative=_SHARE)),
            bayes=Maybe(_record(worse=_SHARE, equivalent=_SHARE, better=_SHARE)),
        ),
        "orthogonalize": _record(matrices_changed=_COUNT, logit_difference_max=_MILLIONTHS),
    }
)
