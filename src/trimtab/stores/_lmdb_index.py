"""Where each key's answer lies: a hash table in a mapped file that all processes on the folder share.

Why not a second database in LMDB: keys are random, so each new one has a page copied and written, and a look-up that
finds nothing, which most do, walks pages that were never touched before (3 and 8 us; here less than one, without a
system call). The table is only a hint: the answer's own record says which key it is of, so whatever stands here, a
wrong answer cannot come of it, only a miss. So readers need no lock, and a set that is full forgets its oldest.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from trimtab.stores._mapped import mapped

_WAYS: Final = 8
_SET: Final = struct.Struct(f"<{_WAYS}Q")  # a cache line
_EMPTY: Final = bytes(_SET.size)
_SLOT: Final = struct.Struct("<Q")  # an age and, in the lowest bits, a mark of the key
_MARK_BITS: Final = 12  # which leaves 52 for the age: enough until the year 2112
_MARK: Final = (1 << _MARK_BITS) - 1
_BYTES_AN_ENTRY: Final = 512  # of the store: smaller answers are rare, and a table half full loses one in a hundred


class Index:
    """Maps keys to the ages of answers (microseconds since 1970). Writers must be kept apart by the caller."""

    def __init__(self, path: Path, store_bytes: int, *, resize: bool = True) -> None:
        """Map `path`; `fresh` says that it was made, or made anew for another size. Raises OSError.

        Without `resize` a table of any size will do: whoever only looks in must not take it from those who work.
        """
        self._sets = 1 << max(6, (store_bytes // _BYTES_AN_ENTRY // _WAYS).bit_length() - 1)
        there = path.stat().st_size if path.exists() else 0
        if there and not resize and there % _SET.size == 0 and (there // _SET.size).bit_count() == 1:
            self._sets = there // _SET.size
        self._map, self.fresh = mapped(path, self._sets * _SET.size)

    def find(self, key: bytes) -> list[int]:
        """The ages that the key's answer may have: nearly always none or one."""
        start, mark = self._place(key)
        line = self._map[start : start + _SET.size]
        if line == _EMPTY:
            return []
        return [slot >> _MARK_BITS for slot in _SET.unpack(line) if slot & _MARK == mark and slot]

    def set(self, key: bytes, age: int) -> None:
        """Note where the key's answer lies, in place of the oldest of its set."""
        start, mark = self._place(key)
        slots = _SET.unpack_from(self._map, start)
        _SLOT.pack_into(self._map, start + _SLOT.size * slots.index(min(slots)), age << _MARK_BITS | mark)

    def forget(self, key: bytes, age: int) -> None:
        """The key's answer of that age is gone."""
        start, mark = self._place(key)
        slots, slot = _SET.unpack_from(self._map, start), age << _MARK_BITS | mark
        if slot in slots:
            _SLOT.pack_into(self._map, start + _SLOT.size * slots.index(slot), 0)

    def clear(self) -> None:
        """Forget all."""
        self._map[:] = bytes(len(self._map))

    def sync(self) -> None:
        """Have the disk catch up."""
        self._map.flush()

    def close(self) -> None:
        """Unmap."""
        self._map.close()

    def _place(self, key: bytes) -> tuple[int, int]:
        """Where the key's set begins, and the key's mark in it."""
        hashed = zlib.crc32(key)
        return (hashed & self._sets - 1) * _SET.size, hashed >> 32 - _MARK_BITS
