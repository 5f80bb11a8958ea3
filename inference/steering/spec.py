"""The `steering` field of a request: its shape, and its translation into what the forward pass adds."""

from __future__ import annotations

import hashlib
import json
import math

import msgspec
import torch

from inference.config import ModelConfig
from inference.limits import SCALE_ABS_MAX, SPEC_VECTORS_MAX
from inference.steering.kernels import Add
from inference.steering.points import Point, Site
from inference.steering.program import CompiledSteering, Conflict, Step, Use
from inference.steering.selectors import Selection
from inference.steering.store import VectorStore


class VectorUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Add `scale` times vector `id` at block outputs `layers` (the vector's own layer if left out)."""

    id: str
    op: str
    scale: float
    layers: list[int] | None = None


class SteeringSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All vectors of one request; their additions at the same block output are summed."""

    vectors: list[VectorUse]


class SpecError(ValueError):
    """The spec asks for something that does not exist or is out of bounds. `param` is the JSON path of the culprit."""

    def __init__(self, message: str, *, param: str, code: str) -> None:
        super().__init__(message)
        self.param, self.code = param, code


def compile_spec(spec: SteeringSpec, *, store: VectorStore, config: ModelConfig, model_digest: str) -> CompiledSteering:
    """Resolve and add up a spec. Raises SpecError; nothing has been computed on the model then."""
    if len(spec.vectors) > SPEC_VECTORS_MAX:
        message = f"{len(spec.vectors)} vectors in one request, at most {SPEC_VECTORS_MAX} are allowed"
        raise SpecError(message, param="steering.vectors", code="too_many_vectors")
    deltas: dict[int, torch.Tensor] = {}
    identity: list[object] = []
    for index, use in enumerate(spec.vectors):
        path = f"steering.vectors[{index}]"
        _check_numbers(use, path)
        stored = store.get(use.id)
        if stored is None:
            raise SpecError(f"no steering vector {use.id!r}", param=f"{path}.id", code="unknown_vector")
        if stored.values.shape[0] != config.d_model:
            message = f"vector {use.id!r} has dimension {stored.values.shape[0]}, the model {config.d_model}"
            raise SpecError(message, param=f"{path}.id", code="wrong_dimension")
        if stored.metadata["model_digest"] not in (None, model_digest):
            raise SpecError(f"vector {use.id!r} was made for another model", param=f"{path}.id", code="wrong_model")
        layers = [stored.layer] if use.layers is None else use.layers
        _check_layers(layers, config, path)
        identity.append([use.op, use.scale.hex(), layers, stored.digest_sha256])
        for layer in layers if use.scale != 0 else ():
            delta = stored.values.double() * use.scale
            deltas[layer] = deltas[layer] + delta if layer in deltas else delta
    canonical = json.dumps({"model": model_digest, "vectors": identity}, separators=(",", ":"))
    vectors = {layer: delta.float() for layer, delta in sorted(deltas.items())}
    return CompiledSteering(
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        model_digest=model_digest,
        conflict=Conflict.SEQUENTIAL,
        gates=(),
        selections=(Selection(),),
        uses=tuple(Use(identity=json.dumps(use), selection=0, gate=None) for use in identity),
        # Vectors that cancel out exactly are the same as none: the plain model, bit for bit.
        steps={
            Site(layer, Point.BLOCK_OUTPUT): (
                Step(kernels=(Add(vectors=vector.unsqueeze(0)),), selection=0, gate=None),
            )
            for layer, vector in vectors.items()
            if bool(vector.any())
        },
    )


def _check_numbers(use: VectorUse, path: str) -> None:
    if use.op != "add":
        raise SpecError(f'unknown op {use.op!r}; this server knows "add"', param=f"{path}.op", code="unknown_op")
    if not math.isfinite(use.scale) or abs(use.scale) > SCALE_ABS_MAX:
        message = f"scale must be a finite number of magnitude at most {SCALE_ABS_MAX:g}"
        raise SpecError(message, param=f"{path}.scale", code="bad_scale")


def _check_layers(layers: list[int], config: ModelConfig, path: str) -> None:
    if not layers or len(set(layers)) != len(layers):
        raise SpecError("layers must be distinct, at least one", param=f"{path}.layers", code="bad_layers")
    for layer in layers:
        if not 0 <= layer < config.n_layers:
            message = f"layer {layer} does not exist; block outputs are 0 to {config.n_layers - 1}"
            raise SpecError(message, param=f"{path}.layers", code="bad_layers")
