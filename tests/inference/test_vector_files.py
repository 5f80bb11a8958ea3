"""Files from outside: what other programs write is read, what is hostile is refused before anything is allocated."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save

from inference.config import ModelConfig
from inference.limits import IMPORT_BYTES_MAX, IMPORT_TENSORS_MAX
from inference.loading import LoadedModel
from inference.server.errors import json_response
from inference.server.vectors import vector_document
from inference.steering import gguf_vectors, safetensors_file
from inference.steering.importing import export_vector, import_vector
from inference.steering.safetensors_file import FileError
from inference.steering.store import file_content, vector_of
from inference.steering.vector import BadVectorError, Kind
from tests.inference.stored import D_MODEL, equal, example, numbers

FORMATS = ("gguf", "safetensors")


def directions() -> dict[int, torch.Tensor]:
    return {1: numbers(D_MODEL, seed=1), 7: numbers(D_MODEL, seed=7), 29: numbers(D_MODEL, seed=29)}


def as_repeng_writes(tmp_path: Path, tensors: dict[str, np.ndarray], *, hint: str = "llama") -> bytes:
    """repeng's `export_gguf`: the same calls of the same library."""
    writer = gguf.GGUFWriter(tmp_path / "cv.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp_path / "cv.gguf").read_bytes()


def test_a_control_vector_of_repeng_is_read_layer_for_layer_and_bit_for_bit(tmp_path: Path, loaded: LoadedModel):
    # repeng l, llama.cpp's direction.l and our block output l are the same place: no offset.
    tensors = {f"direction.{layer}": values.numpy() for layer, values in directions().items()}
    shuffled = dict(sorted(tensors.items(), key=lambda item: item[0][-1]))
    content = as_repeng_writes(tmp_path, shuffled)
    vector = import_vector(content, vector_id="v", form="gguf", config=loaded.config)
    assert (vector.kind, vector.layers, vector.metadata["model_hint"]) == (Kind.DIRECTION, (1, 7, 29), "llama")
    for layer, values in directions().items():
        assert torch.equal(vector.tensors[f"direction.{layer}"], values)


def test_what_is_written_is_what_repeng_would_have_written_byte_for_byte(tmp_path: Path):
    tensors = {f"direction.{layer}": values.numpy() for layer, values in directions().items()}
    assert gguf_vectors.write(directions(), model_hint="llama") == as_repeng_writes(tmp_path, tensors)


def test_the_gguf_library_reads_what_is_written(tmp_path: Path):
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf_vectors.write(directions(), model_hint="qwen2"))
    reader = gguf.GGUFReader(path)
    fields = {name: reader.fields[name].contents() for name in reader.fields if "." in name and name[0] != "G"}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2"
    assert fields["controlvector.layer_count"] == 3
    found = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert all(torch.equal(found[f"direction.{layer}"], values) for layer, values in directions().items())


def test_block_output_0_does_not_exist_in_a_control_vector(tmp_path: Path):
    with pytest.raises(FileError, match=r"refuses direction\.0"):
        gguf_vectors.write({0: numbers(D_MODEL)}, model_hint="")
    content = as_repeng_writes(tmp_path, {"direction.0": numbers(D_MODEL).numpy()})
    with pytest.raises(FileError):
        gguf_vectors.read(content)


@pytest.mark.parametrize("form", FORMATS)
def test_a_round_trip_is_bit_exact_and_an_export_the_same_bytes_every_time(form, loaded: LoadedModel):
    vector = example(Kind.DIRECTION)
    subnormal = vector.tensors["direction.3"].clone()
    subnormal[:3] = torch.tensor([1e-45, -0.0, 3e-39])
    vector = example(Kind.DIRECTION, tensors={**vector.tensors, "direction.3": subnormal})
    content = export_vector(vector, form=form, config=loaded.config)
    again = import_vector(content, vector_id="other", form=form, config=loaded.config)
    for name, tensor in vector.tensors.items():
        assert torch.equal(again.tensors[name].view(torch.int32), tensor.view(torch.int32))
    assert export_vector(again, form=form, config=loaded.config) == content
    assert again.digest_sha256 == vector.digest_sha256


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_goes_out_and_in_as_safetensors_and_directions_only_as_gguf(kind: Kind, loaded: LoadedModel):
    vector = example(kind)
    content = export_vector(vector, form="safetensors", config=loaded.config)
    again = import_vector(content, vector_id=vector.id, form="safetensors", config=loaded.config)
    assert again.metadata.keys() - vector.metadata.keys() == {"import"}
    assert equal(example(kind, metadata=again.metadata), again)
    assert load_safetensors(content).keys() == vector.tensors.keys()  # the library reads it
    if kind is not Kind.DIRECTION:
        with pytest.raises(FileError):
            export_vector(vector, form="gguf", config=loaded.config)


