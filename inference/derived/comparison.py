"""How far a derived model's logits are from those of its base with the same directions ablated by hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from inference.kv import KvCache
from inference.loading import LoadedModel
from inference.model import Model, Span
from inference.steering.applied import Applied
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SteeringSpec, VectorUse
from inference.steering.table import SteeredSpan, SteeringTable
from inference.steering.vector import StoredVector

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a river that did not know where the sea was, and so",
    "def mean(values):\n    return",
    "Write a polite letter to the council about the broken street lamp.",
)
"""Prose, a story, code, an instruction: short, since a wrong matrix shows in the first tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest |difference| of two models' logits over one prompt. `fraction` of the prompts are done with it."""

    fraction: float
    at_end: float  # of the logits that the next token is sampled from
    anywhere: float  # float32 has a floor there: see `docs/inference.md`


def ablation(base: LoadedModel, vectors: Sequence[StoredVector]) -> CompiledSteering:
    """All of `vectors` (one layer each) ablated by hooks, at every write. Raises SpecError if they are dependent."""
    first, *others = vectors
    use = VectorUse(id=first.id, op="ablate", params={"also": [vector.id for vector in others]} if others else None)
    stored = {vector.id: vector for vector in vectors}
    spec = SteeringSpec(vectors=[use])
    return compile_spec(spec, store=stored, config=base.config, model_digest=base.vectors_digest)


def logit_differences(
    base: LoadedModel, model: Model, *, vectors: Sequence[StoredVector], prompts: Sequence[str] = PROMPTS
) -> Iterator[Difference]:
    """One Difference after every prompt: `base` with all of `vectors` ablated by hooks against `model`."""
    steering = ablation(base, vectors)
    for number, prompt in enumerate(prompts, start=1):
        ids = tuple(base.tokenizer.encode(prompt, add_special_tokens=True))
        span = SteeredSpan(token_ids=ids, start=0, prompt_tokens=len(ids), steering=steering, applied=Applied())
        table = SteeringTable([span], device=base.model.device)
        hooked = _logits(base.model, ids, table)
        table.finish_step()
        difference = (hooked - _logits(model, ids, None)).abs()
        yield Difference(
            fraction=number / len(prompts), at_end=float(difference[-1].max()), anywhere=float(difference.max())
        )


def _logits(model: Model, ids: tuple[int, ...], table: SteeringTable | None) -> torch.Tensor:
    cache = KvCache(model.config, capacity=len(ids), dtype=model.dtype, device=model.device)
    token_ids = torch.tensor(ids, device=model.device)
    return model.logits(token_ids, [Span(cache, len(ids))], steering=table, every=True)
