"""The extraction job: activations of two sides of texts, a method at every layer asked for, one stored object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.extraction.methods import (
    ERASERS,
    FoundDirection,
    FoundEraser,
    Method,
    Params,
    find_direction,
    find_eraser,
)
from inference.extraction.samples import Samples, activations
from inference.extraction.statistics import DegenerateError, Figures
from inference.jobs.chore import JobError, Work
from inference.lab import Lab, within
from inference.passages import Positions, Which
from inference.steering.store import VectorStore
from inference.steering.vector import Kind, StoredVector

_RUNNING = 0.9  # share of the time that the model takes; the rest is linear algebra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """What to extract. `provenance` is stored with it; `side_names` name the sides' mean projections."""

    vector_id: str
    method: Method
    params: Params
    layers: tuple[int, ...]  # ascending
    at: Positions
    samples: Samples
    side_names: tuple[str, str]
    provenance: Mapping[str, Any]


def extract(extraction: Extraction, *, lab: Lab, store: VectorStore) -> Work:
    """The job in pieces. Nothing is stored before all of it is known."""
    if extraction.method is Method.ACTADD:
        return (yield from _extract_positional(extraction, lab=lab, store=store))
    found_activations = yield from within(
        activations(extraction.samples, layers=extraction.layers, at=extraction.at, lab=lab), 0.0, _RUNNING
    )
    found: dict[int, FoundDirection | FoundEraser] = {}
    for done, layer in enumerate(extraction.layers):
        sides = found_activations.sides(layer)
        start, stop = (_RUNNING + (1 - _RUNNING) * i / len(extraction.layers) for i in (done, done + 1))
        try:
            if extraction.method in ERASERS:
                erasing = find_eraser(extraction.method, sides)
                found[layer] = yield from within(erasing, start, stop)
            else:
                finding = find_direction(extraction.method, sides, extraction.params)
                found[layer] = yield from within(finding, start, stop)
        except DegenerateError as error:
            raise JobError(f"layer {layer}: {error}", code="degenerate") from error
        yield stop
    store.add(stored(extraction.vector_id, found, extraction.side_names, extraction.provenance))
    return {
        "layers": [result_of(layer, one.figures) for layer, one in found.items()],
        "selected_layer": best_layer(found),
        "position": extraction.at.index if extraction.at.which is Which.INDEX else None,
    }


def stored(
    vector_id: str,
    found: Mapping[int, FoundDirection | FoundEraser],
    side_names: tuple[str, str],
    provenance: Mapping[str, Any],
) -> StoredVector:
    """One object with what was found at each layer. Figures without a list are those of the best layer."""
    tensors: dict[str, Tensor] = {}
    for layer, one in found.items():
        if isinstance(one, FoundEraser):
            parts = {"read": one.eraser.read, "write": one.eraser.write, "mean": one.eraser.mean}
            tensors |= {f"{name}.{layer}": part.float() for name, part in parts.items()}
        else:
            tensors[f"direction.{layer}"] = one.vector.float()
    best = found[best_layer(found)]
    metadata = {
        **provenance,
        "selected_layer": best_layer(found),
        "norm": best.figures.norm,
        "residual_norm": best.figures.residual_norm,
        "mean_pairwise_cosine": best.figures.mean_pairwise_cosine,
        "d_prime": best.figures.d_prime,
        "projection_means": projection_means(best.figures, side_names),
        "layer_figures": [{**result_of(layer, one.figures), **one.details} for layer, one in found.items()],
    }
    kind = Kind.ERASER if isinstance(best, FoundEraser) else Kind.DIRECTION
    return StoredVector(id=vector_id, kind=kind, layers=tuple(found), tensors=tensors, metadata=metadata)


def best_layer(found: Mapping[int, FoundDirection | FoundEraser]) -> int:
    """Where the sides are furthest apart in units of their spread; the first among equals and unknowns."""
    return max(found, key=lambda layer: (found[layer].figures.d_prime or 0.0, -layer))


def result_of(layer: int, figures: Figures) -> dict[str, Any]:
    return {
        "layer": layer,
        "norm": figures.norm,
        "residual_norm": figures.residual_norm,
        "mean_pairwise_cosine": figures.mean_pairwise_cosine,
        "d_prime": figures.d_prime,
    }


def projection_means(figures: Figures, side_names: tuple[str, str]) -> dict[str, float]:
    """Mean h·v/‖v‖ of the sides, under `positive`, `negative` and their own names, and of all activations."""
    positive, negative = figures.projection_positive, figures.projection_negative
    named = dict(zip(side_names, (positive, negative), strict=True))
    return named | {"positive": positive, "negative": negative, "all": figures.projection_all}


def _extract_positional(extraction: Extraction, *, lab: Lab, store: VectorStore) -> Work:
    """ActAdd: h⁺[t] − h⁻[t] of one pair of texts with as many tokens as each other. Source: Turner et al. 2308.10248."""
    samples, layers = extraction.samples, extraction.layers
    assert len(samples.texts) == 2
    everywhere = Positions(which=Which.ALL)
    positive, negative = yield from lab.activations(samples.texts, layers=layers, at=everywhere)
    differences = positive - negative  # [tokens, layers, d_model]
    sizes = torch.stack((positive, negative)).double().norm(dim=-1).mean((0, 1))  # [layers]
    results = _positional_results(differences, sizes, layers)
    metadata = {
        **extraction.provenance,
        "selected_layer": layers[0],
        "norm": results[0]["norm"],
        "residual_norm": results[0]["residual_norm"],
        "mean_pairwise_cosine": None,
        "d_prime": None,
        "layer_figures": results,
        "tokens": differences.shape[0],
    }
    tensors = {f"direction.{layer}": differences[:, i].contiguous() for i, layer in enumerate(layers)}
    store.add(
        StoredVector(id=extraction.vector_id, kind=Kind.POSITIONAL, layers=layers, tensors=tensors, metadata=metadata)
    )
    return {"layers": results, "selected_layer": layers[0], "position": None}


def _positional_results(differences: Tensor, sizes: Tensor, layers: Sequence[int]) -> list[dict[str, Any]]:
    """The norm is the largest of any token: what the object does to the residual stream where it does most."""
    results = []
    for index, layer in enumerate(layers):
        norm, size = float(differences[:, index].double().norm(dim=-1).max()), float(sizes[index])
        if norm <= 1e-6 * size:
            raise JobError(f"layer {layer}: both texts have the same activations", code="degenerate")
        results.append(
            {"layer": layer, "norm": norm, "residual_norm": size, "mean_pairwise_cosine": None, "d_prime": None}
        )
    return results
