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
from gateway.ledger.sqlite import SCHEMA_VERSION, SqliteLedger
from gateway.ports import AccountLimit, AccountState, Granted, LedgerUnavailable, Wanted

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
    assert await ledger.states() == [AccountState(account="a", limit_bits=10**9, debited_bits=42)]
    assert await grant(ledger, "l1") == first
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


class Failing:
    """Stands where the database stood: its transactions fail."""

    def __enter__(self):
        raise apsw.IOError("disk I/O error")

    def __exit__(self, *fault):
        return False

    def close(self):
        pass


async def test_after_a_failed_commit_the_ledger_answers_nobody(path):
    ledger = SqliteLedger(path)
    await register(ledger)
    database, ledger._db = ledger._db, Failing()
    with pytest.raises(LedgerUnavailable, match="disk I/O"):
        await grant(ledger, "l1")
    ledger._db = database
    with pytest.raises(LedgerUnavailable, match="failed before"):
        await grant(ledger, "l2")
    with pytest.raises(LedgerUnavailable):
        await ledger.states()
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
    monkeypatch.setattr(ledger, "_commit", lambda batch: (batches.append(len(batch)), commit(batch)))
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


async def test_a_ledger_of_the_first_schema_is_taken_over_with_its_usage(tmp_path):
    # Arrange: the schema as it was, with something spent.
    path = str(tmp_path / "ledger.db")
    old = apsw.Connection(path)
    old.execute(
        sqlite._SCHEMA.replace(
            "    codes      TEXT NOT NULL,  -- digest of the code set that its bits are counted under\n", ""
        )
    )
    old.execute("INSERT INTO account VALUES ('a', 100, 60, 3)")
    old.execute("INSERT INTO lease (id, holder, fence) VALUES ('l', 'h', 3)")
    old.pragma("user_version", 1)
    old.close()

    # Act
    ledger = SqliteLedger(tmp_path / "ledger.db", codes="c0de")

    # Assert
    assert [(state.account, state.debited_bits) for state in await ledger.states()] == [("a", 60)]
    granted = await ledger.grant(lease="m", holder="h", wanted={"a": Wanted(least_bits=1, most_bits=10)})
    assert granted.bits == {"a": 10}
    await ledger.close()
