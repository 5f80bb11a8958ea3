"""A tiny random model for volume, stored objects of every kind on a shelf, and specs as the wire spells them."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import torch
from torch import Tensor

from inference.config import ModelConfig
from inference.kv import KvCache
from inference.model import Model
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SteeringSpec
from inference.steering.vector import Kind, StoredVector
from inference.weights import expected_shapes

CPU = torch.device("cpu")


class Shelf(dict[str, StoredVector]):
    """A store in memory."""

    def put(self, vector_id: str, kind: Kind, tensors: dict[str, Tensor], **metadata: Any) -> StoredVector:
        layers = sorted({int(name.rpartition(".")[2]) for name in tensors if name.rpartition(".")[2].isdigit()} or {1})
        self[vector_id] = StoredVector(
            id=vector_id,
            kind=kind,
            layers=tuple(layers),
            tensors=tensors,
            metadata={"model_digest": None, **metadata},
        )
        return self[vector_id]


@dataclasses.dataclass(frozen=True)
class World:
    """A model and the objects stored for it."""

    model: Model
    shelf: Shelf

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def compiled(self, *vectors: dict[str, Any], **fields: Any) -> CompiledSteering:
        spec = msgspec.convert({"vectors": list(vectors), **fields}, SteeringSpec)
        return compile_spec(spec, store=self.shelf, config=self.config, model_digest="m")

    def cache(self, capacity: int = 600) -> KvCache:
        return KvCache(self.config, capacity=capacity, dtype=self.model.dtype, device=self.model.device)


def random_tensor(*shape: int, seed: int, norm: float | None = None) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values if norm is None else values * (norm / values.norm())


def stocked(config: ModelConfig, *, layers: tuple[int, int, int], norm: float) -> Shelf:
    """One object or more of every kind; directions have length `norm`."""
    shelf, d = Shelf(), config.d_model
    first, middle, last = layers
    for number, name in enumerate(("a", "b", "c")):
        shelf.put(name, Kind.DIRECTION, {f"direction.{middle}": random_tensor(d, seed=number, norm=norm)})
    shelf["a"] = dataclasses.replace(
        shelf["a"], metadata={"model_digest": None, "projection_means": {"positive": 3.0, "negative": -2.0, "all": 0.5}}
    )
    everywhere = {
        f"direction.{layer}": random_tensor(d, seed=50 + layer, norm=norm) for layer in range(config.n_layers)
    }
    shelf.put("everywhere", Kind.DIRECTION, everywhere)
    shelf.put(
        "two", Kind.DIRECTION, {f"direction.{layer}": random_tensor(d, seed=9 + layer) for layer in (first, last)}
    )
    shelf.put("positional", Kind.POSITIONAL, {f"direction.{middle}": random_tensor(4, d, seed=20, norm=2 * norm)})
    heads = random_tensor(config.n_heads, config.d_head, seed=21, norm=norm / 4)
    heads[1:] = 0
    shelf.put("heads", Kind.HEADS, {f"heads.{layer}": heads for layer in (middle, last)})
    eraser = {}
    for layer in (middle, last):
        u = random_tensor(d, seed=30 + layer, norm=1.0)
        eraser |= {f"read.{layer}": u, f"write.{layer}": u + 0.1 * random_tensor(d, seed=31, norm=1.0)}
        eraser |= {f"mean.{layer}": random_tensor(d, seed=32, norm=norm)}
    shelf.put("eraser", Kind.ERASER, eraser)
    features = 3 * d
    sae = {
        "encoder": random_tensor(features, d, seed=40) / d**0.5,
        "encoder_bias": random_tensor(features, seed=41) / 10,
        "decoder": random_tensor(features, d, seed=42) / d**0.5,
        "decoder_bias": random_tensor(d, seed=43) / 10,
    }
    shelf.put("relu", Kind.SAE, sae, activation="relu")
    shelf.put("jump", Kind.SAE, sae | {"threshold": torch.full((features,), 0.3)}, activation="jumprelu")
    shelf.put("topk", Kind.SAE, sae, activation="topk", k=features // 4)
    for name in ("relu", "jump", "topk"):
        shelf[name] = dataclasses.replace(shelf[name], layers=(middle,))
    shelf.put("short", Kind.DIRECTION, {f"direction.{middle}": random_tensor(d - 1, seed=1)})
    shelf["foreign"] = dataclasses.replace(shelf["b"], id="foreign", metadata={"model_digest": "another"})
    return shelf


def tiny_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32, kind: type[Model] = Model) -> Model:
    names = expected_shapes(config)
    weights = {name: random_tensor(*shape, seed=i) / shape[-1] ** 0.5 for i, (name, shape) in enumerate(names.items())}
    weights |= {name: torch.ones_like(tensor) for name, tensor in weights.items() if "norm" in name}
    return kind(config, weights, dtype=dtype, device=CPU)
