"""The ledger on PostgreSQL: what it asks of a server, and what it makes of answers that are none."""

import asyncio
import time

import asyncpg
import pytest

from gateway.ledger import postgres_server
from gateway.ledger.postgres import PostgresLedger
from gateway.ports import AccountLimit, Granted, LedgerUnavailable, OverLimit, Wanted
from policy.budget import Step
from tests.postgres import Link, free_port


@pytest.fixture
def url(databases):
    return databases.new()


@pytest.fixture
async def admin(url):
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def open_ledger(url):
    """Open a ledger on the test's database; it is closed with the test."""
    opened = []

    def open_ledger(url=url, **options):
        opened.append(PostgresLedger(url, log=lambda *_: None, **options))
        return opened[-1]

    yield open_ledger
    await asyncio.gather(*(ledger.close() for ledger in opened))


@pytest.fixture
async def ledger(open_ledger):
    ledger = open_ledger()
    await register(ledger, "a", "b")
    return ledger


async def register(ledger, *accounts, limit_bits=10**9):
    return await ledger.register([AccountLimit(account=name, limit_bits=limit_bits) for name in accounts])


async def grant(ledger, lease, *accounts, bits=10):
    wanted = {name: Wanted(least_bits=bits, most_bits=bits) for name in accounts or ("a",)}
    return await ledger.grant(lease=lease, holder="h", wanted=wanted)


async def debited(ledger):
    return {state.account: state.debited_bits for state in await ledger.states()}


# What is asked of a server.


