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
from trimtab.stores._valkey_link import Link
from trimtab.stores._valkey_records import PREFIX

_BATCH: Final = 32
_STRIKES: Final = 5  # late replies in a row, after which the server counts as down
_PATIENCE_S: Final = 0.25  # for a late reply, while nobody waits for it; without it the server is down
_TURNS: Final = 2  # of the event loop, in which a reply is read that lay there when the loop itself was late
_TRIALS: Final = 5

Waiting = tuple[bytes, float, "asyncio.Future[object]"]


class Reads:
    """A connection for look-ups, and the requests that wait for it. `failed` hears why it is given up."""

    def __init__(self, clock: Clock, timeout_s: float, failed: Callable[[str], None]) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._failed = failed
        self._link: Link | None = None
        self._late = False  # a reply is still to come that nobody waits for
        self._waiting: list[Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._why = ""  # the connection broke, or the server refused
        self.errors = 0

    async def begin(self, link: Link) -> None:
        """Look up over this link from now on. Raises StoreError if no trial is as quick as a look-up has to be."""
        for _ in range(_TRIALS):
            began = self._clock.mono()
            await link.ask(("GET", PREFIX))
            if self._clock.mono() - began <= self._timeout_s:
                break
        else:
            raise StoreError(f"takes longer than {self._timeout_s * 1000:g} ms for a look-up")
        self._link, self._why = link, ""
        self._task = asyncio.create_task(self._run(link))

    @property
    def open(self) -> bool:
        """Whether a look-up can be tried now."""
        return self._link is not None and not self._late

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

    async def _run(self, link: Link) -> None:
        strikes = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                late_s = await self._look_up(link, batch)
                strikes = strikes + 1 if late_s else 0
                self.errors += late_s > 0
                if strikes >= _STRIKES or late_s >= _PATIENCE_S:
                    self._let_go()
                    self._failed(self._why or f"did not answer within {self._timeout_s * 1000:g} ms")
                    return

    async def _look_up(self, link: Link, batch: list[Waiting]) -> float:
        """Answer those who wait, with None if nothing came in time; by how many seconds it was late, else 0."""
        asking = asyncio.create_task(link.ask(("MGET", *[key for key, _, _ in batch])))  # noqa: RUF006 (kept in `asking`)
        try:
            left_s = max(0.001, batch[0][1] + self._timeout_s - self._clock.mono())
            await asyncio.wait({asking}, timeout=left_s)
            for _ in range(_TURNS):
                if not asking.done():
                    await asyncio.sleep(0)
            if asking.done():
                values = self._values(asking)
                _give(batch, values)
                return _PATIENCE_S if values is None else 0.0
            _give(batch, None)
            self._late = True
            self._let_go()
            began = self._clock.mono()
            await asyncio.wait({asking}, timeout=_PATIENCE_S)
            if not asking.done() or self._values(asking) is None:
                return _PATIENCE_S
            return max(1e-6, min(self._clock.mono() - began, _PATIENCE_S / 2))
        finally:
            self._late = False
            _give(batch, None)
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    def _values(self, asking: asyncio.Task[list[object]]) -> list[object] | None:
        """What the server said, None if the connection broke or it refused."""
        error = asking.exception()
        values = asking.result()[0] if error is None else error
        if isinstance(values, list):
            return values
        self._why = str(values)
        return None


def _give(batch: list[Waiting], values: list[object] | None) -> None:
    for n, (_, _, future) in enumerate(batch):
        if not future.done():
            future.set_result(None if values is None else values[n])
