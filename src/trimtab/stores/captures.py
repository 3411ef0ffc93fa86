"""What clients sent, on its way to the disk: a bounded queue in front of a thread that redacts, seals and writes.

A request is queued by reference, which costs it a microsecond; everything else happens in the thread, within about a
second. Nothing here makes a request wait or fail: what finds no room, cannot be read or cannot be written is counted.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.types import End, Record, Request

if TYPE_CHECKING:
    from trimtab.redact import Redactor
    from trimtab.stores.captures_db import Captured, Writer
    from trimtab.stores.sealing import Seal

_log = logging.getLogger("trimtab.stores.captures")

FILE_NAME: Final = "capture.sqlite"
FLUSH_S: Final = 0.5
QUEUE_BYTES: Final = 32 << 20
_ROW_BYTES: Final = 1 << 10  # what a queued request takes beside its body
_BATCH_ROWS: Final = 100
_BATCH_BYTES: Final = 4 << 20  # bodies redacted before they are written
_SWEEP_S: Final = 600.0  # between two looks for what is too old
_CLOSE_S: Final = 4.0  # within the 5 seconds that the supervisor leaves a worker that has drained

Count = Callable[[str, int], None]
"""Hears of "written", or why something was dropped ("full", "unreadable", "failed", "stopped"), and how many."""


class Policy(msgspec.Struct, frozen=True):
    """How a route is captured. Without a redactor bodies are kept as they came."""

    redactor: Redactor | None
    seal: Seal
    sample: float
    retention_s: float


class Policies(msgspec.Struct, frozen=True):
    """Of one configuration: by route, None where nothing is kept; `default` is for routes that have no name there."""

    by_route: Mapping[str, Policy | None]
    default: Policy | None

    def of(self, route: str) -> Policy | None:
        """The policy of a route."""
        return self.by_route.get(route, self.default)


_Queued = tuple[Request, Record, Policy]


class Captures:
    """One worker's queue and writer thread, which starts when there is something to do. Make it after the fork."""

    def __init__(self, path: Path, count: Count, *, queue_bytes: int = QUEUE_BYTES) -> None:
        self._path = path
        self._count = count
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = queue_bytes
        # Two counters, each with one writer, in place of one with a lock: the loop adds, the thread takes.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._policies = Policies({}, None)
        self._writer: Writer | None = None
        self._failing = False
        self._swept_at = -_SWEEP_S  # monotonic
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._write_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def use(self, policies: Policies) -> None:
        """Keep rows as long as these say, from now on; and delete what is too old, if there is a file at all."""
        self._policies = policies
        self._swept_at = -_SWEEP_S
        if self._path.exists():
            self._start()
            self._wake.set()

    def tap(self, policies: Policies) -> Callable[[Request, Record], None] | None:
        """What hears of settled requests under one configuration; None where it captures nothing."""
        if policies.default is None and not any(policies.by_route.values()):
            return None

        def take(request: Request, record: Record) -> None:
            policy = policies.of(request.scope.route)
            if policy is None or not request.fields:  # relayed, or turned away before its body was understood
                return
            if record.end == End.REFUSED and record.status != 429:
                return  # bad input; what a limit refused is traffic all the same
            if policy.sample < 1 and random.random() >= policy.sample:
                return
            self.put(request, record, policy)

        return take

    def put(self, request: Request, record: Record, policy: Policy) -> None:
        """Queue a request; one that finds no room is counted. From the event loop's thread only."""
        size = request.body_bytes + _ROW_BYTES
        waiting_bytes = self._put_bytes - self._taken_bytes
        if waiting_bytes and waiting_bytes + size > self._queue_bytes:
            self._count("full", 1)
            return
        self._put_bytes += size
        self._queue.append((request, record, policy))
        if self._thread is None:
            self._start()
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Write what is queued, now; and delete what is too old, now and then."""
        with self._write_lock:
            while self._queue:
                self._write(self._prepared())
            now = time.monotonic()
            if now - self._swept_at >= _SWEEP_S and self._path.exists():
                self._swept_at = now
                self._sweep()

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write what is queued, for so many seconds at most, and release the file. What is left is counted."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if left := len(self._queue):
            self._count("stopped", left)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="capture-writer", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: what is queued waits for the next try
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while not self._stop.is_set():
            self.flush()
            self._wake.wait(_SWEEP_S)
            self._stop.wait(FLUSH_S)
            self._wake.clear()
        self.flush()
        self._release()

    def _prepared(self) -> list[Captured]:
        """The next batch, redacted and sealed."""
        rows: list[Captured] = []
        size = 0
        while self._queue and len(rows) < _BATCH_ROWS and size < _BATCH_BYTES:
            request, record, policy = self._queue.popleft()
            try:
                rows.append(_row(request, record, policy))
                size += request.body_bytes
            except BadRequest:
                self._count("unreadable", 1)
            except Exception as error:  # one request that cannot be kept must not end the others
                self._failed(error, 1)
            finally:
                self._taken_bytes += request.body_bytes + _ROW_BYTES
        return rows

    def _write(self, rows: list[Captured]) -> None:
        if not rows:
            return
        try:
            self._open().add(rows)
        except Exception as error:  # of SQLite, the disk or a file of a newer version: none of them may end the thread
            self._failed(error, len(rows))
            return
        self._count("written", len(rows))
        if self._failing:
            self._failing = False
            _log.warning("requests are captured again")

    def _sweep(self) -> None:
        policies = self._policies
        kept_s = {
            route: policy.retention_s if policy is not None else None for route, policy in policies.by_route.items()
        }
        default_s = policies.default.retention_s if policies.default is not None else None
        try:
            self._open().expire(time.time(), kept_s, default_s)
        except Exception as error:  # likewise
            self._failed(error, 0)

    def _open(self) -> Writer:
        from trimtab.stores.captures_db import Writer

        if self._writer is not None and not self._writer.is_current():
            self._release()
        if self._writer is None:
            self._writer = Writer(self._path)
        return self._writer

    def _failed(self, error: Exception, count: int) -> None:
        if count:
            self._count("failed", count)
        if not self._failing:
            self._failing = True
            _log.error("requests cannot be captured into %s (%s); they are served all the same", self._path, error)
        self._release()

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _row(request: Request, record: Record, policy: Policy) -> Captured:
    """What is stored of a request. Raises BadRequest when it cannot be redacted."""
    from trimtab.stores.captures_db import Captured

    redactor = policy.redactor
    body = msgspec.json.encode(request.fields) if redactor is None else redactor.body(request.fields)
    scope, usage = record.scope, record.baseline_usage
    return Captured(
        id=record.id,
        at=record.at,
        expires=record.at + policy.retention_s,
        tenant=scope.tenant,
        user=scope.user,
        route=scope.route,
        session=scope.session,
        dialect=record.dialect,
        path=record.path.partition("?")[0],
        model=record.model,
        stream=record.stream,
        input_tokens=usage.input_total,
        output_tokens=usage.output_total,
        mode="plain" if redactor is None else "redacted",
        key_id=policy.seal.key_id,
        body_bytes=len(body),
        body=policy.seal.close(body, record.id),
    )
