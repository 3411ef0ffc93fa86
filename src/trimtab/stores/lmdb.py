"""Answers in one LMDB file that all workers share and that survives a restart, under a small LRU of each process.

Layout of the folder:

    generation        40 bytes, mapped by every process (see `_shared_words.py`)
    purges.json       what was purged selectively (see `_purges.py`)
    answers/          the LMDB environment: `answers3` (created + key -> header + msgpack of `Stored`), and
                      `index`, by which a key's answer is found (see `_lmdb_index.py`)
    answers.corrupt/  an environment that was set aside, for whoever wants to look at it; the next one replaces it
    unsynced          the boot id under which there are writes that the disk may not have yet
    corrupt           empty; a process found damage while it ran, so the next one to start sets `answers/` aside

Promises and their price:

* A purge reaches every process at once: each `get` compares the mapped words with those its LRU was filled under
  (0.1 us). Entries carry their generation, so one that was written late does not come back, and an answer whose request
  began before the purge is not kept either. A selective purge says first what it means, from when on no writer lets
  such an answer in; then it searches the file; then it has every process forget its LRU once more.
* `put` only queues. A thread writes what has gathered in 50 ms in one transaction; a crash of the process loses at
  most that. Syncing each batch would double its cost, so the file is synced every few seconds, and `unsynced` stands
  beside it meanwhile: if the machine itself goes down then, the next start finds that file with another boot's id, and
  sets the answers aside. A checksum over key, header and value makes damage a miss.
* Answers lie in the order of their age: new ones go behind the others, whole pages at a time, and the oldest are the
  first. Under their keys, which are random, each new one would have a page copied.
* Open it after the fork, once per process and folder: LMDB forbids both otherwise.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from trimtab.ports import Clock
from trimtab.stores._answer_records import DECODER, HEADER, age_and_key, age_of, is_sound, pack, place_of
from trimtab.stores._lmdb_index import Index
from trimtab.stores._lmdb_search import remove, remove_meant
from trimtab.stores._purges import Purges
from trimtab.stores.memory import MemoryStore
from trimtab.types import EVERYTHING, Selector, Stored

_log = logging.getLogger("trimtab.stores.lmdb")

DEFAULT_MAX_BYTES: Final = 1 << 30
BATCH_S: Final = 0.05
SYNC_S: Final = 5.0
_QUEUE_ENTRIES: Final = 1024
_QUEUE_BYTES: Final = 8 << 20
_SWEEP_ENTRIES: Final = 64  # dead entries removed beside each batch
_EVICT_ENTRIES: Final = 256  # per transaction: each removal copies pages, which must fit into the free fifth of the map
_LOG_EVERY_S: Final = 60.0

# The file itself is bad (and not the folder, the disk or a lock): a fresh one helps.
_DAMAGE: Final = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


class LmdbStore:
    """An `AnswerStore` in LMDB with an optional LRU in front.

    `get`, `find`, `put` and `stats` belong to one thread (the event loop's); `flush`, `purge` and `close` may be called
    from another. Where the folder or the file cannot be used at all, it logs one line, counts errors and keeps answers
    in the LRU only. `max_bytes` bounds the file; answers take at most four fifths of it, the oldest go first.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Clock, front: MemoryStore | None = None) -> None:
        """Open or make the store in `folder`. Raises nothing: it works without its file then."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._front = front
        self._hits = self._misses = self._evictions = self._errors = 0
        self._logged_at = -_LOG_EVERY_S
        self._lock = threading.Lock()  # the queue
        self._write_lock = threading.Lock()  # this process's writer; LMDB's own lock keeps other processes out
        self._queue: dict[bytes, tuple[int, Stored]] = {}  # key -> (generation, answer)
        self._writing: dict[bytes, tuple[int, Stored]] = {}
        self._queue_bytes = 0
        self._queue_max_bytes = min(_QUEUE_BYTES, max_bytes // 16)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unsynced_since: float | None = None  # monotonic
        self._env: Any = None
        self._answers: Any = None
        self._index: Any = None
        self._purges = Purges(None, 0.0)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._purges = Purges(folder, clock.wall())
            with self._purges.words.locked():
                self._open()
        except (OSError, lmdb.Error) as error:
            self._failed("cannot be opened; answers are kept in memory only", error)
        self._shared = self._purges.words
        self._state = self._purges.load()
        self._seen, self._generation = self._state.seen, self._state.generation

    async def start(self) -> None:
        """Nothing to be done: it is open, and its writer begins with the first answer."""

    # Reading

    async def get(self, key: bytes) -> Stored | None:
        """As `find`."""
        return self.find(key)

    def find(self, key: bytes) -> Stored | None:
        """The live entry, or None if absent, expired, purged or damaged."""
        if self._shared.snapshot() != self._seen:
            self._forget()
        if self._front is not None:
            stored = self._front.find(key)
            if stored is not None:
                self._hits += 1
                return stored
        stored = self._queued(key) if self._queue or self._writing else None
        if stored is None and self._env is not None:
            stored = self._read(key)
            if stored is not None and self._front is not None:
                self._front.put(key, stored)
        if stored is None:
            self._misses += 1
        else:
            self._hits += 1
        return stored

    def _queued(self, key: bytes) -> Stored | None:
        entry = self._queue.get(key) or self._writing.get(key)
        if entry is None or entry[0] != self._generation or entry[1].expires <= self._clock.wall():
            return None
        return None if self._state.is_dead(entry[1]) else entry[1]

    def _read(self, key: bytes) -> Stored | None:
        try:
            ages = self._index.find(key)
            if not ages:
                return None
            with self._env.begin(db=self._answers, buffers=True) as txn:
                value = None
                for age in ages:
                    value = value or txn.get(place_of(age, key))
                if value is None:
                    return None
                if not is_sound(key, value):
                    self._failed("holds a damaged entry", ValueError("checksum"))
                    return None
                generation, _, expires, _, _ = HEADER.unpack_from(value)
                if generation != self._generation or expires <= self._clock.wall():
                    return None
                return DECODER.decode(value[HEADER.size :])
        except (lmdb.Error, msgspec.MsgspecError) as error:
            self._failed("cannot be read", error)
            return None

    def _forget(self) -> None:
        self._state = self._purges.load()
        self._seen, self._generation = self._state.seen, self._state.generation
        if self._front is not None:
            self._front.clear()

    # Writing

    def put(self, key: bytes, stored: Stored) -> None:
        """Keep an entry: at once for this process, within about 50 ms for the others. What finds no room is counted."""
        if self._shared.snapshot() != self._seen:
            self._forget()
        if self._state.is_dead(stored):
            return
        if self._env is None:
            self._errors += 1
            self._keep_here(key, stored)
            return
        size = len(stored.body)
        if size > self._max_bytes // 64:
            self._evictions += 1
            self._keep_here(key, stored)
            return
        with self._lock:
            full = len(self._queue) >= _QUEUE_ENTRIES or self._queue_bytes + size > self._queue_max_bytes
            if not (full and self._queue):
                self._queue[key] = (self._generation, stored)
                self._queue_bytes += size
                full = False
        if full:
            self._errors += 1
            self._keep_here(key, stored)
            return
        if self._front is not None:
            # Only what is read again earns a place there: most answers never are, and each would push out one that was.
            self._front.discard(key)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="answer-writer", daemon=True)
            self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def _keep_here(self, key: bytes, stored: Stored) -> None:
        if self._front is not None:
            self._front.put(key, stored)

    def flush(self) -> None:
        """Write what is queued, now."""
        with self._write_lock:
            self._flush()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(None if self._unsynced_since is None else SYNC_S)
            self._stop.wait(BATCH_S)
            self._wake.clear()
            self.flush()
            if self._unsynced_since is not None and self._clock.mono() - self._unsynced_since >= SYNC_S:
                with self._write_lock:
                    self._sync()

    def _flush(self) -> None:
        with self._lock:
            if not self._queue:
                return
            # In this order: a `get` in between finds the entries in one of the two.
            self._writing = self._queue
            self._queue = {}
            self._queue_bytes = 0
        try:
            if self._env is not None:
                self._write(self._writing)
        except Exception as error:  # a batch that fails must not end the writer
            self._failed("cannot be written", error, len(self._writing))
        finally:
            self._writing = {}

    def _write(self, batch: dict[bytes, tuple[int, Stored]]) -> None:
        now = self._clock.wall()
        records = [
            (key, generation, stored, pack(key, generation, stored, now)) for key, (generation, stored) in batch.items()
        ]
        records.sort(key=lambda record: record[2].created)
        with self._shared.locked():  # against another process's `_sync`, which removes the mark
            mark = self._folder / "unsynced"
            if not mark.exists():
                mark.write_text(_boot_id())
            if self._unsynced_since is None:
                self._unsynced_since = self._clock.mono()
            try:
                self._make_room(sum(self._on_disk_bytes(len(value)) for *_, value in records))
                self._write_records(records, now)
            except lmdb.MapFullError:
                self._make_room_hard()
                self._write_records(records, now)

    def _sync(self) -> None:
        """Have the disk catch up with this process's writes, and with the others' so far."""
        try:
            self._unsynced_since = None
            if self._env is None:
                return
            with self._shared.locked():
                self._env.sync(True)
                self._index.sync()
                (self._folder / "unsynced").unlink(missing_ok=True)
        except (OSError, lmdb.Error) as error:
            self._failed("cannot be synced", error)

    def _write_records(self, records: list[tuple[bytes, int, Stored, bytes]], now: float) -> None:
        with self._env.begin(write=True) as txn:
            # Read inside the transaction: a selective purge that is not known here yet will search the file after it.
            state = self._state if self._shared.snapshot() == self._state.seen else self._purges.load()
            current, replaced = state.generation, False
            for key, generation, stored, value in records:
                if generation != current or state.is_dead(stored):
                    continue  # purged while it waited
                was_live = self._remove_former(txn, key, stored.created, current, now)
                if was_live is None:
                    continue
                replaced = replaced or was_live
                age = age_of(stored.created)
                place = place_of(age, key)
                if not txn.put(place, value, append=True, db=self._answers):  # older than another process's last
                    txn.put(place, value, db=self._answers)
                self._index.set(key, age)
            self._remove_oldest(txn, _SWEEP_ENTRIES, dead_at=now)
        if replaced:
            self._shared.replaced()

    def _remove_former(self, txn: Any, key: bytes, created: float, current: int, now: float) -> bool | None:
        """Make way for a new answer to the key's question. Whether a live one went; None if that stays.

        It stays if it was written after the new one was asked for: of two in flight the later could not see the former.
        """
        was_live = False
        for age in self._index.find(key):
            value = txn.get(place_of(age, key), db=self._answers)
            if value is None:
                continue
            if is_sound(key, value):
                generation, _, expires, written, _ = HEADER.unpack_from(value)
                if generation == current and expires > now:
                    if created < written:
                        return None
                    was_live = True
            txn.delete(place_of(age, key), db=self._answers)
            self._index.forget(key, age)
        return was_live

    def _on_disk_bytes(self, value_bytes: int) -> int:
        """An upper estimate: values over half a page get whole pages of their own."""
        return value_bytes + (self._page_bytes if value_bytes > self._page_bytes // 3 else 128)

    def _used_bytes(self, txn: Any) -> int:
        stat = txn.stat(self._answers)
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * self._page_bytes

    def _make_room(self, need_bytes: int) -> None:
        """Remove the oldest entries until `need_bytes` fit into four fifths of the map, and a little more."""
        limit_bytes = self._max_bytes * 4 // 5 - need_bytes
        with self._env.begin() as txn:
            used_bytes = self._used_bytes(txn)
        while used_bytes > limit_bytes:
            enough_bytes = used_bytes - limit_bytes + self._max_bytes // 64
            with self._env.begin(write=True, buffers=True) as txn:
                removed = self._remove_oldest(txn, _EVICT_ENTRIES, enough_bytes=enough_bytes)
                used_bytes = self._used_bytes(txn)
            self._evictions += removed
            if removed == 0:
                return

    def _make_room_hard(self) -> None:
        """The map is full all the same (a dead reader, fragments, a lower setting): a quarter goes, or else all."""
        self._env.reader_check()
        try:
            with self._env.begin() as txn:
                wanted = txn.stat(self._answers)["entries"] // 4 + 1
            while wanted > 0:
                with self._env.begin(write=True) as txn:
                    removed = self._remove_oldest(txn, _EVICT_ENTRIES)
                self._evictions += removed
                wanted -= removed or wanted
        except lmdb.MapFullError:
            with self._env.begin(write=True) as txn:
                self._evictions += self._drop_all(txn)

    def _remove_oldest(
        self, txn: Any, count: int, *, enough_bytes: int | None = None, dead_at: float | None = None
    ) -> int:
        """Remove up to `count` entries, oldest first; returns how many went.

        With `enough_bytes`, only until so much is free; with `dead_at`, only as long as they are expired or purged.
        """
        removed = freed_bytes = 0
        generation = self._shared.read()[0]
        with txn.cursor(db=self._answers) as cursor:
            found = cursor.first()
            while found and removed < count and (enough_bytes is None or freed_bytes < enough_bytes):
                value = cursor.value()
                freed_bytes += len(value)
                if dead_at is not None and len(value) >= HEADER.size:
                    of, _, expires, _, _ = HEADER.unpack_from(value)
                    if of == generation and expires > dead_at:
                        break
                remove(cursor, self._index)
                removed += 1
                found = bool(cursor.key())
        return removed

    def _drop_all(self, txn: Any) -> int:
        count = int(txn.stat(self._answers)["entries"])
        txn.drop(self._answers, delete=False)
        self._index.clear()
        return count

    # The rest of the contract

    def purge(self, what: Selector = EVERYTHING) -> int:
        """Drop what is meant, in every process on this folder; returns how many entries the file held of it.

        All of it takes milliseconds, or as long as another process's batch; a selection has the whole file read. Where
        the file cannot be searched, everything is dropped instead, and an error is counted.
        """
        if what == EVERYTHING:
            return self._purge_all()
        with self._write_lock:
            self._flush()
            count = 0
            try:
                self._purges.select(what, self._clock.wall())
                if self._env is None:
                    count = 0 if self._front is None else self._front.purge(what)
                    searched = not (self._folder / "answers").exists()
                else:
                    count = remove_meant(self._env, self._answers, self._index, what)
                    searched = True
                self._purges.again()
                if searched:
                    return count
                self._failed("cannot be searched; everything is dropped instead", OSError("it is not open here"))
            except (lmdb.Error, OSError) as error:
                self._failed("cannot be searched; everything is dropped instead", error)
        return count + self._purge_all()

    def _purge_all(self) -> int:
        with self._write_lock:
            self._flush()
            count = 0 if self._front is None or self._env is not None else self._front.stats()["entries"]
            self._purges.everything(self._clock.wall())
            if self._env is not None:
                try:
                    with self._env.begin(write=True) as txn:
                        count = self._drop_all(txn)
                except (lmdb.Error, OSError) as error:
                    self._failed("cannot be emptied (its entries are dead all the same)", error)
        return count

    def stats(self) -> dict[str, int]:
        """Entries and bytes of the shared file, those that wait to be written included; the rest of this process."""
        entries = bytes_used = 0
        if self._env is not None:
            try:
                with self._env.begin() as txn:
                    entries = int(txn.stat(self._answers)["entries"]) + len(self._queue) + len(self._writing)
                    bytes_used = self._used_bytes(txn) + self._queue_bytes
            except lmdb.Error as error:
                self._failed("cannot be read", error)
        elif self._front is not None:
            if self._shared.snapshot() != self._seen:
                self._forget()
            memory = self._front.stats()
            entries, bytes_used = memory["entries"], memory["bytes"]
        return {
            "entries": entries,
            "bytes": bytes_used,
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions,
            "errors": self._errors,
        }

    async def stop(self) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Write what is queued and release the file. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)
        with self._write_lock:
            self._flush()
            if self._env is not None:
                if self._unsynced_since is not None:
                    self._sync()
                self._env.close()
                self._index.close()
                self._env = None
        self._purges.close()

    # Opening and failing

    def _open(self) -> None:
        """Open the environment; a damaged one is set aside once. Raises lmdb.Error, OSError. Called under the lock."""
        path = self._folder / "answers"
        if (self._folder / "corrupt").exists():
            self._set_aside(path, "was found damaged while in use")
        mark = self._folder / "unsynced"
        if mark.exists() and mark.read_text() != _boot_id():
            self._set_aside(path, "was being written when the machine went down")
            mark.unlink()
        try:
            self._open_environment(path)
        except _DAMAGE as error:
            self._set_aside(path, str(error))
            self._open_environment(path)

    def _open_environment(self, path: Path) -> None:
        data = path / "data.mdb"
        # A file larger than the setting (which was lowered) still needs room to shrink its contents in.
        map_bytes = max(self._max_bytes, data.stat().st_size * 5 // 4 if data.exists() else 0, 1 << 20)
        env = lmdb.open(
            str(path),
            map_size=-(-map_bytes // mmap.PAGESIZE) * mmap.PAGESIZE,
            max_dbs=8,
            max_readers=512,
            sync=False,
            readahead=False,
            meminit=False,
            mode=0o600,
        )
        try:
            env.reader_check()
            self._page_bytes = int(env.stat()["psize"])
            _extend(data, (int(env.info()["last_pgno"]) + 1) * self._page_bytes)
            self._drop_former(env, path)
            self._answers = env.open_db(b"answers3")
            self._index = Index(path / "index", map_bytes, resize=self._front is not None)
            with env.begin() as txn, txn.cursor(db=self._answers) as cursor:
                cursor.last()
                cursor.first()
                if self._index.fresh:
                    for place in cursor.iternext(values=False):
                        age, key = age_and_key(place)
                        self._index.set(key, age)
        except BaseException:
            env.close()
            raise
        self._env = env

    def _drop_former(self, env: Any, path: Path) -> None:
        """Records of a version before this one lie in another order."""
        with env.begin(write=True) as txn:
            former = [name for name in (b"answers1", b"ages1", b"answers2", b"ages2") if txn.get(name) is not None]
            for name in former:
                txn.drop(env.open_db(name, txn=txn, create=False))
        if former:
            _log.warning("answer cache %s: answers in the format of an earlier version were dropped", path)

    def _set_aside(self, path: Path, why: str) -> None:
        # The lock file goes with it: processes that still use the old file keep both of theirs.
        aside = path.with_name("answers.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.rename(aside)
        (self._folder / "corrupt").unlink(missing_ok=True)
        _log.warning("answer cache %s: %s; set aside as %s, starting with an empty one", path, why, aside.name)

    def _failed(self, what: str, error: Exception, count: int = 1) -> None:
        self._errors += count
        if isinstance(error, _DAMAGE):
            with suppress(OSError):
                (self._folder / "corrupt").touch()
        now = self._clock.mono()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("answer cache %s %s: %s", self._folder, what, error)


def _boot_id() -> str:
    """Which start of the machine this is; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _extend(data: Path, size_bytes: int) -> None:
    """Fill up a file that was cut short: reading past its end would kill the process, a page of zeros is an error."""
    if data.stat().st_size >= size_bytes:
        return
    with data.open("r+b") as file:
        os.posix_fallocate(file.fileno(), size_bytes - 1, 1)  # only ever grows it, whatever other processes do
