"""Look-ups in a Valkey server, all that wait in one command, each within its time.

A request waits for a future, never for the socket: a client that leaves cannot leave half a reply behind on the
connection, and a server that does not answer holds up nobody beyond the budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from trimtab.errors import StoreError
from trimtab.ports import Clock
from trimtab.stores._valkey_link import Address, Link
from trimtab.stores._valkey_records import PREFIX

_BATCH: Final = 32
_STRIKES: Final = 3  # failures in a row, after which the server counts as down
_REOPEN_S: Final = 0.25

Waiting = tuple[bytes, float, "asyncio.Future[object]"]


class Reads:
    """A connection for look-ups, and the requests that wait for it. `failed` hears why it is given up."""

    def __init__(self, address: Address, clock: Clock, timeout_s: float, failed: Callable[[str], None]) -> None:
        self._address = address
        self._clock = clock
        self._timeout_s = timeout_s
        self._failed = failed
        self._link: Link | None = None
        self._waiting: list[Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.errors = 0

    async def begin(self, link: Link) -> None:
        """Look up over this link from now on. Raises StoreError if a first look-up takes longer than one may."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await link.ask(("GET", PREFIX))
        except TimeoutError:
            raise StoreError(f"takes longer than {self._timeout_s * 1000:g} ms for a look-up") from None
        self._link = link
        self._task = asyncio.create_task(self._run(link.run_id))

    @property
    def open(self) -> bool:
        """Whether a look-up can be tried now."""
        return self._link is not None

    async def get(self, key: bytes) -> object:
        """What lies under the key, None where nothing does or it is not to be had in time."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting.append((PREFIX + key, self._clock.mono(), future))
        self._wake.set()
        return await future

    async def end(self) -> None:
        """Drop the link; whoever waits goes on without. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        link, self._link = self._link, None
        self._let_go()
        if link is not None:
            await link.drop()

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, _, future in waiting:
            if not future.done():
                future.set_result(None)

    async def _run(self, run_id: bytes) -> None:
        strikes = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and self._link is not None:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                if await self._look_up(self._link, batch):
                    strikes = 0
                    continue
                strikes += 1
                self.errors += 1
                self._let_go()
                if strikes >= _STRIKES or not await self._reopen(run_id):
                    self._failed(f"did not answer within {self._timeout_s * 1000:g} ms")
                    return

    async def _look_up(self, link: Link, batch: list[Waiting]) -> bool:
        """Answer those who wait, with None if nothing came in time; whether it did."""
        left_s = max(0.001, batch[0][1] + self._timeout_s - self._clock.mono())
        values: object = None
        try:
            async with asyncio.timeout(left_s):
                (values,) = await link.ask(("MGET", *[key for key, _, _ in batch]))
        except (StoreError, TimeoutError):
            pass
        finally:
            found = values if isinstance(values, list) else [None] * len(batch)
            for (_, _, future), value in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(value)
        return isinstance(values, list)

    async def _reopen(self, run_id: bytes) -> bool:
        """A fresh link in place of one that may still carry a late reply; only if the same server answers."""
        old, self._link = self._link, None
        if old is not None:
            await old.drop()
        link = Link(self._address)
        try:
            async with asyncio.timeout(_REOPEN_S):
                await link.open()
        except (StoreError, TimeoutError):
            await link.drop()
            return False
        if link.run_id != run_id:
            await link.drop()
            return False
        self._link = link
        return True
