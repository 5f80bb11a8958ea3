"""Connections to a PostgreSQL server, and what may be believed of them: only what every server and setting keeps for good.

PostgreSQL answers a commit whose wait for a standby was cancelled with success and a mere warning, and asyncpg has the server
cancel whatever a cancelled task was waiting for. Hence: a statement that has been sent is never cancelled from here, a
warning makes its outcome unknown, and so does everything else that is not a plain answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import asyncpg

from gateway.ports import LedgerUnavailable

VERSION_MIN = 15_00_00
CONNECTIONS_MAX = 4  # a gateway asks a few times a second; and so many wait at most in a server whose standby is away
CONNECT_S = 2.0  # for one host of several
ANSWER_S = 5.0  # what a caller waits, all in all; afterwards what was asked is unknown
PATIENCE_S = 60.0  # then a connection whose answer nobody awaits any more is broken; a dead standby is noticed as soon
CHECK_S = 60.0  # between two looks at the settings
SETTINGS = {
    "application_name": "weir",
    "client_min_messages": "warning",  # a role may have set it higher, and the warning would not come
    "default_transaction_isolation": "read committed",  # a statement must see what the lock before it waited for
    "lock_timeout": "2000",  # ms; a row may be locked by a commit that waits for its standby
    "statement_timeout": "4000",  # ms; ends before ANSWER_S, and with certainty: it does not reach into a commit
}
MIGRATIONS = ("postgres.sql",)  # from version 0 to 1, and so on
SCHEMA_VERSION = len(MIGRATIONS)
MIGRATION_LOCK = 0x57454952  # of all advisory locks, the one that nobody else takes by chance

Row = Mapping[str, Any]
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)

_SETTINGS_QUERY = """
SELECT current_setting('server_version_num')::integer AS version,
    current_setting('server_version') AS version_name,
    pg_is_in_recovery() AS standby,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('data_checksums') AS data_checksums,
    current_setting('synchronous_standby_names') AS standby_names,
    current_setting('client_min_messages') AS client_min_messages,
    current_user AS role,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS standbys,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_standbys
