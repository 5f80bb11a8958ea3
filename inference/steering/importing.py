"""Stored objects from files of other programs, and back: GGUF control vectors and safetensors.

Nothing that could run code is read: a pickle (`.pt`, `.bin`, `.npy` of objects, the zip that torch writes) is refused
by its first bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from inference.config import ModelConfig
from inference.limits import IMPORT_BYTES_MAX
from inference.steering import gguf_vectors, safetensors_file
from inference.steering.safetensors_file import FileError
from inference.steering.store import METADATA_KEY, file_content, vector_of
from inference.steering.vector import BadVectorError, Kind, StoredVector, check_fits

Format = Literal["gguf", "safetensors"]
IMPORT_KEY = "import"
"""Metadata of an imported object: format and digest of the file. Left out of exports, so that they are the file."""

_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CODE_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b"\x1f\x8b", b"7z\xbc\xaf", b"(dp", b"(lp", b"ccopy_reg")


def import_vector(content: bytes, *, vector_id: str, form: Format, config: ModelConfig) -> StoredVector:
    """The object in a file, checked and fit for a model. Raises FileError or BadVectorError."""
    if len(content) > IMPORT_BYTES_MAX:
        raise FileError(f"the file is larger than {IMPORT_BYTES_MAX} bytes")
    _refuse_pickle(content)
    source = {"format": form, "digest": hashlib.sha256(content).hexdigest()}
    vector = _from_gguf(content, vector_id, source) if form == "gguf" else _from_safetensors(content, vector_id, source)
    check_fits(vector, config)
    return vector


def export_vector(vector: StoredVector, *, form: Format, config: ModelConfig) -> bytes:
    """The file; the same bytes for the same object. Raises FileError for what the format cannot hold."""
    metadata = {key: value for key, value in vector.metadata.items() if key != IMPORT_KEY}
    if form == "safetensors":
        return file_content(vector, metadata)
    if vector.kind is not Kind.DIRECTION:
        raise FileError(f"a control vector holds directions, not a {vector.kind}")
    hint = metadata.get("model_hint")
    directions = {layer: vector.tensors[f"direction.{layer}"] for layer in vector.layers}
    return gguf_vectors.write(directions, model_hint=hint if isinstance(hint, str) else config.architecture)


def _refuse_pickle(content: bytes) -> None:
    # A safetensors file of the right length begins like a pickle, too; its ninth byte opens an object.
    is_pickle = content[:1] == b"\x80" and content[8:9] != b"{"
    if is_pickle or content.startswith(_CODE_MAGICS):
        raise FileError("pickles and archives are never read; convert the file to safetensors or GGUF")


def _from_gguf(content: bytes, vector_id: str, source: Mapping[str, str]) -> StoredVector:
    directions, hint = gguf_vectors.read(content)
    tensors = {f"direction.{layer}": tensor for layer, tensor in directions.items()}
    more = {"model_hint": hint} if hint else {}
    return _of_directions(tensors, vector_id, {"method": IMPORT_KEY, **more, IMPORT_KEY: dict(source)})


def _from_safetensors(content: bytes, vector_id: str, source: Mapping[str, str]) -> StoredVector:
    tensors, texts = safetensors_file.read(content)
    if METADATA_KEY not in texts:
        return _of_directions(tensors, vector_id, {"method": IMPORT_KEY, IMPORT_KEY: dict(source)})
    claimed = vector_of(content, vector_id=vector_id)
    digest = claimed.metadata["model_digest"]
    if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise BadVectorError("model_digest must be 64 hexadecimal digits or null", code="bad_metadata")
    return StoredVector(
        id=vector_id,
        kind=claimed.kind,
        layers=claimed.layers,
        tensors=claimed.tensors,
        metadata={**claimed.metadata, IMPORT_KEY: dict(source)},
    )


def _of_directions(tensors: Mapping[str, Tensor], vector_id: str, metadata: dict[str, Any]) -> StoredVector:
    layers = []
    for name in tensors:
        layer = _NAME.fullmatch(name)
        if layer is None:
            raise FileError(f"tensor {name[:80]!r} is no direction.<layer>")
        layers.append(int(layer[1]))
    is_flat = all(tensor.dim() == 1 for tensor in tensors.values())
    return StoredVector(
        id=vector_id,
        kind=Kind.DIRECTION if is_flat else Kind.POSITIONAL,
        layers=tuple(sorted(layers)),
        tensors=tensors,
        metadata={"model_digest": None, "layer_convention": "block_output", **metadata},
    )
