"""What every audit log promises: durable on return, in order, and after a failure never again."""

import asyncio
import socket

import pytest

from gateway.audit import segments
from gateway.audit.batch import Scribe
from gateway.audit.log import SignedLog
from gateway.audit.segments import SegmentLog, leaves
from gateway.clock import SystemClock
from gateway.host.channel import open_channel
from gateway.host.remote import FAULTS, RemoteAuditLog, answers
from gateway.metrics import Metrics
from gateway.ports import AuditFailed
from gateway.record import Closed, Entry, LeaseGranted, Opened, Refusals, Stopped, Tally
from policy.rules import Audit


class Segments:
    """The segment log, with a way to read it back and a way to break its disk."""

    def __init__(self, directory, monkeypatch):
        self.directory = directory
        self._monkeypatch = monkeypatch

    async def open(self):
        return SegmentLog(self.directory, scribe=Scribe(sealer=None, clock=SystemClock()))

    def read(self):
        return list(leaves(self.directory))

    def break_disk(self):
        def fails(fd):
            raise OSError(5, "Input/output error")

        self._monkeypatch.setattr(segments.os, "fdatasync", fails)


class Signed(Segments):
    """The whole log of a host: segments, and the tree behind them."""

    async def open(self):
        return SignedLog(Audit(directory=str(self.directory)), clock=SystemClock(), metrics=Metrics())


class OverChannel(Segments):
    """The same, as a worker has it from its keeper."""

    async def open(self):
        kept = await super().open()
        ours, theirs = socket.socketpair()
        table = answers(ledger=None, audit=kept, holds=lambda holder: None)
        keeper = await open_channel(ours, answers=table, faults=FAULTS, bug=_bug)
        worker = await open_channel(theirs, answers={}, faults=FAULTS, bug=_bug)
        log = RemoteAuditLog(worker, scribe=Scribe(sealer=None, clock=SystemClock()), recent=kept.recent)

        async def close():
            worker.close()
            await keeper.lost()
            await kept.close()

        log.close = close
        return log


def _bug(fault):
    raise fault


@pytest.fixture(params=[Segments, Signed, OverChannel])
def store(request, tmp_path, monkeypatch):
    return request.param(tmp_path / "audit", monkeypatch)


def at(*times):
    return [Entry(Stopped(at_ms=time, holder="h")) for time in times]


async def test_on_return_the_entries_can_be_read_without_closing(store):
    log = await store.open()
    await log.append(at(1, 2))
    assert [leaf["at_ms"] for leaf in store.read()] == [1, 2]
    await log.close()


async def test_entries_are_in_the_order_in_which_they_were_appended_even_at_once(store):
    log = await store.open()
    await asyncio.gather(*(log.append(at(number)) for number in range(50)))
    await log.close()
    assert [leaf["at_ms"] for leaf in store.read()] == list(range(50))


async def test_a_log_is_taken_up_again_where_it_ended(store):
    for time in range(3):
        log = await store.open()
        await log.append(at(time))
        await log.close()
    assert [leaf["at_ms"] for leaf in store.read()] == [0, 1, 2]


async def test_every_field_of_a_leaf_is_kept_exactly(store):
    log = await store.open()
    await log.append([
        Entry(LeaseGranted(at_ms=1, lease="l", holder="h", bits={"m": 2**62 + 1}, fences={"m": 3})),
        Entry(Closed(at_ms=2, answer="a", outcome=None, parting_bits=1, text_bytes=3, charged_bits=4, spent_bits={"m": 9})),
        Entry(Refusals(at_ms=3, counts={"over_budget": 5})),
    ])  # fmt: skip
    await log.close()
    assert store.read() == [
        {
            "type": "lease_granted",
            "at_ms": 1,
            "lease": "l",
            "holder": "h",
            "bits": {"m": 2**62 + 1},
            "fences": {"m": 3},
        },
        {
            "type": "closed",
            "at_ms": 2,
            "answer": "a",
            "outcome": None,
            "parting_bits": 1,
            "text_bytes": 3,
            "charged_bits": 4,
            "spent_bits": {"m": 9},
        },
        {"type": "refusals", "at_ms": 3, "counts": {"over_budget": 5}},
    ]


async def test_content_is_kept_sealed_or_not_at_all(store):
    log = await store.open()
    await log.append([Entry(Stopped(at_ms=1, holder="h"), b"what the client said")])
    await log.close()
    for file in store.directory.rglob("*"):
        assert not file.is_file() or b"what the client said" not in file.read_bytes()


async def test_after_a_failure_every_append_fails(store):
    log = await store.open()
    await log.append(at(1))
    store.break_disk()
    for _ in range(2):
        with pytest.raises(AuditFailed):
            await log.append(at(2))
    await log.close()


async def test_appends_behind_a_failure_fail_with_it(store):
    log = await store.open()
    await log.append(at(0))
    store.break_disk()
    results = await asyncio.gather(*(log.append(at(number)) for number in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [AuditFailed] * 5
    await log.close()


async def test_what_is_recent_comes_back_as_it_was_recorded_and_in_order(store):
    leaves = [
        Tally(
            at_ms=1,
            holder="h",
            part=0,
            unspent_bits={"m": 5},
            leases={"l": {"m": 9}},
            answers=((("m", "t"), ("a", "b")),),
        ),
        Opened(
            at_ms=2,
            answer="c",
            holder="h",
            accounts=("m", "t"),
            tenant="t",
            model="m",
            route="/",
            seed=1,
            request_bytes=2,
        ),
        Stopped(at_ms=3, holder="h"),
    ]
    log = await store.open()
    await log.append([Entry(leaf) for leaf in leaves[:1]])
    await log.append([Entry(leaf) for leaf in leaves[1:]])
    assert list(log.recent()) == leaves
    await log.close()
    again = await store.open()
    assert list(again.recent()) == leaves
    await again.close()
