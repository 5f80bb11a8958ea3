"""The tree on disk: whole at every signed size, whatever crashes, and never signed against what was signed before."""

import gc
import os
import random
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from gateway.audit import files
from gateway.audit.note import Checkpoint, Note, Signer
from gateway.audit.tiled import CHECKPOINT, TiledTree, TileFiles, read_note
from gateway.audit.tiles import tiles_of
from gateway.audit.tree import Frontier, check_consistency, consistency_proof, leaf_hash
from gateway.ports import AuditFailed
from tests.gateway.audit.disk import Disk, PowerCut

ORIGIN = "example.com/egress/host"
SIGNER = Signer(name=ORIGIN, seed=bytes(32))
OTHER = Signer(name=ORIGIN, seed=bytes(31) + b"1")


def entries(start: int, end: int) -> list[bytes]:
    return [b'{"leaf":%d}' % number for number in range(start, end)]


def opened(directory: Path, *, origin: str = ORIGIN, signers=(SIGNER,)) -> TiledTree:
    return TiledTree(directory, origin=origin, signers=signers)


def written(directory: Path, *sizes: int) -> list[Checkpoint]:
    """A tree that was committed at each of these sizes."""
    tree = opened(directory)
    checkpoints = []
    for size in sizes:
        tree.append(entries(tree.size, size))
        tree.commit()
        checkpoints.append(tree.signed)
    return checkpoints


@cache
def root_of(size: int) -> bytes:
    frontier = Frontier()
    for entry in entries(0, size):
        frontier.append(leaf_hash(entry))
    return frontier.root()


