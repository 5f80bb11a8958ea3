"""A log's key is changed without losing the chain, by whoever has the old one; every other way to another key is refused."""

import asyncio
import itertools
import os
import shutil
from pathlib import Path

import pytest

from gateway.audit import files, log, segments
from gateway.audit.keys import announcement, closings_in, prepare, prepared
from gateway.audit.log import SignedLog
from gateway.audit.note import BadNote, Checkpoint, Note, Signer
from gateway.audit.segments import leaves
from gateway.ports import AuditFailed
from gateway.record import Entry, Rekeyed, Stopped
from tests.gateway.audit.disk import Disk, PowerCut
from tests.gateway.audit.recorded import Recorder, opened, sign, verified


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "audit"


def key_in(path: Path) -> Signer:
    return Signer.parse(path.read_text().strip())


def checkpoint(directory: Path) -> tuple[Note, Checkpoint]:
    note = Note.parse((directory / "tree" / "checkpoint").read_bytes())
    return note, Checkpoint.parse(note.text)


async def begun(directory: Path) -> tuple[SignedLog, Recorder]:
    audit = opened(directory)
    recorder = Recorder(audit, "h")
    await recorder.begin()
    await recorder.answer("before")
    return audit, recorder


async def test_the_log_goes_on_under_its_name_with_another_key(directory):
    audit, recorder = await begun(directory)
    first, origin = audit.verifier, audit.origin
    await audit.rekey()
    note, closing = checkpoint(directory)
    assert len(note.verified([first])) == len(note.verified([audit.verifier])) == 1, "the one of the change has both"
    await recorder.answer("after")
    await recorder.end()
    await audit.close()
    note, last = checkpoint(directory)
    assert last.size > closing.size
    assert last.origin == closing.origin == audit.origin == origin == audit.verifier.name
    assert note.verified([audit.verifier])
    with pytest.raises(BadNote, match="not signed by"):
        note.verified([first])
    assert (directory / "log.vkey").read_text() == f"{audit.verifier}\n"
    assert key_in(directory / "log.key").verifier == audit.verifier != first
    assert not (directory / "log.key.next").exists()
    assert (directory / "log.key").stat().st_mode & 0o777 == 0o600
    assert not verified(directory, verifier=first).findings.all
    assert b"PRIVATE" not in (directory / "epochs" / str(closing.size)).read_bytes()


async def test_the_old_key_is_nowhere_on_the_disk_any_more(directory):
    audit, _ = await begun(directory)
    old = (directory / "log.key").read_bytes().strip()
    await audit.rekey()
    await audit.close()
    assert not any(old in path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_the_last_record_that_the_old_key_signs_names_the_new_one(directory):
    audit, _ = await begun(directory)
    first = audit.verifier
    await audit.rekey()
    await audit.close()
    last = list(leaves(directory))[-1]
    assert (last["type"], last["previous"], last["key"]) == ("rekeyed", str(first), str(audit.verifier))


async def test_a_prepared_key_is_the_one_that_follows_and_is_told_before_it_does(directory):
    audit, _ = await begun(directory)
    told = prepare(directory, origin=audit.origin)
    assert prepare(directory, origin=audit.origin) == told, "asked again, it is the same"
    await sign(audit)
    assert not verified(directory, verifier=audit.verifier).findings.all
    await audit.close()
    audit = opened(directory)
    assert audit.verifier != told.verifier, "a start alone changes nothing"
    await audit.rekey()
    assert audit.verifier == told.verifier
    await audit.close()


async def test_keys_may_follow_each_other_with_nothing_in_between_and_in_a_log_that_is_new(directory):
    audit = opened(directory)
    first = audit.verifier
    for _ in range(3):
        await audit.rekey()
    await audit.close()
    verification = verified(directory, verifier=first)
    assert not verification.findings.all
    assert (verification.summary.keys, verification.summary.records) == (4, 3)
    assert [int(path.name) for path in closings_in(directory)] == [1, 2, 3]


async def test_what_is_not_signed_yet_is_signed_by_the_old_key_with_the_name_of_the_new(directory):
    """A gateway that crashed: its last records are in the segments only."""
    audit, recorder = await begun(directory)
    await sign(audit)
    await recorder.answer("unsigned")
    await audit._segments.close()
    os.close(audit._lock)
    again = opened(directory)
    await again.rekey()
    (path,) = closings_in(directory)
    assert int(path.name) == len(list(leaves(directory)))
    await again.close()
    assert not verified(directory, verifier=audit.verifier).findings.all


# Refusals. Each says what to do.


async def test_a_key_that_was_just_put_there_is_refused_with_the_command_that_changes_keys(directory):
    audit, _ = await begun(directory)
    await audit.close()
    other = Signer(name=audit.origin, seed=bytes(32))
    (directory / "log.key").write_text(f"{other.skey()}\n")
    with pytest.raises(AuditFailed) as refused:
        opened(directory)
    assert f"{directory}/log.key: is the key {other.verifier}" in str(refused.value)
    assert f"run `weir audit rekey {directory}`" in str(refused.value)
    assert f"set audit.directory in the policy to a new one, such as {directory}-2" in str(refused.value)


async def test_a_key_that_another_one_followed_is_refused(directory):
    """A restored backup of the file."""
    audit, recorder = await begun(directory)
    old = (directory / "log.key").read_bytes()
    await audit.rekey()
    size = checkpoint(directory)[1].size
    await recorder.answer("after")
    await audit.close()
    (directory / "log.key").write_bytes(old)
    with pytest.raises(
        AuditFailed, match=f"which another one followed after {size} records; restore the file from a copy"
    ):
        opened(directory)


async def test_a_lost_key_is_the_end_of_the_log_and_the_refusal_says_so(directory):
    audit, _ = await begun(directory)
    await audit.close()
    (directory / "log.key").unlink()
    with pytest.raises(AuditFailed, match=r"log\.key: missing.*only that key could name another.*set audit\.directory"):
        opened(directory)


async def announced_only(directory: Path) -> SignedLog:
    """A change that was broken off when the record was durable."""
    audit, recorder = await begun(directory)
    following = prepare(directory, origin=audit.origin)
    leaf = Rekeyed(at_ms=recorder.now(), key=str(following.verifier), previous=str(audit.verifier))
    await audit.append([Entry(leaf)])
    await audit.close()  # which signs it, with the old key alone
    return audit


async def test_a_change_that_was_broken_off_is_finished_by_the_next_start_before_anything_else(directory):
    audit = await announced_only(directory)
    following = prepared(directory)
    (remark,) = [one for one in verified(directory, verifier=audit.verifier).findings.remarks if "not finished" in one]
    assert "start the gateway, or run `weir audit rekey` again" in remark
    again = opened(directory)
    assert again.verifier == following.verifier
    await again.append([Entry(Stopped(at_ms=Recorder(again, "h").now(), holder="h"))])
    await again.close()
    assert verified(directory, verifier=audit.verifier).summary.keys == 2
    assert not verified(directory, verifier=audit.verifier).findings.all


@pytest.mark.parametrize("what", ["missing", "another"])
async def test_an_announced_key_that_is_not_there_is_refused_with_what_is_left_to_do(directory, what):
    audit = await announced_only(directory)
    path = directory / "log.key.next"
    path.unlink()
    if what == "another":
        prepare(directory, origin=audit.origin)
    with pytest.raises(
        AuditFailed, match=r"log\.key\.next: is not the key .* that the last record of the log puts into force"
    ):
        opened(directory)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", r"log\.key\.next: not a private key; restore it from a copy, or remove it"),
        (None, "is a key of the log"),
    ],
)
async def test_a_prepared_key_that_cannot_be_this_logs_is_refused(directory, text, said):
    audit, _ = await begun(directory)
    other = Signer(name="weir.log/other", seed=bytes(32)).skey()
    (directory / "log.key.next").write_text(text or f"{other}\n")
    with pytest.raises(AuditFailed, match=said):
        await audit.rekey()
    await audit.close()
    assert verified(directory, verifier=audit.verifier).findings.all, "and an auditor is told"


