"""Journal files to SQLite, priced on the way: each row exactly once, whenever this process or a writer is killed.

A pass, in this order, because a row may stand in a younger file than its intent:
 1. list the files and try their locks: a lock that can be taken belongs to a dead writer (and is held to the end);
 2. list again and read every file from its stored offset to its end; rows, offsets and open intents change in one
    transaction per batch;
 3. intents of dead files that still have no row become `interrupted` rows; then the dead files are deleted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from trimtab.errors import TrimtabError
from trimtab.ledger import LedgerEntry, interrupted, settle
from trimtab.prices import Prices
from trimtab.quality.marks import MONITOR, Mark
from trimtab.slo import Alarm
from trimtab.stores import _monitors, _slos, ledger_db, switches
from trimtab.types import NO_USAGE, Feedback, Intent, Judged, Note, Record, Stages, Switched, Usage

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)

JOURNAL_FOLDER = "journal"
_FIRST_BYTES = 64 << 10  # of a file that has grown little, as most have between two passes
_CHUNK_BYTES = 1 << 20  # read, priced and committed at once: about 1,000 rows
_MAX_TOKENS = 2**36  # an upstream that reports more is not believed: sums and money would overflow SQLite's integers
_SLOWEST_RETRY_S = 5.0
_CHECK_S = 10.0  # between two looks at the alarms

Observer = Callable[[Sequence[LedgerEntry]], None]
"""Told of rows once they are committed: each at most once. What it raises is logged, and stops nothing."""


class _Batch:
    """What one transaction changes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.offset = 0
        self.bad_lines = 0
        self.entries: list[LedgerEntry] = []
        self.stages: list[Stages] = []
        self.levers: list[Judged | Switched] = []
        self.feedback: list[Feedback] = []
        self.intents: dict[tuple[str, int], Intent] = {}
        self.settled: set[str] = set()


