"""A load generator for streamed chat completions: open loop for latencies, closed loop for capacity.

Open loop means that each request leaves at its scheduled time, however the earlier ones fare, and that its latency
counts from that time: a slow server cannot slow down its own examiner.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from trimtab.errors import TrimtabError
from trimtab.transport import HttpReply, Origin
from trimtab.types import CACHED

# Not the loop's clock: uvloop's is rounded to a millisecond and stands still while a turn of the loop lasts, so that a
# late generator would look punctual. Both count from the same origin, so the loop may be given deadlines in it.
_now = time.monotonic

PATH = "/v1/chat/completions"
_CONNECT_S = 5.0
_ERROR_CHARS = 200
_ANSWER_BYTES = 64 << 20


class Call(msgspec.Struct, frozen=True):
    """One request to send, `at_s` after the start; `group` names what is asked, so that answers can be compared.

    A call with a `session` leaves when the one before it in that session is answered, and not before `at_s`. What a
    trace says of lengths comes along, None where it says nothing.
    """

    at_s: float
    group: int
    body: bytes
    session: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class Timing(msgspec.Struct, frozen=True):
    """What the client saw of one call. Durations count from its scheduled time, None where nothing came.

    `inter_token_s` is the mean over the answer, its first token left out (aiperf's inter_token_latency); `gaps_s` are
    the single gaps between pieces of text.
    """

    group: int
    ok: bool  # answered whole
    total_s: float
    ttft_s: float | None = None  # to the first non-empty piece of text
    inter_token_s: float | None = None
    output_tokens: int = 0
    finish: str = ""  # "stop", or "length" where max_tokens cut the answer
    cache: str = ""  # the header x-trimtab-cache: "hit", "semantic", "miss", "off"
    text: str = ""
    error: str = ""
    at_s: float = 0.0  # scheduled, after the start
    lag_s: float = 0.0  # from then until it was handed to its connection: a late generator, or the concurrency cap
    gaps_s: tuple[float, ...] = ()
    input_tokens: int = 0
    cached_tokens: int = 0
    status: int = 0  # of HTTP, 0 where none came
    cancelled: bool = False  # by us: the run was ended before it was answered
    request_id: str = ""  # the header x-trimtab-request-id
    cost_usd: float | None = None  # the header x-trimtab-cost-usd, which unstreamed answers carry
    planned_input_tokens: int | None = None
    planned_output_tokens: int | None = None

    @property
    def from_cache(self) -> bool:
        """Whether a stored answer was sent."""
        return self.cache in CACHED


class Limits(msgspec.Struct, frozen=True):
    """Of a replay: requests in flight at most (0: any number), seconds for one, whether to keep the texts."""

    concurrency: int = 0
    deadline_s: float = 40.0
    keep_text: bool = True


DEFAULT_LIMITS = Limits()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    message: _Delta = _Delta()  # of an answer that is not streamed
    finish_reason: str | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode


def chat_path(origin: Origin) -> str:
    """Where an origin takes chat completions; its URL may end in /v1 or not."""
    return origin.base_path.removesuffix("/v1") + PATH


class AnswerReader:
    """Reads an OpenAI answer, streamed or not, piece by piece, and notes when text came. Does no I/O."""

    def __init__(self, *, keep_text: bool = True) -> None:
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.gaps_s: list[float] = []
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.finish = ""
        self.done = False  # the stream's own end mark came
        self.error = ""
        self._keep_text = keep_text
        self._texts: list[str] = []
        self._rest = b""

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts)

    def feed(self, piece: bytes, now: float) -> None:
        """Take what arrived at `now`. Raises msgspec.DecodeError for an event that is no JSON."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    self.done = True
                else:
                    self._take(_decode_event(data), now)

    def whole(self, body: bytes, now: float) -> None:
        """Take an answer that was not streamed: it has no time of a first token. Raises msgspec.DecodeError."""
        self._take(_decode_event(body), now)
        self.first_at = self.last_at = None
        self.done = True

    def _take(self, event: _Event, now: float) -> None:
        if bytes(event.error) not in (b"", b"null"):
            self.error = bytes(event.error).decode(errors="replace")[:_ERROR_CHARS]
        if (usage := event.usage) is not None:
            self.input_tokens, self.output_tokens = usage.prompt_tokens, usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                self.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
        for choice in event.choices:
            self.finish = choice.finish_reason or self.finish
            if text := choice.delta.content or choice.message.content:
                if self._keep_text:
                    self._texts.append(text)
                if self.first_at is None:
                    self.first_at = now
                elif self.last_at is not None:
                    self.gaps_s.append(now - self.last_at)
                self.last_at = now

    def inter_token_s(self) -> float | None:
        """Mean seconds between tokens after the first; None below two tokens."""
        if self.first_at is None or self.last_at is None or self.output_tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.output_tokens - 1)


