"""Linear artificial tomography: the direction in which random pairs of activations differ most.

The pairs are drawn without looking at the sides; only the sign of the direction is told by them. So it works without
labels, and finds whatever varies most, which need not be what was meant. Source: Zou et al. 2310.01405.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.extraction.pca import first_component
from inference.extraction.statistics import DegenerateError, Sides, towards_positive


def lat(sides: Sides, *, seed: int = 0, rounds: int = 4) -> Tensor:
    """First principal component of normalised differences of random pairs, a unit vector [d_model], sign by majority.

    Each of `rounds` shuffles all rows (Generator seeded with `seed`) and pairs neighbours. Raises DegenerateError.
    """
    rows = sides.everything
    generator = torch.Generator().manual_seed(seed)
    even = rows.shape[0] // 2 * 2
    orders = [torch.randperm(rows.shape[0], generator=generator)[:even] for _ in range(rounds)]
    differences = torch.cat([rows[order[0::2]] - rows[order[1::2]] for order in orders])
    norms = differences.norm(dim=-1, keepdim=True)
    differs = norms.squeeze(-1) > 1e-6 * sides.residual_norm  # equal texts have no direction to normalise
    if not bool(differs.any()):
        raise DegenerateError("the texts all have the same activations")
    return towards_positive(first_component((differences / norms)[differs], 1.0), sides)
