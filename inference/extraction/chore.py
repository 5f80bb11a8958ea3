"""One extraction from first text to stored vector, as a chore of the engine: a piece of a text per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from inference.extraction.mean_difference import DegenerateError, MeanDifference, mean_difference
from inference.jobs.chore import JobChore, JobError, Work
from inference.jobs.table import JobTable
from inference.kv import KvCache
from inference.limits import PREFILL_CHUNK_TOKENS
from inference.model import Model
from inference.steering.store import VectorStore
from inference.steering.vector import direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """What to extract. Token ids of `positive[i]` and `negative[i]` are a pair; every text has at least one token.

    token "last": the last position. "mean": the mean over all positions but the first, whose activation is an
    attention sink of many times the others' norm (a text of one token is taken as it is).
    """

    vector_id: str
    layer: int
    token: str
    positive: tuple[tuple[int, ...], ...]
    negative: tuple[tuple[int, ...], ...]
    provenance: dict[str, Any]


def extraction_chore(
    extraction: Extraction, *, model: Model, store: VectorStore, jobs: JobTable, job_id: str
) -> JobChore:
    """The job in pieces of `PREFILL_CHUNK_TOKENS` tokens."""
    return JobChore(_extract(extraction, model=model, store=store), jobs=jobs, job_id=job_id)


def _extract(extraction: Extraction, *, model: Model, store: VectorStore) -> Work:
    texts = (*extraction.positive, *extraction.negative)
    activations: list[Tensor] = []
    for done, token_ids in enumerate(texts):
        outputs: list[Tensor] = []
        for _ in _block_outputs(token_ids, extraction.layer, model, outputs):
            yield done / len(texts)
        activations.append(_selected(torch.cat(outputs), extraction.token))
    pairs = len(extraction.positive)
    try:
        found = mean_difference(torch.stack(activations[:pairs]), torch.stack(activations[pairs:]))
    except DegenerateError as error:
        raise JobError(str(error), code="degenerate") from error
    figures = _figures(found)
    store.add(
        direction(
            id=extraction.vector_id,
            values={extraction.layer: found.vector.clone()},
            metadata={**extraction.provenance, **figures},
        )
    )
    return {"vector": extraction.vector_id, "layer": extraction.layer, **figures}


def _block_outputs(token_ids: tuple[int, ...], layer: int, model: Model, into: list[Tensor]) -> Iterator[None]:
    cache = KvCache(model.config, capacity=len(token_ids), dtype=model.dtype, device=model.device)
    for start in range(0, len(token_ids), PREFILL_CHUNK_TOKENS):
        piece = torch.tensor(token_ids[start : start + PREFILL_CHUNK_TOKENS], device=model.device)
        into.append(model.block_output(piece, cache, layer=layer).float().cpu())
        yield


def _selected(outputs: Tensor, token: str) -> Tensor:
    """outputs [tokens, d_model] → [d_model]."""
    if token == "last":  # noqa: S105 - a position, no password
        return outputs[-1]
    return outputs[1:].mean(0) if outputs.shape[0] > 1 else outputs[0]


def _figures(found: MeanDifference) -> dict[str, Any]:
    return {
        "norm": found.norm,
        "residual_norm": found.residual_norm,
        "mean_pairwise_cosine": found.mean_pairwise_cosine,
        "d_prime": found.d_prime,
    }
