"""One upstream call: its intent before, its deadline meanwhile, its usage and its record after, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import msgspec
from msgspec import structs

from trimtab.errors import UpstreamCut, UpstreamError, UpstreamTimeout
from trimtab.flight import BusyShare, Deadline, Deadlines, Flight
from trimtab.ports import Clock, Engine, Journal, UpstreamReply
from trimtab.protocols import CODECS
from trimtab.protocols.timings import read_timings
from trimtab.types import NO_USAGE, NO_WORK, Attempt, AttemptRecord, End, Intent, Request, Target, Timeouts, Usage

BYTES_PER_TOKEN = 4  # English text; only for estimates, which are marked as such
_END_OF: dict[type[BaseException], End] = {UpstreamTimeout: End.TIMEOUT, UpstreamCut: End.CUT}


class Desk:
    """What all upstream calls share: the clock, the journal, the deadlines, and each engine's busy time."""

    def __init__(self, engines: Iterable[str], journal: Journal, clock: Clock) -> None:
        self.journal = journal
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.busy = {name: BusyShare() for name in engines}
        self._drains: set[asyncio.Task[None]] = set()

    def hang_up(self, call: Call) -> None:
        """Give the connection back. After an end mark the socket's own end is usually one packet away: wait for it
        off the path, so that the connection can be reused; anything else is aborted at once."""
        reply = call.reply
        if reply is None or reply.closed:
            return
        if call.whole:
            task = asyncio.get_running_loop().create_task(_drain(reply))
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)
        else:
            reply.abort()


