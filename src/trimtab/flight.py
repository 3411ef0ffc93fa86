"""One request under way: what has happened to it so far, its deadlines, and its share of an engine's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from trimtab.errors import TrimtabError
from trimtab.ports import Clock, Sink
from trimtab.types import AttemptRecord, Decision, End, Plan, Reply, Request, Stored, Target

Header = tuple[bytes, bytes]


class Deadline:
    """The running deadline of one attempt; move `at` (monotonic seconds) as the attempt progresses."""

    __slots__ = ("at", "expired", "label", "task")

    def __init__(self, task: asyncio.Task[None], at: float, label: str) -> None:
        self.task = task
        self.at = at
        self.label = label
        self.expired = False


class Deadlines:
    """One sweeper for all attempts: a timer per request would cost 10 us each (measured), this costs nothing."""

    def __init__(self, clock: Clock, interval_s: float = 0.05) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._running: set[Deadline] = set()

    def start(self, task: asyncio.Task[None], at: float, label: str) -> Deadline:
        """Cancel the task when `at` passes."""
        deadline = Deadline(task, at, label)
        self._running.add(deadline)
        return deadline

    def stop(self, deadline: Deadline) -> None:
        """End the watch. Idempotent."""
        self._running.discard(deadline)

    async def sweep(self) -> None:
        """Run for the life of the worker."""
        while True:
            await asyncio.sleep(self._interval_s)
            now = self._clock.mono()
            for deadline in [d for d in self._running if d.at <= now]:
                self._running.discard(deadline)
                deadline.expired = True
                deadline.task.cancel()


class BusyShare:
    """Busy seconds of one engine, split evenly among the calls in flight at each moment, so that they sum to its time.

    Source: the virtual time of processor sharing (Parekh and Gallager 1993): it advances by dt / n while n calls run.
    """

    __slots__ = ("_at", "_running", "_virtual_s")

    def __init__(self) -> None:
        self._running = 0
        self._virtual_s = 0.0
        self._at = 0.0

    def start(self, now: float) -> float:
        """A call begins at `now` (monotonic seconds); returns its mark."""
        self._advance(now)
        self._running += 1
        return self._virtual_s

    def stop(self, mark: float, now: float) -> float:
        """The call ends; returns its share of the engine's seconds."""
        self._advance(now)
        self._running -= 1
        return self._virtual_s - mark

    def _advance(self, now: float) -> None:
        if self._running:
            self._virtual_s += (now - self._at) / self._running
        self._at = now


class Flight:
    """What has happened so far to one request: the only mutable thing about it."""

    __slots__ = (
        "app_stages", "asided", "asked", "attempts", "cache", "calls", "changed", "chunks", "decisions", "end",
        "error", "joined", "make_reply", "pieces", "plan", "request", "response_bytes", "served", "shared", "stages",
        "started", "status", "stored", "ttft_s", "wants_reply",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.asked = request  # as the client sent it
        self.request = request  # as the levers left it
        self.plan: Plan | None = None  # as it was before the levers
        self.decisions: list[Decision] = []
        self.changed: tuple[Decision, ...] = ()  # those by which the client may get another answer
        self.attempts: list[AttemptRecord] = []
        self.asided: list[AttemptRecord] = []  # calls that only helped to judge an answer
        self.calls = count()  # numbers all of them in the order of their beginning
        self.stages: dict[str, float] = {}
        self.app_stages: dict[str, float] = {}
        self.status = 0
        self.end = End.OK
        self.error = ""
        self.cache = ""
        self.ttft_s: float | None = None
        self.chunks = 0
        self.response_bytes = 0
        self.started = False  # the head went to the client: nothing can be retried any more
        self.stored: Stored | None = None
        self.pieces: list[bytes] | None = None  # of a stream, as they went out, where somebody may want them
        self.shared: SharedCall | None = None  # others listen to this one's call
        self.joined: Flight | None = None  # the one whose call answers this one
        self.served: Target | None = None
        self.wants_reply = False  # a lever asked for the whole reply
        self.make_reply: Callable[[], Reply] | None = None  # called after the answer is sent, if a lever asked

    def within(self, request: Request, attempts: list[AttemptRecord]) -> Flight:
        """A call of this one's that its client does not see, or not yet; its record goes to `attempts`."""
        inner = Flight(request)
        inner.attempts, inner.calls, inner.wants_reply = attempts, self.calls, True
        return inner


class Finish(NamedTuple):
    """What is left to send. `headers` is None when the head was sent; `body` is then the stream's end mark."""

    status: int
    headers: list[Header] | None
    body: bytes
    cut: bool = False  # break the connection after it: what the client has is not whole


class SharedCall:
    """One upstream call for several clients: who asks the same while it runs gets what it gets, piece by piece.

    The first to ask (the leader) makes the call and pays for it; its row has the attempt. The others listen: their rows
    have no attempt. Nobody's leaving or slowness is another's: once somebody listens, the leader's task no longer waits
    for its client, and ends early only when no client is left.
    """

    __slots__ = (
        "_listeners",
        "_news",
        "_task",
        "leader",
        "leader_end",
        "leader_error",
        "leader_gone",
        "outcome",
        "over",
    )

    def __init__(self, leader: Flight, sink: Sink) -> None:
        self.leader = leader
        self.leader_gone = False
        self.over = False
        self.leader_end = leader.end  # as its call ended; what became of its client is its own
        self.leader_error = ""
        self.outcome: Finish | TrimtabError | None = None  # None though over: no call was made, ask on your own
        self._listeners = 0
        self._news = asyncio.Event()
        leader.shared = self
        self._task = sink.release(self._leader_left)

    def __enter__(self) -> SharedCall:
        self._listeners += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._listeners -= 1
        self._end_if_nobody_is_left()

    def tell(self) -> None:
        """There is another piece, or an outcome."""
        self._news.set()
        self._news.clear()

    def end(self, outcome: Finish | TrimtabError | None) -> None:
        """The call is over: how its answer ends, or why there is none."""
        self.over, self.outcome = True, outcome
        self.leader_end, self.leader_error = self.leader.end, self.leader.error
        self.tell()

    async def news(self) -> None:
        """Wait until `tell`."""
        await self._news.wait()

    def _leader_left(self) -> None:
        self.leader_gone = True
        self._end_if_nobody_is_left()

    def _end_if_nobody_is_left(self) -> None:
        if self.leader_gone and not self._listeners and not self.over:
            self._task.cancel()


Head = Callable[[Flight], list[Header]]
"""Makes our response headers from what is known when the head is sent."""


class Message(NamedTuple):
    """An HTTP request to pass through; `path` begins with /v1/ and holds the query."""

    method: str
    path: str
    headers: list[Header]
    body: bytes
