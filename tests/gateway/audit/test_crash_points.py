"""The whole log on a disk that stops: at every operation of a life with rotation, retention and checkpoints.

Whatever a crash leaves, the next start goes on by itself, and has what was acknowledged: in order, byte for byte, in the
tree, under every checkpoint that was ever signed, and with its ciphertext.
"""

import asyncio
import base64
import errno
import hashlib
import itertools
import os
import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.audit import files, log, segments
from gateway.audit.batch import Batch, Scribe
from gateway.audit.frames import CIPHERTEXT, frames
from gateway.audit.log import SignedLog, scribe
from gateway.audit.note import Checkpoint, Note, Signer, Verifier
from gateway.audit.sealing import auditor_secret, public_bytes, unseal
from gateway.audit.segments import first_leaf_in, segments_in
from gateway.audit.tiled import CHECKPOINT, TileFiles, read_note
from gateway.audit.tree import check_consistency, consistency_proof
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.ports import AuditFailed
from gateway.record import Entry, Opened, Stopped
from policy.rules import Audit, PublicKey
from tests.gateway.audit.disk import Disk, PowerCut
from tests.gateway.audit.recorded import verified

SECRETS = [auditor_secret("x25519", bytes([number]) * 32) for number in (1, 2)]
AUDITORS = tuple(
    PublicKey(
        name=name, algorithm="x25519", encoded=base64.b64encode(public_bytes("x25519", bytes([number]) * 32)).decode()
    )
    for number, name in enumerate(("ann", "bob"), start=1)
)
ROUNDS = 9
REKEYED_IN = {2, 6}
LEAST_OPERATIONS = 300


@dataclass
class Life:
    """What a process did and was told, and so what must still hold when it is gone."""

    key: Verifier | None = None  # the first one, as an outsider knows it
    submitted: list[Batch] = field(default_factory=list)
    acknowledged: int = 0  # of them
    signed: list[Checkpoint] = field(default_factory=list)
    may_be_forgotten: int = 0  # leaves whose content retention has been asked to delete

    @property
    def lines(self) -> list[bytes]:
        return [line for batch in self.submitted for line in batch.lines.split(b"\n")]

    @property
    def lines_acknowledged(self) -> int:
        return sum(batch.lines.count(b"\n") + 1 for batch in self.submitted[: self.acknowledged])

    async def append(self, opened: SignedLog, *batches: Batch) -> None:
        """At the same time, as workers do."""
        self.submitted += batches
        done = await asyncio.gather(*map(opened.append_batch, batches), return_exceptions=True)
        for fault in done:
            if fault is not None:
                raise fault
        self.acknowledged += len(batches)

    async def sign(self, opened: SignedLog, directory: Path) -> None:
        await opened._notary.sign()
        self.kept(directory)

    def kept(self, directory: Path) -> None:
        """An outsider keeps the checkpoint."""
        note = read_note(directory / "tree")
        assert note is not None
        self.signed.append(Checkpoint.parse(note.text))


def rules(directory: Path) -> Audit:
    return Audit(directory=str(directory), auditors=AUDITORS, content_kept_s=0)


def opened(directory: Path) -> SignedLog:
    return SignedLog(rules(directory), clock=SystemClock(), metrics=Metrics())


def entries(number: int) -> list[Entry]:
    """Now and then a prompt that does not compress, so that a write has several sectors."""
    leaf = Opened(
        at_ms=number, answer=f"a{number}", holder="h", accounts=("m",), tenant="t", model="m", route="/r", seed=1,
        request_bytes=5,
    )  # fmt: skip
    return [Entry(leaf, os.urandom(1500 if number % 3 else 40)), Entry(Stopped(at_ms=number, holder="h"))]


async def live(life: Life, directory: Path, audits: list[SignedLog]) -> None:
    """Open, append alone and together, sign, forget, give the log another key, twice, close."""
    audit = opened(directory)
    life.key = audit.verifier
    audits.append(audit)
    writer = scribe(rules(directory), origin=audit.origin, clock=SystemClock())
    for number in range(ROUNDS):
        if number in REKEYED_IN:
            await rekey(life, audit, writer)
            life.kept(directory)
        (one,) = writer.batches(entries(3 * number))
        (two,) = writer.batches(entries(3 * number + 1))
        (bare,) = writer.batches([Entry(Stopped(at_ms=number, holder="h"))])
        await life.append(audit, one)
        await life.append(audit, two, bare)
        if number % 3 == 1:
            await life.sign(audit, directory)
        if number % 4 == 3:
            life.may_be_forgotten = audit._notary.signed
            audit._keep_house()
    await audit.close()
    life.kept(directory)


