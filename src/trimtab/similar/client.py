"""A worker's end: asks, and goes without when there is no answer in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from trimtab.ports import Answered, AnswerJudge, AuditHeard
from trimtab.similar.messages import (
    DECODE_SAID,
    Census,
    Compare,
    Compared,
    Counted,
    Doubt,
    Embed,
    Found,
    Gain,
    Gained,
    Judged,
    Learn,
    Look,
    Space,
    Told,
    Vectors,
    framed,
    read,
)
from trimtab.types import Asked, Embedded, ReuseTerms, Similar, Stored

_log = logging.getLogger("trimtab.similar")

_RETRY_S: Final = 1.0
_MOST_LATE: Final = 3
_MOST_UNSENT_BYTES: Final = 8 << 20
_MOST_JUDGES: Final = 2000  # most are never asked: it can mostly be read from the answers
_MOST_JUDGING: Final = 8  # calls to a model at once
_MOST_HEARING: Final = 2000
_MOST_TOKENS: Final = 20_000  # most of a hit's never come back, and those of requests that failed

_Answered = Found | Compared | Vectors | Gained | Counted


class Client:
    """`ports.SimilarAnswers`, `Embeddings` and `Gains` over the socket at `path`; belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = count(1)
        self._waiting: dict[int, asyncio.Future[_Answered]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._tokens: set[int] = set()  # of this connection
        self._judges: OrderedDict[int, AnswerJudge] = OrderedDict()  # by the token of what was learned
        self._heard: OrderedDict[int, AuditHeard] = OrderedDict()  # by the token, too
        self._judging: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.skipped = 0  # questions that went without
        self.errors = 0  # of the process, as it says
        self._late = 0  # in a row
        self._told = False  # the log knows that it hangs
        self._again_at = 0.0  # monotonic; until then nothing is asked of one that hangs

    async def look(self, asked: Asked, terms: ReuseTerms, timeout_s: float) -> Similar | None:
        """What is known of a question; None when there is no answer in time."""
        n, now = next(self._count), time.monotonic()
        if self._late >= _MOST_LATE and now < self._again_at:  # it hangs: not every request is to wait for that
            self.skipped += 1
            return None
        self._again_at = now + _RETRY_S
        found = await self._ask(n, Look(n, asked, terms), timeout_s)
        if not isinstance(found, Found):
            self._late += 1
            self.skipped += 1
            if self._late >= _MOST_LATE and self._writer is not None and not self._told:  # of its end others tell
                self._told = True
                _log.warning("the semantic cache gives no answer in time; requests go on without it")
            return None
        if self._told:
            self._told = False
            _log.warning("the semantic cache answers again")
        self._late, self.errors = 0, found.errors
        if len(self._tokens) >= _MOST_TOKENS:
            self._tokens.clear()
        self._tokens.add(found.similar.token)
        return found.similar

    def learn(
        self, token: int, stored: Stored, judge: AnswerJudge | None = None, heard: AuditHeard | None = None
    ) -> None:
        """Say what the fresh answer was. A token of a former connection means nothing any more."""
        if token in self._tokens and self._writer is not None:
            self._tokens.discard(token)
            if self._writer.transport.get_write_buffer_size() < _MOST_UNSENT_BYTES:
                if judge is not None:
                    self._judges[token] = judge
                    if len(self._judges) > _MOST_JUDGES:
                        self._judges.popitem(last=False)
                if heard is not None:
                    self._heard[token] = heard
                    if len(self._heard) > _MOST_HEARING:
                        self._heard.popitem(last=False)
                self._writer.write(framed(Learn(token, stored, judge is not None, heard is not None)))

    async def compare(self, fresh: str, others: list[str], timeout_s: float) -> list[bool | None] | None:
        """Whether each is as good as the fresh answer; None when there is no answer in time."""
        n = next(self._count)
        said = await self._ask(n, Compare(n, fresh, others), timeout_s)
        return said.same if isinstance(said, Compared) else None

    async def embed(self, accurate: bool, texts: list[str], timeout_s: float) -> Embedded | None:
        """Texts as vectors; None when there is no answer in time."""
        n = next(self._count)
        said = await self._ask(n, Embed(n, accurate, texts), timeout_s)
        return said.embedded if isinstance(said, Vectors) else None

    async def gain(self, router: str, prompt: str, timeout_s: float) -> tuple[float, bool] | None:
        """What the strong model is expected to gain on a prompt; None when there is no answer in time."""
        n = next(self._count)
        said = await self._ask(n, Gain(n, router, prompt), timeout_s)
        return (said.gain, said.far) if isinstance(said, Gained) else None

    async def gain_after(self, router: str, answered: Answered, timeout_s: float) -> float | None:
        """What it is expected to gain over an answer; None when there is no answer in time."""
        n = next(self._count)
        said = await self._ask(n, Gain(n, router, answered.prompt, answered), timeout_s)
        return said.gain if isinstance(said, Gained) else None

    async def census(self, timeout_s: float = 1.0) -> list[Space]:
        """How each tenant's route is doing; empty when there is no answer in time."""
        n = next(self._count)
        counted = await self._ask(n, Census(n), timeout_s)
        return counted.spaces if isinstance(counted, Counted) else []

    def _have_judged(self, doubt: Doubt) -> None:
        judge = self._judges.pop(doubt.token, None)
        if judge is None or len(self._judging) >= _MOST_JUDGING:
            self._say(Judged(doubt.token, None))
            return

        async def ask() -> None:
            same = None
            try:
                same = await judge(doubt.fresh, doubt.cached)
            except Exception as error:
                _log.warning("the semantic cache's judge failed: %r", error)
            self._say(Judged(doubt.token, same))

        task = asyncio.get_running_loop().create_task(ask())
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    def _say(self, judged: Judged) -> None:
        if self._writer is not None:
            self._writer.write(framed(judged))

    async def _ask(self, n: int, message: Look | Compare | Embed | Gain | Census, timeout_s: float) -> _Answered | None:
        if self._writer is None:
            self._begin()
            return None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answered] = loop.create_future()
        self._waiting[n] = future
        self._writer.write(framed(message))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except (TimeoutError, ConnectionError):
            return None
        finally:
            self._waiting.pop(n, None)

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """One connection, from its beginning to its end, and a pause before the next."""
        writer: asyncio.StreamWriter | None = None
        try:
            if self._path.stat().st_uid != os.getuid():
                raise ConnectionError("somebody else listens there")
            reader, writer = await asyncio.open_unix_connection(self._path)
            self._writer = writer
            while True:
                said = DECODE_SAID(await read(reader))
                if isinstance(said, Doubt):
                    self._have_judged(said)
                    continue
                if isinstance(said, Told):
                    if (heard := self._heard.pop(said.token, None)) is not None:
                        heard(said.same)
                    continue
                future = self._waiting.get(said.n)
                if future is not None and not future.done():
                    future.set_result(said)
        except (OSError, asyncio.IncompleteReadError):
            pass  # not there yet, or gone: the supervisor starts it again
        except (ValueError, msgspec.MsgspecError) as error:
            _log.warning("the semantic cache's process said what cannot be read: %s", error)
        finally:
            self._writer = None
            self._tokens.clear()
            self._judges.clear()
            self._heard.clear()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the semantic cache's process is gone"))
            if writer is not None:
                writer.close()
        await asyncio.sleep(_RETRY_S)

    async def start(self) -> None:
        """Connect, if it is there."""
        self._begin()

    async def connected(self, timeout_s: float = 1.0) -> bool:
        """Connect, and say whether it is there."""
        self._begin()
        for _ in range(int(timeout_s / 0.01)):
            if self._writer is not None:
                return True
            await asyncio.sleep(0.01)
        return False

    async def stop(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
