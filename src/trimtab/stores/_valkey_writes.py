"""Answers on their way into a Valkey server: a bounded queue, written in transactions that fail if the epoch moved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from trimtab.errors import StoreError
from trimtab.ports import Clock
from trimtab.stores._valkey_epoch import EPOCH, REPLACED, Known, Stamp, was_executed
from trimtab.stores._valkey_link import Link
from trimtab.stores._valkey_records import HEADER, PREFIX, head, pack
from trimtab.types import Stored

_ENTRIES: Final = 1024
_BYTES: Final = 8 << 20
_BATCH_ENTRIES: Final = 64
_BATCH_BYTES: Final = 1 << 20
_GATHER_S: Final = 0.005
_WRITE_S: Final = 2.0
_TRIES: Final = 5
_REFUSED_FIRST_S: Final = 1.0
_REFUSED_MAX_S: Final = 30.0


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer, and the epoch that was known when its question came."""

    stamp: Stamp
    stored: Stored


class Writes:
    """The queue, and the task that writes it.

    `known` says what was purged, `refresh` waits until that is newer than the epoch given, `failed` hears why the
    connection is given up, and `refused` hears when the server takes no answers ("": it does again).
    """

    def __init__(
        self,
        clock: Clock,
        known: Callable[[], Known],
        refresh: Callable[[bytes], Awaitable[None]],
        failed: Callable[[str], None],
        refused: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._known = known
        self._refresh = refresh
        self._failed = failed
        self._refused = refused
        self._queue: dict[bytes, Entry] = {}
        self._writing: dict[bytes, Entry] = {}
        self._bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._refused_until = 0.0
        self._refused_s = 0.0
        self.errors = self.evictions = self.skipped = 0

    @property
    def waiting(self) -> int:
        """Answers that are not written yet."""
        return len(self._queue) + len(self._writing)

    def begin(self, link: Link) -> None:
        """Write over this link from now on."""
        self._link = link
        self._task = asyncio.create_task(self._run(link))

    async def end(self) -> None:
        """Drop the link, and what was not written. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.errors += self.waiting
        self._queue, self._writing, self._bytes = {}, {}, 0
        link, self._link = self._link, None
        if link is not None:
            await link.drop()

    def put(self, key: bytes, entry: Entry) -> None:
        """Queue an answer; what finds no room is counted."""
        if self._clock.mono() < self._refused_until:
            self.skipped += 1
            return
        size = len(entry.stored.body)
        if len(self._queue) >= _ENTRIES or (self._queue and self._bytes + size > _BYTES):
            self.errors += 1
            return
        self._queue[key] = entry
        self._bytes += size
        self._wake.set()

    def find(self, key: bytes) -> Entry | None:
        """An answer that is still on its way."""
        return self._queue.get(key) or self._writing.get(key)

    async def _run(self, link: Link) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            while self._queue:
                self._take()
                try:
                    async with asyncio.timeout(_WRITE_S):
                        await self._write(link, dict(self._writing))
                    self._accepted()
                except TimeoutError:
                    self._failed(f"took no answer within {_WRITE_S:g} s")
                    return
                except StoreError as error:
                    if not error.message.startswith("refuses to write"):
                        self._failed(error.message)
                        return
                    self._turned_away(error.message)
                except Exception as error:  # an answer that cannot be encoded must not end the writer
                    self.errors += len(self._writing)
                    self._refused(f"cannot be written: {error!r}")
                self._writing = {}

    def _take(self) -> None:
        batch: dict[bytes, Entry] = {}
        size = 0
        for key, entry in self._queue.items():
            size += len(entry.stored.body)
            if batch and (len(batch) >= _BATCH_ENTRIES or size > _BATCH_BYTES):
                break
            batch[key] = entry
        for key in batch:
            del self._queue[key]
        self._writing = batch
        self._bytes = sum(len(entry.stored.body) for entry in self._queue.values())

    def _accepted(self) -> None:
        if self._refused_s:
            self._refused_s = 0.0
            self._refused("")

    def _turned_away(self, why: str) -> None:
        """A server that is full or read-only is asked again now and then, not with each answer."""
        self.errors += len(self._writing)
        self._refused_s = min(_REFUSED_MAX_S, self._refused_s * 2 or _REFUSED_FIRST_S)
        self._refused_until = self._clock.mono() + self._refused_s
        self._refused(why)

    async def _write(self, link: Link, batch: dict[bytes, Entry]) -> None:
        for _ in range(_TRIES):
            known = self._known()
            alive = {key: entry for key, entry in batch.items() if not known.is_dead(entry.stamp, entry.stored)}
            if not alive:
                return
            now = self._clock.wall()
            records = await asyncio.to_thread(_packed, alive, known.epoch.era, now)
            self.evictions += len(alive) - len(records)
            looks = [("GETRANGE", PREFIX + key, 0, HEADER.size - 1) for key in records]
            _, raw, *old = await link.ask(("WATCH", EPOCH), ("GET", EPOCH), *looks)
            if raw == known.epoch.raw:
                commands = _commands(records, alive, old, known.epoch.era, now)
                if not commands:
                    await link.ask(("UNWATCH",))
                    return
                if was_executed(await link.ask(("MULTI",), *commands, ("EXEC",))):
                    return
            else:
                await link.ask(("UNWATCH",))
            await self._refresh(known.epoch.raw)
        self.errors += len(batch)


def _packed(batch: dict[bytes, Entry], era: bytes, now: float) -> dict[bytes, bytes]:
    records = {}
    for key, entry in batch.items():
        if (record := pack(key, era, entry.stored, now)) is not None:
            records[key] = record
    return records


def _commands(
    records: dict[bytes, bytes], batch: dict[bytes, Entry], old: list[object], era: bytes, now: float
) -> list[Any]:
    commands: list[Any] = []
    replaced = False
    for (key, record), beginning in zip(records.items(), old, strict=True):
        stored = batch[key].stored
        former = head(beginning)
        if former is not None and former.era == era and former.expires > now:
            if stored.created < former.written:
                continue  # two of one kind were in flight (the later could not see the former)
            replaced = True
        left_ms = int((stored.expires - now) * 1000)
        # One that expired while it waited still takes the place of its forerunner.
        late = ("DEL", PREFIX + key)
        commands.append(("SET", PREFIX + key, record, "PX", left_ms) if left_ms > 0 else late)
    return [*commands, ("INCR", REPLACED)] if replaced else commands
