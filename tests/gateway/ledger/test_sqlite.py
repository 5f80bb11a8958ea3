"""The ledger on one file: what was acknowledged survives, what cannot be trusted is refused."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from gateway.ledger import sqlite
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_schema import SCHEMA_VERSION
from gateway.ports import AccountFrozen, AccountLimit, AccountState, Granted, LedgerUnavailable, OverLimit, Wanted
from policy.budget import Step
from policy.limits import HOLDER_S

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "ledger.db"


async def register(ledger, limit_bits=10**9):
    await ledger.register([AccountLimit(account="a", limit_bits=limit_bits)])


async def grant(ledger, lease, bits=10):
    return await ledger.grant(lease=lease, holder="h", wanted={"a": Wanted(least_bits=bits, most_bits=bits)})


async def test_accounts_and_leases_survive_reopening(path):
    ledger = SqliteLedger(path)
    await register(ledger)
    first = await grant(ledger, "l1", 40)
    await grant(ledger, "l2", 2)
    await ledger.close()
    ledger = SqliteLedger(path)
    assert await ledger.states() == [AccountState(account="a", limit_bits=10**9, debited_bits=42, fence=2)]
    again = await grant(ledger, "l1")
    assert (again.bits, again.fences) == (first.bits, first.fences)
    assert await ledger.close_lease(lease="l1", holder="h", returned={"a": 30})
    await ledger.close()
    ledger = SqliteLedger(path)
    assert (await ledger.states())[0].debited_bits == 12
    assert not await ledger.close_lease(lease="l1", holder="h", returned={"a": 30})
    await ledger.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, Wanted

async def main():
    ledger = SqliteLedger(Path(sys.argv[1]))
    await ledger.register([AccountLimit(account=name, limit_bits=10**12) for name in ("a", "b")])
    async def spend(worker):
        number = 0
        while True:
            lease = f"{worker}-{number}"
            wanted = {name: Wanted(least_bits=10, most_bits=10) for name in ("a", "b")}
            await ledger.grant(lease=lease, holder="h", wanted=wanted)
            sys.stdout.write(lease + "\\n")
            sys.stdout.flush()
            number += 1
    await asyncio.gather(*(spend(worker) for worker in range(4)))

asyncio.run(main())
"""


def killed_while_granting(path, run_s):
    """The leases that a child process said it had been granted before it was killed."""
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, cwd=ROOT) as child:
        first = child.stdout.readline()  # it has begun
        time.sleep(run_s)
        os.kill(child.pid, signal.SIGKILL)
        return (first + child.stdout.read()).decode().split("\n")[:-1]


@pytest.mark.parametrize("run_s", [0.2, 0.5])
async def test_a_kill_loses_no_grant_that_was_acknowledged_and_leaves_no_half_of_one(path, run_s):
    acknowledged = killed_while_granting(path, run_s)
    assert len(acknowledged) > 10
    ledger = SqliteLedger(path)
    spent = {state.account: state.debited_bits for state in await ledger.states()}
    assert spent["a"] == spent["b"]
    assert 10 * len(acknowledged) <= spent["a"] <= 10 * (len(acknowledged) + 8)
    for lease in acknowledged[:: max(len(acknowledged) // 20, 1)]:
        wanted = {name: Wanted(least_bits=10, most_bits=10) for name in ("a", "b")}
        assert isinstance(await ledger.grant(lease=lease, holder="h", wanted=wanted), Granted)
    assert {state.debited_bits for state in await ledger.states()} == {spent["a"]}
    await ledger.close()


async def test_a_ledger_of_another_version_is_refused_and_not_touched(path):
    await SqliteLedger(path).close()
    database = apsw.Connection(str(path))
    database.pragma("user_version", SCHEMA_VERSION + 1)
    database.close()
    with pytest.raises(LedgerUnavailable, match=f"version {SCHEMA_VERSION + 1}"):
        SqliteLedger(path)
    database = apsw.Connection(str(path))
    assert database.pragma("user_version") == SCHEMA_VERSION + 1
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"hello, this is a text file and no database at all\n" * 100)
    with pytest.raises(LedgerUnavailable):
        SqliteLedger(tmp_path / "ledger.db")


def test_a_path_that_is_a_directory_is_refused(tmp_path):
    with pytest.raises(LedgerUnavailable):
        SqliteLedger(tmp_path)


@pytest.mark.parametrize("below", ["ledger.db", "deep/ledger.db"])
def test_a_path_below_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LedgerUnavailable):
        SqliteLedger(tmp_path / "file" / below)


