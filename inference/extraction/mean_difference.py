"""The mean difference of activations: scale 1 moves the average negative onto the average positive.

Source: Panickssery et al. 2312.06681 (contrastive activation addition); Arditi et al. 2406.11717 without pairs.
"""

from __future__ import annotations

from torch import Tensor

from inference.extraction.statistics import Sides


def mean_difference(sides: Sides) -> Tensor:
    """mean h⁺ − mean h⁻, float64 [d_model], not normalised. Raises DegenerateError."""
    return sides.mean_difference
