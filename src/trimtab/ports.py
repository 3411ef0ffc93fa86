"""The seams: what the core needs from the outside, as Protocols with few verbs. Only `app.py` names classes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from trimtab.errors import TrimtabError
from trimtab.types import (
    EVERYTHING,
    Aside,
    Asked,
    Decision,
    Dialect,
    Embedded,
    Intent,
    Note,
    Outcome,
    Plan,
    Purpose,
    Record,
    Reply,
    Request,
    ReuseTerms,
    Selector,
    Similar,
    Slot,
    Stored,
    Timeouts,
)


class Lever(Protocol):
    """A lever decides before the call and learns after it was settled; it never touches a response."""

    name: str
    version: str
    slot: Slot
    changes_answers: bool  # users may get other answers by it: it can be judged, and switched off on a route
    fails_open: bool  # a failed `decide` lets the request go on; False refuses it

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Decide about one request. Raises nothing on purpose: refusing is a `Refuse` step."""
        ...

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Learn from a settled request; a failure here never loses money."""
        ...


class Accepts(Protocol):
    """A lever whose plans hold answers back."""

    async def accept(
        self, request: Request, decision: Decision, reply: Reply, beside: list[Reply | None]
    ) -> tuple[bool, Decision]:
        """Whether a held answer is good enough, and the decision with what was seen in it.

        `beside` has the answers that were asked at the same time, None where there is none.
        """
        ...


class UpstreamReply(Protocol):
    """An open reply of an engine: its head is known, its body is read piece by piece."""

    status: int

    @property
    def content_type(self) -> str:
        """The media type, lower case, without parameters."""
        ...

    @property
    def retry_after_s(self) -> float | None:
        """What Retry-After says, in seconds."""
        ...

    @property
    def upstream_id(self) -> str:
        """The provider's own id of this call."""
        ...

    async def next(self) -> bytes | None:
        """The next piece of the body, None at its clean end. Raises UpstreamUnreachable if it breaks off."""
        ...

    async def read(self, limit_bytes: int) -> bytes:
        """The whole rest of the body. Raises UpstreamInvalid beyond the limit."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the body came to its end, so that the connection is already given back."""
        ...

    def abort(self) -> None:
        """Abort the call if its body is not at its end: the upstream sees a disconnect. Idempotent."""
        ...

    def header_items(self) -> list[tuple[str, str]]:
        """All headers, names in lower case."""
        ...


class Engine(Protocol):
    """An upstream that serves models."""

    name: str
    kind: str
    dialect: Dialect
    provider: str  # genai-prices provider id, "" to guess from the model
    holds_secret: bool  # it sends a secret of the gateway's, not the client's own

    def refuse(self, request: Request) -> TrimtabError | None:
        """Why this engine cannot serve the request at all, or None. Never drop a field silently."""
        ...

    async def open(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Timeouts,
        client_key: str,
    ) -> UpstreamReply:
        """Send and wait for the reply's head. `path` begins with /v1/. Raises UpstreamError; cancelling aborts."""
        ...

    async def ready(self) -> bool:
        """Whether it can take requests now (an engine of our own may still be loading)."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class AnswerStore(Protocol):
    """Where answers are kept, by a 32-byte key. One contract suite covers every implementation.

    `start` and `stop` enclose its use inside an event loop; `get`, `put` and `stats` belong to that loop's thread.
    """

    async def start(self) -> None:
        """Begin; waits a second at most. Raises nothing: a store that cannot be reached now may be later."""
        ...

    async def get(self, key: bytes) -> Stored | None:
        """The live entry, or None if absent, expired, purged or not to be had in time.

        It runs on the request path: microseconds from memory or disk; a store across the network has a time budget.
        """
        ...

    def put(self, key: bytes, stored: Stored) -> None:
        """Keep an entry; may be batched and written later. Never raises for a full or failing store: it counts it."""
        ...

    def purge(self, what: Selector = EVERYTHING) -> int:
        """Drop what is meant, in every process that shares the store; returns how many entries were dropped.

        When it returns, none of them is served any more, and none whose request began before it will be kept.
        It blocks, perhaps for seconds: call it from a command or a thread. Raises StoreError if it could not be done.
        """
        ...

    def stats(self) -> dict[str, int]:
        """Entries, bytes, hits, misses, evictions, errors; `skipped` look-ups and `down` (0 or 1) where it can be."""
        ...

    async def stop(self) -> None:
        """Write what waits, within seconds, and release."""
        ...


class Journal(Protocol):
    """The append-only log that comes before everything else."""

    def intent(self, intent: Intent) -> None:
        """Append before an upstream call. Raises Overloaded when rows can no longer be kept (disk full for long)."""
        ...

    def row(self, record: Record) -> None:
        """Append the settled request; never raises: rows that cannot be written yet wait in memory, bounded."""
        ...

    def note(self, note: Note) -> None:
        """Append what is said beside the rows: of a request, or of a lever. Raises Overloaded as `intent` does."""
        ...

    def close(self) -> None:
        """Flush and release; the ingester may then take the file."""
        ...


AskAside = Callable[[Request, Plan, Purpose], Awaitable[Reply | None]]
"""Ask a plan's first target what no client waits for; a row of its own in the ledger. None if it did not answer."""

