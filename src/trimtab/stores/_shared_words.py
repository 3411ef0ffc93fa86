"""A few words of memory that all processes on a cache folder share, so that a purge in one is seen by all at once."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SharedWords:
    """Words that every process on a folder maps.

    Generation, time of the last full purge, count of replacements, count and time of selective purges.
    """

    _FORMAT = struct.Struct("<QdQQd")
    _FORMER_BYTES = 24  # without the last two, which read as zero

    def __init__(self, path: Path | None, first: int) -> None:
        """Map `path`, made if absent; None keeps the words private. Raises OSError. `first` starts a new generation."""
        self._fd = -1
        self._words: mmap.mmap | bytearray
        if path is None:
            self._words = bytearray(self._FORMAT.size)
            return
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self.locked():
            size = os.fstat(self._fd).st_size
            if size < self._FORMAT.size:
                os.ftruncate(self._fd, self._FORMAT.size)
            if size < self._FORMER_BYTES:
                # Not zero: a file that was deleted must not revive entries of a former generation.
                os.pwrite(self._fd, self._FORMAT.pack(first, 0.0, 0, 0, 0.0), 0)
        self._words = mmap.mmap(self._fd, self._FORMAT.size)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file's lock against other processes; released by the kernel if we die."""
        if self._fd < 0:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def snapshot(self) -> bytes:
        """All words as they are now; one that differs from the last says: forget what you hold in memory."""
        return bytes(self._words[:40])

    def read(self) -> tuple[int, float, int, int, float]:
        """Generation, unix seconds of the last full purge, counts of replacements and of selective ones, the last's."""
        return self._FORMAT.unpack_from(self._words)

    def purged(self, now: float) -> None:
        """Begin a new generation."""
        with self.locked():
            struct.pack_into("<Qd", self._words, 0, self.read()[0] + 1, now)

    def selected(self, now: float) -> None:
        """Say that there was a selective purge. Called under the lock."""
        struct.pack_into("<Qd", self._words, 24, self.read()[3] + 1, now)

    def replaced(self) -> None:
        """Say that a live answer was replaced. Called inside a write transaction, which keeps other writers out."""
        struct.pack_into("<Q", self._words, 16, self.read()[2] + 1)

    def close(self) -> None:
        """Unmap."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._words = bytearray(self._words[:40])
