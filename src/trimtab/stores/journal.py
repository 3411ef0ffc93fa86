"""The append-only journal: one file per life of a worker process, each line copied into the mapped file at once.

A line that was copied survives `kill -9` (not a power cut: nothing is synced). The copy needs no system call and keeps
the GIL, where an `os.write` costs 3 to 10 us and a turn of another thread (measured). Its price: space is reserved a
step ahead (a full disk must be an error here, not a SIGBUS in the copy), so zeros stand behind the last line; readers
stop at the first of them, for JSON holds none.

The process holds an exclusive flock on each of its files; the kernel drops it when the process dies, and that is how
the ingester knows.

Rotation: beyond `rotate_bytes` a new file is begun. An old one stays locked until every request that has an intent in
it is settled, and files are released oldest first: a released file never holds an intent whose row is yet to come.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from trimtab.errors import ConfigError, Overloaded
from trimtab.types import Feedback, Intent, Judged, Note, Record, Stages, Switched

_log = logging.getLogger(__name__)

SUFFIX = ".jsonl"
_STEP_BYTES = 1 << 20
_RETRY_ROWS = 1000  # at most so many waiting lines are written per call, so that recovery does not stall requests


class _File:
    """An open, locked journal file, of which a window at its end is mapped."""

    __slots__ = ("_base", "_capacity", "_fd", "_window", "open_requests", "path", "rotate_at", "size")

    def __init__(self, fd: int, path: Path, rotate_at: int) -> None:
        self.path = path
        self.rotate_at = rotate_at  # bytes
        self.size = 0  # of the lines
        self.open_requests = 0  # requests whose first intent is here and whose row is not written yet
        self._fd = fd
        self._window: mmap.mmap | None = None
        self._base = 0  # where in the file the window begins
        self._capacity = 0  # bytes up to which the window holds lines, counted from the file's start

    def append(self, line: bytes, allocate: Callable[[int, int, int], None]) -> None:
        """Copy a whole line behind the others. Raises OSError when there is no room; then nothing was written."""
        end = self.size + len(line)
        if end > self._capacity:
            base = self.size // mmap.PAGESIZE * mmap.PAGESIZE
            length = -(-(end - base) // _STEP_BYTES) * _STEP_BYTES
            allocate(self._fd, base, length)
            if self._window is not None:
                self._window.close()
            self._window = mmap.mmap(self._fd, length, offset=base)
            self._base, self._capacity = base, base + length
        assert self._window is not None
        self._window[self.size - self._base : end - self._base] = line
        self.size = end

    def close(self) -> None:
        """Give back what was reserved, and the lock."""
        if self._window is not None:
            self._window.close()
        try:
            os.ftruncate(self._fd, self.size)
        finally:
            os.close(self._fd)


class FileJournal:
    """Implements `ports.Journal` on files in `folder`. Create it after the fork: a forked child would share the lock.

    When the disk is full, lines wait in memory (`max_waiting` lines, `max_waiting_bytes`); then intents are refused,
    while rows of calls already made may use as much again. `allocate` reserves space in a file (descriptor, offset,
    bytes) or raises OSError; injected in tests.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        rotate_bytes: int = 64 << 20,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 64 << 20,
        allocate: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.folder = folder
        self.healthy = True
        self.lost = 0  # rows dropped because even the reserve in memory was full
        self._worker = "".join(c if c.isalnum() else "_" for c in worker)
        self._rotate_bytes = rotate_bytes
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        reserve: Callable[[int, int, int], None] = getattr(os, "posix_fallocate", _fill)
        self._allocate = allocate if allocate is not None else reserve
        self._encode = msgspec.json.Encoder().encode
        self._sequence = 0
        self._settled_in: dict[str, _File] = {}  # request id -> the file that waits for its row
        self._waiting: deque[tuple[bytes, str]] = deque()  # line, and the id that it settles ("" for intents)
        self._waiting_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [self._open_file()]
        except OSError as error:
            raise ConfigError(
                [
                    f"server.data_dir: the journal folder {folder} cannot be written ({error.strerror}); "
                    "choose a writable folder or free space"
                ]
            ) from error

    @property
    def waiting(self) -> int:
        """Lines that could not be written yet."""
        return len(self._waiting)

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._files[-1].path

    def intent(self, intent: Intent) -> None:
        """Append before an upstream call. Raises Overloaded when lines can no longer be kept (disk full for long)."""
        self._make_room()
        if intent.id not in self._settled_in:
            current = self._files[-1]
            self._settled_in[intent.id] = current
            current.open_requests += 1
        self._append(self._line(intent), "")

    def note(self, note: Note) -> None:
        """Append what is said beside the rows. Raises Overloaded as `intent` does."""
        self._make_room()
        self._append(self._line(note), "")

    def row(self, record: Record) -> None:
        """Append the settled request; never raises. A row that cannot be written yet waits in memory."""
        line = self._line(record)
        if self._waiting:
            self.flush()
            full = len(self._waiting) >= 2 * self._max_waiting or self._waiting_bytes >= 2 * self._max_waiting_bytes
            if full:
                self.lost += 1
                if self.lost == 1:
                    _log.error("the ledger loses rows: %s has not been writable for too long", self.folder)
                return
        self._append(line, record.id)

    def flush(self) -> None:
        """Try again to write what waits; the gateway calls it every second. Never raises."""
        for _ in range(min(len(self._waiting), _RETRY_ROWS)):
            line, settles = self._waiting[0]
            if not self._put(line):
                return
            self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self._written(settles)

    def close(self) -> None:
        """Flush and release; the ingester may then take the files."""
        while self._waiting:
            before = len(self._waiting)
            self.flush()
            if len(self._waiting) == before:
                _log.error("%d ledger rows were lost at shutdown: %s cannot be written", before, self.folder)
                break
        for file in self._files:
            file.close()
        self._files = []

    def _make_room(self) -> None:
        if self._waiting:
            self.flush()
            if len(self._waiting) >= self._max_waiting or self._waiting_bytes >= self._max_waiting_bytes:
                raise Overloaded("the ledger cannot be written: disk full? Free space in server.data_dir")

    def _line(self, message: Intent | Record | Note) -> bytes:
        try:
            return self._encode(message) + b"\n"
        except (UnicodeEncodeError, OverflowError):  # a lone surrogate of a client, an absurd count of an upstream
            return self._encode(_encodable(structs.asdict(message)) | {"k": _TAGS[type(message)]}) + b"\n"

    def _append(self, line: bytes, settles: str) -> None:
        if not self._waiting and self._put(line):
            self._written(settles)
            return
        self._waiting.append((line, settles))
        self._waiting_bytes += len(line)

    def _written(self, settles: str) -> None:
        """Bookkeeping after a whole line: release what is settled, rotate what is full."""
        if settles and (waited := self._settled_in.pop(settles, None)) is not None:
            waited.open_requests -= 1
        if len(self._files) > 1:
            self._release()
        if self._files and self._files[-1].size >= self._files[-1].rotate_at:
            try:
                self._files.append(self._open_file())
            except OSError as error:
                _log.warning("no new journal file in %s (%s); the old one is used on", self.folder, error.strerror)
                self._files[-1].rotate_at += self._rotate_bytes
            self._release()

    def _release(self) -> None:
        while len(self._files) > 1 and not self._files[0].open_requests:
            self._files.pop(0).close()

    def _put(self, line: bytes) -> bool:
        """Write one line whole, or say no."""
        try:
            if not self._files:
                raise OSError(errno.EBADF, "the journal is closed")
            self._files[-1].append(line, self._allocate)
        except OSError as error:
            if self.healthy:
                self.healthy = False
                _log.error("the ledger cannot be written to %s: %s; disk full?", self.folder, error.strerror)
            return False
        if not self.healthy:
            self.healthy = True
            _log.warning("the ledger can be written again, %d lines wait", len(self._waiting))
        return True

    def _open_file(self) -> _File:
        """A new file under a name that sorts by time; it gets that name only after it is locked."""
        name = f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}-{self._worker}-{self._sequence}{SUFFIX}"
        self._sequence += 1
        path = self.folder / name
        draft = self.folder / f".{name}.new"
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(path)
        except OSError:
            os.close(fd)
            raise
        return _File(fd, path, self._rotate_bytes)


def _fill(fd: int, offset: int, length: int) -> None:
    """Reserve space by writing zeros, where the system has no `posix_fallocate`."""
    start = max(offset, os.fstat(fd).st_size)
    if start < offset + length and os.pwrite(fd, bytes(offset + length - start), start) < offset + length - start:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_TAGS = {
    Intent: "intent",
    Record: "row",
    Stages: "stages",
    Judged: "judged",
    Switched: "switch",
    Feedback: "feedback",
}


def _encodable(value: Any) -> Any:
    """A copy that JSON can hold: lone surrogates replaced, integers cut to 64 bits (the ingester disbelieves those)."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63 - 1))
    if isinstance(value, msgspec.Struct):
        return _encodable(structs.asdict(value))
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(inner) for inner in value]
    return value
