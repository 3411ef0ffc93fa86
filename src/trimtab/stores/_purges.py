"""What was purged, as every process on a cache folder knows it: shared words, and a file with the selective ones.

A look-up compares the words only (0.1 us). When they changed, the process reads `purges.json` anew, and forgets or
rejects what is meant in it. An answer whose request began before a purge that means it is dead, however late it
arrives. The file keeps the last few hundred purges; older ones become one that means everything, which may reject the
answer of a request that runs for very long, and never revives one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from trimtab.stores._shared_words import SharedWords
from trimtab.types import EVERYTHING, Selector, Stored

KEPT: Final = 256
_MAX_AGE_S: Final = 86_400.0


class Purge(msgspec.Struct, frozen=True, gc=False):
    """One selective purge, at unix seconds."""

    at: float
    what: Selector


class State(msgspec.Struct, frozen=True):
    """What a process knew at one moment; `seen` is how the words were then."""

    seen: bytes
    generation: int
    purged_at: float  # everything
    selected_at: float  # the last selective one
    purges: tuple[Purge, ...] = ()

    def is_dead(self, stored: Stored) -> bool:
        """Whether a purge means the answer, and the request behind it began before that."""
        created = stored.created
        if created >= self.purged_at and created >= self.selected_at:
            return False
        return created < self.purged_at or any(p.at > created and p.what.matches(stored) for p in self.purges)

    def means(self, stored: Stored) -> bool:
        """Whether an answer that was kept before this was known must go: one made at the very moment, too."""
        return any(p.at >= stored.created and p.what.matches(stored) for p in self.purges)


class Purges:
    """The purges of a folder; without one (None) they are this process's own. Raises OSError when it is made."""

    def __init__(self, folder: Path | None, now: float) -> None:
        self.words = SharedWords(None if folder is None else folder / "generation", int(now * 1e9))
        self._file = None if folder is None else folder / "purges.json"
        self._own: tuple[Purge, ...] = ()

    def load(self) -> State:
        """How things are now. Any thread may ask."""
        seen = self.words.snapshot()
        generation, purged_at, _, count, selected_at = self.words.read()
        purges: tuple[Purge, ...] = ()
        if count:
            purges = self._own if self._file is None else self._read(self._file, selected_at)
        return State(seen, generation, purged_at, selected_at, purges)

    def everything(self, now: float) -> None:
        """Begin a new generation."""
        self.words.purged(now)

    def select(self, what: Selector, now: float) -> None:
        """Say that answers to earlier requests are dead if they are meant. Raises OSError, nothing is said then."""
        with self.words.locked():
            _, purged_at, _, count, selected_at = self.words.read()
            known = self._own if self._file is None else self._read(self._file, selected_at) if count else ()
            purges = [*(p for p in known if p.at > purged_at), Purge(now, what)]
            late = [p for n, p in enumerate(purges) if n < len(purges) - KEPT or p.at < now - _MAX_AGE_S]
            if late:
                purges = [Purge(late[-1].at, EVERYTHING), *purges[len(late) :]]
            if self._file is None:
                self._own = tuple(purges)
            else:
                fresh = self._file.with_suffix(".new")
                fresh.touch(mode=0o600)
                fresh.write_bytes(msgspec.json.encode(purges))
                fresh.replace(self._file)
            self.words.selected(now)

    def again(self) -> None:
        """Have every process forget its memory once more: what a selective purge meant is gone from below it now."""
        with self.words.locked():
            self.words.selected(self.words.read()[4])

    def _read(self, file: Path, selected_at: float) -> tuple[Purge, ...]:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(file.read_bytes(), type=tuple[Purge, ...])
        return (Purge(selected_at, EVERYTHING),)  # which ones is lost: all that is older is dead

    def close(self) -> None:
        """Unmap."""
        self.words.close()
