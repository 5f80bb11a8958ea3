"""Whatever is done to a log's files is found, and said with the name of the file.

The auditor has the log's public key from the day on which it was made, and one checkpoint of an earlier visit. Whoever
changes the files has the directory, and in the last tests the log's private key as well.
"""

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.audit import segments
from gateway.audit.batch import Batch
from gateway.audit.frames import CIPHERTEXT, HEAD_BYTES, LEAVES, frame, frames, head, later_write
from gateway.audit.keys import closings_in
from gateway.audit.note import Checkpoint, Note, Signer, Verifier
from gateway.audit.reading import settled
from gateway.audit.segments import forget
from gateway.audit.tiled import read_note
from gateway.audit.tiles import entries_in, framed
from gateway.audit.verification import OldCheckpoint
from gateway.clock import SystemClock
from gateway.ports import AuditFailed
from gateway.record import Entry, Forfeited, Refusals, Rekeyed, Stopped
from tests.gateway.audit.recorded import Recorded, Recorder, opened, sign, verified

FLIPS = 600
KINDS = {
    "the first segment": "00000000.log",
    "a segment": "00000003.log",
    "the last segment": "00000006.log",
    "a bundle": "tree/tile/entries/007",
    "the partial bundle": "tree/tile/entries/021.p/*",
    "a tile": "tree/tile/0/007",
    "the partial tile": "tree/tile/0/021.p/*",
    "a tile of the second level": "tree/tile/1/000.p/21",
    "a tile of an earlier size": "tree/tile/1/000.p/5",
    "the checkpoint": "tree/checkpoint",
    "the public key": "log.vkey",
    "the private key": "log.key",
    "the private key that is to follow": "log.key.next",
    "the end of a key's time": "epochs/*",
}
NOT_NEEDED = {
    "a tile of an earlier size",
    "the private key",
    "the private key that is to follow",
}  # a copy without them is as good


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    """One key signed its first half, and another the second."""
    return Recorded(tmp_path_factory.mktemp("recorded") / "audit", rekeyed_at=350)


@pytest.fixture
def directory(recorded, tmp_path) -> Path:
    return recorded.copy(tmp_path / "audit")


def said(directory: Path, recorded: Recorded) -> list[str]:
    """What `weir audit verify` finds wrong."""
    try:
        verification = verified(directory, verifier=recorded.verifier, since=recorded.kept[-2:-1])
    except AuditFailed as fault:
        return [str(fault)]
    return [str(finding) for finding in verification.findings.all]


def the(directory: Path, kind: str) -> Path:
    (path,) = directory.glob(KINDS[kind])
    return path


def flipped(place: Callable[[bytes], int]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place(data)] ^= 0x10
        path.write_bytes(data)

    return act


def cut(count: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: count(path.stat().st_size)])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n{}")


