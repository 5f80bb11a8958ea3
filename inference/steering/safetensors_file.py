"""safetensors, the strict subset that vectors need: float32 tensors, text metadata, and nothing that surprises.

Read from bytes that may be hostile. Every length is checked against the bytes that are really there before anything is
allocated; names may not repeat, data may neither overlap nor leave holes. The library reads the same files (tested)
but keeps the last of two equal names, and writes metadata in an order that changes from run to run.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.limits import IMPORT_HEADER_BYTES_MAX, IMPORT_TENSORS_MAX, VECTOR_BYTES_MAX

_METADATA = "__metadata__"


class FileError(ValueError):
    """The bytes are not a file of the format, or not one that is accepted here."""


def read(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata. Raises FileError; has allocated no more than `content` holds, twice."""
    header, data = _split(content)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError("the metadata must be an object of strings")
    if not 1 <= len(header) <= IMPORT_TENSORS_MAX:
        raise FileError(f"the file has {len(header)} tensors, 1 to {IMPORT_TENSORS_MAX} are possible")
    places = sorted((*_place(name, entry), name) for name, entry in header.items())
    end_before = 0
    for start, end, name in places:
        if start != end_before:
            raise FileError(f"tensor {name!r} overlaps another, or leaves a hole before itself")
        end_before = end
    if end_before != len(data):
        raise FileError(f"the file has {len(data)} bytes of tensors, its header speaks of {end_before}")
    tensors = {}
    for start, end, name in places:
        values = np.frombuffer(data[start:end], dtype="<f4").reshape(header[name]["shape"])
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    return tensors, metadata


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file, the same bytes for the same content: keys sorted, header padded to 8 bytes."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    parts, start = [], 0
    for name in sorted(tensors):
        part = tensors[name].contiguous().numpy().astype("<f4").tobytes()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + len(part)]}
        parts.append(part)
        start += len(part)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object without repeated names, NaN or infinity. Raises FileError."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(decoded, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileError(f"the header is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise FileError("the header is not an object")
    return found


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(content) < 10:
        raise FileError("the file is too short for safetensors")
    length = int.from_bytes(content[:8], "little")
    if length > min(IMPORT_HEADER_BYTES_MAX, len(content) - 8):
        message = f"the header would have {length} bytes; the file has {len(content)}, allowed are"
        raise FileError(f"{message} {IMPORT_HEADER_BYTES_MAX}")
    return json_object(content[8 : 8 + length]), memoryview(content)[8 + length :]


def _place(name: str, entry: Any) -> tuple[int, int]:
    """(start, end) of a tensor's data, consistent with its shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"tensor {name!r} needs dtype, shape and data_offsets, and nothing else")
    if entry["dtype"] != "F32":
        raise FileError(f"tensor {name!r} is {str(entry['dtype'])[:20]}; only F32 is accepted")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not 1 <= len(shape) <= 2 or 0 in shape:
        raise FileError(f"tensor {name!r} must have one or two dimensions, none of them zero")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != 4 * math.prod(shape):
        raise FileError(f"tensor {name!r} has offsets that do not fit its shape")
    return offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    """A short list of integers that could be sizes; booleans are none."""
    return isinstance(values, list) and len(values) <= 4 and all(map(_is_count, values))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= VECTOR_BYTES_MAX


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FileError("a name stands twice in the header")
    return found


def _refuse_constant(name: str) -> Any:
    raise FileError(f"the header holds {name}")
