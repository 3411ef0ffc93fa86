"""A selective purge searches the file a piece at a time, so that the writers of all processes get their turn."""

from __future__ import annotations

from typing import Any, Final

from trimtab.stores._answer_records import HEADER, age_key, is_meant
from trimtab.types import Selector

_ENTRIES: Final = 1024  # looked at per transaction
_REMOVED: Final = 256  # per transaction: each removal copies pages, which must fit into what is free of the map


def remove_meant(env: Any, answers: Any, ages: Any, what: Selector) -> int:
    """Remove every entry that is meant; how many went. About a second for a GB. Raises lmdb.Error."""
    removed = 0
    at: bytes | None = b""
    while at is not None:
        with env.begin(write=True, buffers=True) as txn, txn.cursor(db=answers) as cursor:
            at, gone = _search(txn, cursor, ages, at, what)
        removed += gone
    return removed


def _search(txn: Any, cursor: Any, ages: Any, at: bytes, what: Selector) -> tuple[bytes | None, int]:
    """Look at some entries from key `at` on; where to go on (None: nowhere), and how many were removed."""
    removed = 0
    found = cursor.set_range(at) if at else cursor.first()
    for _ in range(_ENTRIES):
        if not found:
            return None, removed
        if removed == _REMOVED:
            break
        key, value = bytes(cursor.key()), cursor.value()
        if is_meant(key, value, what):
            if len(value) >= HEADER.size:
                txn.delete(age_key(HEADER.unpack_from(value)[1], key), db=ages)
            cursor.delete()
            removed += 1
            found = bool(cursor.key())
        else:
            found = cursor.next()
    return (bytes(cursor.key()) if found else None), removed
