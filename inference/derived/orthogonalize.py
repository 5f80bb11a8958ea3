"""W - r rᵀ W for every matrix that writes to the residual: embedding, attention output, feed-forward output.

The model then cannot write along the directions r. Source: Arditi et al. 2406.11717, section 4.2. A tied output head is
untied first: it reads the residual, and orthogonalising it too moves the logits of SmolLM2 by 0.3 to 1.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor

from inference.config import ModelConfig
from inference.jobs.aside import aside
from inference.linear import Linear
from inference.model import Model
from inference.weights import read_tensors

_EMBEDDING, _OUT, _DOWN = "model.embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"
_ROWS_PER_PIECE = 4_096
"""Rows of the embedding changed at a time: some 10 ms, and float64 copies of 20 MB instead of 230."""

_Named = tuple[str, Tensor]


def writers(config: ModelConfig) -> list[str]:
    """HF names of the matrices that write to the residual."""
    blocks = [f"model.layers.{layer}." for layer in range(config.n_layers)]
    return [_EMBEDDING, *(block + name for block in blocks for name in (_OUT, _DOWN))]


def orthogonalized(base: Model, path: Path, basis: Tensor) -> Generator[float, None, Model]:
    """A model that shares all other weights with `base`, whose own are read from `path` again, one matrix a piece.

    basis: [k, d_model], orthonormal rows. Products run in float64. Yields the fraction done. Raises OSError if the
    weights are gone.
    """
    wide_basis = basis.double()
    names = writers(base.config)
    products: dict[str, Linear] = {}
    embedding: Tensor | None = None
    found = read_tensors(path, frozenset(names))
    # Opening a GGUF file parses its vocabulary for seconds.
    first: _Named | None = yield from aside(lambda: next(found, None))
    for done, (name, tensor) in enumerate(found if first is None else itertools.chain([first], found)):
        if name == _EMBEDDING:
            embedding = torch.empty(tensor.shape, dtype=base.dtype)
            for fraction in _project_rows(tensor, wide_basis, embedding):
                yield (done + fraction) / len(names)
        else:
            wide = tensor.double()  # [d_model, d_in]: columns are what is written
            products[name] = base.linear((wide - wide_basis.T @ (wide_basis @ wide)).float())
            yield (done + 1) / len(names)
    missing = set(names) - {_EMBEDDING} - products.keys()
    if missing or embedding is None:
        raise OSError(f"{path} no longer holds {min(missing, default=_EMBEDDING)}")
    layers = range(base.config.n_layers)
    return base.with_writers(
        embedding=embedding,
        outs=[products[f"model.layers.{layer}.{_OUT}"] for layer in layers],
        downs=[products[f"model.layers.{layer}.{_DOWN}"] for layer in layers],
    )


def _project_rows(tensor: Tensor, basis: Tensor, into: Tensor) -> Iterator[float]:
    for start in range(0, tensor.shape[0], _ROWS_PER_PIECE):  # [vocab_size, d_model]: rows are what is written
        wide = tensor[start : start + _ROWS_PER_PIECE].double()
        into[start : start + _ROWS_PER_PIECE] = (wide - (wide @ basis.T) @ basis).to(into.dtype)
        yield min(1.0, (start + _ROWS_PER_PIECE) / tensor.shape[0])