def test_plain_safetensors_of_other_programs_are_directions_or_positions_by_their_shape(loaded: LoadedModel):
    flat = save({"direction.0": numbers(D_MODEL), "direction.12": numbers(D_MODEL)})
    vector = import_vector(flat, vector_id="v", form="safetensors", config=loaded.config)
    assert (vector.kind, vector.layers, vector.metadata["model_digest"]) == (Kind.DIRECTION, (0, 12), None)
    rows = save({"direction.4": numbers(5, D_MODEL)})
    assert import_vector(rows, vector_id="v", form="safetensors", config=loaded.config).kind is Kind.POSITIONAL


class Bomb:
    """Whoever unpickles it runs code."""

    ran = False

    def __reduce__(self):
        return (setattr, (Bomb, "ran", True))


def pickles() -> dict[str, bytes]:
    files = {f"protocol {protocol}": pickle.dumps({"direction.3": Bomb()}, protocol=protocol) for protocol in range(6)}
    for name, is_zip in (("torch zip", True), ("torch legacy", False)):
        buffer = io.BytesIO()
        torch.save({"direction.3": numbers(D_MODEL)}, buffer, _use_new_zipfile_serialization=is_zip)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()]), allow_pickle=True)
    files["numpy"] = buffer.getvalue()
    return files


@pytest.mark.parametrize("form", FORMATS)
def test_pickles_are_never_read_whatever_they_are_called(form, loaded: LoadedModel):
    for name, content in pickles().items():
        with pytest.raises(FileError) as refused:
            import_vector(content, vector_id="v", form=form, config=loaded.config)
        if name not in ("protocol 0", "protocol 1"):
            assert "never read" in str(refused.value), name
    assert not Bomb.ran


def test_a_file_whose_header_has_the_length_that_looks_like_a_pickle_is_read(loaded: LoadedModel):
    content = export_vector(example(Kind.DIRECTION), form="safetensors", config=loaded.config)
    length = int.from_bytes(content[:8], "little")
    padded = (640).to_bytes(8, "little") + content[8 : 8 + length] + b" " * (640 - length) + content[8 + length :]
    assert padded[:2] == b"\x80\x02"
    import_vector(padded, vector_id="v", form="safetensors", config=loaded.config)


def header(document: Any, data: bytes = b"") -> bytes:
    text = (document if isinstance(document, str) else json.dumps(document)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, offsets: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


ONES = np.ones(4, dtype="<f4").tobytes()
HOSTILE_SAFETENSORS = {
    "header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "header of the largest length": b"\xff" * 8 + b"{}",
    "header of 2 MiB": header(json.dumps({"direction.1": entry([4], [0, 16])}) + " " * (2 << 20), ONES),
    "no tensors": header({}),
    "metadata only": header({"__metadata__": {"a": "b"}}),
    "not JSON": header("{", ONES),
    "not an object": header([1, 2], ONES),
    "deep": header("[" * 100_000, ONES),
    "not UTF-8": (2).to_bytes(8, "little") + b"\xff\xff" + ONES,
    "name twice": header('{"direction.1":%s,"direction.1":%s}' % ((json.dumps(entry([4], [0, 16])),) * 2), ONES),
    "key twice": header('{"direction.1":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', ONES),
    "overlap": header({"direction.1": entry([4], [0, 16]), "direction.2": entry([4], [8, 24])}, ONES + ONES),
    "same place": header({"direction.1": entry([4], [0, 16]), "direction.2": entry([4], [0, 16])}, ONES),
    "hole": header({"direction.1": entry([4], [0, 16]), "direction.2": entry([4], [20, 36])}, ONES * 3),
    "hole at the start": header({"direction.1": entry([4], [16, 32])}, ONES * 2),
    "truncated": header({"direction.1": entry([4], [0, 16])}, ONES[:-1]),
    "bytes behind": header({"direction.1": entry([4], [0, 16])}, ONES + b"x"),
    "offsets backwards": header({"direction.1": entry([4], [16, 0])}, ONES),
    "negative offsets": header({"direction.1": entry([4], [-16, 0])}, ONES),
    "huge shape": header({"direction.1": entry([1 << 62, 4], [0, 16])}, ONES),
    "huge number": header('{"direction.1":{"dtype":"F32","shape":[%s],"data_offsets":[0,16]}}' % ("9" * 5000), ONES),
    "shape that wraps": header({"direction.1": entry([1 << 32, 1 << 32], [0, 0])}),
    "empty tensor": header({"direction.1": entry([0], [0, 0])}),
    "no dimension": header({"direction.1": entry([], [0, 4])}, ONES[:4]),
    "three dimensions": header({"direction.1": entry([2, 2, 1], [0, 16])}, ONES),
    "shape of floats": header({"direction.1": entry([4.0], [0, 16])}, ONES),
    "shape of booleans": header({"direction.1": entry([True], [0, 4])}, ONES[:4]),
    "shape is text": header({"direction.1": entry("4", [0, 16])}, ONES),
    "offsets too many": header({"direction.1": entry([4], [0, 16, 16])}, ONES),
    "bfloat16": header({"direction.1": entry([8], [0, 16], "BF16")}, ONES),
    "float64": header({"direction.1": entry([2], [0, 16], "F64")}, ONES),
    "integers": header({"direction.1": entry([4], [0, 16], "I32")}, ONES),
    "dtype is a list": header({"direction.1": entry([4], [0, 16], ["F32"])}, ONES),
    "unknown key": header({"direction.1": entry([4], [0, 16], extra=1)}, ONES),
    "entry is a list": header({"direction.1": [1]}, ONES),
    "metadata is a list": header({"__metadata__": [], "direction.1": entry([4], [0, 16])}, ONES),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "direction.1": entry([4], [0, 16])}, ONES),
    "NaN in the header": header('{"direction.1":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', ONES),
    "too many tensors": header(
        {f"direction.{i}": entry([1], [4 * i, 4 * i + 4]) for i in range(IMPORT_TENSORS_MAX + 1)},
        b"\0" * 4 * (IMPORT_TENSORS_MAX + 1),
    ),
}


