"""One extraction from first text to stored vector, as a chore of the engine: a piece of a text per step."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from inference.extraction.jobs import JobTable
from inference.extraction.mean_difference import DegenerateError, MeanDifference, mean_difference
from inference.kv import KvCache
from inference.limits import PREFILL_CHUNK_TOKENS
from inference.model import Model
from inference.steering.store import ExistsError, StoredVector, StoreFullError, VectorStore

_log = logging.getLogger("inference.extraction")


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
) -> Iterator[None]:
    """Run the job, yielding between pieces of `PREFILL_CHUNK_TOKENS` tokens. Never raises: the job fails instead."""
    try:
        yield from _extract(extraction, model=model, store=store, jobs=jobs, job_id=job_id)
    except DegenerateError as error:
        jobs.fail(job_id, code="degenerate", message=str(error))
    except ExistsError:  # uploaded or extracted under the same id while this job waited
        jobs.fail(job_id, code="vector_exists", message=f"vector {extraction.vector_id!r} exists already")
    except StoreFullError:
        jobs.fail(job_id, code="store_full", message="the store holds as many vectors as it may")
    except GeneratorExit:
        jobs.fail(job_id, code="cancelled", message="the server was shut down")
        raise
    except Exception:  # noqa: BLE001 - a job's fault ends the job, never the engine's thread
        _log.exception("extraction failed", extra={"job": job_id})
        jobs.fail(job_id, code="internal_error", message="the extraction failed; the server's log has the reason")


def _extract(
    extraction: Extraction, *, model: Model, store: VectorStore, jobs: JobTable, job_id: str
) -> Iterator[None]:
    texts = (*extraction.positive, *extraction.negative)
    activations: list[Tensor] = []
    for done, token_ids in enumerate(texts):
        jobs.progress(job_id, fraction=done / len(texts))
        outputs: list[Tensor] = []
        yield from _block_outputs(token_ids, extraction.layer, model, outputs)
        activations.append(_selected(torch.cat(outputs), extraction.token))
    pairs = len(extraction.positive)
    found = mean_difference(torch.stack(activations[:pairs]), torch.stack(activations[pairs:]))
    figures = _figures(found)
    store.add(
        StoredVector(
            id=extraction.vector_id,
            layer=extraction.layer,
            values=found.vector.clone(),
            metadata={**extraction.provenance, **figures},
        )
    )
    jobs.succeed(job_id, {"vector": extraction.vector_id, "layer": extraction.layer, **figures})


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
