"""Stored objects on disk, one safetensors file each, with kind, layers and provenance as JSON in the file's header.

One file per object means one rename per object: after a crash it is there whole or not at all. A file that cannot be
read at start (a bad disk, a hand that edited it) goes to `quarantine/` with an error in the log, and the server starts
without it: one bad file must not take the others away, and an id that is missing is refused by name in every request,
never silently left out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.durable import open_directory, remove_file, set_aside, write_file
from inference.limits import IMPORT_BYTES_MAX, STORE_BYTES_MAX, VECTORS_STORED_MAX
from inference.steering import safetensors_file
from inference.steering.safetensors_file import FileError
from inference.steering.vector import ID_PATTERN, BadVectorError, Kind, StoredVector, direction

METADATA_KEY = "weir.steering_vector"
_SUFFIX = ".safetensors"
_log = logging.getLogger("inference.store")


class ExistsError(Exception):
    """An object of that id is already stored."""


class StoreFullError(Exception):
    """The store holds `VECTORS_STORED_MAX` objects, or `STORE_BYTES_MAX` bytes of them."""


class VectorStore:
    """All objects, in memory and in `directory`. Thread-safe; what changes it is durable when it returns.

    What changes it raises OSError if the disk refuses; then nothing has changed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = threading.Lock()  # held across disk writes, by writers only
        self._lock = threading.Lock()  # guards _vectors; never held across a disk write: readers are the event loop
        open_directory(directory)
        found = (_read_or_set_aside(path) for path in sorted(directory.glob(f"*{_SUFFIX}")))
        self._vectors = {vector.id: vector for vector in found if vector is not None}

    def get(self, vector_id: str) -> StoredVector | None:
        with self._lock:
            return self._vectors.get(vector_id)

    def all(self) -> list[StoredVector]:
        """By id."""
        with self._lock:
            return [self._vectors[vector_id] for vector_id in sorted(self._vectors)]

    def add(self, vector: StoredVector) -> None:
        """Store a new object. Raises ExistsError, StoreFullError or OSError, then nothing has changed."""
        with self._writing:
            held = self.all()
            if self.get(vector.id) is not None:
                raise ExistsError(vector.id)
            if len(held) >= VECTORS_STORED_MAX:
                raise StoreFullError(f"{len(held)} objects are stored, that is the most")
            if sum(one.size_bytes for one in held) + vector.size_bytes > STORE_BYTES_MAX:
                raise StoreFullError(f"the stored objects would take more than {STORE_BYTES_MAX} bytes")
            self._put(vector)

    def describe(self, vector_id: str, changes: Mapping[str, Any]) -> StoredVector | None:
        """Change entries of an object's metadata (None removes one). None if there is no such object.

        Raises BadVectorError for metadata that is none.
        """
        with self._writing:
            old = self.get(vector_id)
            if old is None:
                return None
            kept = {key: value for key, value in old.metadata.items() if key not in changes}
            added = {key: value for key, value in changes.items() if value is not None}
            new = dataclasses.replace(old, metadata=kept | added)
            self._put(new)
            return new

    def remove(self, vector_id: str) -> bool:
        """Delete an object; False if there was none. Requests that run with it keep their copy."""
        with self._writing:
            if self.get(vector_id) is None:
                return False
            remove_file(self._path(vector_id))
            with self._lock:
                del self._vectors[vector_id]
            return True

    def _put(self, vector: StoredVector) -> None:
        write_file(self._path(vector.id), file_content(vector))
        with self._lock:
            self._vectors[vector.id] = vector

    def _path(self, vector_id: str) -> Path:
        return self._directory / f"{vector_id}{_SUFFIX}"


def file_content(vector: StoredVector, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The object, or with other metadata, as a safetensors file; the same bytes for the same content."""
    told = dict(vector.metadata if metadata is None else metadata)
    header = {"kind": vector.kind, "layers": vector.layers, "metadata": told}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors_file.write(vector.tensors, {METADATA_KEY: text})


def vector_of(content: bytes, *, vector_id: str) -> StoredVector:
    """The object in a file that `file_content` wrote, or that was written before there were kinds.

    Raises FileError or BadVectorError.
    """
    tensors, texts = safetensors_file.read(content)
    if METADATA_KEY not in texts:
        raise FileError(f"the header lacks {METADATA_KEY}")
    header = safetensors_file.json_object(texts[METADATA_KEY])
    if tensors.keys() == {"vector"} and type(header.get("layer")) is int:
        metadata = {"model_digest": None, **{key: value for key, value in header.items() if key != "layer"}}
        return direction(id=vector_id, values={header["layer"]: tensors["vector"]}, metadata=metadata)
    kind, layers, provenance = header.get("kind"), header.get("layers"), header.get("metadata")
    if kind not in list(Kind) or not isinstance(provenance, dict):
        raise FileError(f"the header's {METADATA_KEY} lacks kind or metadata")
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise FileError("layers must be a list of integers")
    return StoredVector(id=vector_id, kind=Kind(kind), layers=tuple(layers), tensors=tensors, metadata=provenance)


def _read_or_set_aside(path: Path) -> StoredVector | None:
    try:
        return _read(path)
    except (FileError, BadVectorError, OSError) as error:
        extra = {"file": str(path), "reason": str(error)}
        try:
            extra["moved_to"] = str(set_aside(path))
        except OSError as fault:  # a read-only disk, for example: the file stays, and is reported at every start
            extra["not_moved"] = str(fault)
        _log.error("a stored vector cannot be read and is left out", extra=extra)
        return None


def _read(path: Path) -> StoredVector:
    vector_id = path.name.removesuffix(_SUFFIX)
    if not ID_PATTERN.fullmatch(vector_id):
        raise FileError("the file's name is no id")
    if path.stat().st_size > IMPORT_BYTES_MAX:
        raise FileError(f"the file is larger than {IMPORT_BYTES_MAX} bytes")
    return vector_of(path.read_bytes(), vector_id=vector_id)
