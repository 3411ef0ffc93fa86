"""Answers in this process's memory: least recently used goes first, bounded by entries and by bytes."""

from __future__ import annotations

from collections import OrderedDict

from trimtab.ports import Clock
from trimtab.stores._purges import Purges
from trimtab.types import EVERYTHING, Selector, Stored

ENTRY_OVERHEAD_BYTES = 1024  # key, Stored, Target, Usage and their strings, beside the body; measured 0.7 KB


class MemoryStore:
    """An `AnswerStore` in a dictionary; every operation but a selective purge is O(1), nothing survives the process.

    `max_bytes` bounds bodies plus a flat 1 KB an entry, so that it bounds the process's memory and not only its texts.
    `purges` are those of a folder, if other processes are to be heard. Not thread-safe: it belongs to the event loop's
    thread.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Clock, purges: Purges | None = None) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, Stored] = OrderedDict()
        self._bytes = 0
        self._purges = Purges(None, 0.0) if purges is None else purges
        self._shared = self._purges.words if purges is not None else None
        self._state = self._purges.load()
        self._hits = self._misses = self._evictions = 0

    async def start(self) -> None:
        """Nothing to be done."""

    async def get(self, key: bytes) -> Stored | None:
        """As `find`."""
        return self.find(key)

    def find(self, key: bytes) -> Stored | None:
        """The live entry, or None; an expired one is removed."""
        if self._shared is not None and self._shared.snapshot() != self._state.seen:
            self._catch_up()
        stored = self._entries.get(key)
        if stored is None:
            self._misses += 1
            return None
        if stored.expires <= self._clock.wall():
            self.discard(key)
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return stored

    def put(self, key: bytes, stored: Stored) -> None:
        """Keep an entry, at the price of the least recently used ones.

        Left out: one that is bigger than the whole store, and one whose request began before the last purge.
        """
        self.discard(key)
        if self._shared is not None and self._shared.snapshot() != self._state.seen:
            self._catch_up()
        if self._state.is_dead(stored):
            return
        size = len(stored.body) + ENTRY_OVERHEAD_BYTES
        if size > self._max_bytes or self._max_entries < 1:
            self._evictions += 1
            return
        self._entries[key] = stored
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            _, old = self._entries.popitem(last=False)
            self._bytes -= len(old.body) + ENTRY_OVERHEAD_BYTES
            self._evictions += 1

    def clear(self) -> int:
        """Forget everything, and say how many entries that was."""
        count = len(self._entries)
        self._entries.clear()
        self._bytes = 0
        return count

    def purge(self, what: Selector = EVERYTHING) -> int:
        """Drop what is meant; answers whose requests began before now are not taken any more. Raises OSError."""
        now, before = self._clock.wall(), len(self._entries)
        if what == EVERYTHING:
            self._purges.everything(now)
        else:
            self._purges.select(what, now)
        self._catch_up()
        return before - len(self._entries)

    def _catch_up(self) -> None:
        before, self._state = self._state, self._purges.load()
        if before.generation != self._state.generation:
            self.clear()
        for key in [key for key, stored in self._entries.items() if self._state.means(stored)]:
            self.discard(key)

    def stats(self) -> dict[str, int]:
        """Entries, bytes, hits, misses, evictions, errors (none can happen here)."""
        return {
            "entries": len(self._entries),
            "bytes": self._bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions,
            "errors": 0,
        }

    async def stop(self) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Release the memory."""
        self.clear()
        self._purges.close()

    def discard(self, key: bytes) -> None:
        """Forget one entry, if it is there."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._bytes -= len(old.body) + ENTRY_OVERHEAD_BYTES
