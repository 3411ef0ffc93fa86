"""A selective purge searches the file a piece at a time, so that the writers of all processes get their turn."""

from __future__ import annotations

from typing import Any, Final

from trimtab.stores._answer_records import age_and_key, is_meant
from trimtab.stores._lmdb_index import Index
from trimtab.types import Selector

_ENTRIES: Final = 1024  # looked at per transaction
_REMOVED: Final = 256  # per transaction: each removal copies pages, which must fit into what is free of the map


def remove_meant(env: Any, answers: Any, index: Index, what: Selector) -> int:
    """Remove every entry that is meant; how many went. About a second for a GB. Raises lmdb.Error."""
    removed = 0
    at: bytes | None = b""
    while at is not None:
        with env.begin(write=True, buffers=True) as txn, txn.cursor(db=answers) as cursor:
            at, gone = _search(cursor, index, at, what)
        removed += gone
    return removed


def _search(cursor: Any, index: Index, at: bytes, what: Selector) -> tuple[bytes | None, int]:
    """Look at some entries from place `at` on; where to go on (None: nowhere), and how many were removed."""
    removed = 0
    found = cursor.set_range(at) if at else cursor.first()
    for _ in range(_ENTRIES):
        if not found:
            return None, removed
        if removed == _REMOVED:
            break
        if is_meant(age_and_key(bytes(cursor.key()))[1], cursor.value(), what):
            remove(cursor, index)
            removed += 1
            found = bool(cursor.key())
        else:
            found = cursor.next()
    return (bytes(cursor.key()) if found else None), removed


def remove(cursor: Any, index: Index) -> None:
    """Remove the answer under the cursor, of a write transaction."""
    age, key = age_and_key(bytes(cursor.key()))
    cursor.delete()
    index.forget(key, age)
