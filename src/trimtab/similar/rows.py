"""Questions, their vectors and answers on disk, so that a restart forgets nothing: SQLite, one writer.

A question is kept as its words' stems (`semantic.lexical.Profile`) and its vectors, not as its text; the answer as it
was sent. Rows go when their answer expires or a purge means it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.lexical import Profile
from trimtab.types import Stored

FILE_NAME: Final = "similar.sqlite"
_VERSION: Final = 2
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_PROFILE: Final = msgspec.msgpack.Decoder(Profile)
_STORED: Final = msgspec.msgpack.Decoder(Stored)

_SCHEMA: Final = """
CREATE TABLE promises (tenant TEXT, route TEXT, embedder TEXT, state BLOB NOT NULL,
  PRIMARY KEY (tenant, route, embedder)) WITHOUT ROWID;
CREATE TABLE contexts (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, route TEXT NOT NULL, embedder TEXT NOT NULL,
  context BLOB NOT NULL, next_entry INTEGER NOT NULL DEFAULT 0, UNIQUE (tenant, route, embedder, context));
CREATE TABLE answers (context INTEGER, entry INTEGER, grp INTEGER NOT NULL, profile BLOB NOT NULL,
  accurate BLOB NOT NULL, fast BLOB NOT NULL, answer BLOB NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (context, entry)) WITHOUT ROWID;
CREATE INDEX answers_created ON answers (created);
"""

Vector = NDArray[np.float32]


class Kept(msgspec.Struct, frozen=True):
    """One question with its answer."""

    entry: int
    group: int
    profile: Profile
    accurate: Vector
    fast: Vector
    stored: Stored


class Rows:
    """The file. Everything is written in one transaction until `commit`. Not thread-safe. Raises sqlite3.Error."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / FILE_NAME
        path.touch(mode=0o600)
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError:
            # Set aside, not repaired: what it held is only a cache.
            path.replace(path.with_suffix(".corrupt"))
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.touch(mode=0o600)
            self._db = _opened(path)

    def contexts(self) -> list[tuple[int, str, str, str, bytes, int]]:
        """Id, tenant, route, embedder, context and next entry of all."""
        return self._db.execute("SELECT id, tenant, route, embedder, context, next_entry FROM contexts").fetchall()

    def promises(self) -> list[tuple[str, str, str, bytes]]:
        """Tenant, route, embedder and state of all."""
        return self._db.execute("SELECT tenant, route, embedder, state FROM promises").fetchall()

    def answers(self, context: int) -> Iterator[Kept]:
        """A context's answers, oldest first; those that cannot be read are skipped."""
        for entry, group, profile, accurate, fast, answer in self._db.execute(
            "SELECT entry, grp, profile, accurate, fast, answer FROM answers WHERE context = ? ORDER BY entry",
            [context],
        ):
            try:
                yield Kept(
                    entry,
                    group,
                    _PROFILE.decode(profile),
                    _vector(accurate),
                    _vector(fast),
                    _STORED.decode(answer),
                )
            except (msgspec.MsgspecError, ValueError):
                continue

    def stored(self, context: int, entry: int) -> Stored | None:
        """One answer."""
        found = self._db.execute("SELECT answer FROM answers WHERE context = ? AND entry = ?", [context, entry])
        row = found.fetchone()
        return None if row is None else _STORED.decode(row[0])

    def add_context(self, tenant: str, route: str, embedder: str, context: bytes) -> int:
        """A new context's id."""
        insert = "INSERT INTO contexts (tenant, route, embedder, context) VALUES (?, ?, ?, ?)"
        return int(self._db.execute(insert, [tenant, route, embedder, context]).lastrowid or 0)

    def add(self, context: int, kept: Kept) -> None:
        """Keep an answer."""
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                context,
                kept.entry,
                kept.group,
                _ENCODE(kept.profile),
                _bytes(kept.accurate),
                _bytes(kept.fast),
                _ENCODE(kept.stored),
                kept.stored.created,
            ],
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
        """Have it on disk as far as a crash of the process goes."""
        self._db.commit()

    def close(self) -> None:
        """Commit and release."""
        self._db.commit()
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


def _bytes(vector: Vector) -> bytes:
    return vector.astype(np.float16).tobytes()  # half the size; cosines change in the fourth digit


def _vector(data: bytes) -> Vector:
    return np.frombuffer(data, dtype=np.float16).astype(np.float32)
