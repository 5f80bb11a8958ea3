"""A tiny random model for volume, the real one for truth, and one way to run a sequence through either."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference.config import ModelConfig
from inference.loading import LoadedModel
from inference.model import Span
from inference.steering.applied import Applied
from inference.steering.program import CompiledSteering
from inference.steering.table import SteeredSpan, SteeringTable
from tests.inference.steering.world import CPU, World, stocked, tiny_model


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=101,
        d_model=32,
        d_feed_forward=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        context_tokens=512,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=None,
        tie_word_embeddings=True,
        attention_bias=False,
    )


@pytest.fixture(scope="session")
def tiny(tiny_config: ModelConfig) -> World:
    return World(tiny_model(tiny_config), stocked(tiny_config, layers=(0, 1, 2), norm=3.0))


@pytest.fixture(scope="session")
def smol(loaded: LoadedModel) -> World:
    """The real weights."""
    return World(loaded.model, stocked(loaded.config, layers=(3, 10, 20), norm=40.0))


Forward = Callable[..., tuple[Tensor, Applied]]


@pytest.fixture(scope="session")
def forward() -> Forward:
    """forward(world, ids, steering, prompt_tokens=…, pieces=…, gates=…) → logits [tokens, vocab_size] and counts."""

    def forward(
        world: World,
        ids: list[int],
        steering: CompiledSteering | None,
        *,
        prompt_tokens: int | None = None,
        pieces: list[int] | None = None,
        gates: tuple[bool, ...] = (),
    ) -> tuple[Tensor, Applied]:
        cache, applied, logits, start = world.cache(len(ids)), Applied(), [], 0
        for size in pieces or [len(ids)]:
            piece = ids[start : start + size]
            span = SteeredSpan(
                token_ids=tuple(piece),
                start=start,
                prompt_tokens=len(ids) if prompt_tokens is None else prompt_tokens,
                steering=steering,
                applied=applied,
                gates=gates,
            )
            table = SteeringTable([span], device=CPU)
            hooks = table or None
            logits.append(
                world.model.logits(torch.tensor(piece), [Span(cache, len(piece))], steering=hooks, every=True)
            )
            table.finish_step()
            table.settle()
            start += size
        assert start == len(ids)
        return torch.cat(logits), applied

    return forward