async def replay(
    origin: Origin, calls: Sequence[Call], head: bytes, done: Callable[[Timing], None], limits: Limits = DEFAULT_LIMITS
) -> None:
    """Send every call at its time and hand each `Timing` to `done` as it comes; returns once all came.

    `head` holds header lines, each ending in CRLF. A call beyond `limits.concurrency` waits, and its wait counts.
    Cancelling it ends what is in flight: `done` gets those calls too, as cancelled.
    """
    places = asyncio.Semaphore(limits.concurrency) if limits.concurrency else None
    run = _Run(origin, head, _now(), done, limits, places)
    chains: dict[str, list[Call]] = {}
    for number, call in enumerate(calls):
        chains.setdefault(call.session or f"\0{number}", []).append(call)
    async with asyncio.TaskGroup() as group:
        for chain in chains.values():
            await _until(run.start + chain[0].at_s)
            group.create_task(_send(run, chain[0]) if len(chain) == 1 else _in_turn(run, chain))


async def _in_turn(run: _Run, chain: Sequence[Call]) -> None:
    free_s = 0.0
    for call in chain:
        due = msgspec.structs.replace(call, at_s=max(call.at_s, free_s))
        await _until(run.start + due.at_s)
        await _send(run, due)
        free_s = _now() - run.start


async def _until(moment: float) -> None:
    """Never early: uvloop rounds a wait to a millisecond, so what is left of it is waited for again."""
    while (wait_s := moment - _now()) > 0:  # noqa: ASYNC110 - a time, which no event tells
        await asyncio.sleep(wait_s)


async def saturate(
    origin: Origin, calls: Sequence[Call], head: bytes, *, concurrency: int, at_most_s: float
) -> tuple[float, list[Timing]]:
    """Keep `concurrency` requests in flight until the calls are answered or the time is up, which drops the rest.

    Returns answers per second, the last round's tail included, and the timings.
    """
    start = _now()
    timings: list[Timing] = []
    waiting = iter(calls)
    limits = Limits(deadline_s=at_most_s)

    async def one_stream() -> None:
        for call in waiting:
            await _send(_Run(origin, head, _now() - call.at_s, timings.append, limits, None), call)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s), asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_stream())
    answered = sum(timing.ok for timing in timings)
    return answered / max(_now() - start, 1e-9), timings


class _Run(NamedTuple):
    """What the calls of one run share; `start` is its beginning by the monotonic clock."""

    origin: Origin
    head: bytes
    start: float
    done: Callable[[Timing], None]
    limits: Limits
    places: asyncio.Semaphore | None


async def _send(run: _Run, call: Call) -> None:
    """One call; whatever goes wrong becomes a `Timing` with its error."""
    scheduled = run.start + call.at_s
    reader = AnswerReader(keep_text=run.limits.keep_text)
    reply: HttpReply | None = None
    sent, cancelled = scheduled, False
    try:
        async with asyncio.timeout_at(scheduled + run.limits.deadline_s):
            if run.places is not None:
                await run.places.acquire()
            try:
                sent = _now()
                reply = await run.origin.request("POST", chat_path(run.origin), run.head, call.body, _CONNECT_S)
                await _receive(reply, reader)
            finally:
                if run.places is not None:
                    run.places.release()
    except TimeoutError:
        reader.error = f"no whole answer within {run.limits.deadline_s:g} s"
    except asyncio.CancelledError:
        cancelled, reader.error = True, "the run was ended before it was answered"
        raise
    except (TrimtabError, OSError, msgspec.DecodeError) as exc:
        reader.error = str(exc) or type(exc).__name__
    finally:
        if reply is not None:
            reply.abort()  # a no-op when the reply came whole
        if not reader.done and not reader.error:
            reader.error = "the stream ended before its end mark"
        run.done(_timing(call, reader, reply, (scheduled, sent, _now()), cancelled))


async def _receive(reply: HttpReply, reader: AnswerReader) -> None:
    if reply.status != 200:
        text = (await reply.read(1 << 20)).decode(errors="replace")
        reader.error = f"status {reply.status}: {text[:_ERROR_CHARS]}"
    elif reply.content_type == "text/event-stream":
        while (piece := await reply.next()) is not None:
            reader.feed(piece, _now())
    else:
        reader.whole(await reply.read(_ANSWER_BYTES), _now())


def _timing(
    call: Call, reader: AnswerReader, reply: HttpReply | None, times: tuple[float, float, float], cancelled: bool
) -> Timing:
    scheduled, sent, now = times
    cost = reply.header(b"x-trimtab-cost-usd") if reply is not None else ""
    return Timing(
        group=call.group,
        ok=not reader.error,
        total_s=now - scheduled,
        ttft_s=None if reader.first_at is None else reader.first_at - scheduled,
        inter_token_s=reader.inter_token_s(),
        output_tokens=reader.output_tokens,
        finish=reader.finish,
        cache=reply.header(b"x-trimtab-cache") if reply is not None else "",
        text=reader.text,
        error=reader.error,
        at_s=call.at_s,
        lag_s=sent - scheduled,
        gaps_s=tuple(reader.gaps_s),
        input_tokens=reader.input_tokens,
        cached_tokens=reader.cached_tokens,
        status=reply.status if reply is not None else 0,
        cancelled=cancelled,
        request_id=reply.header(b"x-trimtab-request-id") if reply is not None else "",
        cost_usd=float(cost) if cost else None,
        planned_input_tokens=call.input_tokens,
        planned_output_tokens=call.output_tokens,
    )