def test_a_record_that_has_the_word_in_it_announces_nothing():
    assert announcement(b'{"type":"started","at_ms":1,"holder":"rekeyed"}') is None
    assert announcement(b'{"type":"stopped","at_ms":1,"holder":"\\"rekeyed\\""}') is None
    assert announcement(b'{"type":"other","x":"rekeyed"}') is None
    with pytest.raises(BadNote):
        announcement(b'{"type":"rekeyed","at_ms":1,"key":"k","previous":"p"}')


# Crashes. The whole life of a log is in `test_crash_points`; here the next start crashes as well.


def change(directory: Path) -> None:
    async def rekey() -> None:
        audit = opened(directory)
        if audit.verifier == FIRST[0]:
            await audit.rekey()
        await audit.close()

    asyncio.run(rekey())


FIRST: list = []


def test_a_second_crash_while_a_change_of_key_is_being_finished_changes_nothing(tmp_path, monkeypatch):
    """Every operation of the change, then every operation of the start after it, each with a power cut; then a start."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(segments, "LAID_OUT_BYTES", 3000)

    async def first_life() -> None:
        audit, _ = await begun(tmp_path / "0" / "audit")
        FIRST[:] = [audit.verifier]
        await audit.close()

    (tmp_path / "0").mkdir()
    asyncio.run(first_life())
    broken = crashed(tmp_path / "0", tmp_path / "once")
    assert len(broken) >= 8, "the prepared key, the record, the checkpoint, the epoch, each key, the tidying"
    finished = set()
    for number, left in enumerate(broken):
        for again in crashed(left, tmp_path / f"twice-{number}"):
            audit = opened(again / "audit")
            finished.add(audit.verifier != FIRST[0])
            asyncio.run(audit.close())
            verification = verified(again / "audit", verifier=FIRST[0])
            assert not verification.findings.all
            assert verification.summary.keys == 1 + (audit.verifier != FIRST[0])
            shutil.rmtree(again)
    assert finished == {True, False}


def crashed(begin: Path, target: Path) -> list[Path]:
    """What a change of key leaves on a disk, of which a power cut took all that was not flushed, at each operation of it.

    Of those that have the same files with the same sizes, one.
    """
    left: dict[object, Path] = {}
    for operation in itertools.count(1):
        root = target / f"run-{operation}"
        shutil.copytree(begin, root)
        disk = Disk(root, stop_at=operation)
        with pytest.MonkeyPatch.context() as patch:
            for module in (files, log, segments):
                patch.setattr(module, "os", disk)
            try:
                change(root / "audit")
            except PowerCut:
                pass
            else:
                shutil.rmtree(root)
                return list(left.values())
        disk.release()
        path = disk.after_power_cut(target / f"left-{operation}", lambda: False)
        kind = tuple(
            sorted((str(one.relative_to(path)), one.stat().st_size) for one in path.rglob("*") if one.is_file())
        )
        if left.setdefault(kind, path) != path:
            shutil.rmtree(path)
        shutil.rmtree(root)
    raise AssertionError("it ends")
