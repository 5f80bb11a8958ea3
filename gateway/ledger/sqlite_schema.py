"""The tables of the SQLite ledger, and how files of earlier versions are taken over."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import apsw

from gateway.ports import LedgerUnavailable

SCHEMA_VERSION = 3

# `limit_bits` is what holds now: the limit that was set, or what is debited where that is more. The constraint between the
# two is a second wall: no statement of ours gets there, and if one did, it would fail.
_TABLES = """
CREATE TABLE account (
    id                TEXT PRIMARY KEY,
    wanted_limit_bits INTEGER NOT NULL CHECK (wanted_limit_bits >= 0),
    limit_bits        INTEGER NOT NULL CHECK (limit_bits >= wanted_limit_bits),
    debited_bits      INTEGER NOT NULL DEFAULT 0 CHECK (debited_bits BETWEEN 0 AND limit_bits),
    fence             INTEGER NOT NULL DEFAULT 0,
    frozen_fence      INTEGER,  -- set while the account is frozen: the highest fence that was seen and forgotten
    series            TEXT REFERENCES account (id),  -- of one step of a sliding window, as the next two
    step              INTEGER,
    steps             INTEGER,
    newest_step       INTEGER NOT NULL DEFAULT 0  -- of a series
) STRICT;
CREATE INDEX step_of_series ON account (series, step) WHERE series IS NOT NULL;
CREATE TABLE lease (
    id         TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    codes      TEXT NOT NULL,  -- digest of the code set that its bits are counted under
    granted_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ'))
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_of_holder ON lease (holder);
CREATE TABLE lease_amount (
    lease         TEXT NOT NULL REFERENCES lease (id),
    account       TEXT NOT NULL REFERENCES account (id),
    bits          INTEGER NOT NULL CHECK (bits >= 0),
    fence         INTEGER NOT NULL,  -- the number of this grant in the account or, of a step, in its series
    returned_bits INTEGER CHECK (returned_bits BETWEEN 0 AND bits),  -- NULL while it is open
    PRIMARY KEY (lease, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE holder (
    id        TEXT PRIMARY KEY,
    seen_at_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE limit_change (
    at        TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    account   TEXT NOT NULL,
    from_bits INTEGER NOT NULL,
    to_bits   INTEGER NOT NULL
) STRICT;
CREATE TRIGGER limit_change_is_not_changed BEFORE UPDATE ON limit_change
    BEGIN SELECT raise(ABORT, 'limit changes are only appended'); END;
CREATE TRIGGER limit_change_is_not_deleted BEFORE DELETE ON limit_change
    BEGIN SELECT raise(ABORT, 'limit changes are only appended'); END;
"""

_SET_ASIDE = """
ALTER TABLE lease_amount RENAME TO lease_amount_2;
ALTER TABLE lease RENAME TO lease_2;
ALTER TABLE account RENAME TO account_2;
"""
# A lease of version 2 was closed as a whole and had one fence, the highest of its accounts'. An account's own grant cannot
# have had a higher number than the account has now.
_TAKE_OVER = """
INSERT INTO account (id, wanted_limit_bits, limit_bits, debited_bits, fence)
    SELECT id, limit_bits, limit_bits, debited_bits, fence FROM account_2;
INSERT INTO lease (id, holder, codes, granted_at) SELECT id, holder, codes, granted_at FROM lease_2;
INSERT INTO lease_amount (lease, account, bits, fence, returned_bits)
    SELECT amount.lease, amount.account, amount.bits, min(lease_2.fence, account.fence),
        CASE WHEN lease_2.closed_at IS NULL THEN NULL ELSE amount.returned_bits END
    FROM lease_amount_2 AS amount
    JOIN lease_2 ON lease_2.id = amount.lease
    JOIN account ON account.id = amount.account;
DROP TABLE lease_amount_2;
DROP TABLE lease_2;
DROP TABLE account_2;
"""
# By the version that they start from, to the next one; an empty file becomes one of the newest at once.
_MIGRATIONS = {
    0: (_TABLES,),
    1: ("ALTER TABLE lease ADD COLUMN codes TEXT NOT NULL DEFAULT ''",),
    2: (_SET_ASIDE, _TABLES, _TAKE_OVER),
}


def prepare(db: apsw.Connection) -> None:
    """Make the file a ledger of the newest version, or leave it as it is. Raises `LedgerUnavailable` and `apsw.Error`."""
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full")
    with db:  # a crash in here leaves the file as it was
        version = cast("int", db.pragma("user_version"))
        if version > SCHEMA_VERSION:
            raise LedgerUnavailable(
                f"the ledger has schema version {version}; this program knows {SCHEMA_VERSION} and earlier ones"
            )
        while version < SCHEMA_VERSION:
            for statements in _MIGRATIONS[version]:
                db.execute(statements)
            version = version + 1 if version else SCHEMA_VERSION
            db.pragma("user_version", version)
    db.pragma("foreign_keys", True)  # after the migration: tables with references are replaced there
    # What is only in the write-ahead log may be only in the page cache, if its last flush failed: write it anew and flush it.
    with suppress(apsw.BusyError):  # another process is at it
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
