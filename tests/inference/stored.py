"""One valid object of every kind, for tests of what is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inference.steering.vector import Kind, StoredVector

D_MODEL, HEADS, D_HEAD = 576, 9, 64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(kind: Kind) -> dict[str, Any]:
    """Fields of a valid object, to be changed."""
    heads = torch.zeros(HEADS, D_HEAD)
    heads[3] = numbers(D_HEAD)
    tensors: dict[Kind, dict[str, Tensor]] = {
        Kind.DIRECTION: {"direction.3": numbers(D_MODEL), "direction.7": numbers(D_MODEL, seed=1)},
        Kind.POSITIONAL: {"direction.3": torch.cat((torch.zeros(1, D_MODEL), numbers(4, D_MODEL)))},
        Kind.HEADS: {"heads.3": heads},
        Kind.ERASER: {f"{part}.{layer}": numbers(D_MODEL) for part in ("read", "write", "mean") for layer in (3, 7)},
        Kind.SAE: {
            "encoder": numbers(32, D_MODEL),
            "encoder_bias": torch.zeros(32),
            "decoder": numbers(32, D_MODEL, seed=1),
            "decoder_bias": torch.zeros(D_MODEL),
        },
    }
    found = tensors[kind]
    layers = tuple(sorted({int(name.split(".")[1]) for name in found if "." in name})) or (3,)
    more = {"activation": "relu"} if kind is Kind.SAE else {}
    metadata = {"method": "test", "model_digest": None, **more}
    return {"id": f"a-{kind}", "kind": kind, "layers": layers, "tensors": found, "metadata": metadata}


def example(kind: Kind, **changes: Any) -> StoredVector:
    return StoredVector(**{**parts(kind), **changes})


def equal(first: StoredVector, second: StoredVector) -> bool:
    """The same in everything, bit for bit."""
    return (first.id, first.kind, first.layers, dict(first.metadata), sorted(first.tensors)) == (
        second.id,
        second.kind,
        second.layers,
        dict(second.metadata),
        sorted(second.tensors),
    ) and all(
        torch.equal(first.tensors[name].view(torch.int32), second.tensors[name].view(torch.int32))
        for name in first.tensors
    )