@pytest.mark.parametrize(
    ("setting", "standbys", "message"),
    [
        ("fsync = off", 0, "fsync is off: set fsync = on"),
        ("full_page_writes = off", 0, "full_page_writes is off: set full_page_writes = on"),
        ("synchronous_commit = off", 0, "synchronous_commit is off: set synchronous_commit = on, for the role too"),
        ("synchronous_commit = local", 0, "synchronous_commit is local"),
        ("synchronous_commit = remote_write", 0, "synchronous_commit is remote_write"),
        ("synchronous_standby_names = ''", 1, r"wait for 0 standbys, and the policy asks for 1: set synchronous_standby_names = 'ANY 1"),
        ("synchronous_standby_names = 's1, s2'", 2, "wait for 1 standbys, and the policy asks for 2"),
        ("synchronous_standby_names = 'FIRST 1 (s1, s2)'", 2, "wait for 1 standbys"),
        ("synchronous_standby_names = 'ANY 2 (s1, s2)'", 2, "0 synchronous standbys are connected, and the policy asks for 2"),
        ("synchronous_standby_names = '*'", 1, "0 synchronous standbys are connected"),
    ],
)  # fmt: skip
async def test_a_server_that_may_lose_what_it_acknowledges_is_refused_with_what_to_set(
    databases, open_ledger, monkeypatch, setting, standbys, message
):
    monkeypatch.setattr(postgres_server, "CHECK_S", 0.0)
    ledger = open_ledger(standbys=0)
    await register(ledger, "a")
    strict = open_ledger(standbys=standbys)
    databases.server.psql(f"ALTER SYSTEM SET {setting}")
    databases.server.psql("SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(0.1)  # until every backend has read it
        with pytest.raises(LedgerUnavailable, match=message):
            await grant(strict, "l1")
        if not standbys:  # a connection that was good before is looked at again
            with pytest.raises(LedgerUnavailable, match=message):
                await grant(ledger, "l1")
    finally:
        databases.server.psql("ALTER SYSTEM RESET ALL")
        databases.server.psql("SELECT pg_reload_conf()")
    await asyncio.sleep(0.1)
    assert isinstance(await grant(ledger, "l1"), Granted)


async def test_settings_of_the_role_count(admin, open_ledger):
    await admin.execute("CREATE ROLE hasty LOGIN; ALTER ROLE hasty SET synchronous_commit = off")
    ledger = open_ledger(open_ledger()._server._url.replace("postgres@", "hasty@"))
    with pytest.raises(LedgerUnavailable, match="for the role too"):
        await ledger.states()


async def test_a_pooler_that_drops_the_settings_of_a_session_is_refused(open_ledger, monkeypatch):
    monkeypatch.delitem(postgres_server.SETTINGS, "client_min_messages")
    with pytest.raises(LedgerUnavailable, match="not through a pooler"):
        await open_ledger().states()


async def test_a_server_that_is_too_old_is_refused(open_ledger, monkeypatch):
    monkeypatch.setattr(postgres_server, "VERSION_MIN", 990_000)
    with pytest.raises(LedgerUnavailable, match="15 or later is needed"):
        await open_ledger().states()


async def test_a_server_without_checksums_is_used_and_said_to_be_one(databases, url, monkeypatch):
    query = postgres_server._SETTINGS_QUERY.replace("current_setting('data_checksums')", "'off'")
    monkeypatch.setattr(postgres_server, "_SETTINGS_QUERY", query)
    said = []
    ledger = PostgresLedger(url, log=said.append)
    await register(ledger, "a")
    await ledger.close()
    assert "no data checksums" in said[0]


async def test_standbys_that_the_role_may_not_see_are_asked_for(databases, admin, open_ledger, url):
    await admin.execute("CREATE ROLE blind LOGIN")
    databases.server.psql("ALTER SYSTEM SET synchronous_standby_names = 's1'")
    databases.server.psql("SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(0.1)
        with pytest.raises(LedgerUnavailable, match="GRANT pg_read_all_stats TO blind"):
            await open_ledger(url.replace("postgres@", "blind@"), standbys=1).states()
    finally:
        databases.server.psql("ALTER SYSTEM RESET ALL")
        databases.server.psql("SELECT pg_reload_conf()")


async def test_gateways_that_begin_together_make_one_schema(open_ledger, admin):
    ledgers = [open_ledger() for _ in range(6)]
    await asyncio.gather(*(register(ledger, "a") for ledger in ledgers))
    assert await admin.fetch("SELECT version FROM weir.migration") == [(postgres_server.SCHEMA_VERSION,)]


async def test_a_schema_that_a_newer_program_made_is_refused(ledger, open_ledger, admin):
    await admin.execute("INSERT INTO weir.migration (version) VALUES (99)")
    with pytest.raises(LedgerUnavailable, match="schema version 99"):
        await open_ledger().states()


async def test_a_role_with_only_the_documented_rights_can_work_and_cannot_change_the_books(
    ledger, open_ledger, admin, url
):
    await admin.execute(
        "CREATE ROLE teller LOGIN; GRANT USAGE ON SCHEMA weir TO teller; GRANT SELECT ON weir.migration TO teller"
    )
    teller = open_ledger(url.replace("postgres@", "teller@"))
    await register(teller, "a")
    await grant(teller, "l1", "a", "b")
    assert set(await teller.close_lease(lease="l1", holder="h", returned={"a": 1, "b": 1})) == {"a", "b"}
    assert await teller.beat("h") == 1
    assert await teller.idle_s("h") < 10
    await teller.freeze({"a": 9})
    assert await teller.thaw("a", lost_bits=1)
    assert len(await teller.leases()) == 1
    assert await debited(teller) == {"a": 10, "b": 9}
    by_hand = await asyncpg.connect(url.replace("postgres@", "teller@"))
    for statement in (
        "UPDATE weir.account SET debited_bits = 0",
        "DELETE FROM weir.lease",
        "SELECT * FROM weir.account",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await by_hand.execute(statement)
    await by_hand.close()


# What the schema holds by itself.


async def test_no_row_says_more_debited_than_the_limit_even_by_hand(ledger, admin):
    for change in ("debited_bits = limit_bits + 1", "debited_bits = -1", "limit_bits = wanted_limit_bits - 1"):
        with pytest.raises(asyncpg.CheckViolationError):
            await admin.execute(f"UPDATE weir.account SET {change}")


async def test_every_change_of_a_limit_is_kept_for_good(ledger, admin):
    for limit_bits in (5, 5, 7):
        await register(ledger, "a", limit_bits=limit_bits)
    step = Step(series="s", number=1, steps=3)
    await ledger.register([AccountLimit(account="s1", limit_bits=3, step=step)])
    rows = await admin.fetch("SELECT account, from_bits, to_bits FROM weir.limit_change ORDER BY at")
    assert [tuple(row) for row in rows] == [
        ("a", None, 10**9), ("b", None, 10**9), ("a", 10**9, 5), ("a", 5, 7), ("s", None, 3),
    ]  # fmt: skip
    for statement in (
        "UPDATE weir.limit_change SET to_bits = 1",
        "DELETE FROM weir.limit_change",
        "TRUNCATE weir.limit_change",
    ):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await admin.execute(statement)


# Answers that are none.


async def test_a_warning_makes_the_outcome_unknown_and_the_lease_tells_it_later(ledger, admin):
    await admin.execute(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'doubt'; RETURN NEW; END $$;"
        "CREATE TRIGGER warn BEFORE INSERT ON weir.lease FOR EACH ROW EXECUTE FUNCTION warn()"
    )
    with pytest.raises(LedgerUnavailable, match="doubt"):
        await grant(ledger, "l1")
    assert ledger._server._idle == []  # the connection is not used again
    assert dict((await grant(ledger, "l1")).fences) == {"a": 1}
    assert await debited(ledger) == {"a": 10, "b": 0}


async def test_an_answer_that_is_told_again_waits_for_the_disk_like_the_first(ledger, admin):
    await grant(ledger, "l1")
    await ledger.close_lease(lease="l1", holder="h", returned={})
    await ledger.freeze({"b": 1})
    await ledger.thaw("b", lost_bits=0)
    for again in (
        lambda: grant(ledger, "l1"),
        lambda: ledger.close_lease(lease="l1", holder="h", returned={}),
        lambda: ledger.thaw("b", lost_bits=0),
        lambda: ledger.freeze({"b": 1}),
        lambda: register(ledger, "a"),
        ledger.states,
    ):
        before = await admin.fetchval("SELECT pg_current_wal_flush_lsn()")
        await again()
        assert await admin.fetchval("SELECT pg_current_wal_flush_lsn()") > before


async def test_a_row_that_stays_locked_is_a_refusal_in_time(ledger, admin, open_ledger, monkeypatch):
    monkeypatch.setitem(postgres_server.SETTINGS, "lock_timeout", "200")
    quick = open_ledger()
    async with admin.transaction():
        await admin.execute("SELECT FROM weir.account WHERE id = 'a' FOR UPDATE")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            await grant(quick, "l1")
        assert isinstance(await grant(quick, "l2", "b"), Granted)
    assert isinstance(await grant(quick, "l1"), Granted)
    assert await debited(quick) == {"a": 10, "b": 10}


async def test_what_is_not_awaited_any_more_is_not_cancelled_and_takes_no_more_than_its_connections(
    admin, open_ledger, monkeypatch
):
    monkeypatch.setitem(postgres_server.SETTINGS, "lock_timeout", "0")
    monkeypatch.setitem(postgres_server.SETTINGS, "statement_timeout", "0")
    ledger = open_ledger()
    await register(ledger, "a")
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    async with admin.transaction():
        await admin.execute("SELECT FROM weir.account WHERE id = 'a' FOR UPDATE")
        for number in range(6):
            began_s = time.monotonic()
            with pytest.raises(LedgerUnavailable, match="did not answer"):
                await grant(ledger, f"l{number}")
            assert time.monotonic() - began_s < 2
        cancelled = asyncio.ensure_future(grant(ledger, "l6"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'weir' AND wait_event_type = 'Lock'"
        assert await admin.fetchval(busy) == postgres_server.CONNECTIONS_MAX
    monkeypatch.setattr(postgres_server, "ANSWER_S", 5.0)
    async with asyncio.timeout(10):
        while len(await ledger.leases()) < postgres_server.CONNECTIONS_MAX:  # noqa: ASYNC110  the server has no event to wait for
            await asyncio.sleep(0.02)
    assert len(await ledger.leases()) == postgres_server.CONNECTIONS_MAX  # what was sent happened, the others did not
    assert await debited(ledger) == {"a": 10 * postgres_server.CONNECTIONS_MAX}
    assert isinstance(await grant(ledger, "l0"), Granted)
    assert await debited(ledger) == {"a": 10 * postgres_server.CONNECTIONS_MAX}


async def test_a_connection_that_never_answers_is_broken_in_the_end(admin, open_ledger, monkeypatch):
    monkeypatch.setitem(postgres_server.SETTINGS, "lock_timeout", "0")
    ledger = open_ledger()
    await register(ledger, "a", "b")
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.2)
    monkeypatch.setattr(postgres_server, "PATIENCE_S", 0.6)
    async with admin.transaction():
        await admin.execute("SELECT FROM weir.account WHERE id = 'a' FOR UPDATE")
        for number in range(postgres_server.CONNECTIONS_MAX):
            with pytest.raises(LedgerUnavailable):
                await grant(ledger, f"l{number}")
        monkeypatch.setattr(postgres_server, "ANSWER_S", 5.0)
        assert isinstance(await grant(ledger, "other", "b"), Granted)


async def test_a_server_that_is_away_is_said_so_at_once_and_used_when_it_is_back(databases, open_ledger, url):
    link = await Link(databases.server.port).open()
    ledger = open_ledger(url.replace(str(databases.server.port), str(link.port)))
    await register(ledger, "a")
    await link.close()
    for _ in range(3):
        began_s = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            await grant(ledger, "l1")
        assert time.monotonic() - began_s < 2
    again = await Link(databases.server.port).open(link.port)
    assert isinstance(await grant(ledger, "l1"), Granted)
    await again.close()


async def test_a_server_that_says_nothing_is_given_up_in_bounded_time(databases, open_ledger, url, monkeypatch):
    monkeypatch.setattr(postgres_server, "CONNECT_S", 0.2)
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    link = await Link(databases.server.port).open()
    link.stall()
    ledger = open_ledger(url.replace(str(databases.server.port), str(link.port)))
    began_s = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        await ledger.states()
    assert time.monotonic() - began_s < 2
    link.flow()
    monkeypatch.undo()
    await register(ledger, "a")
    link.stall()
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    with pytest.raises(LedgerUnavailable):
        await grant(ledger, "l1")
    link.flow()
    monkeypatch.undo()
    assert isinstance(await grant(ledger, "l1"), Granted)
    assert await debited(ledger) == {"a": 10}
    await link.close()


async def test_connections_that_the_server_ended_are_replaced(ledger, admin):
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'weir'"
    assert await admin.fetchval(ended) > 0
    await asyncio.sleep(0.1)
    assert isinstance(await grant(ledger, "l1"), Granted)


async def test_of_several_hosts_the_one_that_may_be_written_is_found(databases, open_ledger, url):
    several = url.replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1") + "?target_session_attrs=read-write"
    assert await register(open_ledger(several), "a") == []


async def test_nothing_is_connected_before_it_is_needed_and_nothing_after_it_is_closed(admin, open_ledger):
    ledger = open_ledger()
    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'weir' AND datname = current_database()"
    assert await admin.fetchval(connected) == 0
    await register(ledger, "a")
    assert await admin.fetchval(connected) == 1
    await ledger.close()
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.states()
    await asyncio.sleep(0.1)
    assert await admin.fetchval(connected) == 0


async def test_a_password_is_never_shown(databases, admin, url, monkeypatch, caplog):
    """Neither the right one nor a wrong one, wherever it came from."""
    await admin.execute("CREATE ROLE guarded LOGIN PASSWORD 'right-Secret'")
    rules = databases.server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + before)
    databases.server.psql("SELECT pg_reload_conf()")
    said = []
    try:
        await asyncio.sleep(0.1)
        for address, environment, fits in (
            (url.replace("postgres@", "guarded:wrong-Secret@"), "", False),
            (url.replace("postgres@", "guarded@"), "wrong-Secret", False),
            (
                url.replace("postgres@", "guarded@").replace("127.0.0.1", "127.0.0.1:1:wrong-Secret"),
                "wrong-Secret",
                False,
            ),
            (url.replace("postgres@", "guarded@"), "right-Secret", True),
        ):
            monkeypatch.setenv("PGPASSWORD", environment)
            ledger = PostgresLedger(address, log=lambda *args, **fields: said.append(f"{args} {fields}"))
            with pytest.raises(LedgerUnavailable) as refused:
                await ledger.states()
            said.append(f"{refused.value} {refused.value!r} {ledger!r}")
            assert ("permission denied" in str(refused.value)) == fits  # it came in, and may not make a schema
            await ledger.close()
    finally:
        rules.write_text(before)
        databases.server.psql("SELECT pg_reload_conf()")
    assert "Secret" not in "".join(said) + caplog.text


# Many at once.


async def test_two_gateways_that_race_for_one_account_never_get_more_than_its_limit(open_ledger):
    gateways = [open_ledger(), open_ledger()]
    await register(gateways[0], "a", limit_bits=1000)
    answers = await asyncio.gather(*(grant(gateways[n % 2], f"l{n}", bits=7) for n in range(300)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 1000 // 7
    assert await debited(gateways[1]) == {"a": 1000 // 7 * 7}
    fences = [answer.fences["a"] for answer in answers if isinstance(answer, Granted)]
    assert sorted(fences) == list(range(1, 1000 // 7 + 1))


async def test_two_gateways_that_ask_for_one_lease_at_once_get_the_same(open_ledger):
    gateways = [open_ledger(), open_ledger()]
    await register(gateways[0], "a", "b")
    for number in range(20):
        one, other, overlapping = await asyncio.gather(
            grant(gateways[0], f"l{number}"), grant(gateways[1], f"l{number}"), grant(gateways[1], f"l{number}", "b")
        )
        assert one.bits == other.bits == overlapping.bits
        assert one.fences == other.fences == overlapping.fences
    assert sum((await debited(gateways[0])).values()) == 200


async def test_accounts_and_windows_in_opposite_orders_do_not_block_each_other(open_ledger, admin):
    gateways = [open_ledger(), open_ledger()]
    names = ["a", "b", "c", "s1", "s2", "t1"]
    step = {name: Step(series=name[0], number=int(name[1]), steps=3) for name in names if len(name) > 1}
    limits = [AccountLimit(account=name, limit_bits=10**9, step=step.get(name)) for name in names]

    async def work(number):
        gateway, order = gateways[number % 2], names if number % 2 else names[::-1]
        order = [name for name in order if name != ("s1" if number % 3 else "s2")]
        await gateway.register(limits if number % 2 else limits[::-1])
        assert isinstance(await grant(gateway, f"l{number}", *order), Granted)
        closed = await gateway.close_lease(lease=f"l{number}", holder="h", returned=dict.fromkeys(order, 10))
        assert set(closed) == set(order)

    await gateways[0].register(limits)
    await asyncio.gather(*(work(number) for number in range(80)))
    assert set((await debited(gateways[0])).values()) == {0}
    assert await admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_a_refusal_is_as_good_as_an_answer(ledger):
    assert await grant(ledger, "l1", bits=10**10) == OverLimit(account="a", remaining_bits=10**9)
    assert len(ledger._server._idle) == 1
