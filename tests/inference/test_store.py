from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from inference import durable
from inference.steering import store as store_module
from inference.steering.store import ExistsError, StoreFullError, VectorStore
from inference.steering.vector import BadVectorError, Kind
from tests.inference.stored import equal, example, numbers

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_survives_a_restart_bit_for_bit(tmp_path: Path, kind: Kind):
    vector = example(kind)
    VectorStore(tmp_path).add(vector)
    assert equal(VectorStore(tmp_path).get(vector.id), vector)


def test_a_file_of_before_there_were_kinds_is_opened_as_a_direction(tmp_path: Path):
    values = numbers(576)
    metadata = {"layer": 20, "method": "mean_difference", "model_digest": "0" * 64, "norm": 12.5}
    content = save({"vector": values}, metadata={"weir.steering_vector": json.dumps(metadata)})
    (tmp_path / "happy.safetensors").write_bytes(content)
    vector = VectorStore(tmp_path).get("happy")
    assert (vector.kind, vector.layers) == (Kind.DIRECTION, (20,))
    assert torch.equal(vector.tensors["direction.20"], values)
    assert vector.metadata == {"method": "mean_difference", "model_digest": "0" * 64, "norm": 12.5}


def broken_files() -> dict[str, bytes]:
    whole = store_module.file_content(example(Kind.DIRECTION))
    flipped = bytearray(whole)
    flipped[-1], flipped[-2] = 0x7F, 0xC0  # the last number becomes NaN
    return {
        "empty": b"",
        "torn": whole[:-5],
        "nan": bytes(flipped),
        "text": b"hello",
        "no-header": save({"vector": numbers(576)}),
        "no-kind": save({"vector": numbers(576)}, metadata={"weir.steering_vector": "{}"}),
        "not-json": save({"vector": numbers(576)}, metadata={"weir.steering_vector": "{"}),
        "bad-layers": save(
            {"x": numbers(4)}, metadata={"weir.steering_vector": '{"kind":"direction","layers":"3","metadata":{}}'}
        ),
        "Upper": whole,
    }


def test_files_that_cannot_be_read_are_set_aside_and_named_and_the_others_are_served(tmp_path: Path, caplog):
    VectorStore(tmp_path).add(example(Kind.DIRECTION, id="good"))
    for name, content in broken_files().items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    with caplog.at_level(logging.ERROR):
        store = VectorStore(tmp_path)
    assert [vector.id for vector in store.all()] == ["good"]
    named = {Path(record.file).name.removesuffix(".safetensors") for record in caplog.records}
    assert named == broken_files().keys()
    assert all(record.reason for record in caplog.records)
    assert {path.name for path in (tmp_path / "quarantine").iterdir()} == {f"{name}.safetensors" for name in named}
    caplog.clear()
    store = VectorStore(tmp_path)  # the next start is quiet, and the id is free again
    assert caplog.records == []
    store.add(example(Kind.DIRECTION, id="torn"))
    (tmp_path / "torn.safetensors").write_bytes(b"again")
    VectorStore(tmp_path)
    assert (tmp_path / "quarantine" / "torn.safetensors").read_bytes() != b"again"  # no evidence is overwritten
    assert (tmp_path / "quarantine" / "torn.safetensors.1").read_bytes() == b"again"


def test_a_bad_file_that_cannot_be_moved_is_left_out_all_the_same(tmp_path: Path, caplog, monkeypatch):
    (tmp_path / "bad.safetensors").write_bytes(b"")

    def refuse(path: Path) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_module, "set_aside", refuse)
    assert VectorStore(tmp_path).all() == []
    assert caplog.records[0].not_moved == "[Errno 30] Read-only file system"


