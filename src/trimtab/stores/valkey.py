"""Answers in a Valkey or Redis server that all gateways share, under a small LRU of each worker.

    trimtab:1:answer:<key>   header, names and msgpack of a `Stored`, compressed if large; expires by the server
    trimtab:1:epoch          what was purged, as `_valkey_epoch.py` explains, with the two keys beside it

Promises and their price:

* A request never waits longer than the budget for a look-up. When five in a row were late, or a connection breaks or
  says nothing for a quarter of a second, the server counts as down: look-ups and answers go without it and cost
  nothing, while one task tries again, later and later. It counts as up when a first look-up was quick enough.
* A purge reaches every worker. Each asks for the epoch four times in `lease_s` and trusts its memory for `lease_s`
  after it asked; a purge returns when that time is over. Clocks of machines are never compared for it.
* `put` only queues. What is lost when a worker dies, or the server does, are answers that cost a model once more.

The server bounds the size by its own `maxmemory`; which answers go then is its `maxmemory-policy`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from trimtab.errors import StoreError
from trimtab.ports import Clock
from trimtab.stores import _valkey_purge
from trimtab.stores._valkey_epoch import EPOCH, REPLACED, Epoch, Known, Stamp, new_era, replace, settle
from trimtab.stores._valkey_link import Link, parse_url
from trimtab.stores._valkey_reads import Reads
from trimtab.stores._valkey_records import MAX_BODY_BYTES, head, unpack
from trimtab.stores._valkey_reports import Reports
from trimtab.stores._valkey_writes import Entry, Writes
from trimtab.stores.memory import MemoryStore
from trimtab.types import EVERYTHING, Selector, Stored

LEASE_S: Final = 1.0
_START_S: Final = 1.0
_STOP_S: Final = 2.0
_ANSWER_S: Final = 3.0  # for the epoch, which no request waits for
_RETRY_FIRST_S: Final = 0.25
_RETRY_MAX_S: Final = 15.0
_STEADY_S: Final = 30.0  # up for so long, it is tried again quickly the next time
_SURVEY_EVERY: Final = 8  # times that the epoch is asked for
_INLINE_BYTES: Final = 64 << 10  # larger records are unpacked in a thread
_HISTORY: Final = 256
_NOWHERE: Final = Known(Epoch(b"", b"", 0))


class ValkeyStore:
    """An `AnswerStore` in a server across the network. It belongs to one event loop, but for `purge` and `survey`."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        front: MemoryStore | None = None,
        *,
        timeout_s: float = 0.02,
        lease_s: float = LEASE_S,
    ) -> None:
        """Nothing is opened before `start`. Raises BadRequest for a URL that cannot be used."""
        self._address = parse_url(url)
        self.where = self._address.shown
        self._clock = clock
        self._front = front
        self._lease_s = lease_s
        self._known = _NOWHERE
        self._history: list[tuple[float, Stamp]] = []  # since when which epoch was known, by the wall clock
        self._changes = 0
        self._leased_until = 0.0
        self._up = False
        self._says = Reports(self.where, clock)
        self._hits = self._misses = self._errors = self._evictions = self._skipped = 0
        self._survey = {"entries": 0, "bytes": 0}
        self._reads = Reads(clock, timeout_s, self._give_up)
        self._writes = Writes(clock, lambda: self._known, self._refresh, self._give_up, self._says.refused)
        self._reason = ""
        self._kick = asyncio.Event()
        self._asked = asyncio.Event()  # pulsed each time that the epoch was asked for
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect; waits a second at most, and goes on trying in the background."""
        self._task = asyncio.create_task(self._run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await self._tried.wait()

    async def stop(self) -> None:
        """Write what waits, within two seconds, and disconnect. Idempotent."""
        if self._task is None:
            return
        if self._up:
            await self.flush()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    # Reading

    async def get(self, key: bytes) -> Stored | None:
        """The live entry, or None if absent, expired, purged, damaged, or not to be had within the budget."""
        if self._clock.mono() < self._leased_until and (stored := self._at_hand(key)) is not None:
            self._hits += 1
            return stored
        if not self._up or not self._reads.open:
            self._skipped += 1
            return None
        known, changes = self._known, self._changes
        value = await self._reads.get(key)
        stored = None if value is None else await self._read(key, value, known)
        if stored is None:
            self._misses += 1
            return None
        self._hits += 1
        if self._front is not None and changes == self._changes:  # else it may have been purged on its way
            self._front.put(key, stored)
        return stored

    def _at_hand(self, key: bytes) -> Stored | None:
        """From this worker's memory, while it is known that nothing in it was purged."""
        if self._front is not None and (stored := self._front.find(key)) is not None:
            return stored
        entry = self._writes.find(key)
        if entry is None or entry.stored.expires <= self._clock.wall():
            return None
        return None if self._known.is_dead(entry.stamp, entry.stored) else entry.stored

    async def _read(self, key: bytes, value: object, known: Known) -> Stored | None:
        found = head(value)
        if found is not None and isinstance(value, bytes):
            if found.era != known.epoch.era or found.expires <= self._clock.wall():
                return None
            large = len(value) > _INLINE_BYTES
            stored = await asyncio.to_thread(unpack, key, value) if large else unpack(key, value)
            if stored is not None:
                return stored
        self._errors += 1
        self._says.odd("holds what is no answer of ours; it counts as absent")
        return None

    # Writing

    def put(self, key: bytes, stored: Stored) -> None:
        """Keep an entry: at once for this worker, within milliseconds for others. What finds no room is counted."""
        stamp = self._stamp(stored.created)
        if not self._up or stamp is None:
            self._skipped += 1
            return
        if self._known.is_dead(stamp, stored):
            return
        if self._front is not None:
            self._front.discard(key)
        if len(stored.body) > MAX_BODY_BYTES:
            self._evictions += 1
            return
        self._writes.put(key, Entry(stamp, stored))

    def _stamp(self, created: float) -> Stamp | None:
        """The newest epoch that was known at that time; None if none was."""
        for since, stamp in reversed(self._history):
            if since <= created:
                return stamp
        return None

    async def flush(self) -> None:
        """Wait until what was put is written and the figures are new; two seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                while self._up and self._writes.waiting:
                    await self._ask_now()
                self._survey = {}
                while self._up and not self._survey:
                    await self._ask_now()
        self._survey = self._survey or {"entries": 0, "bytes": 0}

    # The connection's life

    async def _run(self) -> None:
        retry_s = 0.0
        while True:
            began = self._clock.mono()
            try:
                await self._connect()
                self._tried.set()
                self._says.up()
                await self._watch()
            except StoreError as error:
                self._says.down(error.message)
            finally:
                self._up = False
                self._leased_until = 0.0
                self._tried.set()
                await self._writes.end()
                await self._reads.end()
            if self._clock.mono() - began > _STEADY_S:
                retry_s = 0.0
            await asyncio.sleep(retry_s)
            retry_s = min(_RETRY_MAX_S, max(_RETRY_FIRST_S, retry_s * 2))

    async def _connect(self) -> None:
        links = [Link(self._address) for _ in range(3)]
        self._watching, reads, writes = links
        handed_over: list[Link] = []
        try:
            for link in links:
                await link.open()
            if len({link.run_id for link in links}) > 1:
                raise StoreError("is more than one server: a purge could not reach all of them")
            asked = self._clock.mono()
            async with asyncio.timeout(_ANSWER_S):
                known = await settle(self._watching)
                await self._reads.begin(reads)
            handed_over.append(reads)
            self._writes.begin(writes)
            handed_over.append(writes)
            self._learn(known)
        except TimeoutError:
            raise StoreError(f"no answer in {_ANSWER_S:g} s") from None
        finally:
            if len(handed_over) < 2:
                for link in links:
                    if link not in handed_over:
                        await link.drop()
        self._reason = ""
        self._up = True
        self._leased_until = asked + self._lease_s

    async def _watch(self) -> None:
        """Ask for the epoch again and again. Raises StoreError when that, or anything else, fails."""
        link, turn = self._watching, 0
        try:
            while not self._reason:
                asked = self._clock.mono()
                survey = turn % _SURVEY_EVERY == 0 or not self._survey
                turn += 1
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        (found, *figures) = await link.ask(
                            ("MGET", EPOCH, REPLACED), *(_valkey_purge.SURVEY if survey else ())
                        )
                        if not isinstance(found, list):
                            raise StoreError(f"cannot be read: {found}")
                        if found != [self._known.epoch.raw, self._known.replaced]:
                            self._learn(await self._settle_anew(link))
                except TimeoutError:
                    raise StoreError(f"no answer in {_ANSWER_S:g} s") from None
                if survey:
                    self._survey = _valkey_purge.figures(figures)
                self._leased_until = asked + self._lease_s
                self._asked.set()
                self._asked.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s / 4):
                        await self._kick.wait()
                self._kick.clear()
            raise StoreError(self._reason)
        finally:
            await link.drop()

    async def _settle_anew(self, link: Link) -> Known:
        known, before = await settle(link), self._known.epoch
        if known.epoch.era == before.era and known.epoch.number < before.number:
            # The server has an older state than it had: a purge is missing from it.
            await replace(link, known.epoch.raw, new_era(link.run_id))
            known = await settle(link)
        return known

    def _learn(self, known: Known) -> None:
        """From here on this is what was purged: whatever was in memory may be dead."""
        if known.epoch != self._known.epoch:
            self._history.append((self._clock.wall(), known.epoch.stamp))
            del self._history[:-_HISTORY]
        self._known = known
        self._changes += 1
        if self._front is not None:
            self._front.clear()

    async def _refresh(self, raw: bytes) -> None:
        """Wait until the epoch is another one than that. Raises StoreError."""
        for _ in range(10):
            if self._known.epoch.raw != raw:
                return
            await self._ask_now()

    async def _ask_now(self) -> None:
        self._kick.set()
        await self._asked.wait()

    def _give_up(self, reason: str) -> None:
        self._up = False
        self._leased_until = 0.0
        self._reason = self._reason or reason
        self._says.down(self._reason)
        self._kick.set()

    # The rest of the contract

    def purge(self, what: Selector = EVERYTHING) -> int:
        """Drop what is meant, for every gateway on the server; takes a second, or as long as the search does.

        Call it from a command or a thread: it has an event loop and a connection of its own. Raises StoreError.
        """
        try:
            return asyncio.run(_valkey_purge.purge(self._address, what, self._lease_s))
        except StoreError as error:
            raise StoreError(f"{self.where}: {error.message}; the purge is not complete") from error

    def survey(self) -> dict[str, int]:
        """Entries in the database and bytes of the server, asked for now, as `purge` is. Raises StoreError."""
        try:
            return asyncio.run(_valkey_purge.survey(self._address))
        except StoreError as error:
            raise StoreError(f"{self.where}: {error.message}") from error

    def stats(self) -> dict[str, int]:
        """Entries in the database and bytes of the whole server as of late; the rest of this process.

        `skipped` are look-ups and answers that went without the server, `down` is 1 while all do.
        """
        return {
            "entries": self._survey.get("entries", 0),
            "bytes": self._survey.get("bytes", 0),
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions + self._writes.evictions,
            "errors": self._errors + self._reads.errors + self._writes.errors,
            "skipped": self._skipped + self._writes.skipped,
            "down": 0 if self._up else 1,
        }
