"""A new direction out of stored ones: a weighted sum, made orthogonal to others, made a unit. Sums run in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.steering.vector import BadVectorError, Kind, StoredVector, direction

_DEGENERATE = 1e-6
"""A rest smaller than this part of what it was a rest of is rounding error, not a direction."""


def combine(
    vector_id: str,
    terms: Sequence[tuple[StoredVector, float]],
    *,
    orthogonal_to: Sequence[StoredVector],
    normalize: bool,
) -> StoredVector:
    """Σ weight · vector at each of the terms' layers (all must have the same), then Gram–Schmidt, then the unit.

    A vector in `orthogonal_to` counts with its direction at the layer, or, if it has only one, with that one. Raises
    BadVectorError: wrong_kind, layers_differ, wrong_model, degenerate, wrong_shape.
    """
    assert terms
    everyone = [*(vector for vector, _ in terms), *orthogonal_to]
    for vector in everyone:
        if vector.kind is not Kind.DIRECTION:
            raise BadVectorError(f"{vector.id!r} is no direction", code="wrong_kind")
        if vector.width != everyone[0].width:
            raise BadVectorError(f"{vector.id!r} has another dimension than {everyone[0].id!r}", code="wrong_dimension")
    layers = terms[0][0].layers
    if any(vector.layers != layers for vector, _ in terms):
        raise BadVectorError("the terms belong to different layers", code="layers_differ")
    digests = {vector.metadata["model_digest"] for vector in everyone} - {None}
    if len(digests) > 1:
        raise BadVectorError("the vectors were made for different models", code="wrong_model")
    values = {layer: _at(layer, terms, orthogonal_to, normalize=normalize) for layer in layers}
    return direction(
        id=vector_id,
        values=values,
        metadata={
            "method": "combine",
            "layer_convention": "block_output",
            "model_digest": next(iter(digests), None),
            "terms": [{"id": v.id, "weight": weight, "digest": v.digest_sha256} for v, weight in terms],
            "orthogonal_to": [{"id": v.id, "digest": v.digest_sha256} for v in orthogonal_to],
            "normalize": normalize,
            "norms": [float(values[layer].double().norm()) for layer in layers],
        },
    )


def basis(vectors: Sequence[Tensor]) -> Tensor:
    """Orthonormal rows [k, d], float64, of the span of [d] tensors; dependent ones add none (Gram–Schmidt, twice)."""
    rows: list[Tensor] = []
    for vector in vectors:
        unit = vector.double() / vector.double().norm()
        rest = _without(unit, rows)
        if float(rest.norm()) > _DEGENERATE:
            rows.append(rest / rest.norm())
    return torch.stack(rows)


def _at(
    layer: int, terms: Sequence[tuple[StoredVector, float]], away: Sequence[StoredVector], *, normalize: bool
) -> Tensor:
    parts = [weight * vector.tensors[f"direction.{layer}"].double() for vector, weight in terms]
    total = torch.stack(parts).sum(0)
    if away:
        total = _without(total, list(basis([_own(vector, layer) for vector in away])))
    if float(total.norm()) <= _DEGENERATE * max(float(part.norm()) for part in parts):
        raise BadVectorError(f"nothing is left of the combination at layer {layer}", code="degenerate")
    return (total / total.norm() if normalize else total).float()


def _own(vector: StoredVector, layer: int) -> Tensor:
    only = vector.layers[0] if len(vector.layers) == 1 else layer
    if only not in vector.layers:
        raise BadVectorError(f"{vector.id!r} has several directions, but none at layer {layer}", code="layers_differ")
    return vector.tensors[f"direction.{only}"]


def _without(vector: Tensor, rows: Sequence[Tensor]) -> Tensor:
    for _ in range(2):  # the second pass takes off what rounding left of the first
        for row in rows:
            vector = vector - (vector @ row) * row
    return vector
