"""The calibration job: the scale of a spec at which a quantile of the per-token divergence has a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

from inference.extraction.answers import answer_plainly, compare
from inference.extraction.calibration import UnreachableError, search
from inference.extraction.divergence import quantile
from inference.jobs.chore import JobError, Work
from inference.lab import Lab, within
from inference.passages import TokenIds
from inference.steering.program import CompiledSteering


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """`steering_at(c)`: the spec with all its scales times c, for c in (0, scale_max]."""

    prompts: tuple[TokenIds, ...]
    answer_tokens: int
    end_ids: Collection[int]
    target_nats: float
    quantile: float
    tolerance: float
    scale_max: float
    steering_at: Callable[[float], CompiledSteering]


def calibrate(calibration: Calibration, *, lab: Lab) -> Work:
    """The job in pieces. Each evaluation is one steered pass over the prompts and the plain model's answers to them."""
    done = 0.3
    plain = yield from within(
        answer_plainly(calibration.prompts, tokens_max=calibration.answer_tokens, end_ids=calibration.end_ids, lab=lab),
        0.0,
        done,
    )
    wanted = search(
        target_nats=calibration.target_nats, tolerance=calibration.tolerance, scale_max=calibration.scale_max
    )
    scale = next(wanted)
    while True:
        ahead = done + 0.3 * (1 - done)  # how many evaluations it takes is not known; most need four to eight
        compared = yield from within(compare(plain, calibration.steering_at(scale), lab=lab), done, ahead)
        done = ahead
        try:
            # A single token that is no number is too much, wherever the quantile lies.
            is_finite = bool(compared.kl_nats.isfinite().all())
            scale = wanted.send(quantile(compared.kl_nats, calibration.quantile) if is_finite else math.inf)
        except StopIteration as end:
            result: dict[str, Any] = {
                "scale": end.value.scale,
                "kl_nats": end.value.kl_nats,
                "kl_mean_nats": float(compared.kl_nats.mean()),
                "relative_dose": compared.applied.relative_dose(),
                "evaluations": end.value.evaluations,
            }
            return result
        except UnreachableError as error:
            raise JobError(
                f"{calibration.target_nats:g} nats cannot be reached: {error}", code="unreachable"
            ) from error
