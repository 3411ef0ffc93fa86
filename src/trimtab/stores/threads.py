"""Which model serves a conversation: a table in a mapped file that all workers share.

Fixed in size; a set that is full forgets what was used longest ago. There are no locks: each entry carries a checksum,
so one that was half written is taken for none, and the worst that can happen is that a conversation is not recognised.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from trimtab.ports import Thread
from trimtab.stores._mapped import mapped

_ENTRY: Final = struct.Struct("<QIfIII")  # key, model, score, tokens, seconds since 1970, checksum
_WAYS: Final = 4
_SETS: Final = 1 << 14  # 65,536 conversations in 1.8 MB
_SET_BYTES: Final = _ENTRY.size * _WAYS


class ThreadTable:
    """Implements `ports.Threads`. Raises OSError if its file cannot be made."""

    def __init__(self, path: Path) -> None:
        self._map, _ = mapped(path, _SETS * _SET_BYTES)

    def find(self, key: bytes) -> Thread | None:
        """What is known of a conversation (a hash of 16 bytes)."""
        mark, start = _place(key)
        for at in range(start, start + _SET_BYTES, _ENTRY.size):
            entry = self._map[at : at + _ENTRY.size]
            found, model, score, tokens, seconds, check = _ENTRY.unpack(entry)
            if found == mark and check == zlib.crc32(entry[:-4]):
                return Thread(model, score, tokens, seconds)
        return None

    def keep(self, key: bytes, thread: Thread) -> None:
        """Note it, in place of what was known."""
        mark, start = _place(key)
        oldest, place = 1 << 62, start
        for at in range(start, start + _SET_BYTES, _ENTRY.size):
            found, _, _, _, seconds, _ = _ENTRY.unpack(self._map[at : at + _ENTRY.size])
            if found == mark:
                place = at
                break
            if seconds < oldest:
                oldest, place = seconds, at
        tokens = min(thread.tokens, (1 << 32) - 1)
        entry = _ENTRY.pack(mark, thread.model, thread.score, tokens, int(thread.at), 0)
        self._map[place : place + _ENTRY.size] = entry[:-4] + zlib.crc32(entry[:-4]).to_bytes(4, "little")

    def close(self) -> None:
        """Let the file go."""
        self._map.close()


def _place(key: bytes) -> tuple[int, int]:
    mark = int.from_bytes(key[:8], "little") or 1
    return mark, int.from_bytes(key[8:12], "little") % _SETS * _SET_BYTES
