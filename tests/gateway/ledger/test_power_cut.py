"""The power fails at any moment: what the ledger acknowledged is in the file, whatever the disk had not yet written."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import apsw
import pytest

from gateway.ledger import sqlite
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, Granted, LedgerUnavailable, Wanted
from policy.budget import Step
from tests.gateway.ledger.disk import Event, PowerCuts, recording_disk

CUTS = 1000
ROUNDS = 80
AT_ONCE = 4  # operations that wait for one commit
STEPS = 3
LIMIT_BITS = 10**6


@dataclass
class Promises:
    """What the holder asked for, and what it was told, up to some moment."""

    asked: set[str] = field(default_factory=set)
    granted: dict[str, dict[str, int]] = field(default_factory=dict)
    asked_back: dict[str, dict[str, int]] = field(default_factory=dict)
    returned: dict[str, dict[str, int]] = field(default_factory=dict)

    def hear(self, note):
        kind, lease, bits = note
        if kind == "asked":
            self.asked.add(lease)
        else:
            {"granted": self.granted, "asked back": self.asked_back, "returned": self.returned}[kind][lease] = bits


def step_of(round_number):
    number = round_number // 10
    return AccountLimit(account=f"s{number}", limit_bits=LIMIT_BITS, step=Step(series="s", number=number, steps=STEPS))


async def spend(ledger, disk, random):
    """Grants and closes in rounds; every answer is noted before the next round begins to write."""
    open_leases = {}
    for round_number in range(ROUNDS):
        step = step_of(round_number)
        limits = [AccountLimit(account=name, limit_bits=LIMIT_BITS + round_number // 20) for name in ("a", "b")]
        await ledger.register([*limits, step])
        leases = [f"{random.getrandbits(64):016x}" for _ in range(AT_ONCE)]
        for lease in leases:
            disk.note(("asked", lease, None))
        closing = random.sample(sorted(open_leases), k=min(len(open_leases), random.randrange(AT_ONCE + 1)))
        backs = {
            lease: {name: random.randint(0, bits) for name, bits in open_leases.pop(lease).items()} for lease in closing
        }
        for lease, back in backs.items():
            disk.note(("asked back", lease, back))
        wanted = {name: Wanted(least_bits=1, most_bits=random.randint(1, 999)) for name in ("a", "b", step.account)}
        granted = await asyncio.gather(
            *(ledger.grant(lease=lease, holder="h", wanted=wanted) for lease in leases),
            *(ledger.close_lease(lease=lease, holder="h", returned=back) for lease, back in backs.items()),
        )
        for grant in granted[:AT_ONCE]:
            assert isinstance(grant, Granted)
            open_leases[grant.lease] = dict(grant.bits)
            disk.note(("granted", grant.lease, dict(grant.bits)))
        for lease, back in backs.items():
            disk.note(("returned", lease, back))


@pytest.fixture
def small_log(monkeypatch):
    """A write-ahead log that is moved into the database often, so that cuts meet checkpoints too."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 60)


async def trace_of(path, *, synchronous):
    with recording_disk() as disk:
        ledger = SqliteLedger(path)
        ledger._db.pragma("synchronous", synchronous)
        await spend(ledger, disk, Random("spend"))
        trace = list(disk.trace)
        await ledger.close()
    return trace


async def wrongs(path, promises):
    """What is wrong with a file after a power cut."""
    try:
        ledger = SqliteLedger(path)
    except LedgerUnavailable as fault:
        return [str(fault)]
    leases = {lease.lease: lease for lease in await ledger.leases(count_max=10**6)}
    debited = {state.account: state.debited_bits for state in await ledger.states() if state.account != "s"}
    found = [
        f"grant {name} is lost"
        for name, bits in promises.granted.items()
        if name not in leases or leases[name].bits != bits
    ]
    found += [
        f"return of {name} is lost"
        for name, back in promises.returned.items()
        if name not in leases or leases[name].returned_bits != back
    ]
    found += [f"{name} was never asked for" for name in leases.keys() - promises.asked]
    held, least = Counter(), Counter()
    for lease in leases.values():
        held.update({name: bits - lease.returned_bits.get(name, 0) for name, bits in lease.bits.items()})
        if lease.returned_bits not in ({}, promises.asked_back.get(lease.lease)):
            found.append(f"{lease.lease} returned what nobody asked for")
    for lease, bits in promises.granted.items():
        least.update({name: amount - promises.asked_back.get(lease, {}).get(name, 0) for name, amount in bits.items()})
    found += [
        f"{name} has {debited[name]} debited, its leases hold {held[name]}"
        for name in debited
        if debited[name] != held[name]
    ]
    found += [
        f"{name} has {debited.get(name)} debited, not {bits}"
        for name, bits in least.items()
        if debited.get(name, 0) < bits
    ]
    for lease, back in list(promises.returned.items())[-2:]:
        if await ledger.close_lease(lease=lease, holder="h", returned=back):
            found.append(f"{lease} could be returned twice")
    if (said := ledger._db.pragma("integrity_check")) != "ok":
        found.append(f"integrity: {said}")
    await ledger.close()
    return found


