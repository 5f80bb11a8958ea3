"""A worker's ledger and audit log are its keeper's: `tests/contract` says what holds, and here is what is theirs alone."""

import asyncio
import socket

import pytest

from gateway.audit.segments import SegmentLog, frames, leaves
from gateway.clock import SystemClock
from gateway.host.channel import open_channel
from gateway.host.remote import FAULTS, RemoteAuditLog, RemoteLedger, answers
from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountLimit, AuditFailed, LedgerUnavailable, Wanted
from gateway.record import Entry, Refusals


class Keeper:
    """The keeper's side for several workers."""

    def __init__(self, directory):
        self.directory = directory
        self.ledger = MemoryLedger(clock=SystemClock())
        self.audit = SegmentLog(directory)
        self.holders = []
        self.bugs = []
        self.ends = []

    async def worker(self):
        ours, theirs = socket.socketpair()
        table = answers(ledger=self.ledger, audit=self.audit, holds=self.holders.append)
        self.ends.append(await open_channel(ours, answers=table, faults=FAULTS, bug=self.bugs.append))
        self.ends.append(await open_channel(theirs, answers={}, faults=FAULTS, bug=self.bugs.append))
        return self.ends[-1]

    def log(self, channel):
        return RemoteAuditLog(channel, recent=self.audit.recent)

    async def close(self):
        for end in self.ends:
            end.close()
            await end.lost()
        await self.audit.close()
        assert self.bugs == []


@pytest.fixture
async def keeper(tmp_path):
    keeper = Keeper(tmp_path / "audit")
    yield keeper
    await keeper.close()


def entry(number):
    return Entry(Refusals(at_ms=number, counts={}))


async def test_what_workers_append_at_once_is_flushed_together_and_stays_in_each_ones_order(keeper):
    logs = [keeper.log(await keeper.worker()) for _ in range(4)]
    appends = [logs[worker].append([entry(1000 * worker + number)]) for number in range(100) for worker in range(4)]
    await asyncio.gather(*appends)
    order = [leaf["at_ms"] for leaf in leaves(keeper.directory)]
    assert len(order) == 400
    for worker in range(4):
        own = [at_ms for at_ms in order if at_ms // 1000 == worker]
        assert own == [1000 * worker + number for number in range(100)]
    (segment,) = keeper.directory.glob("*.log")
    assert len(list(frames(segment.read_bytes()))) < 100, "one flush for each would be 400 frames"


async def test_a_worker_whose_keeper_is_gone_is_granted_nothing_and_records_nothing(keeper):
    channel = await keeper.worker()
    ledger, audit = RemoteLedger(channel), keeper.log(channel)
    keeper.ends[0].close()
    await channel.broken()
    with pytest.raises(LedgerUnavailable, match="keeper"):
        await ledger.states()
    with pytest.raises(AuditFailed, match="keeper"):
        await audit.append([entry(1)])


async def test_the_keeper_knows_a_holder_before_it_is_granted_anything(keeper):
    ledger = RemoteLedger(await keeper.worker())
    await ledger.register([AccountLimit(account="a", limit_bits=10)])
    known = []
    granting = keeper.ledger.grant

    async def grant(**asked):
        known.extend(keeper.holders)
        return await granting(**asked)

    keeper.ledger.grant = grant
    await ledger.grant(lease="l", holder="somebody", wanted={"a": Wanted(least_bits=1, most_bits=1)})
    assert known == ["somebody"]


async def test_closing_a_workers_ports_closes_nothing_of_the_keepers(keeper):
    for _ in range(2):
        channel = await keeper.worker()
        ledger, audit = RemoteLedger(channel), keeper.log(channel)
        await ledger.register([AccountLimit(account="a", limit_bits=10)])
        await audit.append([entry(1)])
        await ledger.close()
        await audit.close()
    assert [state.account for state in await keeper.ledger.states()] == ["a"]
