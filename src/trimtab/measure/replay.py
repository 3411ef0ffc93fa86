"""A load generator for streamed chat completions: open loop for latencies, closed loop for capacity.

Open loop means that each request leaves at its scheduled time, however the earlier ones fare, and that its latency
counts from that time: a slow server cannot slow down its own examiner.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence

import msgspec

from trimtab.errors import TrimtabError
from trimtab.transport import Origin

PATH = "/v1/chat/completions"
DEADLINE_S = 40.0  # of one request, from its scheduled time
_CONNECT_S = 5.0
_ERROR_CHARS = 200


class Call(msgspec.Struct, frozen=True):
    """One request to send, `at_s` after the start; `group` names what is asked, so that answers can be compared."""

    at_s: float
    group: int
    body: bytes


class Timing(msgspec.Struct, frozen=True):
    """What the client saw of one call. Durations count from its scheduled time, None where nothing came."""

    group: int
    ok: bool  # answered whole
    total_s: float
    ttft_s: float | None = None  # to the first non-empty piece of text
    inter_token_s: float | None = None  # mean over the answer, its first token left out
    output_tokens: int = 0
    finish: str = ""  # "stop", or "length" where max_tokens cut the answer
    cache: str = ""  # the header x-trimtab-cache: "hit", "miss", "off"
    text: str = ""
    error: str = ""


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    completion_tokens: int = 0


class _Event(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode


class AnswerReader:
    """Reads an OpenAI event stream piece by piece and notes when text came. Does no I/O."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.output_tokens = 0
        self.finish = ""
        self.done = False  # the stream's own end mark came
        self.error = ""
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
                self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        event = _decode_event(data)
        if bytes(event.error) not in (b"", b"null"):
            self.error = bytes(event.error).decode(errors="replace")[:_ERROR_CHARS]
        if event.usage is not None:
            self.output_tokens = event.usage.completion_tokens
        for choice in event.choices:
            self.finish = choice.finish_reason or self.finish
            if choice.delta.content:
                self._texts.append(choice.delta.content)
                self.last_at = now
                if self.first_at is None:
                    self.first_at = now

    def inter_token_s(self) -> float | None:
        """Mean seconds between tokens after the first; None below two tokens."""
        if self.first_at is None or self.last_at is None or self.output_tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.output_tokens - 1)


async def replay(origin: Origin, calls: Sequence[Call], head: bytes, done: Callable[[Timing], None]) -> None:
    """Send every call at its time and hand each `Timing` to `done` as it comes; returns once all came.

    `head` holds header lines, each ending in CRLF. Cancelling it drops what is in flight.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with asyncio.TaskGroup() as group:
        for call in calls:
            scheduled = start + call.at_s
            await asyncio.sleep(max(0.0, scheduled - loop.time()))
            group.create_task(_send(origin, call, head, scheduled, done))


async def saturate(
    origin: Origin, calls: Sequence[Call], head: bytes, *, concurrency: int, at_most_s: float
) -> tuple[float, list[Timing]]:
    """Keep `concurrency` requests in flight until the calls are answered or the time is up, which drops the rest.

    Returns answers per second, the last round's tail included, and the timings.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    timings: list[Timing] = []
    waiting = iter(calls)

    async def one_stream() -> None:
        for call in waiting:
            await _send(origin, call, head, loop.time(), timings.append)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s), asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_stream())
    answered = sum(timing.ok for timing in timings)
    return answered / max(loop.time() - start, 1e-9), timings


async def _send(origin: Origin, call: Call, head: bytes, scheduled: float, done: Callable[[Timing], None]) -> None:
    """One call; whatever goes wrong becomes a `Timing` with its error."""
    loop = asyncio.get_running_loop()
    reader = AnswerReader()
    cache = ""
    reply = None
    try:
        async with asyncio.timeout_at(scheduled + DEADLINE_S):
            reply = await origin.request("POST", PATH, head, call.body, _CONNECT_S)
            cache = reply.header(b"x-trimtab-cache")
            if reply.status != 200:
                text = (await reply.read(1 << 20)).decode(errors="replace")
                reader.error = f"status {reply.status}: {text[:_ERROR_CHARS]}"
            else:
                while (piece := await reply.next()) is not None:
                    reader.feed(piece, loop.time())
    except TimeoutError:
        reader.error = f"no whole answer within {DEADLINE_S:g} s"
    except (TrimtabError, OSError, msgspec.DecodeError) as exc:
        reader.error = str(exc) or type(exc).__name__
    finally:
        if reply is not None:
            reply.abort()  # a no-op when the reply came whole
    if not reader.done and not reader.error:
        reader.error = "the stream ended before its end mark"
    done(
        Timing(
            group=call.group,
            ok=not reader.error,
            total_s=loop.time() - scheduled,
            ttft_s=None if reader.first_at is None else reader.first_at - scheduled,
            inter_token_s=reader.inter_token_s(),
            output_tokens=reader.output_tokens,
            finish=reader.finish,
            cache=cache,
            text=reader.text,
            error=reader.error,
        )
    )


def quantile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile (0 to 1) by linear interpolation between the nearest ranks; None of nothing.

    Source: Hyndman and Fan, "Sample quantiles in statistical packages" (1996), definition 7.
    """
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
