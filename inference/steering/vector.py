"""What can be stored under a handle: directions, positional differences, heads, erasers and dictionaries.

An object that could steer wrongly cannot be built: every tensor is named, shaped, finite and not zero where zero would
mean nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from inference.config import ModelConfig
from inference.limits import (
    METADATA_BYTES_MAX,
    VECTOR_BYTES_MAX,
    VECTOR_LAYERS_MAX,
    VECTOR_NORM_MAX,
    VECTOR_NORM_MIN,
)

ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class Kind(enum.StrEnum):
    """What the tensors of a stored object mean; `_shapes` has their names and sizes."""

    DIRECTION = "direction"
    POSITIONAL = "positional"
    HEADS = "heads"
    ERASER = "eraser"
    SAE = "sae"


class BadVectorError(ValueError):
    """These tensors are no object of that kind. `code` is stable and for machines."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredVector:
    """One stored object. Construction raises BadVectorError unless everything below holds.

    layers: block outputs it belongs to, ascending, at least one. tensors: float32, on the CPU, finite, by kind:

    - DIRECTION `direction.<l>` [d_model], none of them zero
    - POSITIONAL `direction.<l>` [tokens, d_model], the same number of tokens at every layer; single rows may be zero
    - HEADS `heads.<l>` [n_heads, d_head], rows of heads left out are zero
    - ERASER `read.<l>`, `write.<l>`, `mean.<l>` [d_model]: x - write (read · (x - mean))
    - SAE `encoder` [features, d_model], `encoder_bias` [features], `decoder` [features, d_model], `decoder_bias`
      [d_model], for jumprelu `threshold` [features]; metadata `activation` relu, jumprelu or topk, the last with `k`.
      A feature reads h · encoder row + bias: a dictionary that reads h - decoder_bias (SAELens says so with
      `apply_b_dec_to_input`) has to be folded first, encoder_bias - encoder · decoder_bias, and is refused until then

    metadata: JSON values; always has `model_digest`, None for what is not tied to one model.
    """

    id: str
    kind: Kind
    layers: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not ID_PATTERN.fullmatch(self.id):
            raise BadVectorError(f"{self.id!r} is no id", code="bad_metadata")
        layers = self.layers
        if not 1 <= len(layers) <= VECTOR_LAYERS_MAX or min(layers) < 0 or list(layers) != sorted(set(layers)):
            raise BadVectorError("layers must be distinct, ascending, not negative, at least one", code="wrong_shape")
        _check_metadata(self.kind, self.metadata)
        _check_tensors(self.kind, self.layers, self.tensors)
        if self.kind is Kind.SAE:
            _check_activation(self.metadata, self.tensors)

    @property
    def width(self) -> int:
        """d_model; for HEADS the product of heads and their width."""
        if self.kind is Kind.HEADS:
            return int(self.tensors[f"heads.{self.layers[0]}"].numel())
        first = {Kind.ERASER: f"read.{self.layers[0]}", Kind.SAE: "encoder"}
        return int(self.tensors[first.get(self.kind, f"direction.{self.layers[0]}")].shape[-1])

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(4 * tensor.numel() for tensor in self.tensors.values())

    @property
    def norms(self) -> dict[str, float]:
        """Euclidean norm of every tensor, by name."""
        return {name: float(self.tensors[name].double().norm()) for name in sorted(self.tensors)}

    @property
    def digest_sha256(self) -> str:
        """Of what steering does with it: kind, layers, activation and all values; not of its id or provenance."""
        names = ("activation", "k") if self.kind is Kind.SAE else ()
        head = [self.kind, self.layers, *(self.metadata.get(name) for name in names)]
        total = hashlib.sha256(json.dumps(head, separators=(",", ":")).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            total.update(f"{name}{tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().numpy().astype("<f4").tobytes())
        return total.hexdigest()


def direction(*, id: str, values: Mapping[int, Tensor], metadata: Mapping[str, Any]) -> StoredVector:  # noqa: A002
    """A DIRECTION from {block output: [d_model]}. Raises BadVectorError."""
    layers = tuple(sorted(values))
    tensors = {f"direction.{layer}": values[layer] for layer in layers}
    return StoredVector(id=id, kind=Kind.DIRECTION, layers=layers, tensors=tensors, metadata=metadata)


def check_fits(vector: StoredVector, config: ModelConfig) -> None:
    """Raises BadVectorError (wrong_dimension, bad_layer) unless the object has the sizes of a model."""
    if vector.kind is Kind.HEADS:
        shape = tuple(vector.tensors[f"heads.{vector.layers[0]}"].shape)
        if shape != (config.n_heads, config.d_head):
            message = f"the heads are {list(shape)}, the model's {[config.n_heads, config.d_head]}"
            raise BadVectorError(message, code="wrong_dimension")
    elif vector.width != config.d_model:
        raise BadVectorError(f"the dimension is {vector.width}, the model's {config.d_model}", code="wrong_dimension")
    if vector.layers[-1] >= config.n_layers:
        message = f"layer {vector.layers[-1]} does not exist; block outputs are 0 to {config.n_layers - 1}"
        raise BadVectorError(message, code="bad_layer")


def _check_metadata(kind: Kind, metadata: Mapping[str, Any]) -> None:
    if "model_digest" not in metadata:
        raise BadVectorError("metadata lacks model_digest", code="bad_metadata")
    try:
        text = json.dumps(dict(metadata), allow_nan=False)
        msgspec.json.encode(dict(metadata))  # writes the answers; stricter on lone surrogates and on huge integers
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadVectorError(f"metadata of a {kind} is not JSON: {error}", code="bad_metadata") from error
    if len(text) > METADATA_BYTES_MAX:
        raise BadVectorError(f"metadata is longer than {METADATA_BYTES_MAX} bytes", code="too_large")


def _check_tensors(kind: Kind, layers: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    if sum(tensor.numel() for tensor in tensors.values()) * 4 > VECTOR_BYTES_MAX:
        raise BadVectorError(f"the tensors take more than {VECTOR_BYTES_MAX} bytes", code="too_large")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise BadVectorError(f"tensor {name} is not float32 on the CPU", code="wrong_shape")
    expected = _shapes(kind, layers, tensors)
    if expected.keys() != tensors.keys():
        names = ", ".join(sorted(expected.keys() ^ tensors.keys())[:4])
        raise BadVectorError(f"a {kind} at these layers lacks, or does not know: {names}", code="wrong_shape")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            message = f"tensor {name} has shape {list(tensors[name].shape)}, not {list(shape)}"
            raise BadVectorError(message, code="wrong_shape")
        _check_values(name, tensors[name])


def _shapes(kind: Kind, layers: tuple[int, ...], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a kind must have; sizes that are free are taken from its first tensor."""

    def sizes(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) != dimensions or min(found) < 1:
            raise BadVectorError(f"a {kind} needs a tensor {name} of {dimensions} dimension(s)", code="wrong_shape")
        return found

    first = layers[0]
    if kind is Kind.SAE:
        features, d_model = sizes("encoder", 2)
        shapes: dict[str, tuple[int, ...]] = {
            "encoder": (features, d_model),
            "encoder_bias": (features,),
            "decoder": (features, d_model),
            "decoder_bias": (d_model,),
        }
        return shapes | ({"threshold": (features,)} if "threshold" in tensors else {})
    if kind is Kind.ERASER:
        shape = sizes(f"read.{first}", 1)
        return {f"{part}.{layer}": shape for layer in layers for part in ("read", "write", "mean")}
    if kind is Kind.HEADS:
        return dict.fromkeys((f"heads.{layer}" for layer in layers), sizes(f"heads.{first}", 2))
    shape = sizes(f"direction.{first}", 2 if kind is Kind.POSITIONAL else 1)
    return dict.fromkeys((f"direction.{layer}" for layer in layers), shape)


_MAY_BE_ZERO = frozenset({"mean", "encoder_bias", "decoder_bias", "threshold"})


def _check_values(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise BadVectorError(f"tensor {name} holds NaN or infinity", code="bad_vector")
    norms = tensor.double().norm(dim=-1)  # of every row; of a vector its own
    if float(norms.max()) > VECTOR_NORM_MAX:
        raise BadVectorError(f"tensor {name} has a norm above {VECTOR_NORM_MAX:g}", code="bad_vector")
    if name.partition(".")[0] not in _MAY_BE_ZERO and float(norms.max()) < VECTOR_NORM_MIN:
        raise BadVectorError(f"tensor {name} is zero, or too small to have a direction", code="bad_vector")


def _check_activation(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    activation, k = metadata.get("activation"), metadata.get("k")
    if activation not in ("relu", "jumprelu", "topk"):
        raise BadVectorError("activation must be relu, jumprelu or topk", code="bad_metadata")
    if metadata.get("apply_b_dec_to_input", False) is not False:
        message = (
            "this dictionary reads h - decoder_bias: fold that into encoder_bias, and set apply_b_dec_to_input false"
        )
        raise BadVectorError(message, code="bad_metadata")
    if (activation == "jumprelu") != ("threshold" in tensors):
        raise BadVectorError("threshold belongs to jumprelu, and to nothing else", code="wrong_shape")
    if (activation == "topk") != (k is not None):
        raise BadVectorError("k belongs to topk, and to nothing else", code="bad_metadata")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= tensors["encoder"].shape[0]):
        raise BadVectorError("k must be between 1 and the number of features", code="bad_metadata")
