"""GGUF control vectors: `general.architecture = controlvector`, one float32 tensor `direction.<l>` per layer.

An own reader of exactly that, because the bytes come from outside: the general library maps a file and builds arrays of
whatever lengths the file claims, takes quantised types, arrays of arrays and any name. Here every length is held
against the bytes that are left before it is used, and nothing but the numbers is ever allocated.

Layers: llama.cpp adds `direction.<l>` to the output of block l, counted from 0, refuses `direction.0` and has no tensor
for layer 0 (`common_control_vector_load_one`, `llama_adapter_cvec::init`); repeng writes the same numbers. So l here is
our block output l, without an offset, and a direction of block output 0 cannot be written. Note that llama.cpp's own
*generator* labels what it read at block output l as l + 1; its files steer one block later than they were read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from inference.limits import GGUF_KEYS_MAX, GGUF_TEXT_BYTES_MAX, VECTOR_LAYERS_MAX
from inference.steering.safetensors_file import FileError

MAGIC = b"GGUF"
ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.([1-9][0-9]{0,3})")
_F32, _STRING, _ARRAY = 0, 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_UINT32 = 4
_ALIGNMENT_DEFAULT = 32


def read(content: bytes) -> tuple[dict[int, Tensor], str]:
    """{block output: [d_model]} and the model hint ("" if there is none). Raises FileError."""
    cursor = _Cursor(content)
    if cursor.take(4) != MAGIC:
        raise FileError("the file is no GGUF")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise FileError(f"GGUF version {version} is not 2 or 3 in little-endian")
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    if not 1 <= tensors <= VECTOR_LAYERS_MAX or keys > GGUF_KEYS_MAX:
        raise FileError(f"{tensors} tensors and {keys} keys; a control vector has fewer")
    metadata = _metadata(cursor, int(keys))
    if metadata.get("general.architecture") != ARCHITECTURE:
        raise FileError(f"general.architecture is {metadata.get('general.architecture')!r}, not {ARCHITECTURE!r}")
    alignment = metadata.get("general.alignment", _ALIGNMENT_DEFAULT)
    if not isinstance(alignment, int) or alignment not in (8, 16, 32, 64, 128, 256):
        raise FileError("general.alignment must be a power of two from 8 to 256")
    places = [_tensor_info(cursor) for _ in range(int(tensors))]
    if len({layer for layer, _, _ in places}) != len(places):
        raise FileError("a layer stands twice in the file")
    cursor.skip(-cursor.place % alignment)
    directions = _directions(cursor.rest(), places, alignment)
    hint = metadata.get("controlvector.model_hint", "")
    return directions, hint if isinstance(hint, str) else ""


def write(directions: Mapping[int, Tensor], *, model_hint: str) -> bytes:
    """The file as repeng would write it; the same bytes for the same content. Raises FileError for block output 0."""
    if 0 in directions:
        raise FileError("a control vector cannot hold block output 0: llama.cpp refuses direction.0")
    layers = sorted(directions)
    parts = [MAGIC, struct.pack("<IQQ", 3, len(layers), 3)]
    for key, value in (("general.architecture", ARCHITECTURE), ("controlvector.model_hint", model_hint)):
        parts += [_text(key), struct.pack("<I", _STRING), _text(value)]
    parts += [_text("controlvector.layer_count"), struct.pack("<II", _UINT32, len(layers))]
    data, offset = [], 0
    for layer in layers:
        values = directions[layer].contiguous().numpy().astype("<f4").tobytes()
        parts += [_text(f"direction.{layer}"), struct.pack("<IQIQ", 1, len(values) // 4, _F32, offset)]
        data.append(_padded(values))
        offset += len(data[-1])
    return b"".join((_padded(b"".join(parts)), *data))


class _Cursor:
    """Reads forward through bytes and never past their end."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self.place:
            raise FileError("the file ends too early, or claims a length that it does not have")
        self.place += count
        return bytes(self._content[self.place - count : self.place])

    def skip(self, count: int) -> None:
        self.take(count)

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        length = self.number("<Q")
        if length > GGUF_TEXT_BYTES_MAX:
            raise FileError(f"a text of {length} bytes; at most {GGUF_TEXT_BYTES_MAX} are accepted")
        try:
            return self.take(int(length)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileError("a text is not UTF-8") from error

    def rest(self) -> memoryview:
        return self._content[self.place :]


def _metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(count):
        key, kind = cursor.text(), int(cursor.number("<I"))
        if key in found:
            raise FileError(f"key {key!r} stands twice in the file")
        if kind == _STRING:
            found[key] = cursor.text()
        elif kind in _SCALARS:
            found[key] = cursor.number(_SCALARS[kind])
        else:
            known = "an array" if kind == _ARRAY else f"of type {kind}"
            raise FileError(f"key {key!r} is {known}; a control vector has texts and numbers only")
    return found


def _tensor_info(cursor: _Cursor) -> tuple[int, int, int]:
    """(block output, numbers, offset in bytes)."""
    name = cursor.text()
    layer = _NAME.fullmatch(name)
    if layer is None:
        raise FileError(f"tensor {name[:80]!r} is no direction.<layer> with a layer from 1 on")
    if cursor.number("<I") != 1:
        raise FileError(f"tensor {name!r} must have one dimension")
    numbers, kind, offset = cursor.number("<Q"), cursor.number("<I"), cursor.number("<Q")
    if kind != _F32:
        raise FileError(f"tensor {name!r} is of GGML type {kind}; only F32 is accepted")
    return int(layer[1]), int(numbers), int(offset)


def _directions(data: memoryview, places: list[tuple[int, int, int]], alignment: int) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    end_before = 0
    for layer, numbers, offset in sorted(places, key=lambda place: place[2]):
        if offset % alignment or not end_before <= offset < end_before + alignment:
            raise FileError(f"direction.{layer} is out of line, overlaps another, or leaves a hole before itself")
        end_before = offset + 4 * numbers
        if numbers < 1 or end_before > len(data):
            raise FileError(f"direction.{layer} of {numbers} numbers reaches beyond the file, or is empty")
        found[layer] = torch.from_numpy(np.frombuffer(data[offset:end_before], dtype="<f4").astype(np.float32))
    if len(data) >= end_before + alignment:
        raise FileError(f"{len(data) - end_before} bytes behind the last tensor")
    return found


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT_DEFAULT)