class Call:
    """One upstream call as a context: its intent on entry; its end, machine time and record on exit, whatever happens.

    On exit a passed deadline becomes UpstreamTimeout, and a reply that was not read to its end is aborted.
    """

    __slots__ = (
        "_desk", "_mark", "_task", "at_end", "attempt", "deadline", "engine", "expired", "finish", "first_s",
        "flight", "last_at", "machine_s", "model", "n", "queue_s", "reply", "start_s", "usage", "usage_source", "whole",
        "work",
    )  # fmt: skip

    def __init__(self, desk: Desk, flight: Flight, attempt: Attempt, engine: Engine, task: asyncio.Task[None]) -> None:
        self._desk = desk
        self._task = task
        self.flight = flight
        self.attempt = attempt
        self.engine = engine
        self.n = next(flight.calls)
        self.first_s: float | None = None  # first token, seconds after the request's arrival
        self.reply: UpstreamReply | None = None
        self.model = ""
        self.finish = ""
        self.usage = NO_USAGE
        self.usage_source = "none"
        self.whole = False  # the reply came to its own end
        self.at_end = False  # its body ended, with or without its end mark
        self.machine_s = 0.0
        self.queue_s: float | None = None  # waited for its place at the engine
        self.work = NO_WORK
        self.expired = False  # a deadline of ours ended it

    def __enter__(self) -> Call:
        desk, limits = self._desk, self.attempt.timeouts
        started = desk.clock.mono()
        self.start_s = started - self.flight.request.start
        self.last_at = started + limits.total_s
        desk.journal.intent(_intent(self.flight.request, self))
        self._mark = desk.busy[self.engine.name].start(started)
        if self.flight.request.stream and limits.first_token_s < limits.total_s:
            self.deadline = desk.deadlines.start(self._task, started + limits.first_token_s, "first_token_s")
        else:  # an answer that is not streamed comes at once, after all of its tokens
            self.deadline = desk.deadlines.start(self._task, self.last_at, "total_s")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        desk, flight, deadline = self._desk, self.flight, self.deadline
        desk.deadlines.stop(deadline)
        late: UpstreamTimeout | None = None
        end, error = flight.end, flight.error
        if exc is not None:
            end, error = _END_OF.get(type(exc), End.ERROR), str(exc)
            if kind is asyncio.CancelledError:
                end, error = End.CANCELLED, "the client left"
                if deadline.expired:
                    deadline.task.uncancel()
                    self.expired = True
                    end, error = End.TIMEOUT, _late(deadline, self.attempt.timeouts, self.attempt.target)
                    late = UpstreamTimeout(error)
        desk.hang_up(self)
        now = desk.clock.mono()
        self.machine_s = desk.busy[self.engine.name].stop(self._mark, now)
        self._record(end, error, now - flight.request.start)
        if late is not None:
            raise late from None

    @property
    def open_reply(self) -> UpstreamReply:
        """The reply, once it is open."""
        assert self.reply is not None
        return self.reply

    def count(self, usage: Usage | None, output_tokens: int) -> None:
        """Usage as the upstream reported it; where it did not, or was cut off before its last word, an estimate."""
        if usage is not None and self.whole:
            self.usage, self.usage_source = usage, "reported"
        elif usage is not None:
            missing = max(0, output_tokens - usage.output_total)
            self.usage, self.usage_source = structs.replace(usage, output=usage.output + missing), "estimated"
        elif self.first_s is not None or self.whole:
            estimate = Usage(input=self._input_estimate(), output=output_tokens)
            self.usage, self.usage_source = estimate, "estimated"

    def read_usage(self, body: bytes) -> None:
        """Usage, model and timings of a JSON reply that was passed through, if it states them."""
        with contextlib.suppress(msgspec.DecodeError):
            said = msgspec.json.decode(body)
            if isinstance(said, dict) and isinstance(said.get("usage"), dict):
                self.usage, self.usage_source = CODECS[self.engine.dialect].usage(said["usage"]), "reported"
                self.model = str(said.get("model", ""))
                self.work = read_timings(msgspec.Raw(msgspec.json.encode(said.get("timings"))))

    def _input_estimate(self) -> int:
        return self.flight.request.body_bytes // BYTES_PER_TOKEN

    def _record(self, end: End, error: str, now_s: float) -> None:
        target, reply = self.attempt.target, self.reply
        if (
            self.usage_source == "none"
            and end in (End.CANCELLED, End.TIMEOUT, End.CUT)
            and (reply is None or reply.status < 300)
        ):
            # The upstream may have read the prompt, and bills it: an estimate is nearer the truth than nothing.
            self.usage, self.usage_source = Usage(input=self._input_estimate()), "estimated"
        self.flight.attempts.append(
            AttemptRecord(
                n=self.n,
                purpose=self.attempt.purpose,
                engine=target.engine,
                model=target.upstream_model,
                provider=target.provider,
                end=end,
                start_s=self.start_s,
                end_s=now_s,
                first_token_s=self.first_s,
                status=reply.status if reply is not None else 0,
                error=error,
                response_model=self.model,
                finish=self.finish,
                usage=self.usage,
                usage_source=self.usage_source,
                upstream_id=reply.upstream_id if reply is not None else "",
                machine_s=self.machine_s,
                queue_s=self.queue_s,
                work=self.work,
            )
        )


def _intent(request: Request, call: Call) -> Intent:
    target = call.attempt.target
    return Intent(
        id=request.id,
        n=call.n,
        at=request.at + call.start_s,
        purpose=call.attempt.purpose,
        engine=target.engine,
        model=target.upstream_model,
        provider=target.provider,
        client_model=request.model,
        dialect=request.dialect,
        path=request.path,
        stream=request.stream,
        scope=request.scope,
        input_estimate=request.body_bytes // BYTES_PER_TOKEN,
    )


def _late(deadline: Deadline, limits: Timeouts, target: Target) -> str:
    what = {
        "first_token_s": f"sent no token within {limits.first_token_s:g} s",
        "idle_s": f"sent nothing for {limits.idle_s:g} s in mid-stream",
        "total_s": f"was not done within {limits.total_s:g} s",
    }[deadline.label]
    return f"{target.engine} ({target.upstream_model}) {what}; the limit is timeouts.{deadline.label} of the route"


async def _drain(reply: UpstreamReply) -> None:
    try:
        async with asyncio.timeout(0.2):
            while await reply.next() is not None:
                pass
    except (TimeoutError, UpstreamError):
        pass
    finally:
        reply.abort()