async def rekey(life: Life, audit: SignedLog, writer: Scribe) -> None:
    """As `weir audit rekey` does it; what it puts on the record is the life's like everything else."""

    async def append(entries: list[Entry]) -> None:
        await life.append(audit, *writer.batches(entries))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "append", append)
        await audit.rekey()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Many files in little, and no real flush: `Disk` says what a power cut would leave."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 9000)
    monkeypatch.setattr(segments, "LAID_OUT_BYTES", 3000)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@contextmanager
def on_disk(disk: Disk):
    """Within, the log is on this disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, log, segments):
            patch.setattr(module, "os", disk)
        yield


async def lives(root: Path):
    """A life that is stopped at every operation: the disk, the log's directory and the life."""
    for operation in itertools.count(1):
        directory = root / str(operation) / "audit"
        directory.parent.mkdir(parents=True)
        disk, life = Disk(directory.parent, stop_at=operation), Life()
        with on_disk(disk):
            try:
                await live(life, directory, [])
            except PowerCut:
                pass
            else:
                assert operation > LEAST_OPERATIONS, "there was something to crash"
                return
        disk.release()
        yield disk, directory, life
        shutil.rmtree(directory.parent)


async def assert_whole(directory: Path, life: Life, *, where: str) -> None:
    """The next start takes the log up by itself, and everything is there."""
    audit = opened(directory)
    await audit._notary.sign()
    size = audit._notary.signed
    lines = in_tree(directory, size)
    assert life.lines_acknowledged <= size, where
    assert lines == life.lines[:size], where
    assert_consistent(directory, life.signed, where=where)
    assert_ciphertexts(directory, life, origin=audit.origin, where=where)
    more = Entry(Stopped(at_ms=77, holder="next"))
    await audit.append([more])
    await audit.close()
    (*before, last) = in_tree(directory, size + 1)
    assert before == lines, where
    assert b'"next"' in last, where
    assert_one_key_follows_the_other(directory, life.key or audit.verifier, where=where)