def read_all(directory: Path, size: int) -> list[bytes]:
    read = TileFiles(directory, size)
    return [entry for bundle in range(-(-size // 256)) for entry in read.entries(bundle)]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 700])
def test_a_commit_signs_the_root_of_what_was_appended(tmp_path, size):
    (checkpoint,) = written(tmp_path, size)
    note = Note.parse((tmp_path / CHECKPOINT).read_bytes())
    assert note.verified([SIGNER.verifier])
    assert note.text == Checkpoint(origin=ORIGIN, size=size, root=root_of(size)).text()
    assert checkpoint == Checkpoint.parse(note.text)


@pytest.mark.parametrize("sizes", [(700,), (1, 2, 700), (255, 256, 257, 700), (300, 600, 700)])
def test_the_files_are_those_of_the_specification_and_nothing_else(tmp_path, sizes):
    written(tmp_path, *sizes)
    kept = {f"tile/0/002.p/{size - 512}" for size in sizes if size > 512}
    kept |= {f"tile/entries/002.p/{size - 512}" for size in sizes if size > 512}
    kept |= {f"tile/1/000.p/{size // 256}" for size in sizes if size >= 256}
    full = {"tile/0/000", "tile/0/001", "tile/entries/000", "tile/entries/001"}
    assert set(contents(tmp_path)) == {CHECKPOINT} | full | kept


def test_tiles_above_the_first_level_are_written_when_they_are_full(tmp_path):
    size = 65536 + 300
    written(tmp_path, 65000, size)
    read = TileFiles(tmp_path, size)
    assert Frontier.of(read.subtree, size).root() == root_of(size)
    assert sum(len(read.tile(level, index)) for level, index, _ in tiles_of(size)) == 32 * (size + 257 + 1)
    assert not (tmp_path / "tile/1/000.p").exists()
    assert opened(tmp_path).signed.size == size


def test_a_commit_leaves_nothing_to_the_garbage_collector(tmp_path):
    gc.collect()
    gc.disable()  # a gateway collects rarely, and a reader holds half a megabyte of tiles
    try:
        written(tmp_path, *range(100, 2000, 100))
        assert not [kept for kept in gc.get_objects() if type(kept) is TileFiles]
    finally:
        gc.enable()


def test_entries_are_read_as_they_were_appended(tmp_path):
    written(tmp_path, 300, 700)
    for size in (300, 700):
        read = TileFiles(tmp_path, size)
        assert [read.entry(index) for index in range(size)] == entries(0, size)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 700])
def test_an_opened_tree_goes_on_where_it_was_signed(tmp_path, size):
    written(tmp_path / "one", 900)
    written(tmp_path / "two", size)
    written(tmp_path / "two", 900)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.items() <= two.items()


def test_every_checkpoint_is_consistent_with_every_earlier_one(tmp_path):
    checkpoints = written(tmp_path, *range(0, 600, 37))
    for new in checkpoints:
        for old in checkpoints[: checkpoints.index(new) + 1]:
            proof = consistency_proof(TileFiles(tmp_path, new.size).subtree, old.size, new.size)
            assert check_consistency(old_size=old.size, old_root=old.root, size=new.size, root=new.root, proof=proof)


def test_with_nothing_new_nothing_is_written(tmp_path):
    tree = opened(tmp_path)
    tree.append(entries(0, 5))
    note = tree.commit()
    before = (tmp_path / CHECKPOINT).stat()
    assert tree.commit() == note == read_note(tmp_path)
    assert (tmp_path / CHECKPOINT).stat() == before


def test_an_entry_that_the_format_cannot_hold_leaves_the_tree_as_it_was(tmp_path):
    tree = opened(tmp_path)
    with pytest.raises(AuditFailed, match="65536 bytes"):
        tree.append([b"ok", bytes(65536)])
    assert tree.size == 0
    tree.append([bytes(65535)])
    tree.commit()
    assert TileFiles(tmp_path, 1).entry(0) == bytes(65535)


def test_two_keys_sign_the_same_checkpoint(tmp_path):
    tree = opened(tmp_path, signers=(SIGNER, OTHER))
    assert len(tree.commit().verified([SIGNER.verifier, OTHER.verifier])) == 2
    assert opened(tmp_path).signed.size == 0


def test_the_directory_is_for_the_gateway_alone(tmp_path):
    written(tmp_path / "tree", 700)
    for path in (tmp_path / "tree", *(tmp_path / "tree").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0


@pytest.fixture
def _unflushed(monkeypatch):
    """Thousands of flushes take minutes, and here `Disk` says what a power cut would leave."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def lives(tmp_path: Path):
    """Crash at every operation of writing 300 to 1,100 entries: the directory that each crash leaves, and what was signed."""
    for operation in count(1):
        directory = tmp_path / str(operation)
        directory.mkdir()
        written(directory, 300)
        disk = Disk(directory, stop_at=operation)
        signed = 300
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "os", disk)
            try:
                tree = opened(directory)
                for size in (310, 700, 1024, 1100):
                    tree.append(entries(tree.size, size))
                    tree.commit()
                    signed = size
            except PowerCut:
                pass
            else:
                assert operation > 100, "there was something to crash"
                return
        yield disk, directory, signed


def assert_recovers(directory: Path, signed: int) -> None:
    size = opened(directory).signed.size
    assert size >= signed, "what a commit answered is signed"
    assert read_all(directory, size) == entries(0, size)
    (checkpoint,) = written(directory, 1100)
    assert checkpoint.root == root_of(1100)
    assert read_all(directory, 1100) == entries(0, 1100)
    kept = {"tile/0/004", "tile/entries/004", "tile/1/000"}
    assert not [path for path in directory.rglob("*.p") if str(path.relative_to(directory).with_suffix("")) not in kept]


@pytest.mark.usefixtures("_unflushed")
def test_a_kill_at_any_operation_loses_nothing_that_was_signed(tmp_path):
    for _, directory, signed in lives(tmp_path):
        assert_recovers(directory, signed)


@pytest.mark.usefixtures("_unflushed")
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_power_cut_at_any_operation_loses_nothing_that_was_signed(tmp_path, seed):
    """Of what was not flushed nothing survives, or any part."""
    chance = random.Random(seed)
    for disk, directory, signed in lives(tmp_path):
        left = disk.after_power_cut(
            tmp_path / f"{directory.name}-left", lambda: seed is not None and chance.random() < 0.5
        )
        size = opened(left).signed.size
        assert size >= signed
        assert read_all(left, size) == entries(0, size)
        (checkpoint,) = written(left, 1100)
        assert checkpoint.root == root_of(1100)


@pytest.mark.usefixtures("_unflushed")
def test_a_disk_that_fails_once_is_never_written_again(tmp_path, monkeypatch):
    for operation in count(1):
        directory = tmp_path / str(operation)
        written(directory, 300)
        tree = opened(directory)
        tree.append(entries(300, 600))
        disk = Disk(directory, fail_at=operation)
        monkeypatch.setattr(files, "os", disk)
        try:
            tree.commit()
        except AuditFailed:
            done = disk.operations
        else:
            break
        with pytest.raises(AuditFailed, match="open it again"):  # the disk would answer again
            tree.commit()
        assert disk.operations == done
        monkeypatch.undo()
        assert_recovers(directory, 300)
    assert operation > 30


def test_a_tile_is_never_written_over_with_other_bytes(tmp_path):
    written(tmp_path, 300)
    tree = opened(tmp_path)
    (tmp_path / "tile/0/001").write_bytes(bytes(8192))
    tree.append(entries(300, 600))
    with pytest.raises(AuditFailed, match="tile/0/001: holds other entries"):
        tree.commit()
    assert read_note(tmp_path) is not None
    assert opened(tmp_path).signed.size == 300


def test_nobody_else_may_have_signed(tmp_path):
    written(tmp_path, 300)
    one, two = opened(tmp_path), opened(tmp_path)
    one.append(entries(300, 400))
    one.commit()
    two.append(entries(300, 450))
    with pytest.raises(AuditFailed, match="one writer"):
        two.commit()
    assert opened(tmp_path).signed.size == 400


@pytest.mark.parametrize("name", ["tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44", CHECKPOINT])
def test_a_damaged_file_at_the_edge_refuses_to_open_and_is_named(tmp_path, name):
    written(tmp_path, 300)
    data = (tmp_path / name).read_bytes()
    named = name if name.startswith("tile") else CHECKPOINT
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 0x04
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(AuditFailed, match=named):
            opened(tmp_path)
    for changed in (data[:-1], b"", data + b"x"):
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(AuditFailed, match=named):
            opened(tmp_path)


@pytest.mark.parametrize("name", ["tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"])
def test_a_signed_size_whose_files_are_gone_refuses_to_open(tmp_path, name):
    written(tmp_path, 300)
    (tmp_path / name).unlink()
    with pytest.raises(AuditFailed, match=f"{name}: missing"):
        opened(tmp_path)


def test_a_checkpoint_by_another_key_or_of_another_log_refuses_to_open(tmp_path):
    written(tmp_path, 300)
    with pytest.raises(AuditFailed, match="not signed by"):
        opened(tmp_path, signers=(OTHER,))
    with pytest.raises(AuditFailed, match="a checkpoint of the log"):
        opened(tmp_path, origin="example.com/other")


def test_a_log_without_a_directory_it_can_write_refuses_to_open(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AuditFailed):
        opened(tmp_path / "file")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / CHECKPOINT).mkdir()
    with pytest.raises(AuditFailed):
        opened(tmp_path / "deep")