def doubled(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def turned(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


ACTS = {
    "first byte flipped": flipped(lambda data: 0),
    "middle byte flipped": flipped(lambda data: len(data) // 2),
    "last byte flipped": flipped(lambda data: -1),
    "emptied": cut(lambda size: 0),
    "cut in half": cut(lambda size: size // 2),
    "last byte cut off": cut(lambda size: size - 1),
    "grown": grown,
    "doubled": doubled,
    "turned round": turned,
    "deleted": Path.unlink,
}


def test_a_log_that_nobody_touched_is_in_order(recorded, directory):
    verification = verified(directory, verifier=recorded.verifier, since=recorded.kept)
    (remark,) = verification.findings.remarks
    assert verification.findings.all == []
    assert "the key that you gave was in force up to record 2" in remark
    assert str(recorded.last_verifier) in remark
    verification = verified(directory, verifier=recorded.last_verifier, since=recorded.kept)
    assert (verification.findings.all, verification.findings.remarks) == ([], [])
    summary = verification.summary
    assert summary.keys == 2
    assert summary.records == summary.signed > 5000
    assert (summary.segments, summary.answers, summary.sealed, summary.deleted) == (7, 700, 700, 0)
    assert summary.checkpoints == len(recorded.kept) > 3


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_changed_is_found_and_named(recorded, directory, kind, act):
    path = the(directory, kind)
    ACTS[act](path)
    found = said(directory, recorded)
    if act == "deleted" and kind in NOT_NEEDED:
        assert not found
    elif kind == "the last segment" and act == "grown":
        assert not found, "bytes behind the last record are a torn one, which never left"
    else:
        assert any(str(path) in line for line in found), found


def at_each(data: bytes, kind: bytes) -> list[int]:
    ends = [HEAD_BYTES, *(one.end for one in frames(data))]
    return [begin for begin, one in zip(ends, frames(data), strict=False) if one.kind == kind]


@pytest.mark.parametrize(
    "offset", [0, 4, 8, 12, 16, 50], ids=["marker", "length", "offset", "checksum", "payload", "later"]
)
@pytest.mark.parametrize("kind", [LEAVES, CIPHERTEXT], ids=["records", "ciphertext"])
@pytest.mark.parametrize("segment", ["a segment", "the last segment"])
def test_each_part_of_a_frame_is_covered(recorded, directory, segment, kind, offset):
    path = the(directory, segment)
    for place in (at_each(path.read_bytes(), kind)[3], at_each(path.read_bytes(), kind)[-1]):
        before = path.read_bytes()
        flipped(lambda data, at=place + offset: at)(path)
        assert any(str(path) in line for line in said(directory, recorded)), place
        path.write_bytes(before)


def rebuilt(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """The frames of a segment, put together anew with checksums that are right."""
    data = path.read_bytes()
    whole = [frame(one.kind, one.payload) for one in frames(data)]
    path.write_bytes(data[:HEAD_BYTES] + b"".join(change(whole)))


def changed_payload(kind: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(whole: list[bytes]) -> list[bytes]:
        at = next(at for at, one in enumerate(whole) if one.startswith(kind) and at > 4)
        (found,) = frames(head(0) + whole[at])
        return [*whole[:at], frame(kind, found.payload[:-2] + b"1}"), *whole[at + 1 :]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: [*whole[:4], *whole[2:]],
        lambda whole: [*whole[:2], *whole[4:]],
        lambda whole: [*whole[:2], *whole[4:6], *whole[2:4], *whole[6:]],
        lambda whole: [*whole[:-2]],
        lambda whole: [*whole, *whole[:2]],
        lambda whole: [one for at, one in enumerate(whole) if at != next(n for n, f in enumerate(whole) if f.startswith(CIPHERTEXT))],
        changed_payload(LEAVES),
        changed_payload(CIPHERTEXT),
    ],
    ids=["replayed", "left out", "reordered", "last left out", "first again at the end", "a ciphertext left out", "another record", "another ciphertext"],
)  # fmt: skip
@pytest.mark.parametrize("segment", ["the first segment", "a segment", "the last segment"])
def test_frames_that_are_whole_but_not_those_that_were_written_are_found(recorded, directory, segment, change, request):
    path = the(directory, segment)
    rebuilt(path, change)
    found = said(directory, recorded)
    if segment == "the last segment" and "first again" in request.node.name:
        # Above the checkpoint, where nothing is signed yet. It is found because the sums do not allow it.
        assert any("is opened a second time" in line for line in found), found
    else:
        following = path.with_name(f"{int(path.stem) + 1:08d}.log")
        assert any(str(path) in line or str(following) in line for line in found), found


def exchanged(one: Path, other: Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("00000002.log", "00000003.log"),
        ("00000000.log", "00000006.log"),
        ("tree/tile/entries/003", "tree/tile/entries/004"),
        ("tree/tile/0/003", "tree/tile/0/004"),
        ("tree/tile/1/000.p/5", "tree/tile/1/000.p/21"),
        ("tree/tile/0/003", "tree/tile/entries/003"),
        ("log.key", "log.vkey"),
        ("tree/checkpoint", "log.vkey"),
        ("tree/checkpoint", "epochs/*"),
        ("log.key.next", "log.key"),
        ("log.key.next", "log.vkey"),
    ],
)
def test_files_that_were_exchanged_are_found(recorded, directory, one, other):
    (one_path,), (other_path,) = directory.glob(one), directory.glob(other)
    exchanged(one_path, other_path)
    found = said(directory, recorded)
    assert any(str(one_path) in line or str(other_path) in line for line in found), found


def test_bundles_and_tiles_that_were_changed_together_are_found(recorded, directory):
    """Two entries change places, and so do their hashes: below the root everything agrees."""
    bundle, tile = directory / "tree/tile/entries/004", directory / "tree/tile/0/004"
    entries, hashes = list(entries_in(bundle.read_bytes())), tile.read_bytes()
    entries[0], entries[1] = entries[1], entries[0]
    bundle.write_bytes(b"".join(map(framed, entries)))
    tile.write_bytes(hashes[32:64] + hashes[:32] + hashes[64:])
    found = said(directory, recorded)
    assert any("tree/checkpoint: signs another root hash" in line for line in found)
    assert any("000" in line and "tile/1" in line for line in found)


@pytest.mark.parametrize("name", ["00000009.log", "0000000x.log", "note.txt", "tree/tile/0/022", "tree/tile/0/021.p/9999", "tree/tile/2/000", "tree/extra", "tree/tile/entries/x001/000", "epochs/17", "epochs/017", "epochs/note", "epochs/0"])  # fmt: skip
def test_a_file_that_does_not_belong_there_is_found(recorded, directory, name):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((directory / "tree/tile/0/003").read_bytes())
    found = said(directory, recorded)
    assert any(str(path) in line for line in found) or any("is missing" in line for line in found), found


def test_a_missing_segment_is_named_and_so_is_the_missing_end(recorded, directory):
    (directory / "00000004.log").unlink()
    assert f"{directory}/00000004.log: is missing" in said(directory, recorded)
    (directory / "00000006.log").unlink()
    assert any("00000005.log: the segments end before record" in line for line in said(directory, recorded))


def test_deleted_content_is_no_fault_only_if_the_policy_has_it_deleted_and_it_was_old_enough(recorded, directory):
    (directory / "00000000.log").unlink()
    assert any(f"{directory}/00000000.log: is missing" in line for line in said(directory, recorded))
    half_a_year, two_years = (int(part * 365 * 86400) for part in (0.5, 2))
    verification = verified(directory, verifier=recorded.verifier, kept_s=half_a_year)
    assert not verification.findings.all
    assert any("was deleted, as the policy says" in remark for remark in verification.findings.remarks)
    assert 0 < verification.summary.deleted < 700
    verification = verified(directory, verifier=recorded.verifier, kept_s=two_years)
    assert any("younger than the time" in str(finding) for finding in verification.findings.all)


def test_a_random_byte_anywhere_is_found_wherever_it_says_anything(recorded, directory):
    """Every byte of a log that was closed is covered, but for the tiles' older copies, which are compared as well."""
    chosen = random.Random(5)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(FLIPS):
        path = chosen.choice(files) if number % 2 else chosen.choice([f for f in files if f.suffix == ".log"])
        before = path.read_bytes()
        data = bytearray(before)
        at, bit = chosen.randrange(len(data)), 1 << chosen.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        assert any(str(path) in line for line in said(directory, recorded)), (path, at, bit)
        path.write_bytes(before)
    assert said(directory, recorded) == []


# Whoever has the directory may also put there what was there before, or another log.


def test_an_older_checkpoint_put_back_alone_is_found(recorded, directory):
    (directory / "tree/checkpoint").write_bytes(recorded.kept[0].data)
    found = said(directory, recorded)
    assert any("tree/checkpoint: signs" in line and "rolled back" in line for line in found), found


def test_a_whole_older_copy_is_a_rollback(tmp_path):
    log = opened(tmp_path / "audit")

    async def half() -> tuple[bytes, Verifier]:
        recorder = Recorder(log, "h")
        await recorder.begin()
        await recorder.answer("a")
        await sign(log)
        shutil.copytree(tmp_path / "audit", tmp_path / "older")
        await recorder.answer("b")
        kept = await sign(log)
        await log.close()
        return kept, Verifier.parse((tmp_path / "audit" / "log.vkey").read_text().strip())

    kept, verifier = asyncio.run(half())
    older = verified(tmp_path / "older", verifier=verifier)
    assert not older.findings.all, "nothing in it is wrong"
    since = [OldCheckpoint(name="kept", data=kept)]
    (finding,) = verified(tmp_path / "older", verifier=verifier, since=since).findings.all
    assert "tree/checkpoint" in finding.where
    assert "rolled back" in finding.what


def test_another_history_signed_by_the_same_key_is_a_fork(tmp_path, recorded):
    """With the private key a whole log can be made, and nothing in it is wrong, but that it is not the one there was."""
    forged = tmp_path / "forged"
    forged.mkdir()
    for name in ("log.key", "log.vkey"):
        shutil.copy(recorded.directory / name, forged / name)

    async def forge() -> None:
        log = opened(forged)
        recorder = Recorder(log, "h1")
        await recorder.begin()
        for number in range(800):
            await recorder.answer(f"answer-{number}", text="nothing of note")
        await log.close()

    asyncio.run(forge())
    assert not verified(forged, verifier=recorded.last_verifier).findings.all
    (finding,) = verified(forged, verifier=recorded.last_verifier, since=recorded.kept[-1:]).findings.all
    assert "there are two logs of one key" in finding.what
    assert finding.where == str(forged / "tree")


def test_another_log_with_another_key_is_not_taken_for_this_one(tmp_path, recorded):
    other = Recorded(tmp_path / "other", answers=20)
    found = said(other.directory, recorded)
    assert any("tree/checkpoint: not signed by" in line for line in found)
    assert any("log.vkey: is the key" in line for line in found)
    without = verified(other.directory, verifier=None)
    assert not without.findings.all
    assert any("--key" in remark for remark in without.findings.remarks), "and it is said how little that proves"


# What is normal, and said.


@pytest.mark.parametrize("torn", [5, 12, 40])
def test_a_torn_end_and_records_above_the_checkpoint_are_said_and_are_no_fault(tmp_path, torn):
    directory = tmp_path / "audit"

    async def killed() -> None:
        log = opened(directory)
        recorder = Recorder(log, "h")
        await recorder.begin()
        await recorder.answer("a")
        await sign(log)
        await recorder.answer("b")
        shutil.copytree(directory, tmp_path / "copy")
        await log.close()

    asyncio.run(killed())
    path = tmp_path / "copy" / "00000000.log"
    data = path.read_bytes()
    size = segments.valid_size(path)
    path.write_bytes(data[:size] + frame(LEAVES, b'{"type":"stopped"}' * 9)[:torn] + bytes(4096))
    verification = verified(tmp_path / "copy", verifier=None)
    assert not verification.findings.all
    said_of_it = " ".join(verification.findings.remarks)
    assert "records are above the checkpoint" in said_of_it
    assert "a record that was not finished" in said_of_it
    assert (verification.summary.signed, verification.summary.records) == (10, 18)


def test_a_record_that_is_too_long_or_of_no_known_kind_is_found_though_it_is_signed(tmp_path):
    async def record() -> None:
        log = opened(tmp_path / "audit")
        recorder = Recorder(log, "h")
        await recorder.begin()
        await recorder.put(Stopped(at_ms=recorder.now(), holder="h" * 2100))
        await log.append_batch(Batch(b'{"type":"new"}'))
        await log.close()

    asyncio.run(record())
    found = [str(finding) for finding in verified(tmp_path / "audit", verifier=None).findings.all]
    assert any("record 2: has 21" in line and "none has more than 2048" in line for line in found), found
    assert any("record 3: not a record that this version of Weir knows" in line for line in found), found


def test_what_is_written_while_a_segment_is_read_is_no_damage():
    """The reader sees the first frame's page before it was written, and what follows after."""
    whole = [frame(LEAVES, b'{"number":%d}' % number) for number in range(4)]
    written = head(0) + b"".join(whole) + bytes(64)
    seen = bytearray(written)
    begin = HEAD_BYTES + len(whole[0])
    seen[begin + 5 : begin + len(whole[1])] = bytes(len(whole[1]) - 5)
    assert later_write(bytes(seen), begin), "which looks like damage"
    reads = [bytes(seen), written]
    assert settled(lambda offset: reads.pop(0)[offset:]) == written
    assert settled(lambda offset: bytes(seen)[offset:]) == seen, "and if it stays, it is damage"


def test_what_retention_deleted_is_no_fault_of_the_log_and_only_content_is_gone(recorded, directory):
    before = verified(directory, verifier=recorded.verifier).summary
    forget(directory, signed=before.signed, before_s=SystemClock().wall_s() + 1)
    assert len(list(directory.glob("*.log"))) == 2
    verification = verified(directory, verifier=recorded.verifier, since=recorded.kept, kept_s=86400)
    assert not verification.findings.all
    after = verification.summary
    assert after.sealed + after.deleted == before.sealed
    assert after.deleted > after.sealed > 0
    assert (after.records, after.answers, after.released_bits) == (before.records, before.answers, before.released_bits)


def test_bytes_in_the_lock_and_a_directory_without_segments_are_found(recorded, directory):
    (directory / "lock").write_bytes(b"x")
    assert said(directory, recorded) == [f"{directory}/lock: is not empty, and nothing is ever written there"]
    for segment in directory.glob("*.log"):
        segment.unlink()
    assert any(f"{directory}: has no segments" in line for line in said(directory, recorded))


@pytest.mark.parametrize(("back_s", "explained", "found"), [(30, False, False), (90, False, True), (90, True, False)])
def test_times_that_go_back_are_found_unless_a_clock_was_set(tmp_path, back_s, explained, found):
    """A gateway whose clock is set forfeits its leases, on the record."""

    async def record() -> None:
        log = opened(tmp_path / "audit")
        recorder = Recorder(log, "h")
        await recorder.begin()
        before_ms = recorder.now() - back_s * 1000
        await recorder.put(Refusals(at_ms=before_ms, counts={"over_budget": 1}))
        if explained:
            await recorder.put(Forfeited(at_ms=before_ms, holder="h", successor="g", cause="the wall clock stepped"))
        await log.close()

    asyncio.run(record())
    findings = [str(finding) for finding in verified(tmp_path / "audit", verifier=None).findings.all]
    assert any("record 2: is 90 s older" in line or "record 2: is 89 s older" in line for line in findings) == found
    assert bool(findings) == found


def test_the_private_key_of_another_log_is_found(recorded, directory):
    path = directory / "log.key"
    path.write_text(f"{Signer(name=recorded.verifier.name, seed=bytes(32)).skey()}\n")
    assert said(directory, recorded) == [f"{path}: is not the key that this log is signed with"]


# A log that has changed its key, and what a thief can do with its disk, or with the key that it had before.


def the_end(directory: Path) -> Path:
    (path,) = (directory / "epochs").iterdir()
    return path


def resigned(path: Path, *signers: Signer) -> None:
    """The same checkpoint, signed by others."""
    path.write_bytes(Checkpoint.parse(Note.parse(path.read_bytes()).text).signed(signers).encode())


def signer(recorded: Recorded, number: int) -> Signer:
    return Signer(name=recorded.verifier.name, seed=recorded.seeds[number])


def test_without_the_checkpoint_that_ended_its_time_a_key_is_followed_by_none(recorded, directory):
    path = the_end(directory)
    path.unlink()
    found = said(directory, recorded)
    what = (
        f"is missing: record {int(path.name) - 1} names the key {recorded.last_verifier} for the log, and nothing shows"
    )
    assert any(str(path) in line and what in line for line in found), found
    assert any("tree/checkpoint: not signed by" in line for line in found), (
        "to whoever knows the first key, it ended there"
    )


@pytest.mark.parametrize(("left", "said_of_it"), [(0, "the key that follows"), (1, "the key that was in force")])
def test_a_change_of_key_must_be_signed_by_both(recorded, directory, left, said_of_it):
    resigned(the_end(directory), signer(recorded, left))
    found = said(directory, recorded)
    assert any(str(the_end(directory)) in line and f"must be signed by {said_of_it}" in line for line in found), found


def test_a_thief_of_the_disk_cannot_add_a_key(recorded, tmp_path):
    """He has every file but the private key. He names a key of his own, and signs all that needs signing with it."""
    other = Recorded(tmp_path / "log", answers=40)
    directory, thief = other.directory, Signer(name=other.verifier.name, seed=b"thief" + bytes(27))
    (directory / "log.key").write_text(f"{thief.skey()}\n")
    resigned(directory / "tree" / "checkpoint", thief)

    async def go_on() -> None:
        log = opened(directory)
        leaf = Rekeyed(at_ms=Recorder(log, "h").now(), key=str(thief.verifier), previous=str(other.verifier))
        await log.append([Entry(leaf)])
        await sign(log)
        closed.append(read_note(directory / "tree"))
        await log.append([Entry(Refusals(at_ms=leaf.at_ms, counts={"over_budget": 1}))])
        await log.close()

    closed = []
    asyncio.run(go_on())
    (closing,) = closed
    size = Checkpoint.parse(closing.text).size
    (directory / "epochs").mkdir()
    (directory / "epochs" / str(size)).write_bytes(closing.encode())
    (directory / "log.vkey").write_text(f"{thief.verifier}\n")
    found = [str(finding) for finding in verified(directory, verifier=other.verifier).findings.all]
    assert found == [
        f"{directory}/epochs/{size}: must be signed by the key that was in force, and is not: not signed by {other.verifier}"
    ]
    without = [str(finding) for finding in verified(directory, verifier=None).findings.all]
    assert without == found, "not even to an auditor who brings no key"


def test_what_the_key_of_an_earlier_time_signs_afterwards_does_not_count(recorded, directory):
    """As after a break-in: somebody else has the old key, too, but not the new one."""
    checkpoint = directory / "tree" / "checkpoint"
    resigned(checkpoint, signer(recorded, 0))
    size, end = Checkpoint.parse(Note.parse(checkpoint.read_bytes()).text).size, the_end(directory).name
    found = said(directory, recorded)
    assert found == [
        f"{checkpoint}: not signed by {recorded.last_verifier}: of {size} records, it is by {recorded.verifier}, which was in"
        f" force from 0 to {end}"
    ]
    kept = [OldCheckpoint(name="kept", data=checkpoint.read_bytes())]
    assert any("kept: not signed by" in str(one) for one in verified(directory, verifier=None, since=kept).findings.all)


def test_a_checkpoint_of_the_first_time_must_not_be_signed_by_the_second_key(recorded, directory):
    data = Checkpoint.parse(Note.parse(recorded.kept[0].data).text).signed([signer(recorded, 1)]).encode()
    kept = [OldCheckpoint(name="kept", data=data)]
    (finding,) = verified(directory, verifier=recorded.verifier, since=kept).findings.all
    assert finding.where == "kept"
    assert f"it is by {recorded.last_verifier}, which was in force from {the_end(directory).name} on" in finding.what


def test_a_change_of_key_that_was_put_elsewhere_is_found(recorded, directory):
    path = the_end(directory)
    size = int(path.name)
    path.rename(path.with_name(str(size - 1)))
    found = said(directory, recorded)
    assert any(f"epochs/{size - 1}: shows no change of the log's key" in line for line in found), found
    assert any(f"epochs/{size}: is missing" in line for line in found), found


def test_a_key_whose_predecessor_was_not_in_force_is_found(tmp_path):
    """Two changes, and the first one is taken away, with the first key's time."""
    other = Recorded(tmp_path / "log", answers=20, rekeyed_at=10)

    async def again() -> None:
        log = opened(other.directory)
        await log.rekey()
        await log.rekey()
        await log.close()

    asyncio.run(again())
    assert not verified(other.directory, verifier=other.verifier).findings.all
    assert verified(other.directory, verifier=other.verifier).summary.keys == 4
    paths = closings_in(other.directory)
    paths[1].unlink()
    found = [str(finding) for finding in verified(other.directory, verifier=other.verifier).findings.all]
    assert any(f"{paths[2]}: ends the time of the key" in line and "was in force" in line for line in found), found
    assert any(f"{paths[1]}: is missing" in line for line in found), found


def test_files_of_a_change_that_a_crash_left_unfinished_are_said_and_are_no_fault(tmp_path):
    """Before the last two writes: the public key is the new one, the private one is not."""
    other = Recorded(tmp_path / "log", answers=20)
    old = (other.directory / "log.key").read_bytes()

    async def change() -> None:
        log = opened(other.directory)
        await log.rekey()
        await log.close()

    asyncio.run(change())
    (other.directory / "log.key").rename(other.directory / "log.key.next")
    (other.directory / "log.key").write_bytes(old)
    (other.directory / "epochs" / "5.new").write_bytes(b"half")
    verification = verified(other.directory, verifier=other.verifier)
    assert verification.findings.all == []
    assert any("log.key: the change to the key" in remark for remark in verification.findings.remarks)
    assert any("epochs/5.new: left by a crash" in remark for remark in verification.findings.remarks)
    (other.directory / "log.vkey").write_text(f"{other.verifier}\n")
    (remark, *_) = [
        one for one in verified(other.directory, verifier=other.verifier).findings.remarks if "log.vkey" in one
    ]
    assert "is not finished: start the gateway" in remark
    asyncio.run(opened(other.directory).close())
    assert not (other.directory / "log.key.next").exists()
    assert verified(other.directory, verifier=other.verifier).findings.all == []
