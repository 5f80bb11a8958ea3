"""The job that makes a derived model: project the matrices, compare with ablation by hooks, keep the recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from inference.derived.comparison import logit_differences
from inference.derived.models import DerivedModels, ModelExistsError, ModelsFullError
from inference.derived.orthogonalize import orthogonalized, writers
from inference.derived.recipe import Recipe
from inference.jobs.chore import JobError, Work
from inference.steering.combining import basis
from inference.steering.vector import StoredVector

LOGIT_DIFFERENCE_MAX = {torch.float32: 0.01, torch.bfloat16: 1.0}
"""Above it the weights on disk are not those that are served, or the arithmetic is broken; the job fails then.
SmolLM2-135M has 3e-5 to 8e-5 in float32; with a head that was not untied it is 0.3 to 1.5."""

_MAKING = 0.9  # of the progress; the rest is comparing


def orthogonalization(
    *,
    model_id: str,
    vectors: Sequence[StoredVector],
    derived: DerivedModels,
    clock: Callable[[], float] = time.time,
) -> Work:
    """vectors: DIRECTIONs of one layer each, checked. The result has `matrices_changed` and `logit_difference_max`."""
    base = derived.base
    directions = basis([vector.tensors[f"direction.{vector.layers[0]}"] for vector in vectors]).float()
    making = orthogonalized(base.model, derived.path, directions)
    while True:
        try:
            yield _MAKING * next(making)
        except StopIteration as end:
            model = end.value
            break
        except OSError as error:
            raise JobError("the model's file can no longer be read", code="weights_gone") from error
    worst = 0.0
    for difference in logit_differences(base, model, vectors=vectors):
        worst = max(worst, difference.at_end)
        yield _MAKING + (1 - _MAKING) * difference.fraction
    if not worst <= LOGIT_DIFFERENCE_MAX[base.model.dtype]:
        raise JobError(f"logits differ by {worst:.3g} from ablation by hooks", code="weights_disagree")
    recipe = Recipe(
        id=model_id,
        base_digest_sha256=base.digest_sha256,
        basis=directions,
        vectors=tuple((vector.id, vector.layers[0], vector.digest_sha256) for vector in vectors),
        created_s=int(clock()),
        logit_difference_max=worst,
    )
    try:
        derived.add(recipe, model)
    except ModelExistsError as error:
        raise JobError(f"model {model_id!r} exists already", code="model_exists") from error
    except ModelsFullError as error:
        raise JobError(str(error), code="models_full") from error
    result: dict[str, Any] = {"matrices_changed": len(writers(base.config)), "logit_difference_max": worst}
    return result
