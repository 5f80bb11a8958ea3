"""How large a model is: the parameter count in the header of a safetensors or GGUF file, and W.

Only headers are read, through `read(offset, length)`, which returns exactly the bytes asked for; the caller
owns the file. Every size in a header is checked against the file's before it is believed, so the count can
never exceed what the file has room for. Counting too few is the safe side: W, and with it every budget that
is a share of W, gets smaller.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

BITS_PER_PARAMETER = 16  # weights are served in bf16; theft_compression is counted from there
SAFETENSORS_HEADER_BYTES_MAX = 16 << 20  # 100,000 tensors are about 12 MB; parsed JSON takes ten times that
GGUF_HEADER_BYTES_MAX = 64 << 20  # a vocabulary of 256k with merges is about 15 MB; skipped over, not kept
GGUF_CHUNK_BYTES = 1 << 20  # of the header held at a time
GGUF_TENSORS_MAX = 1 << 17  # the largest mixtures of experts have about 10^5 when nothing is fused
GGUF_KEYS_MAX = 1 << 14  # real files have 20 to 50
GGUF_NAME_BYTES_MAX = 65_535  # the GGUF specification's limit for keys; tensor names are 64
GGUF_DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
GGUF_ARRAY_DEPTH_MAX = 4  # arrays of arrays are legal and unused

Read = Callable[[int, int], bytes]


class WeightsError(ValueError):
    """The file is not what it claims to be, or a format not known here."""


def theft_bits(parameters: int, theft_compression: Fraction) -> int:
    """W: the bits that carry off a model of this many parameters, rounded down, if bf16 shrinks this far."""
    return parameters * BITS_PER_PARAMETER * theft_compression.denominator // theft_compression.numerator


def parameters_in(read: Read, size_bytes: int) -> int:
    """Parameters of a safetensors or GGUF file, told apart by how it begins. Raises WeightsError."""
    if size_bytes >= 4 and _exactly(read, 0, 4) == b"GGUF":
        return parameters_from_gguf(read, size_bytes)
    return parameters_from_safetensors(read, size_bytes)


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise WeightsError(f"the file ended at byte {offset + len(data)} while its header was read")
    return data


def _no_overlap(extents: Iterable[tuple[int, int, str]], size_bytes: int) -> None:
    """Tensors as (begin, end, name), in bytes of the data section, which is `size_bytes` long."""
    taken = 0
    for begin, end, name in sorted(extents):
        if not taken <= begin <= end <= size_bytes:
            raise WeightsError(f"tensor {name[:80]!r} overlaps another or lies outside the file")
        taken = end


# safetensors: 8 bytes of header length (little-endian), a JSON header, data.
# https://huggingface.co/docs/safetensors; types as of safetensors 0.8.

SAFETENSORS_FLOAT_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4,
}  # fmt: skip
SAFETENSORS_OTHER_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
}  # fmt: skip
_SAFETENSORS_BITS = SAFETENSORS_FLOAT_BITS | SAFETENSORS_OTHER_BITS


def parameters_from_safetensors(read: Read, size_bytes: int) -> int:
    """Elements of all floating-point tensors. Integers are not counted: they are masks, positions or packed codes."""
    if size_bytes < 8:
        raise WeightsError("the file is too short to be safetensors")
    (header_bytes,) = struct.unpack("<Q", _exactly(read, 0, 8))
    if not 2 <= header_bytes <= min(size_bytes - 8, SAFETENSORS_HEADER_BYTES_MAX):
        raise WeightsError("the file is neither GGUF nor safetensors: its header length is impossible")
    header = _json_object(_exactly(read, 8, header_bytes))
    header.pop("__metadata__", None)
    tensors = [_safetensor(name, entry) for name, entry in header.items()]
    _no_overlap((extent for _, extent in tensors), size_bytes - 8 - header_bytes)
    return sum(parameters for parameters, _ in tensors)


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError also covers UTF-8 and integers beyond 4,300 digits
        raise WeightsError(f"the safetensors header is not JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise WeightsError("the safetensors header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice")
    return unique


def _safetensor(name: str, entry: Any) -> tuple[int, tuple[int, int, str]]:
    """Parameters and extent of one header entry."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            sizes = [*shape, begin, end]
        case _:
            raise WeightsError(f"tensor {name[:80]!r} is not described by dtype, shape and data_offsets")
    if dtype not in _SAFETENSORS_BITS or not all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
        raise WeightsError(f"tensor {name[:80]!r} has an unknown type or an impossible shape")
    elements = _product(shape)
    if elements * _SAFETENSORS_BITS[dtype] != 8 * (end - begin):
        raise WeightsError(f"tensor {name[:80]!r} is not as long as its shape says")
    return elements if dtype in SAFETENSORS_FLOAT_BITS else 0, (begin, end, name)


def _product(shape: list[int]) -> int:
    """The number of elements. Capped, since a header may list a million dimensions and no file is that large."""
    if 0 in shape:
        return 0
    elements = 1
    for size in shape:
        elements = min(elements * size, 1 << 70)
    return elements


# GGUF: counts, typed metadata, tensor infos, alignment, data.
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; type sizes as in gguf-py 0.19's GGML_QUANT_SIZES.

