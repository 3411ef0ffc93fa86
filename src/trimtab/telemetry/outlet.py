"""A bounded queue with a thread of its own: whoever puts things in never waits, whatever happens at the other end."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")

Dropped = Callable[[str, int], None]
"""Told what an outlet lost: its name and how many items. Called from any thread."""


class Outlet(Generic[T]):
    """Subclass it with `send`. Starts with the first `put`, at the latest with `start`; `close` sends what is left."""

    name = "outlet"
    limit = 10_000  # items that may wait
    batch = 500  # sent at once
    every_s = 1.0

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped
        self._items: deque[T] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def put(self, items: Iterable[T]) -> None:
        """Hand over; what does not fit is dropped, the newest first, and counted."""
        self.start()
        lost = 0
        for item in items:
            if len(self._items) < self.limit:
                self._items.append(item)
            else:
                lost += 1
        if lost:
            self._dropped(self.name, lost)
        if len(self._items) >= self.batch:
            self._wake.set()

    def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits, for at most `timeout_s`."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive() and self._items:
                self._dropped(self.name, len(self._items))

    def send(self, items: list[T]) -> str:
        """Send a batch; returns why that failed, "" if it did not. It may take its time, and may raise."""
        raise NotImplementedError

    def tick(self, last: bool) -> None:
        """Called after each round of sending; `last` before the end."""

    def report(self, problem: str, lost: int = 0) -> None:
        """Log the first failure of a row and the recovery from it; count what was lost."""
        if lost:
            self._dropped(self.name, lost)
        if problem and not self._failing:
            _log.warning(
                "%s cannot be sent (%s); what does not fit into memory meanwhile is dropped", self.name, problem
            )
        elif not problem and self._failing:
            _log.warning("%s can be sent again", self.name)
        self._failing = bool(problem)

    def _run(self) -> None:
        while True:
            self._wake.wait(self.every_s)
            last = self._closing
            self._wake.clear()
            while self._items:
                items = [self._items.popleft() for _ in range(min(self.batch, len(self._items)))]
                try:
                    problem = self.send(items)
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}"
                self.report(problem, len(items) if problem else 0)
            try:
                self.tick(last)
            except Exception as error:
                self.report(f"{type(error).__name__}: {error}")
            if last:
                return
