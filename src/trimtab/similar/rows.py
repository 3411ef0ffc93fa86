"""Questions, their vectors and answers on disk, so that a restart forgets nothing: SQLite, one writer.

A question is kept as its words' stems (`semantic.lexical.Profile`) and its vectors, not as its text; the answer as it
was sent. Rows go when their answer expires or a purge means it. Each has a checksum over its place and all of it, so
that damage is a miss and never another answer.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.lexical import Profile
from trimtab.types import Stored

_log = logging.getLogger("trimtab.similar")

FILE_NAME: Final = "similar.sqlite"
_VERSION: Final = 3
# The disk or the machine fails, and the file may be whole: no reason to set it aside.
_TROUBLE: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_PROFILE: Final = msgspec.msgpack.Decoder(Profile)
_STORED: Final = msgspec.msgpack.Decoder(Stored)

_SCHEMA: Final = """
CREATE TABLE promises (tenant TEXT, route TEXT, embedder TEXT, state BLOB NOT NULL,
  PRIMARY KEY (tenant, route, embedder)) WITHOUT ROWID;
CREATE TABLE contexts (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, route TEXT NOT NULL, embedder TEXT NOT NULL,
  context BLOB NOT NULL, next_entry INTEGER NOT NULL DEFAULT 0, UNIQUE (tenant, route, embedder, context));
CREATE TABLE answers (context INTEGER, entry INTEGER, grp INTEGER NOT NULL, profile BLOB NOT NULL,
  accurate BLOB NOT NULL, fast BLOB NOT NULL, answer BLOB NOT NULL, created REAL NOT NULL, checksum INTEGER NOT NULL,
  PRIMARY KEY (context, entry)) WITHOUT ROWID;
CREATE INDEX answers_created ON answers (created);
"""

_DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

Vector = NDArray[np.float32]


def is_damage(error: Exception) -> bool:
    """Whether it says that the file is damaged, and not that the disk or the machine fails."""
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


class Kept(msgspec.Struct, frozen=True):
    """One question with its answer."""

    entry: int
    group: int
    profile: Profile
    accurate: Vector
    fast: Vector
    stored: Stored


class Rows:
    """The file. Everything is written in one transaction until `commit`. Not thread-safe. Raises sqlite3.Error.

    `damaged` counts the rows that were met and were not what had been written, and the files that were set aside.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged = 0
        self._told = False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._path.touch(mode=0o600)
        try:
            self._db = _opened(self._path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLE:
                raise
            self._set_aside(error)

    def begin_anew(self, why: Exception) -> None:
        """Go on with an empty file, after damage that SQLite stumbled over."""
        self._db.close()
        self._set_aside(why)

    def _set_aside(self, why: Exception) -> None:
        # Not repaired: what it held is only a cache.
        self.damaged += 1
        aside = self._path.with_suffix(".corrupt")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._path.touch(mode=0o600)
        self._db = _opened(self._path)
        _log.warning("the semantic cache's file cannot be used (%s); set aside as %s, starting anew", why, aside.name)

    def contexts(self) -> list[tuple[int, str, str, str, bytes, int]]:
        """Id, tenant, route, embedder, context and next entry of all."""
        return self._db.execute("SELECT id, tenant, route, embedder, context, next_entry FROM contexts").fetchall()

    def promises(self) -> list[tuple[str, str, str, bytes]]:
        """Tenant, route, embedder and state of all."""
        return self._db.execute("SELECT tenant, route, embedder, state FROM promises").fetchall()

    def answers(self, context: int) -> Iterator[Kept]:
        """A context's answers, oldest first; those that are damaged are skipped."""
        for entry, group, *said in self._db.execute(
            "SELECT entry, grp, profile, accurate, fast, answer, checksum FROM answers WHERE context = ?"
            " ORDER BY entry",
            [context],
        ):
            stored = self._sound(context, entry, said)
            if stored is not None:
                profile, accurate, fast, *_ = said
                yield Kept(entry, group, _PROFILE.decode(profile), _vector(accurate), _vector(fast), stored)

    def stored(self, context: int, entry: int) -> Stored | None:
        """One answer; None if it is not there, or damaged."""
        found = self._db.execute(
            "SELECT profile, accurate, fast, answer, checksum FROM answers WHERE context = ? AND entry = ?",
            [context, entry],
        ).fetchone()
        return None if found is None else self._sound(context, entry, found)

    def _sound(self, context: int, entry: int, row: Sequence[Any]) -> Stored | None:
        *said, checksum = row
        with suppress(msgspec.MsgspecError):
            if _checksum(context, entry, said) == checksum:
                return _STORED.decode(said[-1])
        self.damaged += 1
        if not self._told:
            self._told = True
            _log.warning("the semantic cache's file holds damaged answers; they count as absent")
        return None

    def add_context(self, tenant: str, route: str, embedder: str, context: bytes) -> int:
        """A new context's id, committed: one that were rolled back would be given to the next context as well."""
        insert = "INSERT INTO contexts (tenant, route, embedder, context) VALUES (?, ?, ?, ?)"
        id_ = int(self._db.execute(insert, [tenant, route, embedder, context]).lastrowid or 0)
        self.commit()
        return id_

    def add(self, context: int, kept: Kept) -> None:
        """Keep an answer."""
        said = [_ENCODE(kept.profile), _bytes(kept.accurate), _bytes(kept.fast), _ENCODE(kept.stored)]
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [context, kept.entry, kept.group, *said, kept.stored.created, _checksum(context, kept.entry, said)],
        )
        self._db.execute("UPDATE contexts SET next_entry = ? WHERE id = ?", [kept.entry + 1, context])

    def remove(self, context: int, entries: Iterable[int]) -> None:
        """Drop answers."""
        self._db.executemany(
            "DELETE FROM answers WHERE context = ? AND entry = ?", [(context, entry) for entry in entries]
        )

    def remove_before(self, created: float) -> None:
        """Drop all answers to requests before that moment (unix seconds)."""
        self._db.execute("DELETE FROM answers WHERE created < ?", [created])

    def regroup(self, context: int, groups: Iterable[tuple[int, int]]) -> None:
        """Entries (first) have come to belong to other groups (second)."""
        self._db.executemany(
            "UPDATE answers SET grp = ? WHERE context = ? AND entry = ?",
            [(group, context, entry) for entry, group in groups],
        )

    def save_promise(self, side: tuple[str, str, str], state: bytes) -> None:
        """Keep what a promise of a tenant, route and embedder has learned."""
        self._db.execute("INSERT OR REPLACE INTO promises VALUES (?, ?, ?, ?)", [*side, state])

    def commit(self) -> None:
        """Have it on disk as far as a crash of the process goes. What cannot be is given up: the next ones go on."""
        try:
            self._db.commit()
        except sqlite3.Error:
            self._db.rollback()
            raise

    def close(self) -> None:
        """Commit and release."""
        try:
            self._db.commit()
        finally:
            self._db.close()


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level="IMMEDIATE", check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"version {version}")
        if version == 0:
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("SELECT count(*) FROM contexts").fetchone()
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _checksum(context: int, entry: int, said: Sequence[bytes]) -> int:
    checksum = zlib.crc32(b"%d %d" % (context, entry))
    for part in said:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _bytes(vector: Vector) -> bytes:
    return vector.astype(np.float16).tobytes()  # half the size; cosines change in the fourth digit


def _vector(data: bytes) -> Vector:
    return np.frombuffer(data, dtype=np.float16).astype(np.float32)
