"""Behind the log: everything that is durable is signed, once, in order, whatever happens in between."""

import asyncio
import os
import threading

import pytest

from gateway.audit.log import SignedLog
from gateway.audit.note import Note, Verifier
from gateway.audit.segments import leaves, locked
from gateway.audit.tiled import CHECKPOINT, TiledTree, TileFiles
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.ports import AuditFailed
from gateway.record import Entry, Stopped
from policy.rules import Audit


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "audit"


def opened(directory):
    return SignedLog(Audit(directory=str(directory)), clock=SystemClock(), metrics=Metrics())


def entries(*times):
    return [Entry(Stopped(at_ms=time, holder="h")) for time in times]


def signed(directory):
    """What the checkpoint says, verified with the log's public key; and the entries that it covers."""
    verifier = Verifier.parse((directory / "log.vkey").read_text().strip())
    note = Note.parse((directory / "tree" / CHECKPOINT).read_bytes())
    note.verified([verifier])
    origin, size, *_ = note.text.split("\n")
    assert origin == verifier.name
    files = TileFiles(directory / "tree", int(size))
    return [files.entry(number) for number in range(int(size))]


def numbers(directory):
    return [int(entry.split(b'"at_ms":')[1].split(b",")[0]) for entry in signed(directory)]


async def test_what_is_durable_is_signed_within_a_second(directory):
    log = opened(directory)
    running = asyncio.create_task(log.run())
    await log.append(entries(1, 2))
    await log.append(entries(3))
    async with asyncio.timeout(1):
        while not (directory / "tree" / CHECKPOINT).exists() or numbers(directory) != [1, 2, 3]:  # noqa: ASYNC110  files
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await log.close()


async def test_an_orderly_close_signs_the_rest(directory):
    log = opened(directory)
    await log.append(entries(1, 2))
    await log.close()
    assert numbers(directory) == [1, 2]


async def test_what_a_crash_left_unsigned_is_signed_by_the_next_life(directory):
    log = opened(directory)
    await log.append(entries(1))
    await log._notary.sign()
    await log.append(entries(2, 3))
    await log._segments.close()  # and the notary dies, and with it the lock
    os.close(log._lock)
    assert numbers(directory) == [1]
    again = opened(directory)
    await again.append(entries(4))
    await again.close()
    assert numbers(directory) == [1, 2, 3, 4]
    assert [leaf["at_ms"] for leaf in leaves(directory)] == [1, 2, 3, 4]


async def test_a_log_with_fewer_records_than_were_signed_refuses_to_start(directory):
    log = opened(directory)
    await log.append(entries(1, 2, 3))
    await log.close()
    segment = directory / "00000000.log"
    segment.write_bytes(segment.read_bytes()[:16])
    with pytest.raises(AuditFailed, match=r"the log has 0 records, and 3 are signed; restore"):
        opened(directory)


async def test_a_log_without_the_key_that_signed_it_refuses_to_start(directory):
    log = opened(directory)
    await log.append(entries(1))
    await log.close()
    (directory / "log.key").unlink()
    with pytest.raises(AuditFailed, match=r"log\.key: missing"):
        opened(directory)


async def test_two_gateways_cannot_write_one_log(directory):
    log = opened(directory)
    with pytest.raises(AuditFailed, match="another gateway"):
        opened(directory)
    await log.close()


async def test_the_lock_is_held_until_a_signature_that_was_cancelled_is_written(directory, monkeypatch):
    log = opened(directory)
    await log.append(entries(1))
    written, commit = threading.Event(), TiledTree.commit
    monkeypatch.setattr(TiledTree, "commit", lambda tree: written.wait(10) and commit(tree))
    signing = asyncio.create_task(log._notary.sign())
    await asyncio.sleep(0.05)
    signing.cancel()
    await asyncio.gather(signing, return_exceptions=True)
    closing = asyncio.create_task(log.close())
    await asyncio.sleep(0.05)
    with pytest.raises(AuditFailed, match="another gateway"):
        opened(directory)
    written.set()
    await closing
    assert numbers(directory) == [1]


async def test_only_who_has_the_lock_makes_a_key(directory):
    """Two first starts at once: else one would sign with a key that the other has written over."""
    lock = locked(directory)
    with pytest.raises(AuditFailed, match="another gateway"):
        opened(directory)
    assert not (directory / "log.key").exists()
    os.close(lock)
    await opened(directory).close()


async def test_the_signing_key_is_for_the_gateway_alone_and_every_log_has_its_own_name(directory, tmp_path):
    first, second = opened(directory), opened(tmp_path / "other")
    assert (directory / "log.key").stat().st_mode & 0o777 == 0o600
    assert first.origin != second.origin
    await first.close()
    await second.close()


async def test_a_tree_that_falls_far_behind_ends_the_process(directory, monkeypatch):
    monkeypatch.setattr("gateway.audit.notary.UNSIGNED_BYTES_MAX", 1000)
    log = opened(directory)
    await log.append(entries(*range(100)))
    with pytest.raises(AuditFailed, match="as fast as the log"):
        await log.run()


async def test_a_tree_that_cannot_be_written_ends_the_process(directory, monkeypatch):
    log = opened(directory)
    await log.append(entries(1))

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.audit.files.write", full)
    with pytest.raises(AuditFailed, match="No space left"):
        await log.run()