async def bad_cuts(trace, directory, *, cuts, seed):
    """Cut the power at `cuts` places of the trace; what was wrong, by place."""
    random = Random(seed)
    places = Counter(random.randrange(len(trace)) for _ in range(cuts))
    disk, promises, bad = PowerCuts(), Promises(), {}
    for place, event in enumerate(trace):
        disk.play(event)
        if event.kind == "note":
            promises.hear(event.note)
        for number in range(places[place]):
            image = directory / f"{place}-{number}"
            image.mkdir()
            disk.cut(image, random)
            if found := await wrongs(image / "ledger.db", promises):
                bad[place] = found
            for file in image.iterdir():
                file.unlink()
    return bad


async def test_no_power_cut_loses_what_was_acknowledged(tmp_path, small_log):
    trace = await trace_of(tmp_path / "ledger.db", synchronous="full")
    assert sum(event.kind == "sync" and event.file == "ledger.db" for event in trace) > 5, "no checkpoint was cut"
    assert await bad_cuts(trace, tmp_path, cuts=CUTS, seed="cuts") == {}


async def test_the_simulation_finds_what_is_lost_without_a_flush_at_every_commit(tmp_path, small_log):
    """Or the test above could not fail."""
    trace = await trace_of(tmp_path / "ledger.db", synchronous="normal")
    bad = await bad_cuts(trace, tmp_path, cuts=100, seed="cuts")
    assert len(bad) > 50
    assert all("is lost" in found[0] for found in bad.values())


async def register(ledger):
    await ledger.register([AccountLimit(account="a", limit_bits=10**9)])


async def grant(ledger, lease, bits=10):
    return await ledger.grant(lease=lease, holder="h", wanted={"a": Wanted(least_bits=bits, most_bits=bits)})


@pytest.mark.parametrize(("operation", "code"), [("sync", apsw.SQLITE_IOERR_FSYNC), ("write", apsw.SQLITE_IOERR_WRITE)])
async def test_after_a_failed_flush_or_write_nothing_is_granted_until_a_restart(tmp_path, operation, code):
    with recording_disk() as disk:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await register(ledger)
        assert isinstance(await grant(ledger, "acknowledged"), Granted)
        disk.fail = {operation: code}
        with pytest.raises(LedgerUnavailable, match="restart"):
            await grant(ledger, "unknown")
        failed, disk.fail = disk.failed, {}
        recorded = len(disk.trace)
        with pytest.raises(LedgerUnavailable, match="restart"):
            await grant(ledger, "later")
        with pytest.raises(LedgerUnavailable, match="restart"):
            await ledger.states()
        await ledger.close()
        assert (failed, len(disk.trace)) == (1, recorded), "something was tried again"
        ledger = SqliteLedger(tmp_path / "ledger.db")
        assert {"acknowledged"} <= {lease.lease for lease in await ledger.leases()} <= {"acknowledged", "unknown"}
        flushed = {event.file for event in disk.trace[recorded:] if event.kind == "sync"}
        assert flushed == {"ledger.db", "ledger.db-wal"}, "what may be in the page cache alone was not written anew"
        assert isinstance(await grant(ledger, "later"), Granted)
        await ledger.close()


async def test_a_failed_flush_of_a_checkpoint_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 1)
    with recording_disk() as disk:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await register(ledger)
        while disk.trace[-1] != Event("sync", "ledger.db"):  # noqa: ASYNC110  the checkpoint comes after the answer
            await asyncio.sleep(0.001)
        check = disk.check

        def fail_the_database(operation):
            if operation == "sync" and disk.trace[-1].file == "ledger.db":
                disk.fail = {"sync": apsw.SQLITE_IOERR_FSYNC}
            check(operation)

        disk.check = fail_the_database
        # The first flush of the log follows writes to the log, so only the checkpoint meets the fault.
        assert isinstance(await grant(ledger, "answered before the checkpoint"), Granted)
        with pytest.raises(LedgerUnavailable, match="restart"):
            await grant(ledger, "later")
        await ledger.close()


async def test_a_full_disk_refuses_and_the_ledger_goes_on_when_there_is_room(tmp_path):
    with recording_disk() as disk:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await register(ledger)
        await grant(ledger, "l1")
        disk.fail = {"write": apsw.SQLITE_FULL}
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="write failed; nothing was written"):
                await grant(ledger, "l2")
        disk.fail = {}
        assert [lease.lease for lease in await ledger.leases()] == ["l1"]
        assert isinstance(await grant(ledger, "l2"), Granted)
        assert [state.debited_bits for state in await ledger.states()] == [20]
        await ledger.close()


async def test_a_grant_that_does_not_fit_on_the_disk_is_refused_and_its_neighbours_with_it(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await register(ledger)
    ledger._db.pragma("max_page_count", ledger._db.pragma("page_count") + 2)
    granted = []

    async def fill():
        while True:
            more = [grant(ledger, f"{len(granted)}-{number}") for number in range(9)]
            granted.extend(grant.lease for grant in await asyncio.gather(*more))

    with pytest.raises(LedgerUnavailable, match="full; nothing was written"):
        await fill()
    assert len(granted) > 10
    assert {lease.lease for lease in await ledger.leases()} == set(granted)
    ledger._db.pragma("max_page_count", 10**6)
    assert isinstance(await grant(ledger, "later"), Granted)
    assert [state.debited_bits for state in await ledger.states()] == [10 * (len(granted) + 1)]
    await ledger.close()