"""


@dataclass(slots=True, eq=False)
class _Link:
    connection: asyncpg.Connection
    checked_s: float | None = None  # by the loop's clock
    warning: str | None = None


class Server:
    """The server, wherever it is now. `standbys`: how many must have a commit before it is believed."""

    def __init__(self, url: str, *, standbys: int, log: Callable[..., None]) -> None:
        self._url = url
        self._standbys = standbys
        self._log = log
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._links: set[_Link] = set()
        self._idle: list[_Link] = []
        self._running: set[asyncio.Task[Sequence[Row]]] = set()
        self._closed = False
        self._unchecked_said = False

    async def ask(self, statement: str, *arguments: object) -> Sequence[Row]:
        """The answer to one statement, in its own transaction. Raises `LedgerUnavailable`; then anything may have happened."""
        try:
            async with asyncio.timeout(ANSWER_S):
                link = await self._link()
                running = asyncio.create_task(self._run(link, statement, arguments))
                self._running.add(running)
                running.add_done_callback(self._ran)
                return await asyncio.shield(running)
        except TimeoutError as fault:
            raise LedgerUnavailable(f"the ledger's server did not answer within {ANSWER_S:.0f} s") from fault

    async def close(self) -> None:
        """Wait for what is running, but not long; then break all connections."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=ANSWER_S)
        for link in list(self._links):
            self._drop(link)
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, link: _Link, statement: str, arguments: Sequence[object]) -> Sequence[Row]:
        """Send a statement and see it through, whether or not anybody still waits. Its end frees the slot of `link`."""
        # Not a timeout: that would cancel the statement, and so the wait for the standby. A broken connection does not.
        end = asyncio.get_running_loop().call_later(PATIENCE_S, link.connection.terminate)
        try:
            rows = await link.connection.fetch(statement, *arguments)
            if link.warning is not None:
                raise LedgerUnavailable(f"the ledger's server warned: {link.warning}")
        except _FAULTS as fault:
            self._drop(link)
            raise _unavailable(fault) from fault
        except BaseException:
            self._drop(link)
            raise
        else:
            self._idle.append(link)
            return [dict(row) for row in rows]
        finally:
            end.cancel()
            self._slots.release()

    def _ran(self, running: asyncio.Task[Sequence[Row]]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            running.exception()  # whoever asked may be gone

    async def _link(self) -> _Link:
        """A connection that was checked of late, and a slot that is held for it."""
        await self._slots.acquire()
        link = None
        try:
            if self._closed:
                raise LedgerUnavailable("the ledger is closed")
            link = self._take() or await self._connect()
            if link.checked_s is None or asyncio.get_running_loop().time() - link.checked_s > CHECK_S:
                await self._check(link)
        except BaseException as fault:
            if link is not None:
                self._drop(link)
            self._slots.release()
            if isinstance(fault, _FAULTS):
                raise _unavailable(fault) from fault
            raise
        return link

    def _take(self) -> _Link | None:
        while self._idle:
            link = self._idle.pop()
            if not link.connection.is_closed():
                return link
            self._drop(link)
        return None

    def _drop(self, link: _Link) -> None:
        self._links.discard(link)
        link.connection.terminate()

    async def _connect(self) -> _Link:
        try:
            connection = await asyncpg.connect(self._url, timeout=CONNECT_S, server_settings=SETTINGS)
        except asyncpg.InterfaceError:
            raise
        except ValueError:  # it would quote the address, which may hold a password where no policy has read it
            raise LedgerUnavailable("the ledger's server: its address cannot be read") from None
        link = _Link(connection)
        self._links.add(link)

        def on_message(_: object, message: asyncpg.PostgresLogMessage) -> None:
            link.warning = str(message)

        connection.add_log_listener(on_message)
        return link

    async def _check(self, link: _Link) -> None:
        """Raise `LedgerUnavailable` unless this server keeps what it acknowledges, and has our schema."""
        [found] = await link.connection.fetch(_SETTINGS_QUERY)
        mistakes = list(_mistakes(found, standbys=self._standbys))
        if mistakes:
            raise LedgerUnavailable(f"the ledger's server cannot be relied on: {'; '.join(mistakes)}")
        if found["data_checksums"] != "on" and not self._unchecked_said:
            self._unchecked_said = True
            self._log("the ledger's server has no data checksums: initdb --data-checksums, or pg_checksums --enable")
        if link.checked_s is None:
            await _migrate(link.connection)
        link.checked_s = asyncio.get_running_loop().time()


def _mistakes(found: Row, *, standbys: int) -> Iterator[str]:
    """What is wrong with a server's settings, and what to set."""
    if found["version"] < VERSION_MIN:
        yield f"it is PostgreSQL {found['version_name']}, and 15 or later is needed"
    if found["standby"]:
        yield "it is a standby: name the primary, or all servers and target_session_attrs=read-write"
        return
    for name in ("fsync", "full_page_writes"):
        if found[name] != "on":
            yield f"{name} is {found[name]}: set {name} = on"
    if found["synchronous_commit"] not in {"on", "remote_apply"}:
        yield f"synchronous_commit is {found['synchronous_commit']}: set synchronous_commit = on, for the role too"
    if found["client_min_messages"] != "warning":
        yield "it does not keep the settings of a session: connect to it directly, not through a pooler"
    if standbys == 0:
        return
    awaited = _awaited(found["standby_names"])
    if awaited < standbys:
        yield (
            f"commits wait for {awaited} standbys, and the policy asks for {standbys}: set"
            f" synchronous_standby_names = 'ANY {standbys} (name, ...)'"
        )
    elif not found["sees_standbys"]:
        yield f"its standbys are hidden from this role: GRANT pg_read_all_stats TO {found['role']}"
    elif found["standbys"] < standbys:
        yield f"{found['standbys']} synchronous standbys are connected, and the policy asks for {standbys}"


def _awaited(standby_names: str) -> int:
    """For how many standbys a commit waits, from `synchronous_standby_names`; a plain list awaits its first."""
    if not standby_names.strip():
        return 0
    number = re.match(r"\s*(?:(?:ANY|FIRST)\b)?\s*(\d+)\s*\(", standby_names, flags=re.IGNORECASE)
    return int(number[1]) if number is not None else 1


async def _migrate(connection: asyncpg.Connection) -> None:
    """Bring the schema up to date. A crash in between leaves the version that was there."""
    if await _version(connection) == SCHEMA_VERSION:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        await connection.execute("CREATE SCHEMA IF NOT EXISTS weir")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS weir.migration"
            " (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        for version in range(await _version(connection), SCHEMA_VERSION):  # again: somebody may have been faster
            script = resources.files("gateway.ledger").joinpath(MIGRATIONS[version]).read_text()
            await connection.execute(script)
            await connection.execute("INSERT INTO weir.migration (version) VALUES ($1)", version + 1)


async def _version(connection: asyncpg.Connection) -> int:
    if await connection.fetchval("SELECT to_regclass('weir.migration')") is None:
        return 0
    version: int = await connection.fetchval("SELECT coalesce(max(version), 0) FROM weir.migration")
    if version > SCHEMA_VERSION:
        raise LedgerUnavailable(
            f"the ledger has schema version {version}; this program knows {SCHEMA_VERSION} and earlier ones"
        )
    return version


def _unavailable(fault: BaseException) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger's server: {str(fault) or type(fault).__name__}")