async def test_the_file_is_flushed_at_every_commit_and_read_by_others_meanwhile(path):
    ledger = SqliteLedger(path)
    assert ledger._db.pragma("journal_mode") == "wal"
    assert ledger._db.pragma("synchronous") == 2
    await register(ledger)
    await grant(ledger, "l1")
    other = apsw.Connection(str(path))
    assert other.execute("SELECT debited_bits FROM account").get == 10
    other.close()
    await ledger.close()


async def test_a_number_that_no_column_holds_is_refused_and_stops_nobody_else(path):
    """The writer thread is one for all: what it cannot do must come back as an answer and must not end it."""
    ledger = SqliteLedger(path)
    await register(ledger)
    with pytest.raises((ValueError, OverflowError, LedgerUnavailable)):
        async with asyncio.timeout(2):
            await register(ledger, limit_bits=2**63)
    async with asyncio.timeout(2):
        assert len(await ledger.states()) == 1
    await ledger.close()


async def test_what_waits_is_committed_together(path, monkeypatch):
    ledger = SqliteLedger(path)
    await register(ledger)
    batches = []
    commit = ledger._commit
    monkeypatch.setattr(ledger, "_commit", lambda batch: (batches.append(len(batch)), commit(batch))[1])
    await asyncio.gather(*(grant(ledger, f"l{number}") for number in range(100)))
    assert sum(batches) == 100
    assert len(batches) < 50
    assert max(batches) <= sqlite.BATCH_OPERATIONS_MAX
    await ledger.close()


async def test_closing_writes_what_is_queued(path):
    ledger = SqliteLedger(path)
    await register(ledger)
    waiting = [asyncio.ensure_future(grant(ledger, f"l{number}")) for number in range(20)]
    await asyncio.sleep(0)
    await ledger.close()
    results = await asyncio.gather(*waiting)
    assert all(isinstance(result, Granted) for result in results)


