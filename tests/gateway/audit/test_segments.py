"""The log on disk: in order, durable before anything leaves, cut only where a crash can have torn it."""

import os
import struct
import zlib

import msgspec
import pytest

from gateway.audit import segments
from gateway.audit.batch import Batch, Scribe
from gateway.audit.frames import CIPHERTEXT, HEAD_BYTES, LEAVES, MAGIC, frame, frames, head
from gateway.audit.segments import SegmentLog, leaves
from gateway.clock import SystemClock
from gateway.ports import AuditFailed
from gateway.record import Entry, Opened, Stopped

SECRET = "what the client said"


def entry(number: int) -> Entry:
    return Entry(Stopped(at_ms=number, holder="h"), SECRET.encode())


def opened(directory, **options) -> SegmentLog:
    return SegmentLog(directory, scribe=Scribe(sealer=None, clock=SystemClock()), **options)


async def write(directory, *numbers: int) -> None:
    log = opened(directory)
    for number in numbers:
        await log.append([entry(number)])
    await log.close()


def numbers(directory) -> list[int]:
    return [leaf["at_ms"] for leaf in leaves(directory)]


def only(directory):
    (segment,) = directory.glob("*.log")
    return segment


async def test_leaves_are_on_disk_in_the_order_in_which_they_were_appended(tmp_path):
    log = opened(tmp_path)
    await log.append([entry(1), entry(2)])
    await log.append([entry(3)])
    assert numbers(tmp_path) == [1, 2, 3]
    await log.close()
    await write(tmp_path, 4)
    assert numbers(tmp_path) == [1, 2, 3, 4]


async def test_one_batch_is_one_frame_and_one_flush(tmp_path, monkeypatch):
    flushes = []
    log = opened(tmp_path)
    await log.append([entry(0)])
    monkeypatch.setattr(segments.os, "fdatasync", lambda fd: flushes.append(len(numbers(tmp_path))))
    await log.append([entry(n) for n in range(1, 101)])
    assert flushes == [101], "flushed once, after all of it was written"
    await log.close()


async def test_no_word_of_a_prompt_or_an_answer_is_in_the_files(tmp_path):
    log = opened(tmp_path)
    leaf = Opened(
        at_ms=1, answer="a", holder="h", accounts=("m",), tenant="t", model="m", route="/r", seed=1, request_bytes=5
    )
    await log.append([entry(1), Entry(leaf, SECRET.encode())])
    await log.close()
    for file in tmp_path.rglob("*"):
        assert SECRET.encode() not in file.read_bytes()


async def test_the_directory_and_its_files_are_for_the_gateway_alone(tmp_path):
    directory = tmp_path / "deep" / "audit"
    await write(directory, 1)
    assert directory.stat().st_mode & 0o077 == 0
    assert only(directory).stat().st_mode & 0o077 == 0


async def test_a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on(tmp_path):
    await write(tmp_path, 1, 2)
    data = only(tmp_path).read_bytes()
    ends = [found.end for found in frames(data)]
    for size in range(len(data)):
        only(tmp_path).write_bytes(data[:size])
        await write(tmp_path, 9)
        kept = sum(end <= size for end in ends)
        assert numbers(tmp_path) == [*[1, 2][:kept], 9], size


async def test_garbage_in_place_of_the_last_frame_is_cut(tmp_path):
    await write(tmp_path, 1, 2)
    data = bytearray(only(tmp_path).read_bytes())
    data[-3] ^= 0xFF
    only(tmp_path).write_bytes(data)
    await write(tmp_path, 9)
    assert numbers(tmp_path) == [1, 9]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 4096])
async def test_zeros_that_a_power_cut_left_at_the_end_are_cut(tmp_path, size):
    """File systems extend a file before they write its blocks: a tail of zeros is what a torn write often looks like."""
    await write(tmp_path, 1)
    with only(tmp_path).open("ab") as file:
        file.write(bytes(size))
    await write(tmp_path, 9)
    assert numbers(tmp_path) == [1, 9]


async def test_damage_before_the_tail_refuses_to_start_and_deletes_nothing(tmp_path):
    """A broken frame with whole frames after it was not torn by a crash: cutting there would destroy what follows."""
    await write(tmp_path, 1, 2, 3)
    data = bytearray(only(tmp_path).read_bytes())
    first, second, _ = [found.end for found in frames(bytes(data))]
    data[second - 2] ^= 0x01
    only(tmp_path).write_bytes(data)
    with pytest.raises(AuditFailed):
        opened(tmp_path)
    assert only(tmp_path).read_bytes() == bytes(data)
    assert first < second


