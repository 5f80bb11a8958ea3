"""Stored objects as a spec names them: found, of the right kind and size, made for this model, at the layer asked for."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from inference.config import ModelConfig
from inference.steering.spec import SpecError
from inference.steering.vector import Kind, StoredVector

_digests: weakref.WeakKeyDictionary[StoredVector, str] = weakref.WeakKeyDictionary()


class Vectors(Protocol):
    """Where objects are found by id."""

    def get(self, vector_id: str, /) -> StoredVector | None: ...


def digest(stored: StoredVector) -> str:
    """`digest_sha256`, worked out once: a dictionary of features has tens of megabytes."""
    if stored not in _digests:
        _digests[stored] = stored.digest_sha256
    return _digests[stored]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects:
    """The store as one model's requests see it. Every method raises SpecError with the `param` it was given."""

    vectors: Vectors
    config: ModelConfig
    model_digest: str

    def find(self, vector_id: str, kinds: Collection[Kind], *, param: str) -> StoredVector:
        stored = self.vectors.get(vector_id)
        if stored is None:
            raise SpecError(f"no steering vector {vector_id!r}", param=param, code="unknown_vector")
        if stored.kind not in kinds:
            wanted = " or ".join(sorted(kind.value for kind in kinds))
            raise SpecError(f"{vector_id!r} is a {stored.kind.value}, not a {wanted}", param=param, code="wrong_kind")
        self._check_width(stored, param)
        if stored.metadata["model_digest"] not in (None, self.model_digest):
            raise SpecError(f"{vector_id!r} was made for another model", param=param, code="wrong_model")
        return stored

    def _check_width(self, stored: StoredVector, param: str) -> None:
        config = self.config
        if stored.kind is Kind.HEADS:
            found: tuple[int, ...] = tuple(stored.tensors[f"heads.{stored.layers[0]}"].shape)
            wanted: tuple[int, ...] = (config.n_heads, config.d_head)
        else:
            found, wanted = (stored.width,), (config.d_model,)
        if found != wanted:
            message = f"{stored.id!r} has dimension {_sizes(found)}, the model {_sizes(wanted)}"
            raise SpecError(message, param=param, code="wrong_dimension")


def own_layer(stored: StoredVector, layer: int) -> int | None:
    """The layer whose tensors serve at block `layer`: its own; or, of an object of one layer that means the same
    everywhere, that one. None if there is none."""
    if layer in stored.layers:
        return layer
    moves = len(stored.layers) == 1 and stored.kind not in (Kind.HEADS, Kind.ERASER)
    return stored.layers[0] if moves or stored.kind is Kind.SAE else None


def direction_at(stored: StoredVector, layer: int, *, param: str) -> Tensor:
    """direction.<l> that serves at `layer`, float64. Raises SpecError."""
    own = own_layer(stored, layer)
    if own is None:
        message = f"{stored.id!r} has nothing for layer {layer}; it has {list(stored.layers)}"
        raise SpecError(message, param=param, code="bad_layers")
    return stored.tensors[f"direction.{own}"].double()


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