@pytest.mark.parametrize("name", HOSTILE_SAFETENSORS)
def test_a_hostile_safetensors_file_is_refused_without_allocating(name: str):
    content = HOSTILE_SAFETENSORS[name]
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            safetensors_file.read(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(content) + (1 << 20)


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def gguf_file(
    *,
    version: int = 3,
    tensors: int = 1,
    keys: int = 1,
    metadata: bytes = ARCHITECTURE,
    infos: bytes | None = None,
    data: bytes = ONES,
    pad: bool = True,
) -> bytes:
    infos = info("direction.1", 4, 0) if infos is None else infos
    content = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + metadata + infos
    return content + bytes(-len(content) % 32 if pad else 0) + data


def info(name: str, count: int, offset: int, *, dimensions: int = 1, kind: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", dimensions)
        + struct.pack("<Q", count) * dimensions
        + struct.pack("<IQ", kind, offset)
    )


HUGE = 1 << 63
HOSTILE_GGUF = {
    "empty": b"",
    "magic only": b"GGUF",
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + ARCHITECTURE,
    "version 1": gguf_file(version=1),
    "version 99": gguf_file(version=99),
    "no tensors": gguf_file(tensors=0, infos=b"", data=b""),
    "huge number of tensors": gguf_file(tensors=HUGE),
    "huge number of keys": gguf_file(keys=HUGE),
    "more tensors than there are": gguf_file(tensors=2),
    "more keys than there are": gguf_file(keys=5),
    "huge key": gguf_file(metadata=struct.pack("<Q", HUGE) + b"x"),
    "key of the rest of the file and more": gguf_file(metadata=struct.pack("<Q", 4000) + b"x"),
    "huge value": gguf_file(metadata=text("general.architecture") + struct.pack("<IQ", 8, HUGE)),
    "key twice": gguf_file(keys=2, metadata=ARCHITECTURE * 2),
    "key not UTF-8": gguf_file(keys=2, metadata=ARCHITECTURE + text(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "array": gguf_file(keys=2, metadata=ARCHITECTURE + text("a") + struct.pack("<IIQ", 9, 0, HUGE)),
    "unknown type": gguf_file(keys=2, metadata=ARCHITECTURE + text("a") + struct.pack("<II", 77, 0)),
    "another architecture": gguf_file(metadata=text("general.architecture") + struct.pack("<I", 8) + text("llama")),
    "no architecture": gguf_file(keys=0, metadata=b""),
    "architecture is a number": gguf_file(metadata=text("general.architecture") + struct.pack("<II", 4, 7)),
    "alignment 0": gguf_file(keys=2, metadata=ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 0)),
    "alignment 3": gguf_file(keys=2, metadata=ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 3)),
    "alignment of 2 GiB": gguf_file(
        keys=2, metadata=ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 1 << 31)
    ),
    "layer 0": gguf_file(infos=info("direction.0", 4, 0)),
    "layer negative": gguf_file(infos=info("direction.-1", 4, 0)),
    "layer with a zero before it": gguf_file(infos=info("direction.01", 4, 0)),
    "layer in other digits": gguf_file(infos=info("direction.²", 4, 0)),
    "layer with a newline": gguf_file(infos=info("direction.1\n", 4, 0)),
    "other name": gguf_file(infos=info("blk.0.attn_q.weight", 4, 0)),
    "layer twice": gguf_file(
        tensors=2, infos=info("direction.1", 4, 0) + info("direction.1", 4, 32), data=(ONES + bytes(16)) * 2
    ),
    "two dimensions": gguf_file(infos=info("direction.1", 2, 0, dimensions=2)),
    "no dimension": gguf_file(infos=info("direction.1", 4, 0, dimensions=0)),
    "huge number of dimensions": gguf_file(infos=text("direction.1") + struct.pack("<I", 0xFFFFFFFF)),
    "half precision": gguf_file(infos=info("direction.1", 8, 0, kind=1)),
    "quantised": gguf_file(infos=info("direction.1", 32, 0, kind=2)),
    "huge tensor": gguf_file(infos=info("direction.1", HUGE, 0)),
    "size that wraps": gguf_file(infos=info("direction.1", 1 << 62, 0)),
    "empty tensor": gguf_file(infos=info("direction.1", 0, 0), data=b""),
    "huge offset": gguf_file(infos=info("direction.1", 4, HUGE)),
    "offset out of line": gguf_file(infos=info("direction.1", 4, 4), data=ONES * 2),
    "hole at the start": gguf_file(infos=info("direction.1", 4, 32), data=bytes(32) + ONES),
    "overlap": gguf_file(tensors=2, infos=info("direction.1", 16, 0) + info("direction.2", 4, 32), data=ONES * 4),
    "same place": gguf_file(tensors=2, infos=info("direction.1", 4, 0) + info("direction.2", 4, 0)),
    "hole": gguf_file(tensors=2, infos=info("direction.1", 4, 0) + info("direction.2", 4, 64), data=ONES * 5),
    "truncated": gguf_file(data=ONES[:-1]),
    "cut before the data": gguf_file(data=b"", pad=False),
    "bytes behind": gguf_file(data=ONES * 4),
}