async def test_every_lease_names_the_code_set_that_its_bits_are_counted_under(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db", codes="c0de")
    await ledger.register([AccountLimit(account="a", limit_bits=100)])
    await ledger.grant(lease="l", holder="h", wanted={"a": Wanted(least_bits=1, most_bits=10)})
    await ledger.close()
    assert apsw.Connection(str(tmp_path / "ledger.db")).execute("SELECT codes FROM lease").get == "c0de"


async def test_a_bug_in_an_operation_is_an_answer_and_the_end_of_grants(path):
    """The writer thread must not die of it: who waits for an answer would wait forever."""
    ledger = SqliteLedger(path)
    await register(ledger)
    with pytest.raises(LedgerUnavailable):
        async with asyncio.timeout(2):
            await ledger.grant(lease="l1", holder="h", wanted={"a": None})
    with pytest.raises(LedgerUnavailable, match="failed before"):
        await grant(ledger, "l2")
    await ledger.close()


async def test_holders_and_what_they_hold_survive_reopening(path):
    ledger = SqliteLedger(path)
    await ledger.beat("one")
    await register(ledger)
    await ledger.freeze({"a": 7})
    await ledger.close()
    ledger = SqliteLedger(path)
    assert await ledger.idle_s("one") < 10
    assert await ledger.beat("two") == 2
    with pytest.raises(AccountFrozen):
        await grant(ledger, "l1")
    await ledger.close()


async def test_a_holder_that_has_been_silent_for_long_is_not_counted(path):
    ledger = SqliteLedger(path)
    await ledger.beat("one")
    ledger._db.execute("UPDATE holder SET seen_at_s = seen_at_s - ?", (HOLDER_S,))
    assert await ledger.beat("two") == 1
    assert HOLDER_S <= await ledger.idle_s("one") < HOLDER_S + 10
    await ledger.close()


async def test_every_change_of_a_limit_is_kept_and_cannot_be_changed(path):
    ledger = SqliteLedger(path)
    for limit_bits in (100, 100, 50, 70):
        await register(ledger, limit_bits)
    await ledger.close()
    database = apsw.Connection(str(path))
    assert list(database.execute("SELECT account, from_bits, to_bits FROM limit_change")) == [
        ("a", 100, 50),
        ("a", 50, 70),
    ]
    for statement in ("DELETE FROM limit_change", "UPDATE limit_change SET to_bits = 0"):
        with pytest.raises(apsw.ConstraintError, match="only appended"):
            database.execute(statement)
    database.close()


async def test_the_file_itself_refuses_more_than_the_limit(path):
    ledger = SqliteLedger(path)
    await register(ledger, 100)
    await ledger.close()
    database = apsw.Connection(str(path))
    for statement in ("UPDATE account SET debited_bits = 101", "UPDATE account SET debited_bits = -1"):
        with pytest.raises(apsw.ConstraintError):
            database.execute(statement)
    database.close()


async def test_a_lowered_limit_of_a_sliding_window_follows_its_steps_down(path):
    ledger = SqliteLedger(path)

    async def slide(number, limit_bits, least_bits, most_bits):
        step = Step(series="s", number=number, steps=3)
        await ledger.register([AccountLimit(account=f"s{number}", limit_bits=limit_bits, step=step)])
        wanted = {f"s{number}": Wanted(least_bits=least_bits, most_bits=most_bits)}
        return await ledger.grant(lease=f"l{number}", holder="h", wanted=wanted)

    await slide(1, 40, 35, 35)
    await slide(2, 40, 5, 5)
    assert await slide(3, 10, 1, 1) == OverLimit(account="s3", remaining_bits=0)
    assert (await slide(4, 10, 1, 100)).bits == {"s4": 5}
    await ledger.close()


# The tables as versions 1 and 2 made them.
VERSION_1 = """
CREATE TABLE account (
    id           TEXT PRIMARY KEY,
    limit_bits   INTEGER NOT NULL CHECK (limit_bits >= 0),
    debited_bits INTEGER NOT NULL DEFAULT 0 CHECK (debited_bits BETWEEN 0 AND limit_bits),
    fence        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE lease (
    id         TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    fence      INTEGER NOT NULL,
    granted_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    closed_at  TEXT
) STRICT;
CREATE TABLE lease_amount (
    lease         TEXT NOT NULL REFERENCES lease (id),
    account       TEXT NOT NULL REFERENCES account (id),
    bits          INTEGER NOT NULL CHECK (bits >= 0),
    returned_bits INTEGER NOT NULL DEFAULT 0 CHECK (returned_bits BETWEEN 0 AND bits),
    PRIMARY KEY (lease, account)
) STRICT, WITHOUT ROWID;
"""
VERSION_2 = VERSION_1.replace("holder     TEXT NOT NULL,", "holder     TEXT NOT NULL,\n    codes      TEXT NOT NULL,")


@pytest.mark.parametrize(("version", "tables", "codes"), [(1, VERSION_1, ""), (2, VERSION_2, "c0de")])
async def test_a_ledger_of_an_earlier_version_is_taken_over_with_its_usage_and_its_leases(path, version, tables, codes):
    # Arrange
    path.parent.mkdir()
    old = apsw.Connection(str(path))
    old.pragma("journal_mode", "wal")
    old.pragma("foreign_keys", True)
    old.execute(tables)
    old.execute("INSERT INTO account VALUES ('a', 100, 45, 3), ('b', 50, 10, 1)")
    for lease, fence, closed_at in (("closed", 2, "then"), ("open", 3, None)):
        row = {"id": lease, "holder": "h", "fence": fence, "closed_at": closed_at} | ({"codes": codes} if codes else {})
        old.execute(f"INSERT INTO lease ({', '.join(row)}) VALUES ({', '.join('?' for _ in row)})", tuple(row.values()))
    old.execute("INSERT INTO lease_amount VALUES ('closed', 'a', 30, 25), ('open', 'a', 40, 0), ('open', 'b', 10, 0)")
    old.pragma("user_version", version)
    old.close()

    # Act
    await SqliteLedger(path).close()
    ledger = SqliteLedger(path)

    # Assert
    assert await ledger.states() == [
        AccountState(account="a", limit_bits=100, debited_bits=45, fence=3),
        AccountState(account="b", limit_bits=50, debited_bits=10, fence=1),
    ]
    closed, open_lease = await ledger.leases()
    assert (closed.bits, closed.returned_bits, closed.codes) == ({"a": 30}, {"a": 25}, codes)
    assert (open_lease.bits, open_lease.returned_bits) == ({"a": 40, "b": 10}, {})
    wanted = {name: Wanted(least_bits=1, most_bits=1) for name in ("a", "b")}
    assert (await ledger.grant(lease="open", holder="h", wanted=wanted)).fences == {"a": 3, "b": 1}
    assert not await ledger.close_lease(lease="closed", holder="h", returned={"a": 30})
    assert await ledger.close_lease(lease="open", holder="h", returned={"a": 40})
    assert (await ledger.grant(lease="new", holder="h", wanted=wanted)).fences == {"a": 4, "b": 2}
    await ledger.close()
    database = apsw.Connection(str(path))
    assert database.pragma("foreign_key_check") is None
    assert {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")} == {
        "account", "lease", "lease_amount", "holder", "limit_change",
    }  # fmt: skip
    database.close()
