"""PostgreSQL servers that are killed, promoted, cut off and restored, under load: nothing acknowledged is ever forgotten unseen."""

import asyncio
import contextlib
import shutil

import pytest

from gateway.ledger import postgres_server
from gateway.ledger.fenced import FencedLedger
from gateway.ledger.postgres import PostgresLedger
from gateway.ports import AccountFrozen, AccountLimit, Granted, LedgerUnavailable, Wanted
from tests.postgres import Link, Postgres, new_directory

ACCOUNTS = tuple(f"a{number}" for number in range(8))
HOLDERS = 24
BITS = 10


class Fleet:
    """Gateways under load, and what their stores acknowledged to them."""

    def __init__(self, *ledgers) -> None:
        self.ledgers = ledgers
        self.acknowledged: dict[str, Granted] = {}
        self.returned: dict[str, int] = {}
        self.unknown: set[str] = set()

    async def load(self, holder: int) -> None:
        """Grant and sometimes give back, for ever."""
        ledger, number = self.ledgers[holder % len(self.ledgers)], 0
        while True:
            number += 1
            lease, names = f"{holder}-{number}", {ACCOUNTS[holder % len(ACCOUNTS)], ACCOUNTS[number % 2]}
            wanted = {name: Wanted(least_bits=BITS, most_bits=BITS) for name in names}
            try:
                granted = await ledger.grant(lease=lease, holder=str(holder), wanted=wanted)
                self.acknowledged[lease] = granted
                if number % 5 == 0:
                    self.returned[lease] = 1  # perhaps: a close may be lost, and then the bits stay spent
                    await ledger.close_lease(lease=lease, holder=str(holder), returned=dict.fromkeys(names, 1))
            except LedgerUnavailable:
                self.unknown.add(lease)
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def under_load(self):
        tasks = [asyncio.create_task(self.load(holder)) for holder in range(HOLDERS)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def lost(self, ledger) -> set[str]:
        """Acknowledged leases that a store does not know."""
        known, after = set(), ""
        while page := await ledger.leases(after=after):
            known |= {lease.lease for lease in page}
            after = page[-1].lease
        return self.acknowledged.keys() - known

    async def undercounted_bits(self, ledger) -> dict[str, int]:
        """By how much each account says less than what was acknowledged and not given back."""
        spent = dict.fromkeys(ACCOUNTS, 0)
        for lease, granted in self.acknowledged.items():
            for name, bits in granted.bits.items():
                spent[name] += bits - self.returned.get(lease, 0)
        states = {state.account: state.debited_bits for state in await ledger.states()}
        return {name: bits - states[name] for name, bits in spent.items() if bits > states[name]}


@pytest.fixture
def directory():
    directory = new_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def server(directory):
    """A primary of the test's own, with an empty ledger."""
    server = await asyncio.to_thread(Postgres(directory, name="primary").create().start)
    yield server
    server.end()


@pytest.fixture
async def link(server):
    """Through which standbys follow the primary."""
    link = await Link(server.port).open()
    yield link
    await link.close()


@pytest.fixture
async def standby(directory, server, link):
    """A standby named s1, which follows through the link."""
    standby = Postgres(directory, name="s1")
    await asyncio.to_thread(standby.copy_of, server.port)
    follow = f"host=127.0.0.1 port={link.port} user=postgres application_name=s1"
    await asyncio.to_thread(standby.start, primary_conninfo=follow)
    yield standby
    standby.end()


@pytest.fixture
async def opened():
    """Opens ledgers, which are closed with the test."""
    ledgers = []

    def opened(*servers, **options):
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        ledgers.append(PostgresLedger(url, log=lambda *_: None, **options))
        return ledgers[-1]

    yield opened
    await asyncio.gather(*(ledger.close() for ledger in ledgers))


async def make_synchronous(server):
    await asyncio.to_thread(server.psql, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1)'")
    await asyncio.to_thread(server.psql, "SELECT pg_reload_conf()")
    await until(lambda: server.psql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'") == ["1"])


async def until(holds):
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110  another process has no event to wait for
            await asyncio.sleep(0.05)


async def caught_up(server):
    await until(lambda: server.psql(
        "SELECT bool_and(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication HAVING count(*) > 0") == ["t"])  # fmt: skip


async def register(ledger, *accounts):
    await ledger.register([AccountLimit(account=name, limit_bits=10**12) for name in accounts or ACCOUNTS])


async def grant(ledger, lease, *accounts):
    wanted = {name: Wanted(least_bits=BITS, most_bits=BITS) for name in accounts}
    return await ledger.grant(lease=lease, holder="h", wanted=wanted)


def guarded(ledger, *, fences=()):
    reports = []
    guard = FencedLedger(ledger, fences=dict(fences), on_frozen=lambda seen, _: reports.append(dict(seen)))
    return guard, reports


async def test_a_server_that_is_killed_under_load_loses_nothing_and_the_gateways_go_on_without_a_restart(
    server, opened
):
    guards = [guarded(opened(server)) for _ in range(2)]
    fleet = Fleet(*(guard for guard, _ in guards))
    await register(fleet.ledgers[0])
    await register(fleet.ledgers[1])
    async with fleet.under_load():
        for _ in range(3):
            before = len(fleet.acknowledged)
            await asyncio.sleep(0.6)
            assert len(fleet.acknowledged) > before
            server.kill()
            await asyncio.to_thread(server.start)
        await asyncio.sleep(0.3)
    assert fleet.unknown
    assert await fleet.lost(fleet.ledgers[0]) == set()
    assert await fleet.undercounted_bits(fleet.ledgers[0]) == {}
    for guard, reports in guards:
        await guard.states()
        assert reports == []


async def test_a_standby_that_is_promoted_when_its_synchronous_primary_died_knows_all_that_was_acknowledged(
    server, standby, link, opened
):
    await make_synchronous(server)
    guards = [guarded(opened(server, standby, standbys=1)) for _ in range(2)]
    fleet = Fleet(*(guard for guard, _ in guards))
    await register(fleet.ledgers[0])
    await register(fleet.ledgers[1])
    async with fleet.under_load():
        await asyncio.sleep(1)
        link.stall()
        await asyncio.sleep(0.1)  # what was under way
        stalled = len(fleet.acknowledged)
        await asyncio.sleep(0.5)
        assert len(fleet.acknowledged) == stalled > 0
        server.kill()
        await link.close()
        await asyncio.to_thread(standby.promote)
        # The new primary has no standby yet, and so nothing is granted by gateways that want one.
        with pytest.raises(LedgerUnavailable, match="standbys"):
            await fleet.ledgers[0].states()
    survivor, reports = guarded(opened(standby), fences=guards[0][0].fences)
    await register(survivor)
    assert await fleet.lost(survivor) == set()
    assert await fleet.undercounted_bits(survivor) == {}
    assert reports == []
    assert isinstance(await grant(survivor, "new", *ACCOUNTS), Granted)


async def test_an_asynchronous_standby_that_lagged_has_exactly_the_accounts_frozen_that_it_forgot(
    server, standby, link, opened
):
    guard, reports = guarded(opened(server, standby))
    await register(guard)
    for number, name in enumerate(ACCOUNTS):
        await grant(guard, f"early{number}", name)
    await caught_up(server)
    link.stall()
    for number in range(20):
        await grant(guard, f"late{number}", "a1", "a3")
    server.kill()
    await link.close()
    await asyncio.to_thread(standby.promote)
    states = {state.account: state for state in await until_answered(guard.states)}
    assert {name for name, state in states.items() if state.frozen} == {"a1", "a3"}
    assert reports == [{"a1": 21, "a3": 21}]
    assert states["a1"].debited_bits == BITS  # forgotten indeed
    for name in ACCOUNTS:
        if name in {"a1", "a3"}:
            with pytest.raises(AccountFrozen):
                await grant(guard, f"new {name}", name)
        else:
            assert isinstance(await grant(guard, f"new {name}", name), Granted)
    assert await guard.thaw("a1", lost_bits=20 * BITS)
    assert dict((await grant(guard, "thawed", "a1")).fences) == {"a1": 23}
    assert {s.account: s.debited_bits for s in await guard.states(["a1"])} == {"a1": 22 * BITS}


async def test_a_grant_by_a_promoted_standby_that_lagged_is_noticed_even_before_its_states_are_read(
    server, standby, link, opened
):
    guard, reports = guarded(opened(server, standby))
    await register(guard)
    await caught_up(server)
    link.stall()
    for number in range(3):
        await grant(guard, f"late{number}", "a1")
    server.kill()
    await link.close()
    await asyncio.to_thread(standby.promote)

    async def ask():
        with pytest.raises(AccountFrozen):
            await grant(guard, "new", "a1", "a2")

    await until_answered(ask)
    assert reports == [{"a1": 3}]
    assert isinstance(await grant(guard, "other", "a2"), Granted)


@pytest.fixture
async def backup(directory, server, opened):
    """What the server knew when only a0 and a1 had been granted something, by lease l1."""
    ledger = opened(server)
    await register(ledger, "a0", "a1")
    await grant(ledger, "l1", "a0", "a1")
    backup = Postgres(directory, name="backup")
    await asyncio.to_thread(backup.copy_of, server.port)
    (backup.data / "standby.signal").unlink()
    yield backup
    backup.end()


async def test_a_restored_backup_has_the_accounts_frozen_that_were_used_since(server, backup, opened):
    guard, _ = guarded(opened(server))
    await register(guard, "a0", "a1", "a2", "a3")
    await guard.states()
    await grant(guard, "l2", "a1", "a2")
    server.kill()
    await asyncio.to_thread(backup.start)
    restarted, reports = guarded(opened(backup), fences=guard.fences)
    await register(restarted, "a0", "a1", "a2", "a3")
    assert reports == [{"a1": 2, "a2": 1}]
    for name, frozen in (("a0", False), ("a1", True), ("a2", True), ("a3", False)):
        with pytest.raises(AccountFrozen) if frozen else contextlib.nullcontext():
            await grant(restarted, f"new {name}", name)


async def test_a_restored_backup_is_found_out_even_where_a_new_gateway_has_overtaken_what_was_seen(
    server, backup, opened
):
    guard, reports = guarded(opened(server, backup))
    await register(guard, "a0", "a1", "a2")
    await grant(guard, "kept by nobody", "a1", "a2")
    await grant(guard, "l2", "a1", "a2")
    server.kill()
    await asyncio.to_thread(backup.start)
    newcomer = opened(backup)
    await register(newcomer, "a0", "a1", "a2")
    for number in range(4):
        await grant(newcomer, f"new{number}", "a0", "a1", "a2")
    await guard.states()
    assert reports == []
    await guard.check()
    assert {name for report in reports for name in report} == {"a1", "a2"}
    assert isinstance(await grant(newcomer, "newest", "a0"), Granted)


async def test_a_grant_whose_wait_for_the_standby_is_cancelled_is_unknown_until_a_standby_has_it(
    server, standby, link, opened, monkeypatch
):
    await make_synchronous(server)
    ledger = opened(server, standbys=1)
    await register(ledger, "a0", "a1")
    link.stall()
    granting = asyncio.create_task(grant(ledger, "doubtful", "a0"))
    waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await until(lambda: server.psql(waiting) == ["t"])
    with pytest.raises(LedgerUnavailable, match="warned"):
        await granting
    assert server.psql("SELECT debited_bits FROM weir.account WHERE id = 'a0'") == [
        str(BITS)
    ]  # it did commit, here alone
    # Reading it back, or reading anything, is no better than the first answer while the standby does not have it.
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    for ask in (lambda: grant(ledger, "doubtful", "a0"), ledger.states):
        with pytest.raises(LedgerUnavailable):
            await ask()
    monkeypatch.setattr(postgres_server, "ANSWER_S", 5.0)
    link.flow()
    assert dict((await grant(ledger, "doubtful", "a0")).bits) == {"a0": BITS}
    await caught_up(server)
    assert standby.psql("SELECT debited_bits FROM weir.account WHERE id = 'a0'") == [str(BITS)]


async def test_a_primary_whose_standby_went_away_grants_again_when_it_is_back(
    server, standby, link, opened, monkeypatch
):
    monkeypatch.setattr(postgres_server, "CHECK_S", 0.0)
    monkeypatch.setattr(postgres_server, "ANSWER_S", 1.0)
    await make_synchronous(server)
    ledger = opened(server, standbys=1)
    await register(ledger, "a0")
    standby.kill()
    await until(lambda: server.psql("SELECT count(*) FROM pg_stat_replication") == ["0"])
    with pytest.raises(LedgerUnavailable, match="0 synchronous standbys are connected, and the policy asks for 1"):
        await grant(ledger, "l1", "a0")
    await asyncio.to_thread(standby.start)
    await until_answered(lambda: grant(ledger, "l1", "a0"))
    assert {state.account: state.debited_bits for state in await ledger.states()} == {"a0": BITS}


async def test_a_standby_is_not_written_to(server, standby, opened):
    await register(opened(server))
    by_name = PostgresLedger(standby.url(), log=lambda *_: None)
    with pytest.raises(LedgerUnavailable, match="it is a standby: name the primary"):
        await by_name.states()
    await by_name.close()


async def until_answered(ask):
    """The answer, once the servers have come round."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except AccountFrozen:
                raise
            except LedgerUnavailable:
                await asyncio.sleep(0.05)