def in_tree(directory: Path, size: int) -> list[bytes]:
    read = TileFiles(directory / "tree", size)
    return [entry for bundle in range(-(-size // 256)) for entry in read.entries(bundle)]


def assert_one_key_follows_the_other(directory: Path, first: Verifier, *, where: str) -> None:
    """Whoever knows the first key finds nothing wrong with the files, and follows it to the one in force."""
    verification = verified(directory, verifier=first, kept_s=0)
    findings = [
        one for one in verification.findings.all if not one.where.startswith("record ")
    ]  # which add up to nothing
    assert findings == [], where
    assert not any("not finished" in remark for remark in verification.findings.remarks), where
    assert Signer.parse((directory / "log.key").read_text().strip()).verifier == verified_key(directory), where
    prepared = directory / "log.key.next"
    assert not prepared.exists() or Signer.parse(prepared.read_text().strip()).verifier != verified_key(directory), (
        where
    )


def verified_key(directory: Path) -> Verifier:
    return Verifier.parse((directory / "log.vkey").read_text().strip())


def assert_consistent(directory: Path, kept: list[Checkpoint], *, where: str) -> None:
    verifier = Verifier.parse((directory / "log.vkey").read_text().strip())
    if not (directory / "tree" / CHECKPOINT).exists():
        assert not kept, where
        return
    note = Note.parse((directory / "tree" / CHECKPOINT).read_bytes())
    note.verified([verifier])
    new = Checkpoint.parse(note.text)
    for old in kept:
        assert old.size <= new.size, where
        proof = consistency_proof(TileFiles(directory / "tree", new.size).subtree, old.size, new.size)
        assert check_consistency(old_size=old.size, old_root=old.root, size=new.size, root=new.root, proof=proof), where


def assert_ciphertexts(directory: Path, life: Life, *, origin: str, where: str) -> None:
    """Of every acknowledged batch whose content was not to be forgotten; and every auditor opens it."""
    there = {
        hashlib.sha256(found.payload).hexdigest(): found.payload
        for segment in segments_in(directory)
        for found in frames(segment.read_bytes())
        if found.kind == CIPHERTEXT
    }
    kept_from = first_leaf_in(segments_in(directory)[0])
    assert kept_from <= life.may_be_forgotten, where
    number = 0
    for batch in life.submitted[: life.acknowledged]:
        if batch.ciphertext and number >= kept_from:
            ciphertext = there[hashlib.sha256(batch.ciphertext).hexdigest()]
            assert ciphertext == batch.ciphertext, where
            named = batch.lines.rsplit(b'"batch":"')[1][:32].decode()
            for secret in SECRETS:
                assert unseal(ciphertext, secret, origin=origin, batch=named), where
        number += batch.lines.count(b"\n") + 1


async def test_a_kill_at_any_operation_loses_nothing_that_was_acknowledged(tmp_path):
    """And neither does a power cut in the life after it, which flushes what the killed one had not."""
    async for disk, directory, life in lives(tmp_path):
        where = f"killed before {disk.operations}: {disk.trace[-1]}"
        with on_disk(disk):
            await assert_whole(directory, life, where=where)
        disk.release()
        left = disk.after_power_cut(tmp_path / "left", lambda: False) / "audit"
        note = read_note(left / "tree")
        assert note is not None, where
        size = Checkpoint.parse(note.text).size
        assert in_tree(left, size)[:-1] == life.lines[: size - 1], where
        assert life.lines_acknowledged <= size - 1, where
        await opened(left).close()
        shutil.rmtree(left.parent)


@pytest.mark.parametrize("survival", ["lost", "kept", "torn", "holed", "mixed"])
async def test_a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged(tmp_path, survival):
    """What was not flushed is lost, or there, or there up to some sector or name, or from there on, or here and there."""
    chance = random.Random(survival)
    async for disk, _, life in lives(tmp_path):
        where = f"power cut before {disk.operations}: {disk.trace[-1]}"
        some, few = chance.randrange(8), chance.randrange(1, 4)
        answers = iter([True] * some if survival == "torn" else [False] * few)
        survives = {
            "lost": lambda: False,
            "kept": lambda: True,
            "torn": lambda answers=answers: next(answers, False),
            "holed": lambda answers=answers: next(answers, True),
            "mixed": lambda: chance.random() < 0.5,
        }[survival]
        left = disk.after_power_cut(tmp_path / "left", survives)
        await assert_whole(left / "audit", life, where=where)
        shutil.rmtree(left)


async def failing_lives(root: Path, *, error: int, once: bool):
    """A life whose disk fails at every operation of it, once or for good: what it leaves, and how it ended."""
    for operation in itertools.count(1):
        directory = root / str(operation) / "audit"
        directory.parent.mkdir(parents=True)
        fails = {"fail_at" if once else "fail_from": operation}
        disk, life, audits = Disk(directory.parent, error=error, **fails), Life(), []
        with on_disk(disk):
            try:
                await live(life, directory, audits)
            except AuditFailed as fault:
                yield disk, directory, life, audits, fault
            else:
                assert operation > LEAST_OPERATIONS, "there was something to fail"
                return
        shutil.rmtree(directory.parent)


@pytest.mark.parametrize(
    ("error", "once"),
    [
        pytest.param(errno.EIO, True, id="a flush or a write that fails once"),
        pytest.param(errno.ENOSPC, False, id="a disk that is full from there on"),
        pytest.param(errno.EROFS, False, id="a disk that is read only from there on"),
    ],
)
async def test_a_disk_that_fails_at_any_operation_fails_the_log_for_good_and_nothing_is_lost(tmp_path, error, once):
    async for disk, directory, life, audits, fault in failing_lives(tmp_path, error=error, once=once):
        where = f"failed at {disk.operations}: {disk.trace[-1]}"
        assert os.strerror(error) in str(fault), where
        for audit in audits:
            if audit._segments._failed:
                with pytest.raises(AuditFailed, match="failed before"):
                    await audit.append([Entry(Stopped(at_ms=99, holder="afterwards"))])
        assert not any(b"afterwards" in segment.read_bytes() for segment in segments_in(directory)), where
        disk.release()
        await assert_whole(directory, life, where=where)
