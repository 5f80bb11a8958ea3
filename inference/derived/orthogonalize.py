"""W - r rᵀ W for every matrix that writes to the residual: embedding, attention output, feed-forward output.

The model then cannot write along the directions r. Source: Arditi et al. 2406.11717, section 4.2. A tied output head is
untied first: it reads the residual, and orthogonalising it too would move the logits (by 0.3 on SmolLM2).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor

from inference.config import ModelConfig
from inference.model import Model
from inference.weights import read_tensors

_EMBEDDING = "model.embed_tokens.weight"
_ROWS_PER_PIECE = 4_096
"""Rows of the embedding changed at a time: some 10 ms, and float64 copies of 20 MB instead of 230."""


def writers(config: ModelConfig) -> list[str]:
    """HF names of the matrices that write to the residual."""
    blocks = [f"model.layers.{layer}." for layer in range(config.n_layers)]
    return [
        _EMBEDDING,
        *(block + name for block in blocks for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")),
    ]


def orthogonalized(base: Model, path: Path, basis: Tensor) -> Generator[float, None, Model]:
    """A model that shares all other weights with `base`, whose own are read from `path` again, one matrix a piece.

    basis: [k, d_model], orthonormal rows. Products run in float64. Yields the fraction done. Raises OSError if the
    weights are gone.
    """
    names = writers(base.config)
    changed: dict[str, Tensor] = {}
    found = read_tensors(path, frozenset(names))
    for name, tensor in found:
        written = torch.empty(tensor.shape, dtype=base.dtype)
        for fraction in _project(tensor, basis.double(), written, embeds=name == _EMBEDDING):
            yield (len(changed) + fraction) / len(names)
        changed[name] = written
    missing = set(names) - changed.keys()
    if missing:
        raise OSError(f"{path} no longer holds {min(missing)}")
    outs = [changed[f"model.layers.{layer}.self_attn.o_proj.weight"] for layer in range(base.config.n_layers)]
    downs = [changed[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(base.config.n_layers)]
    return base.with_writers(embedding=changed[_EMBEDDING], outs=outs, downs=downs)


def _project(tensor: Tensor, basis: Tensor, into: Tensor, *, embeds: bool) -> Iterator[float]:
    if not embeds:  # [d_model, d_in]: columns are what is written
        wide = tensor.double()
        into.copy_(wide - basis.T @ (basis @ wide))
        yield 1.0
        return
    for start in range(0, tensor.shape[0], _ROWS_PER_PIECE):  # [vocab_size, d_model]: rows are what is written
        wide = tensor[start : start + _ROWS_PER_PIECE].double()
        into[start : start + _ROWS_PER_PIECE] = (wide - (wide @ basis.T) @ basis).to(into.dtype)
        yield min(1.0, (start + _ROWS_PER_PIECE) / tensor.shape[0])