@pytest.mark.parametrize("flip", [HEAD_BYTES + 1, HEAD_BYTES + 5, HEAD_BYTES + 12])
async def test_damage_in_an_earlier_segment_refuses_to_start(tmp_path, monkeypatch, flip):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    await write(tmp_path, 1, 2, 3)
    first = min(tmp_path.glob("*.log"))
    data = bytearray(first.read_bytes())
    data[flip] ^= 0x01
    first.write_bytes(data)
    with pytest.raises(AuditFailed, match="damaged"):
        opened(tmp_path)


async def test_a_torn_earlier_segment_refuses_to_start(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    await write(tmp_path, 1, 2, 3)
    first = min(tmp_path.glob("*.log"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(AuditFailed, match="damaged"):
        opened(tmp_path)


async def test_a_file_that_is_no_segment_refuses_to_start(tmp_path):
    (tmp_path / "00000000.log").write_bytes(b"hello there")
    with pytest.raises(AuditFailed, match="not an audit segment"):
        opened(tmp_path)


@pytest.mark.parametrize("acknowledged", [0, 1])
async def test_of_a_write_its_end_may_be_there_and_not_its_beginning(tmp_path, acknowledged):
    """The sectors of a write reach the disk in any order: what follows a hole is no proof of damage if it was written with it."""
    await write(tmp_path, 1)
    together = frame(CIPHERTEXT, b"sealed" * 500)
    together += frame(LEAVES, b'{"type":"stopped","at_ms":2,"holder":"h"}', offset=len(together))
    hole = bytes(512) + together[512:]
    later = frame(LEAVES, b'{"type":"stopped","at_ms":3,"holder":"h"}') if acknowledged else b""
    with only(tmp_path).open("ab") as file:
        file.write(hole + later)
    if acknowledged:  # then the hole was whole once
        with pytest.raises(AuditFailed, match="damaged"):
            opened(tmp_path)
    else:
        await write(tmp_path, 9)
        assert numbers(tmp_path) == [1, 9]


@pytest.mark.parametrize("size", [1, HEAD_BYTES])
async def test_a_segment_whose_head_was_laid_out_and_not_written_is_begun_again(tmp_path, size):
    (tmp_path / "00000000.log").write_bytes(bytes(size))
    await write(tmp_path, 1)
    assert numbers(tmp_path) == [1]


async def test_damage_before_a_segment_that_was_being_created_refuses_to_start(tmp_path):
    await write(tmp_path, 1, 2)
    data = bytearray(only(tmp_path).read_bytes())
    data[-3] ^= 0xFF
    only(tmp_path).write_bytes(data)
    (tmp_path / "00000001.log").write_bytes(b"")
    with pytest.raises(AuditFailed, match="damaged"):
        opened(tmp_path)


async def test_a_length_beyond_any_batch_is_not_believed(tmp_path):
    await write(tmp_path, 1)
    with only(tmp_path).open("ab") as file:
        file.write(struct.pack("<4sIII", LEAVES, 1 << 31, 0, 0))
    await write(tmp_path, 9)
    assert numbers(tmp_path) == [1, 9]


async def test_a_full_segment_is_followed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    await write(tmp_path, 1, 2, 3)
    names = sorted(path.name for path in tmp_path.glob("*.log"))
    assert names == ["00000000.log", "00000001.log", "00000002.log"]
    assert numbers(tmp_path) == [1, 2, 3]
    await write(tmp_path, 4)
    assert numbers(tmp_path) == [1, 2, 3, 4]


async def test_a_crash_between_creating_a_segment_and_writing_to_it_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    await write(tmp_path, 1)
    for size in range(HEAD_BYTES):
        (tmp_path / "00000001.log").write_bytes(head(1)[:size])
        await write(tmp_path, 2)
        assert numbers(tmp_path) == [1, 2], size


async def test_a_segments_name_is_durable_before_its_first_frame(tmp_path, monkeypatch):
    synced = []
    directory = tmp_path.stat().st_ino
    monkeypatch.setattr(segments.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(segments.os, "fdatasync", lambda fd: synced.append("data"))
    await write(tmp_path, 1)
    assert synced.index(directory) < synced.index("data")


def failing(monkeypatch, name):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments.os, name, fails)


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
async def test_after_a_failure_of_the_disk_nothing_is_ever_recorded_again(tmp_path, monkeypatch, call):
    log = opened(tmp_path)
    await log.append([entry(1)])
    failing(monkeypatch, call)
    with pytest.raises(AuditFailed, match="No space left"):
        await log.append([entry(2)])
    monkeypatch.undo()
    with pytest.raises(AuditFailed, match="failed before"):
        await log.append([entry(3)])
    await log.close()
    assert 3 not in numbers(tmp_path)


async def test_a_rotation_that_fails_is_a_failure_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    log = opened(tmp_path)
    await log.append([entry(1)])
    failing(monkeypatch, "open")
    with pytest.raises(AuditFailed):
        await log.append([entry(2)])
    monkeypatch.undo()
    with pytest.raises(AuditFailed, match="failed before"):
        await log.append([entry(2)])
    await log.close()


async def test_a_write_that_takes_only_part_is_continued(tmp_path, monkeypatch):
    log = opened(tmp_path)
    whole = segments.os.pwrite
    monkeypatch.setattr(segments.os, "pwrite", lambda fd, data, offset: whole(fd, data[:7000], offset))
    await log.append([entry(1)])
    await log.close()
    assert numbers(tmp_path) == [1]


async def test_a_directory_that_cannot_be_made_is_a_failure_of_the_log(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AuditFailed):
        opened(tmp_path / "file" / "audit")


async def test_a_crash_leaves_the_space_laid_out_ahead_and_the_log_goes_on_after_its_last_frame(tmp_path):
    log = opened(tmp_path)
    await log.append([entry(1)])
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    (crashed / "00000000.log").write_bytes(only(tmp_path).read_bytes())
    await log.close()
    assert (crashed / "00000000.log").stat().st_size > only(tmp_path).stat().st_size
    await write(crashed, 2)
    assert numbers(crashed) == [1, 2]


async def test_a_batch_larger_than_what_is_laid_out_at_a_time_is_one_frame_too(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "LAID_OUT_BYTES", 64)
    log = opened(tmp_path)
    for start in range(0, 200, 50):
        await log.append([entry(n) for n in range(start, start + 50)])
    await log.close()
    assert numbers(tmp_path) == list(range(200))


async def test_frames_hold_a_marker_a_length_a_checksum_and_one_leaf_a_line(tmp_path):
    log = opened(tmp_path)
    await log.append([entry(1), entry(2)])
    await log.close()
    data = only(tmp_path).read_bytes()
    assert data.startswith(MAGIC)
    assert struct.unpack_from("<Q", data, len(MAGIC)) == (0,), "the number of its first leaf"
    marker, length, offset, checksum = struct.unpack_from("<4sIII", data, HEAD_BYTES)
    payload = data[HEAD_BYTES + 16 :]
    assert marker == LEAVES
    assert (len(payload), 0, zlib.crc32(bytes(4) + payload)) == (length, offset, checksum)
    assert [msgspec.json.decode(line) for line in payload.split(b"\n")] == [
        {"type": "stopped", "at_ms": 1, "holder": "h"},
        {"type": "stopped", "at_ms": 2, "holder": "h"},
    ]


async def test_what_is_recent_is_read_from_the_segment_in_which_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 90)
    monkeypatch.setattr(segments, "RECENT_S", 2)
    await write(tmp_path, 1_000, 2_000, 3_000, 4_000, 5_000)
    log = opened(tmp_path)
    assert [leaf.at_ms for leaf in log.recent()] == [3_000, 4_000, 5_000]
    await log.append([entry(6_000)])
    assert [leaf.at_ms for leaf in log.recent()] == [4_000, 5_000, 6_000]
    await log.close()


async def test_an_empty_log_has_nothing_recent_and_a_short_one_all(tmp_path):
    log = opened(tmp_path)
    assert list(log.recent()) == []
    await log.append([entry(1), entry(2)])
    assert list(log.recent()) == [entry(1).leaf, entry(2).leaf]
    await log.close()


async def test_leaves_of_other_versions_are_passed_over(tmp_path):
    log = opened(tmp_path)
    await log.append([entry(1)])
    await log.append_batch(Batch(b'{"type":"stopped","at_ms":2}\n{"type":"of tomorrow","at_ms":3}'))
    await log.append([entry(4)])
    assert [leaf.at_ms for leaf in log.recent()] == [1, 4]
    await log.close()


@pytest.mark.parametrize("size", [0, 7, 15])
async def test_a_log_whose_only_segment_was_cut_within_its_head_does_not_start_over_what_was_signed(tmp_path, size):
    await write(tmp_path, 1, 2)
    with only(tmp_path).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(AuditFailed, match="2 are signed"):
        opened(tmp_path, signed=2)
    assert only(tmp_path).stat().st_size == size, "what is left is evidence"


async def test_a_gap_between_what_is_signed_and_what_is_there_refuses_to_start(tmp_path):
    """An old copy of the tree, put back beside segments that retention has thinned: signing on would be a fork."""
    (tmp_path / "00000003.log").write_bytes(head(100))
    with pytest.raises(AuditFailed, match="begins with record 100, and only 40 are signed"):
        opened(tmp_path, signed=40)