AskWithin = Callable[[Request, Aside], Awaitable[Reply | None]]
"""Ask a model within the request that a lever is deciding about or judging; an attempt on its row. None: no answer."""

AskJudge = Callable[[Request, str, str, str, str], Awaitable[bool | None]]
"""For a request: ask a model (the first text) about a question, a fresh answer and another: is that as good?

A row of its own in the ledger. None if the model did not answer, or cannot tell.
"""

AnswerJudge = Callable[[str, str], Awaitable[bool | None]]
"""Of a fresh answer and a kept one: is the kept one as good? None if it cannot tell."""


AuditHeard = Callable[[bool | None], None]
"""Told whether a reused answer was as good as the fresh one; None if nobody could tell."""

Compare = Callable[[str, list[str], float], Awaitable[list[bool | None] | None]]
"""Of one answer and others: is each as good as it, None where that cannot be read from them; within so many seconds.

None in all when there is no answer in time.
"""


class SimilarAnswers(Protocol):
    """Where questions are compared, and the answers kept."""

    async def look(self, asked: Asked, terms: ReuseTerms, timeout_s: float) -> Similar | None:
        """What is known of a question; None when there is no answer in time."""
        ...

    def learn(
        self, token: int, stored: Stored, judge: AnswerJudge | None = None, heard: AuditHeard | None = None
    ) -> None:
        """Say what the model's own answer was. Never waits; may be lost.

        `judge` is asked, later, where it cannot be read from the two answers whether they are equivalent; `heard` is
        told the verdict on the kept one.
        """
        ...


class Thread(NamedTuple):
    """A conversation as it was last served: by which model (a number of its name), how hard it was, how warm it is."""

    model: int
    score: float  # the expected gain of the strong model
    tokens: int  # that its model has read, and may have cached
    at: float  # unix seconds


class Threads(Protocol):
    """What is remembered of conversations. Bounded: what was not used for long is forgotten."""

    def find(self, key: bytes) -> Thread | None:
        """What is known of a conversation (a hash of 16 bytes)."""
        ...

    def keep(self, key: bytes, thread: Thread) -> None:
        """Note it, in place of what was known."""
        ...


class Answered(NamedTuple):
    """A prompt with the weak model's answer, and perhaps a second one's; `gain` is what was expected before."""

    prompt: str
    answer: str
    gain: float
    second: str | None = None


class Gains(Protocol):
    """The models of trained routers, which run beside the workers. A router is named by its file."""

    async def gain(self, router: str, prompt: str, timeout_s: float) -> tuple[float, bool] | None:
        """The strong model's expected gain (-1 to 1), and whether the prompt is far from all that was learned from.

        None when there is no answer in time.
        """
        ...

    async def gain_after(self, router: str, answered: Answered, timeout_s: float) -> float | None:
        """The same once the weak model's answer is known; None as above."""
        ...


class Embeddings(Protocol):
    """Models of ours that turn texts into vectors."""

    async def embed(self, accurate: bool, texts: list[str], timeout_s: float) -> Embedded | None:
        """By the accurate model or by the fast one; None when there is no answer in time."""
        ...


class Sink(Protocol):
    """Where a reply goes: the client's connection, or a test's list."""

    def watch(self) -> asyncio.Task[None]:
        """From now on a client that leaves cancels the current task, which is returned."""
        ...

    def unwatch(self) -> None:
        """No longer. Idempotent."""
        ...

    def release(self, gone: Callable[[], None]) -> asyncio.Task[None]:
        """The task, returned, goes on for others: writes do not wait for this client; if it leaves `gone` is called."""
        ...

    def reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole reply."""
        ...

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of a reply that comes in pieces; it may wait for the first of them."""
        ...

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits when the client reads slowly."""
        ...

    def finish(self, piece: bytes) -> None:
        """Send the last piece and end the body cleanly."""
        ...

    def abort(self, piece: bytes) -> None:
        """Send a last piece and break the connection, so that the body cannot look finished."""
        ...


class Clock(Protocol):
    """Time, injected."""

    def wall(self) -> float:
        """Unix seconds."""
        ...

    def mono(self) -> float:
        """Monotonic seconds."""
        ...