# ggml type → (elements of a block, bytes of a block)
GGUF_FLOAT_BLOCKS = {
    0: (1, 4), 1: (1, 2), 28: (1, 8), 30: (1, 2),  # F32, F16, F64, BF16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),  # Q4_0 … Q8_1
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),  # Q2_K … Q8_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),  # IQ2_XXS … IQ4_NL
    21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),  # IQ3_S, IQ2_S, IQ4_XS, IQ1_M
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),  # TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0
}  # fmt: skip
GGUF_INTEGER_BLOCKS = {24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8)}  # I8 … I64
_GGUF_BLOCKS = GGUF_FLOAT_BLOCKS | GGUF_INTEGER_BLOCKS

# metadata type → bytes of a value
_GGUF_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_UINT32, _GGUF_STRING, _GGUF_ARRAY = 4, 8, 9
_GGUF_ALIGNMENT = b"general.alignment"


def parameters_from_gguf(read: Read, size_bytes: int) -> int:
    """Elements of all tensors but the integer ones; quantised types count as what they stand for."""
    header = _Cursor(read, size_bytes)
    if header.take(4) != b"GGUF":
        raise WeightsError("the file does not begin with GGUF")
    if header.uint32() not in {2, 3}:
        raise WeightsError("this GGUF version is not known here (2 and 3 are, little-endian)")
    tensors = _bounded(header.uint64(), GGUF_TENSORS_MAX, "tensors")
    keys = _bounded(header.uint64(), GGUF_KEYS_MAX, "metadata keys")
    alignment = _skip_metadata(header, keys)
    infos = [_gguf_tensor(header, alignment) for _ in range(tensors)]
    if len({name for _, (_, _, name) in infos}) != tensors:
        raise WeightsError("a tensor name occurs twice")
    data_begin = math.ceil(header.offset / alignment) * alignment
    _no_overlap((extent for _, extent in infos), max(0, size_bytes - data_begin))
    return sum(parameters for parameters, _ in infos)


class _Cursor:
    """Reads a header front to back, a chunk at a time; never past the file, never past GGUF_HEADER_BYTES_MAX."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._end = min(size_bytes, GGUF_HEADER_BYTES_MAX)
        self._chunk = b""
        self._chunk_offset = 0
        self.offset = 0

    def skip(self, length: int) -> None:
        if length > self._end - self.offset:
            raise WeightsError("the GGUF header runs past the end of the file, or is absurdly long")
        self.offset += length

    def take(self, length: int) -> bytes:
        """At most GGUF_CHUNK_BYTES."""
        begin = self.offset
        self.skip(length)
        if begin < self._chunk_offset or self.offset > self._chunk_offset + len(self._chunk):
            self._chunk = _exactly(self._read, begin, min(GGUF_CHUNK_BYTES, self._end - begin))
            self._chunk_offset = begin
        return self._chunk[begin - self._chunk_offset : self.offset - self._chunk_offset]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def name(self) -> bytes:
        return self.take(_bounded(self.uint64(), GGUF_NAME_BYTES_MAX, "bytes in a name"))


def _bounded(count: int, most: int, noun: str) -> int:
    if count > most:
        raise WeightsError(f"the GGUF header announces {count} {noun}, more than {most}")
    return count


def _skip_metadata(header: _Cursor, keys: int) -> int:
    """Returns the alignment of the data section, the one value in it that matters here."""
    alignment = 32
    for _ in range(keys):
        key, kind = header.name(), header.uint32()
        if key == _GGUF_ALIGNMENT and kind == _GGUF_UINT32:
            alignment = header.uint32()
        else:
            _skip_value(header, kind, depth=0)
    if alignment == 0 or alignment % 8 != 0:
        raise WeightsError(f"the GGUF alignment {alignment} is not a multiple of 8")
    return alignment


def _skip_value(header: _Cursor, kind: int, *, depth: int) -> None:
    if kind in _GGUF_VALUE_BYTES:
        header.skip(_GGUF_VALUE_BYTES[kind])
    elif kind == _GGUF_STRING:
        header.skip(header.uint64())
    elif kind == _GGUF_ARRAY and depth < GGUF_ARRAY_DEPTH_MAX:
        _skip_array(header, depth=depth)
    else:
        raise WeightsError(f"the GGUF metadata holds a value of unknown type {kind}, or arrays nested too deep")


def _skip_array(header: _Cursor, *, depth: int) -> None:
    kind, count = header.uint32(), header.uint64()
    if kind in _GGUF_VALUE_BYTES:
        header.skip(_GGUF_VALUE_BYTES[kind] * count)
        return
    for _ in range(_bounded(count, GGUF_HEADER_BYTES_MAX, "values in an array")):  # each takes at least 8 bytes
        _skip_value(header, kind, depth=depth + 1)


def _gguf_tensor(header: _Cursor, alignment: int) -> tuple[int, tuple[int, int, str]]:
    """Parameters and extent of one tensor info."""
    name = header.name().decode("utf-8", errors="backslashreplace")
    shape = [header.uint64() for _ in range(_bounded(header.uint32(), GGUF_DIMENSIONS_MAX, "dimensions"))]
    kind, begin = header.uint32(), header.uint64()
    if kind not in _GGUF_BLOCKS:
        raise WeightsError(f"tensor {name[:80]!r} has unknown type {kind}")
    block_elements, block_bytes = _GGUF_BLOCKS[kind]
    elements = math.prod(shape)
    row = shape[0] if shape else 1
    if row % block_elements != 0 or begin % alignment != 0:
        raise WeightsError(f"tensor {name[:80]!r} is not made of whole blocks, or is not aligned")
    end = begin + elements // block_elements * block_bytes
    return elements if kind in GGUF_FLOAT_BLOCKS else 0, (begin, end, name)
