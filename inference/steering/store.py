"""Steering vectors on disk, one safetensors file each, with their provenance as JSON in the file's header.

One file per vector means one rename per vector: after a crash a vector is there whole or not at all. A leftover
`*.partial` is removed at the next start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from inference.limits import VECTORS_STORED_MAX

ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_METADATA_KEY = "weir.steering_vector"


class ExistsError(Exception):
    """A vector of that id is already stored."""


class StoreFullError(Exception):
    """The store holds `VECTORS_STORED_MAX` vectors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredVector:
    """values: float32 [d_model] on the CPU. metadata: provenance in JSON values; always has `model_digest`."""

    id: str
    layer: int  # block output
    values: torch.Tensor
    metadata: Mapping[str, Any]

    @property
    def digest_sha256(self) -> str:
        """Of the float32 values, little-endian."""
        return hashlib.sha256(self.values.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


class VectorStore:
    """All vectors, in memory and in `directory`. Thread-safe; `add` and `remove` are durable when they return."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"*{_PARTIAL}"):
            leftover.unlink()
        self._vectors = {path.name.removesuffix(_SUFFIX): _read(path) for path in directory.glob(f"*{_SUFFIX}")}

    def get(self, vector_id: str) -> StoredVector | None:
        with self._lock:
            return self._vectors.get(vector_id)

    def all(self) -> list[StoredVector]:
        """By id."""
        with self._lock:
            return [self._vectors[vector_id] for vector_id in sorted(self._vectors)]

    def add(self, vector: StoredVector) -> None:
        """Store a new vector. Raises ExistsError or StoreFullError, then nothing has changed."""
        assert ID_PATTERN.fullmatch(vector.id)
        metadata = json.dumps({"layer": vector.layer, **vector.metadata}, allow_nan=False)
        content = save({"vector": vector.values.contiguous()}, metadata={_METADATA_KEY: metadata})
        with self._lock:
            if vector.id in self._vectors:
                raise ExistsError(vector.id)
            if len(self._vectors) >= VECTORS_STORED_MAX:
                raise StoreFullError
            self._write(vector.id, content)
            self._vectors[vector.id] = vector

    def remove(self, vector_id: str) -> bool:
        """Delete a vector; False if there was none. Requests that run with it keep their copy."""
        with self._lock:
            if self._vectors.pop(vector_id, None) is None:
                return False
            (self._directory / f"{vector_id}{_SUFFIX}").unlink()
            _sync_directory(self._directory)
            return True

    def _write(self, vector_id: str, content: bytes) -> None:
        partial = self._directory / f"{vector_id}{_PARTIAL}"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._directory / f"{vector_id}{_SUFFIX}")
        _sync_directory(self._directory)


def _read(path: Path) -> StoredVector:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = json.loads(file.metadata()[_METADATA_KEY])
        values = file.get_tensor("vector")
    layer = metadata.pop("layer")
    return StoredVector(id=path.name.removesuffix(_SUFFIX), layer=layer, values=values, metadata=metadata)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
