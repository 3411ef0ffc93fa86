"""Captured requests as SQLite: many writers with short transactions, any readers, in WAL mode, for its owner only.

`captures` has one row per request: who, when, where to in clear columns (erasure and retention need them, and the
ledger has them anyway), the body sealed (`sealing.py`) in the last. What is deleted is overwritten (secure_delete).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from trimtab.errors import BadRequest, Overloaded

SCHEMA_VERSION: Final = 1
_BUSY_S: Final = 30.0  # as long as an erasure of a large file may take; nobody waits for this thread
_CHECKPOINT_MS: Final = 500
_ERASED_AT_ONCE: Final = 500  # rows in one transaction: the gateway's own writes come in between
_MAGIC: Final = b"SQLite format 3\0"

_SCHEMA: Final = f"""
CREATE TABLE captures (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, expires REAL NOT NULL, tenant TEXT NOT NULL,
  user TEXT NOT NULL, route TEXT NOT NULL, session TEXT NOT NULL, dialect TEXT NOT NULL, path TEXT NOT NULL,
  model TEXT NOT NULL, stream INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  mode TEXT NOT NULL, key_id TEXT NOT NULL, body_bytes INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX captures_tenant ON captures (tenant, user);
CREATE INDEX captures_route ON captures (route, at);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Captured(msgspec.Struct, frozen=True):
    """One row. `body` is sealed, `body_bytes` its length before; `key_id` is "" where it is not encrypted."""

    id: str
    at: float  # unix seconds
    expires: float  # unix seconds
    tenant: str
    user: str
    route: str
    session: str
    dialect: str
    path: str
    model: str
    stream: bool
    input_tokens: int
    output_tokens: int
    mode: str  # "redacted" or "plain"
    key_id: str
    body_bytes: int
    body: bytes


_COLUMNS: Final = Captured.__struct_fields__
_STREAM: Final = _COLUMNS.index("stream")
_INSERT: Final = f"INSERT OR IGNORE INTO captures ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


class Writer:
    """A connection that writes; one thread at a time. Raises sqlite3.Error and OSError from everything that it does."""

    def __init__(self, path: Path) -> None:
        """Open, created if absent. Raises BadRequest for a file of a newer version."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _creating(path.parent, fcntl.LOCK_EX):
            if not path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives -wal and -shm the same mode
            self._file = _identity(path)
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA secure_delete = ON")
        run("PRAGMA synchronous = NORMAL")
        if self._version() == 0:
            run("PRAGMA auto_vacuum = INCREMENTAL")
            run("PRAGMA journal_mode = WAL")
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        if self._version() != SCHEMA_VERSION:
            raise BadRequest(f"{self._path} has capture version {self._version()}; upgrade Trimtab")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def is_current(self) -> bool:
        """Whether the file is still the one that was opened, and not moved away or deleted since."""
        try:
            return _identity(self._path) == self._file
        except OSError:
            return False

    def add(self, rows: Sequence[Captured]) -> None:
        """Insert rows in one transaction."""
        values = [msgspec.structs.astuple(row) for row in rows]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(_INSERT, values)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def expire(self, now: float, retention_s: Mapping[str, float | None], default_s: float | None) -> int:
        """Delete what is older than its route's retention (None: captures no more, so each row's own date holds).

        `now` is unix seconds, `default_s` the retention of routes that are not named. Returns how many rows went.
        """
        gone = 0
        for (route,) in self._connection.execute("SELECT DISTINCT route FROM captures").fetchall():
            kept_s = retention_s.get(route, default_s)
            limit = ("expires <= ?", now) if kept_s is None else ("at <= ?", now - kept_s)
            gone += self._delete(f"route = ? AND {limit[0]}", [route, limit[1]])
        if gone:
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()
            self._connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MS}")  # a reader in the way: next time, then
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        return gone

    def erase(self, tenant: str, user: str | None) -> int:
        """Delete all of a tenant's, or of one of its users', and what the log of writes still holds of it.

        Returns how many rows went. Raises Overloaded when a reader keeps the log from being emptied; the rows are
        deleted then, and the same call again ends it.
        """
        if user is None:
            gone = self._delete("tenant = ?", [tenant])
        else:
            gone = self._delete("tenant = ? AND user = ?", [tenant, user])
        # Rows move when pages are split and merged, and secure_delete overwrites them only where they lie at last:
        # in one of twelve random files a copy was left. A new file made of the living rows holds none.
        self._connection.execute("VACUUM")
        if self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise Overloaded(
                f"{gone:,} captured requests are deleted, but a program that reads {self._path} keeps their bytes in "
                "its -wal file; end it (an export?) and erase again"
            )
        return gone

    def _delete(self, condition: str, values: list[object]) -> int:
        gone = 0
        while True:
            count = self._connection.execute(
                "DELETE FROM captures WHERE seq IN"
                f" (SELECT seq FROM captures WHERE {condition} LIMIT {_ERASED_AT_ONCE})",
                values,
            ).rowcount
            gone += count
            if count < _ERASED_AT_ONCE:
                return gone

    def close(self) -> None:
        """Release the file."""
        self._connection.close()


class Reader:
    """Reads a capture file without writing to it."""

    def __init__(self, path: Path) -> None:
        """Raises BadRequest for no file, or none of ours."""
        if not path.exists():
            raise BadRequest(
                f"nothing was captured: there is no {path}. Add [routes.NAME.capture] to trimtab.toml, reload, and "
                "send a request; if the gateway keeps its data elsewhere, name that folder with --data-dir"
            )
        address = f"{path.absolute().as_uri()}?mode=ro"
        with _creating(path.parent, fcntl.LOCK_SH):
            self._connection = sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
            run = self._connection.execute
            try:
                version = run("PRAGMA user_version").fetchone()[0]
                known = (
                    version == SCHEMA_VERSION and run("SELECT 1 FROM sqlite_master WHERE name = 'captures'").fetchone()
                )
            except sqlite3.DatabaseError as error:
                self._connection.close()
                raise BadRequest(f"{path} cannot be read as captured traffic: {error}") from None
        if not known:
            self._connection.close()
            newer = version > SCHEMA_VERSION
            raise BadRequest(f"{path} is {'newer than this Trimtab; upgrade it' if newer else 'no capture file'}")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def summary(self) -> list[dict[str, Any]]:
        """By route and tenant: requests, bytes before and after, oldest and newest (unix seconds), key ids, modes."""
        cursor = self._connection.execute(
            "SELECT route, tenant, COUNT(*) AS requests, SUM(body_bytes) AS body_bytes,"
            " SUM(LENGTH(body)) AS stored_bytes, MIN(at) AS oldest, MAX(at) AS newest,"
            " SUM(key_id <> '') AS encrypted, SUM(mode = 'plain') AS plain, SUM(dialect = 'anthropic') AS anthropic,"
            " SUM(input_tokens) AS input_tokens, SUM(output_tokens) AS output_tokens"
            " FROM captures GROUP BY route, tenant ORDER BY requests DESC, route, tenant"
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def count(self, tenant: str, user: str | None) -> int:
        """How many rows an erasure would delete."""
        condition, values = _condition({"tenant": tenant, "user": user}, None, None)
        found = self._connection.execute(f"SELECT COUNT(*) FROM captures WHERE {condition}", values)
        return int(found.fetchone()[0])

    def rows(
        self,
        where: Mapping[str, str | None],
        *,
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
    ) -> Iterator[Captured]:
        """Rows in order of arrival; `where` names columns and values (None: any), the times are unix seconds."""
        condition, values = _condition(where, since, until)
        sql = f"SELECT {', '.join(_COLUMNS)} FROM captures WHERE {condition} ORDER BY at, seq LIMIT ?"
        for row in self._connection.execute(sql, [*values, -1 if limit is None else limit]):
            yield msgspec.structs.replace(Captured(*row), stream=bool(row[_STREAM]))


def is_capture_file(path: Path) -> bool:
    """Whether a file is an SQLite database, which among traces only captured traffic is."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _condition(where: Mapping[str, str | None], since: float | None, until: float | None) -> tuple[str, list[object]]:
    given = [(f"{name} = ?", value) for name, value in where.items() if value is not None]
    times = [(text, value) for text, value in (("at >= ?", since), ("at < ?", until)) if value is not None]
    parts: list[tuple[str, object]] = [("1", None), *given, *times]
    return " AND ".join(text for text, _ in parts), [value for _, value in parts[1:]]


@contextmanager
def _creating(folder: Path, lock: int) -> Iterator[None]:
    """Alone with the folder's new files, or with readers: where SQLite makes a file, its own locks do not wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, lock)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
