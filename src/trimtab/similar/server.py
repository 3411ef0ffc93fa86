"""The process: a Unix socket for the workers, and one thread that embeds, decides and learns.

Questions come before answers to learn from. Whatever fails is
logged once a minute and answered by silence: the worker goes without.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from trimtab.similar.messages import (
    DECODE_ASKED,
    Census,
    Compare,
    Compared,
    Counted,
    Embed,
    Gain,
    Judged,
    Learn,
    Look,
    Said,
    Vectors,
    framed,
    read,
)
from trimtab.similar.routers import Routers
from trimtab.similar.service import Service

_log = logging.getLogger("trimtab.similar")

_MOST_WAITING: Final = 2000  # of each kind; what is more is dropped
_SAVE_S: Final = 2.0
_LOG_EVERY_S: Final = 60.0

Reply = Callable[[Said], None]


class _Hands:
    """The thread that owns the service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked: deque[tuple[Look | Census, Reply]] = deque()
        self._said: deque[tuple[Learn | Judged, Reply]] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._saved_at = time.monotonic()
        self._logged_at = -_LOG_EVERY_S
        self._thread = threading.Thread(target=self._run, name="similar", daemon=True)
        self._thread.start()

    def ask(self, asked: Look | Census, reply: Reply) -> None:
        """Answer when it is its turn."""
        if len(self._asked) < _MOST_WAITING:
            self._asked.append((asked, reply))
            self._wake.set()

    def say(self, said: Learn | Judged, reply: Reply) -> None:
        """Learn when nobody asks."""
        if len(self._said) < _MOST_WAITING:
            self._said.append((said, reply))
            self._wake.set()

    def close(self) -> None:
        """Stop after what is under way; save."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while not self._stop:
            if not self._asked and not self._said:
                self._wake.wait(_SAVE_S)
            self._wake.clear()
            try:
                self._turn()
            except Exception as error:
                self._failed(error)
        try:
            self._service.close()
        except sqlite3.Error as error:
            _log.warning("the semantic cache could not save what it learned last: %s", error)

    def _turn(self) -> None:
        if self._asked:
            asked, reply = self._asked.popleft()
            if isinstance(asked, Look):
                reply(self._service.look(asked))
            else:
                reply(Counted(asked.n, self._service.census()))
        elif self._said:
            said, reply = self._said.popleft()
            if isinstance(said, Judged):
                word: Said | None = self._service.judged(said.token, said.same)
            else:
                word = self._service.learn(said)
            if word is not None:
                reply(word)
        if time.monotonic() - self._saved_at >= _SAVE_S:
            self._saved_at = time.monotonic()
            self._service.save()

    def _failed(self, error: Exception) -> None:
        try:
            self._service.failed(error)
        except (OSError, sqlite3.Error) as worse:
            error = worse
        self.complain("the semantic cache", error)

    def complain(self, what: str, error: Exception) -> None:
        """Tell the log, once a minute."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("%s goes without: %s: %s", what, type(error).__name__, error)


async def serve(path: Path, service: Service, routers: Routers, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT. The socket is for this user only."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hands = _Hands(service)

    turn, embedding = asyncio.Lock(), set[asyncio.Task[None]]()
    router = ThreadPoolExecutor(1, "routers")  # of its own: what waits for it are requests

    def gain(message: Gain, reply: Reply) -> None:
        try:
            reply(routers.answer(message))
        except Exception as error:
            hands.complain("routing", error)

    async def embed(message: Embed | Compare, reply: Reply) -> None:
        async with turn:  # one at a time, on a thread of its own: questions must not wait for it
            if isinstance(message, Compare):
                reply(Compared(message.n, await asyncio.to_thread(service.compare, message.fresh, message.others)))
                return
            reply(
                Vectors(message.n, await asyncio.to_thread(service.vectors, message.texts, accurate=message.accurate))
            )

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def reply(message: Said) -> None:
            data = framed(message)
            loop.call_soon_threadsafe(lambda: None if writer.is_closing() else writer.write(data))

        try:
            while True:
                message = DECODE_ASKED(await read(reader))
                if isinstance(message, Learn | Judged):
                    hands.say(message, reply)
                elif isinstance(message, Gain):
                    router.submit(gain, message, reply)
                elif isinstance(message, Embed | Compare):
                    embedding.add(task := loop.create_task(embed(message, reply)))
                    task.add_done_callback(embedding.discard)
                else:
                    hands.ask(message, reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker ended
        except (ValueError, msgspec.MsgspecError) as error:
            _log.warning("a worker said what is none of ours: %s", error)
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(attend, path)
    finally:
        os.umask(mask)
    ready()
    try:
        await stop.wait()
    finally:
        server.close()
        router.shutdown(cancel_futures=True)
        await asyncio.to_thread(hands.close)
        path.unlink(missing_ok=True)