def test_the_smallest_control_vector_of_these_tests_is_read():
    found, hint = gguf_vectors.read(gguf_file())
    assert (found[1].tolist(), hint) == ([1.0] * 4, "")


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_a_hostile_control_vector_is_refused_without_allocating(name: str):
    content = HOSTILE_GGUF[name]
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            gguf_vectors.read(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(content) + (1 << 20)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_a_file_are_refused(form, poison, loaded: LoadedModel):
    bad = {1: numbers(D_MODEL), 2: numbers(D_MODEL)}
    bad[2][100] = poison
    content = (
        gguf_vectors.write(bad, model_hint="")
        if form == "gguf"
        else save({f"direction.{layer}": values for layer, values in bad.items()})
    )
    with pytest.raises(BadVectorError, match="NaN"):
        import_vector(content, vector_id="v", form=form, config=loaded.config)


@pytest.mark.parametrize("form", FORMATS)
def test_zero_vectors_wrong_dimensions_and_layers_that_do_not_exist_are_refused(form, loaded: LoadedModel):
    cases = {
        "bad_vector": {1: torch.zeros(D_MODEL)},
        "wrong_dimension": {1: numbers(D_MODEL - 1)},
        "wrong_shape": {1: numbers(D_MODEL), 2: numbers(D_MODEL - 1)},
        "bad_layer": {30: numbers(D_MODEL)},
    }
    for code, values in cases.items():
        content = (
            gguf_vectors.write(values, model_hint="")
            if form == "gguf"
            else save({f"direction.{layer}": tensor for layer, tensor in values.items()})
        )
        with pytest.raises(BadVectorError) as refused:
            import_vector(content, vector_id="v", form=form, config=loaded.config)
        assert refused.value.code == code


def test_names_beyond_the_allowed_ones_are_refused(loaded: LoadedModel):
    for name in (
        "vector",
        "direction",
        "direction.x",
        "direction.1.2",
        "direction.00",
        "read.3",
        "encoder",
        "model.embed_tokens.weight",
    ):
        with pytest.raises((FileError, BadVectorError)):
            import_vector(save({name: numbers(D_MODEL)}), vector_id="v", form="safetensors", config=loaded.config)


def test_a_file_above_the_cap_is_refused_and_a_claimed_digest_must_look_like_one(loaded: LoadedModel):
    with pytest.raises(FileError, match="larger"):
        import_vector(bytes(IMPORT_BYTES_MAX + 1), vector_id="v", form="gguf", config=loaded.config)
    vector = example(Kind.DIRECTION, metadata={"model_digest": "latest"})
    content = export_vector(vector, form="safetensors", config=loaded.config)
    with pytest.raises(BadVectorError, match="model_digest"):
        import_vector(content, vector_id="v", form="safetensors", config=loaded.config)


def valid_files() -> list[tuple[str, bytes]]:
    small = {1: torch.arange(1.0, 9.0), 3: torch.arange(2.0, 10.0)}
    return [
        ("gguf", gguf_vectors.write(small, model_hint="llama")),
        ("safetensors", safetensors_file.write({f"direction.{layer}": v for layer, v in small.items()}, {"a": "b"})),
    ]


def read_any(form: str, content: bytes) -> list[torch.Tensor]:
    if form == "gguf":
        return list(gguf_vectors.read(content)[0].values())
    return list(safetensors_file.read(content)[0].values())


@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_any_mutation_of_a_file_is_read_whole_or_refused(data):
    form, content = data.draw(st.sampled_from(valid_files()))
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated)))
        act = data.draw(st.sampled_from(["set", "insert", "delete", "cut", "number", "double"]))
        if act == "set":
            mutated[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif act == "insert":
            mutated[place:place] = data.draw(st.binary(max_size=16))
        elif act == "delete":
            del mutated[place : place + data.draw(st.integers(1, 40))]
        elif act == "cut":
            del mutated[place:]
        elif act == "number":
            extreme = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
            mutated[place : place + 8] = extreme.to_bytes(8, "little")
        else:
            end = data.draw(st.integers(place, len(mutated)))
            mutated[place:place] = mutated[place:end]
    try:
        tensors = read_any(form, bytes(mutated))
    except FileError:
        return
    assert sum(tensor.numel() * 4 for tensor in tensors) <= len(mutated)
    assert all(tensor.dtype == torch.float32 for tensor in tensors)


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=400), form=st.sampled_from(FORMATS))
def test_any_bytes_are_refused_with_a_reason(content: bytes, form: str):
    with pytest.raises(FileError):
        read_any(form, (b"GGUF" if form == "gguf" else b"") + content)


_KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda key: key != "__metadata__"
)


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.dictionaries(
        _KEYS,
        st.one_of(st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 5), st.integers(1, 5))),
        min_size=1,
        max_size=6,
    ),
    metadata=st.dictionaries(_KEYS, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3),
)
def test_the_library_and_this_reader_read_each_others_files(shapes, metadata):
    tensors = {name: numbers(*shape) for name, shape in shapes.items()}
    content = safetensors_file.write(tensors, metadata)
    theirs = load_safetensors(content)
    ours, found = safetensors_file.read(content)
    from_them, _ = safetensors_file.read(save(tensors, metadata or None))
    assert found == metadata
    assert ours.keys() == theirs.keys() == from_them.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(from_them[name], tensor)


_ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["direction", "sae", "topk", "\ud800", 2**64, -1, 3, 10**400, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_any_claim_in_a_files_own_header_is_refused_or_can_be_shown(data):
    claim = {
        "kind": "direction",
        "layers": [3],
        "metadata": {"model_digest": None},
        **data.draw(st.dictionaries(st.sampled_from(["kind", "layers", "metadata", "layer"]), _ANY_JSON, max_size=2)),
    }
    if isinstance(claim["metadata"], dict):
        claim["metadata"] = {
            "model_digest": None,
            **claim["metadata"],
            **data.draw(
                st.dictionaries(st.sampled_from(["model_digest", "activation", "k", "x"]), _ANY_JSON, max_size=2)
            ),
        }
    name = data.draw(st.sampled_from(["direction.3", "vector"]))
    text = json.dumps({"__metadata__": {"weir.steering_vector": json.dumps(claim)}, name: entry([8], [0, 32])})
    content = header(text, numbers(8).numpy().tobytes())
    try:
        vector = import_vector(content, vector_id="v", form="safetensors", config=_SMALL)
    except (FileError, BadVectorError):
        return
    assert json_response(vector_document(vector)).body
    assert vector_of(file_content(vector), vector_id="v").digest_sha256 == vector.digest_sha256


_SMALL = ModelConfig(
    architecture="llama",
    vocab_size=8,
    d_model=8,
    d_feed_forward=8,
    n_layers=4,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    context_tokens=8,
    rope_theta=1.0,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_ids=(),
    pad_token_id=None,
    tie_word_embeddings=True,
    attention_bias=False,
)