class Disk:
    """Stands before the calls of `durable`: the n-th fails, before or after it was done."""

    def __init__(self, monkeypatch, *, fails_at: int, is_done: bool) -> None:
        self.calls, self._fails_at, self._is_done = 0, fails_at, is_done
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (Path, "open")):
            monkeypatch.setattr(owner, name, self._stand_before(getattr(owner, name)))

    def _stand_before(self, real):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls != self._fails_at:
                return real(*arguments, **options)
            if self._is_done:
                real(*arguments, **options)
            raise OSError(28, "No space left on device")

        return call


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("act", ["add", "describe", "remove"])
def test_a_disk_that_fails_at_any_call_leaves_the_old_or_the_new_state_and_never_half_of_one(
    tmp_path: Path, act: str, is_done: bool
):
    old = example(Kind.DIRECTION, id="v")
    new = dataclasses.replace(old, metadata={**old.metadata, "description": "new"})
    acts = {
        "add": lambda store: store.add(old),
        "describe": lambda store: store.describe("v", {"description": "new"}),
        "remove": lambda store: store.remove("v"),
    }
    before, after = {"add": (None, old), "describe": (old, new), "remove": (old, None)}[act]
    seen = set()
    for number in range(1, 20):
        directory = tmp_path / str(number)
        store = VectorStore(directory)
        if before is not None:
            store.add(before)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(monkeypatch, fails_at=number, is_done=is_done)
            try:
                acts[act](store)
            except OSError:
                assert same(store.get("v"), before)  # a refusal has changed nothing that is served
            else:
                assert same(store.get("v"), after)
                assert disk.calls < number  # it failed nowhere, so nothing was swallowed
                break
        found = VectorStore(directory).get("v")
        assert same(found, before) or same(found, after)
        seen.add(same(found, after))
        assert not (directory / "quarantine").exists()
        if not same(found, after):
            acts[act](VectorStore(directory))  # a second try works, whatever the first left behind
    else:
        raise AssertionError("never ran through")
    assert number > 2  # it did fail, at two calls at least
    assert seen


def same(first, second) -> bool:
    return first is second if first is None or second is None else equal(first, second)


_WRITER = """
import sys
from pathlib import Path
from inference.steering.store import VectorStore
from inference.steering.vector import Kind
from tests.inference.stored import example
store = VectorStore(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    store.add(example(Kind.DIRECTION, id=f"v{number}"))
    print(number, flush=True)
    if number % 3 == 0:
        store.remove(f"v{number}")
        print(-number, flush=True)
"""


def test_what_was_confirmed_before_a_kill_is_there_after_it(tmp_path: Path):
    confirmed: set[int] = set()
    start = 1
    for round_number in range(5):
        command = [sys.executable, "-P", "-c", _WRITER, str(tmp_path), str(start)]
        with subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * round_number)
            process.send_signal(signal.SIGKILL)
            said = [start, *map(int, process.stdout.read().split())]
        for number in said:
            confirmed = confirmed - {-number} if number < 0 else confirmed | {number}
        last = max(map(abs, said))
        store = VectorStore(tmp_path)
        found = {int(vector.id[1:]) for vector in store.all()}
        # The one act that was under way may have happened or not.
        assert found - confirmed <= {last + 1}
        assert confirmed - found <= {last}
        assert not (tmp_path / "quarantine").exists()
        confirmed, start = found, last + 2


def test_ids_in_use_and_a_full_store_are_refused(tmp_path: Path, monkeypatch):
    store = VectorStore(tmp_path)
    store.add(example(Kind.DIRECTION, id="a"))
    with pytest.raises(ExistsError):
        store.add(example(Kind.SAE, id="a"))
    monkeypatch.setattr(store_module, "STORE_BYTES_MAX", 10_000)
    with pytest.raises(StoreFullError):
        store.add(example(Kind.SAE, id="b"))
    monkeypatch.setattr(store_module, "VECTORS_STORED_MAX", 1)
    with pytest.raises(StoreFullError):
        store.add(example(Kind.HEADS, id="c"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_description_is_kept_changed_and_taken_away(tmp_path: Path):
    store = VectorStore(tmp_path)
    store.add(example(Kind.DIRECTION, id="v"))
    store.describe("v", {"description": "calm", "scale_default": 2.0})
    assert VectorStore(tmp_path).get("v").metadata["description"] == "calm"
    store.describe("v", {"description": None})
    assert VectorStore(tmp_path).get("v").metadata == {**example(Kind.DIRECTION).metadata, "scale_default": 2.0}
    assert store.describe("none", {}) is None
    with pytest.raises(BadVectorError):
        store.describe("v", {"description": "x" * 100_000})


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "file"
    durable.write_file(path, b"one")
    durable.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