class Ingester:
    """Reads `data_dir`/journal into `data_dir`/ledger.sqlite; `bad_lines` counts the unreadable ones.

    One process at a time: the others' `run_once` does nothing. Not thread-safe; create it after a fork.
    """

    def __init__(
        self,
        data_dir: Path,
        prices: Prices,
        objectives: _slos.Objectives | None = None,
        observers: Sequence[Observer] = (),
        on_alarm: Callable[[Alarm | Mark], None] | None = None,
    ) -> None:
        self.bad_lines = 0
        self._objectives = objectives or {}
        self._observers = observers
        self._on_alarm = on_alarm
        self._checked_at = 0.0  # monotonic; when alarms were looked at
        self._folder = data_dir / JOURNAL_FOLDER
        self._database = data_dir / ledger_db.FILE_NAME
        self._lock_path = data_dir / "run" / "ingest.lock"
        self._prices = prices
        self._decode = msgspec.json.Decoder(Intent | Record | Note).decode
        self._switches = switches.path_in(data_dir)
        self._to_tell = True  # there may be marks of which nobody was told
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        self._offsets: dict[str, int] = {}
        self._open: dict[str, dict[int, tuple[str, Intent]]] = {}  # request id -> n -> (file, intent)
        self._reported: set[str] = set()  # files of which a bad line was logged

    @property
    def active(self) -> bool:
        """Whether this is the one that ingests."""
        return self._lock_fd >= 0

    def run_once(self) -> int:
        """One pass over all files; returns how many rows became new in the ledger, 0 if another process ingests.

        Raises sqlite3.Error (locked, disk full), OSError, BadRequest for a newer ledger; nothing is lost, the next
        pass takes up where this one stopped.
        """
        if not self._take_lock():
            return 0
        try:
            return self._pass(self._connect())
        except BaseException:
            self._disconnect()  # what is in memory may differ from what was committed: load it anew
            raise

    def run(self, stop: threading.Event, interval_s: float = 0.2) -> None:
        """Ingest every `interval_s` until `stop`, then once more and close; failures are logged and retried."""
        import sqlite3

        failing = False
        wait_s = interval_s
        while True:
            last = stop.wait(wait_s)
            try:
                self.run_once()
                self.tell_marks()
                if time.monotonic() - self._checked_at >= _CHECK_S:
                    self._checked_at = time.monotonic()
                    self.check_alarms(time.time())
                if failing:
                    _log.warning("the ledger is ingested again")
                failing, wait_s = False, interval_s
            except (sqlite3.Error, OSError, TrimtabError) as error:
                if not failing:
                    _log.error(
                        "the ledger cannot be ingested into %s (%s); rows stay in the journal", self._database, error
                    )
                failing, wait_s = True, min(wait_s * 2, _SLOWEST_RETRY_S)
            if last:
                self.close()
                return

    def check_alarms(self, now: float) -> None:
        """See whether alarms begin or end at `now` (unix seconds), remember, log and tell it. Raises as `run_once`."""
        if not self._objectives or not self._take_lock():
            return
        connection = self._connect()
        with _transaction(connection):
            changes = _slos.check(connection, self._objectives, now)
        for alarm in changes:
            _log.log(logging.ERROR if alarm.firing else logging.INFO, "%s", alarm.text)
            if self._on_alarm is not None:
                self._on_alarm(alarm)

    def tell_marks(self) -> None:
        """Log and tell the switches of levers that nobody was told of: each at least once. Raises as `run_once`."""
        if not self._to_tell or not self._take_lock():
            return
        connection = self._connect()
        marks = _monitors.untold(connection)
        for _, mark in marks:
            alarming = mark.by == MONITOR and not mark.on
            _log.log(logging.ERROR if alarming else logging.INFO, "%s", mark.text)
            if self._on_alarm is not None:
                self._on_alarm(mark)
        if marks:
            with _transaction(connection):
                _monitors.told(connection, [number for number, _ in marks])
        self._to_tell = False

    def close(self) -> None:
        """Release the database and the lock."""
        self._disconnect()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> bool:
        if self._lock_fd >= 0:
            return True
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(fd):
            os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = ledger_db.open_writer(self._database)
            decode = msgspec.json.Decoder(Intent).decode
            self._offsets = dict(connection.execute("SELECT file, bytes FROM journal_offsets"))
            self._open = {}
            for file, body in connection.execute("SELECT file, intent FROM open_intents"):
                intent = decode(body)
                self._open.setdefault(intent.id, {})[intent.n] = (file, intent)
            self._connection = connection
            self._write_switches(connection)
        return self._connection

    def _write_switches(self, connection: sqlite3.Connection) -> None:
        """Have the workers know what the ledger says."""
        switches.write(self._switches, _monitors.last_marks(connection).values())
        self._to_tell = True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _pass(self, connection: sqlite3.Connection) -> int:
        dead: dict[str, int] = {}
        try:
            for name in self._files():
                fd = os.open(self._folder / name, os.O_RDONLY)
                if _try_lock(fd):
                    dead[name] = fd
                else:
                    os.close(fd)
            files = self._files()
            new = sum(self._read(connection, name, name in dead) for name in files)
            new += self._finish(connection, dead)
            self._forget(connection, files, dead)
            return new
        finally:
            for fd in dead.values():
                os.close(fd)

    def _files(self) -> list[str]:
        """Journal files, oldest first."""
        try:
            return sorted(name for name in os.listdir(self._folder) if name.endswith(".jsonl") and name[0] != ".")  # noqa: PTH208
        except FileNotFoundError:
            return []

    def _read(self, connection: sqlite3.Connection, name: str, dead: bool) -> int:
        """Take in what the file holds now; half a line at its end waits for the rest, unless the writer is dead.

        Zeros are space that the writer has reserved, or a line that it is copying just now: what counts ends there. In
        a dead writer's file they are what a power cut left of a page, and what follows counts.
        """
        new = 0
        offset = self._offsets.get(name, 0)
        with open(self._folder / name, "rb", buffering=0) as file:  # noqa: PTH123
            end = os.fstat(file.fileno()).st_size
            size = _FIRST_BYTES
            at_end = offset >= end
            while not at_end:
                chunk = os.pread(file.fileno(), min(size, end - offset), offset)
                data = chunk if dead else chunk.partition(b"\0")[0]
                # Nothing at all: the writer has just closed the file, and given back what it had reserved.
                at_end = not chunk or offset + len(data) >= end or len(data) < len(chunk)
                cut = data.rfind(b"\n") + 1
                if at_end and dead:
                    cut = len(data)
                if cut:
                    new += self._take(connection, name, data[:cut], offset)
                    offset += cut
                size = _CHUNK_BYTES if cut else max(2 * size, _CHUNK_BYTES)  # a line may be longer than a chunk
        return new

    def _take(self, connection: sqlite3.Connection, name: str, data: bytes, offset: int) -> int:
        batch = _Batch(name)
        batch.offset = offset + len(data)
        position = offset
        for line in data.split(b"\n"):
            length = len(line)
            if line := line.strip(b"\0"):
                try:
                    self._sort(batch, self._decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    self._report(batch, position, error)
            position += length + 1
        with _transaction(connection):
            new = ledger_db.insert_entries(connection, batch.entries)
            ledger_db.insert_stages(connection, batch.stages)
            ledger_db.insert_feedback(connection, batch.feedback)
            switched = _monitors.add(connection, batch.levers, time.time())
            _slos.add(connection, [entry.record for entry in new], self._objectives)
            self._store_progress(connection, batch)
        self._remember(batch)
        if switched:
            self._write_switches(connection)
        self._tell(new)
        return len(new)

    def _sort(self, batch: _Batch, message: Intent | Record | Note) -> None:
        if isinstance(message, Stages):
            batch.stages.append(message)
            return
        if isinstance(message, Judged | Switched):
            batch.levers.append(message)
            return
        if isinstance(message, Feedback):
            batch.feedback.append(message)
            return
        if isinstance(message, Intent):
            if message.id not in batch.settled:
                batch.intents[message.id, message.n] = message
            return
        batch.entries.append(settle(_believable(message), self._prices))
        batch.settled.add(message.id)
        for attempt in message.attempts:
            batch.intents.pop((message.id, attempt.n), None)

    def _tell(self, rows: Sequence[LedgerEntry]) -> None:
        for observer in self._observers if rows else ():
            try:
                observer(rows)
            except Exception:
                _log.exception("rows are in the ledger, but %r could not take them", observer)

    def _report(self, batch: _Batch, position: int, error: Exception) -> None:
        batch.bad_lines += 1
        if batch.file not in self._reported:
            self._reported.add(batch.file)
            _log.warning("unreadable line in journal %s at byte %d, skipped: %s", batch.file, position, error)

    def _store_progress(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        connection.execute(
            "INSERT INTO journal_offsets VALUES (?, ?, ?) ON CONFLICT (file) DO UPDATE"
            " SET bytes = excluded.bytes, bad_lines = bad_lines + excluded.bad_lines",
            (batch.file, batch.offset, batch.bad_lines),
        )
        closed = [(request_id,) for request_id in batch.settled if request_id in self._open]
        if closed:
            connection.executemany("DELETE FROM open_intents WHERE request_id = ?", closed)
        opened = [
            (request_id, n, batch.file, msgspec.json.encode(intent))
            for (request_id, n), intent in batch.intents.items()
            if request_id not in batch.settled
        ]
        if opened:
            connection.executemany("INSERT OR IGNORE INTO open_intents VALUES (?, ?, ?, ?)", opened)

    def _remember(self, batch: _Batch) -> None:
        """After the commit: what memory knows follows what the database says."""
        self._offsets[batch.file] = batch.offset
        self.bad_lines += batch.bad_lines
        for request_id in batch.settled:
            self._open.pop(request_id, None)
        for (request_id, n), intent in batch.intents.items():
            if request_id not in batch.settled:
                self._open.setdefault(request_id, {}).setdefault(n, (batch.file, intent))

    def _finish(self, connection: sqlite3.Connection, dead: dict[str, int]) -> int:
        """Make `interrupted` rows of intents whose every writer is dead, then delete the dead files."""
        lost = [
            request_id
            for request_id, intents in self._open.items()
            if all(file in dead or file not in self._offsets for file, _ in intents.values())
        ]
        new = 0
        if lost:
            entries = [
                settle(interrupted([intent for _, intent in self._open[request_id].values()]), self._prices)
                for request_id in lost
            ]
            with _transaction(connection):
                rows = ledger_db.insert_entries(connection, entries)
                _slos.add(connection, [entry.record for entry in rows], self._objectives)
                connection.executemany("DELETE FROM open_intents WHERE request_id = ?", [(i,) for i in lost])
            for request_id in lost:
                del self._open[request_id]
            self._tell(rows)
            new = len(rows)
            _log.warning("requests in flight when their process stopped: %d; the ledger has them as estimates", new)
        for name in dead:
            (self._folder / name).unlink(missing_ok=True)
        return new

    def _forget(self, connection: sqlite3.Connection, files: list[str], dead: dict[str, int]) -> None:
        """Drop the offsets of files that are gone; names are never used again."""
        present = set(files) - set(dead)
        gone = [(name,) for name in self._offsets if name not in present]
        if gone:
            with _transaction(connection):
                connection.executemany("DELETE FROM journal_offsets WHERE file = ?", gone)
            for (name,) in gone:
                del self._offsets[name]
                self._reported.discard(name)


def _believable(record: Record) -> Record:
    """The record as it is, or without the token counts that cannot be true; then it is unpriced."""
    if all(_possible(attempt.usage) for attempt in record.attempts) and _possible(record.baseline_usage):
        return record
    attempts = tuple(
        attempt
        if _possible(attempt.usage)
        else structs.replace(attempt, usage=NO_USAGE, usage_source="none", error=attempt.error or "impossible usage")
        for attempt in record.attempts
    )
    baseline = record.baseline_usage if _possible(record.baseline_usage) else NO_USAGE
    return structs.replace(record, attempts=attempts, baseline_usage=baseline)


def _possible(usage: Usage) -> bool:
    tokens = structs.astuple(usage)
    return bool(max(tokens) <= _MAX_TOKENS and min(tokens) >= -_MAX_TOKENS)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
