"""The straight line: levers decide in slot order, the plan is dispatched once, the request is settled once.

A request's life after the wire has parsed it:
 1. each lever of the route returns a `Decision`; `Continue` swaps request or plan, `Answer` and `Refuse` end the line;
 2. `dispatch` runs the plan: an intent line in the journal, then the upstream call, attempt by attempt;
 3. every piece of a stream goes to the sink but the last;
 4. the request is settled: one `Record` in the journal, whatever happened;
 5. only then is the last piece sent, so that an answer which a client has whole is always in the ledger;
 6. the levers learn. A failure there loses no money.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from msgspec import structs

from trimtab.dispatch import STREAM_HEADERS, Dispatcher, unstreamed, whole_answer
from trimtab.errors import Overloaded, TrimtabError, UpstreamCut, UpstreamStatus
from trimtab.flight import Finish, Flight, Header, Message, SharedCall
from trimtab.ports import Accepts, Clock, Journal, Lever, Sink
from trimtab.protocols import CODECS
from trimtab.types import (
    NO_USAGE,
    Answer,
    Aside,
    Attempt,
    AttemptRecord,
    Continue,
    Decision,
    DecisionRecord,
    End,
    Join,
    Outcome,
    Plan,
    Purpose,
    Record,
    Refuse,
    Reply,
    Request,
    Slot,
    Target,
    Usage,
)

_log = logging.getLogger("trimtab.pipeline")

_TELL_EVERY_S = 60.0
_STEP_NAMES = {type(None): "continue", Continue: "change", Answer: "answer", Join: "join", Refuse: "refuse"}
_ShareKey = tuple[bytes, bool, bool]  # the lever's, and the form of the reply: streamed, with usage
_Flying = tuple[Flight, Sink]


class Watch(Protocol):
    """Watches what levers that change answers do to quality."""

    def off(self, lever: str, route: str) -> str:
        """Why such a lever is switched off on a route, "" if it is not."""
        ...

    def wants(self, flight: Flight) -> bool:
        """Whether the whole reply to a request that levers changed is to be kept for `settled`."""
        ...

    def settled(self, flight: Flight, record: Record, reply: Reply | None) -> None:
        """A request that levers changed is settled and answered. Returns at once, raises nothing."""
        ...


class Pipeline:
    """Runs requests; holds no state of any one of them. `watch` may be set once, before the first of them.

    `settled` hears of every record (metrics); `cost` prices one for a response header, or returns None when it is not
    known yet; `capture`, if there is one, gets each request as the client sent it, with its record.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        journal: Journal,
        clock: Clock,
        settled: Callable[[Record], None],
        cost: Callable[[str, str, str, Usage, float], int | None],
        capture: Callable[[Request, Record], None] | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._journal = journal
        self._clock = clock
        self._settled = settled
        self._cost = cost
        self._capture = capture
        self.watch: Watch | None = None
        self._flying: dict[_ShareKey, _Flying] = {}  # calls that others may share
        self._by_task: dict[asyncio.Task[Any] | None, Flight] = {}
        self._told: dict[str, float] = {}  # when the log last heard of a lever's failure

    async def run(self, flight: Flight, plan: Plan, levers: Sequence[Lever], sink: Sink) -> None:
        """Answer one request through `sink`. Raises only CancelledError, after settling."""
        flight.plan = plan
        task = asyncio.current_task()
        self._by_task[task] = flight
        try:
            record = await self._conclude(flight, sink, self._answer(flight, plan, levers, sink))
        finally:
            del self._by_task[task]
        decided = zip(levers, flight.decisions, strict=False)
        wanting = [(lever, d) for lever, d in decided if d.wants_reply or d.wants_record]
        if wanting or flight.changed:
            await self._learn(flight, record, wanting)

    async def relay(self, flight: Flight, attempt: Attempt, message: Message, sink: Sink) -> None:
        """Pass a call through untouched: one attempt, one row, no levers."""
        await self._conclude(flight, sink, self._dispatcher.relay(flight, attempt, message, sink, self.headers))

    async def ask_aside(self, request: Request, plan: Plan, purpose: Purpose) -> Reply | None:
        """Ask the model what no client waits for: one attempt at the plan's first target, never streamed.

        It has a row of its own, whose id is the request's with the purpose behind it, and is on nobody's bill.
        None if it was not answered.
        """
        aside = Flight(
            structs.replace(
                unstreamed(request),
                id=f"{request.id}-{purpose}",
                scope=structs.replace(request.scope, purpose=str(purpose)),
                at=self._clock.wall(),
                start=self._clock.mono(),
            )
        )
        aside.wants_reply, sink = True, _Nobody()
        attempt = structs.replace(plan.attempts[0], purpose=purpose)
        record = await self._conclude(
            aside, sink, self._dispatcher.execute(aside, Plan((attempt,)), sink, self.headers)
        )
        return aside.make_reply() if record.end == End.OK and aside.make_reply is not None else None

    async def ask_within(self, request: Request, aside: Aside) -> Reply | None:
        """Ask a model for a lever that decides about the current task's request: an attempt on that one's row.

        None if it was not answered.
        """
        flight = self._by_task[asyncio.current_task()]
        return await self._dispatcher.ask_beside(flight, aside, unstreamed(request))

    async def serve(self, flight: Flight, sink: Sink, answer: Awaitable[Finish]) -> None:
        """Answer by ourselves: a row, no levers, no upstream call."""

        async def served() -> Finish:
            finish = await answer
            flight.status, flight.response_bytes = finish.status, len(finish.body)
            return self._dressed(flight, finish)

        await self._conclude(flight, sink, served())

    def refuse(self, flight: Flight, error: TrimtabError, sink: Sink) -> None:
        """Answer with an error that was found before the line began."""
        finish = self.failed(flight, error)
        self.settle(flight)
        _send(finish, sink)

    async def _conclude(self, flight: Flight, sink: Sink, answer: Awaitable[Finish]) -> Record:
        """Wait for the answer, settle once whatever happened, and only then send the end of it."""
        record: Record | None = None
        try:
            try:
                finish = await answer
            except TrimtabError as exc:
                finish = self.failed(flight, exc)
            except Exception:
                _log.exception("request %s failed inside the gateway", flight.request.id)
                finish = self.failed(flight, TrimtabError("the gateway failed on this request; its log says why"))
            if flight.shared is not None and flight.shared.leader_gone:
                flight.end, flight.error = (
                    End.CANCELLED,
                    "the client left; others who asked the same got the answer",
                )
            record = self.settle(flight)
        finally:
            if record is None:
                flight.end = End.CANCELLED
                flight.error = flight.error or "the client left"
                self.settle(flight)
        sink.unwatch()
        _send(finish, sink)
        return record

    async def _answer(self, flight: Flight, plan: Plan, levers: Sequence[Lever], sink: Sink) -> Finish:
        mono = self._clock.mono
        leads: _ShareKey | None = None
        holder: Lever | None = None
        outcome: Finish | TrimtabError | None = None
        try:
            for lever in levers:
                began = mono()
                off = self._off(lever, flight) if lever.changes_answers else ""
                try:
                    if off:
                        decision = Decision(lever.name, lever.version, lever.slot, None, off)
                    else:
                        decision = await lever.decide(flight.request, plan)
                except Exception as exc:
                    decision = self._failed_decision(lever, exc)
                took_s = mono() - began
                flight.stages[lever.name] = took_s
                flight.decisions.append(decision)
                step = decision.step
                if decision.share_key and leads is None:
                    key = (decision.share_key, flight.request.stream, flight.request.wants_usage)
                    flying = self._flying.get(key)
                    if flying is None:
                        leads = key
                        self._flying[key] = (flight, sink)
                    elif (finish := await self._join(flight, flying, sink)) is not None:
                        return finish
                if decision.wants_reply:
                    flight.wants_reply = True
                if step is None:
                    continue
                if lever.changes_answers:
                    flight.changed = (*flight.changed, decision)
                if type(step) is Continue:
                    flight.request, plan = step.request, step.plan
                    if holder is None and plan.attempts and plan.attempts[0].held:
                        holder = lever
                    if not flight.changed:  # what changes no answers is how the request is to be served
                        flight.plan = plan
                elif type(step) is Answer:
                    return self._replay(flight, step, decision.slot)
                elif type(step) is Refuse:
                    raise step.error
            if flight.changed and self.watch is not None and self.watch.wants(flight):
                flight.wants_reply = True
            accept = None
            if holder is not None:
                accept = partial(self._accept, flight, holder)
            try:
                outcome = await self._dispatcher.execute(flight, plan, sink, self.headers, accept)
            except TrimtabError as exc:
                outcome = exc
                raise
            return self._dressed(flight, outcome)
        finally:
            if leads is not None:
                del self._flying[leads]
                if flight.shared is not None:
                    flight.shared.end(outcome)
            outcome = None  # an error's traceback leads back here

    async def _accept(self, flight: Flight, lever: Lever, reply: Reply, beside: list[Reply | None]) -> bool:
        """Let the lever that had an answer held back read it; a failure there is a no."""
        began, place = self._clock.mono(), [d.lever for d in flight.decisions].index(lever.name)
        decision = flight.decisions[place]
        try:
            accepted, told = await cast(Accepts, lever).accept(flight.request, decision, reply, beside)
        except Exception as exc:
            self._failed_decision(lever, exc)
            accepted, told = False, structs.replace(decision, reason=f"{decision.reason}; {type(exc).__name__}")
        flight.stages[f"{lever.name}_check"] = self._clock.mono() - began
        flight.decisions[place] = told
        kept = (told,) if accepted else ()  # what is not accepted changes nothing for the client
        flight.changed = tuple([d for d in flight.changed if d is not decision]) + kept
        return accepted

    def _off(self, lever: Lever, flight: Flight) -> str:
        return "" if self.watch is None else self.watch.off(lever.name, flight.request.scope.route)

    def _failed_decision(self, lever: Lever, exc: Exception) -> Decision:
        now = self._clock.mono()
        if now - self._told.get(lever.name, -_TELL_EVERY_S) >= _TELL_EVERY_S:  # each row has its own word of it
            self._told[lever.name] = now
            _log.warning("lever %s failed: %r", lever.name, exc)
        step = None
        if not lever.fails_open:
            step = Refuse(TrimtabError(f"{lever.name} could not decide, and lets nothing through unchecked"))
        return Decision(lever.name, lever.version, lever.slot, step, f"failed: {type(exc).__name__}")

    def _dressed(self, flight: Flight, finish: Finish) -> Finish:
        if finish.headers is None:
            return finish
        return Finish(finish.status, self.headers(flight) + finish.headers, finish.body)

    async def _join(self, flight: Flight, flying: _Flying, sink: Sink) -> Finish | None:
        """Be answered by the call that another request is making; None if that made none after all.

        Raises what the other's call raised, and UpstreamCut if it ended without a word.
        """
        leader, leader_sink = flying
        began, decision = self._clock.mono(), flight.decisions[-1]
        flight.decisions[-1] = structs.replace(
            decision,
            step=Join(leader.request.id),
            reason=f"coalesced with {leader.request.id}",
            wants_reply=False,
            memo=None,
        )
        flight.cache = "coalesced"
        sink.watch()
        with leader.shared or SharedCall(leader, leader_sink) as shared:
            sent = 0
            while True:
                while leader.pieces is not None and sent < len(leader.pieces):
                    if not flight.started:
                        flight.started, flight.status = True, 200
                        flight.ttft_s = self._clock.mono() - flight.request.start
                        sink.start(200, self.headers(flight) + STREAM_HEADERS)
                    piece = leader.pieces[sent]
                    sent += 1
                    flight.chunks += 1
                    flight.response_bytes += len(piece)
                    await sink.write(piece)
                if shared.over:
                    break
                await shared.news()
        outcome = shared.outcome
        if outcome is None and not flight.started:
            flight.decisions[-1], flight.cache = decision, ""
            return None
        flight.joined = leader
        flight.stages["shared_call"] = self._clock.mono() - began
        if outcome is None:
            raise UpstreamCut("the request that this one waited for was broken off; what came so far is not whole")
        if isinstance(outcome, TrimtabError):
            raise outcome
        flight.status, flight.end, flight.error = outcome.status, shared.leader_end, shared.leader_error
        flight.response_bytes += len(outcome.body)
        return self._dressed(flight, outcome)

    def _replay(self, flight: Flight, step: Answer, slot: Slot) -> Finish:
        request, stored = flight.request, step.stored
        flight.stored = stored
        flight.cache = "semantic" if slot is Slot.REUSE_SIMILAR else "hit"
        flight.status = 200
        now = self._clock.mono()
        flight.ttft_s = now - request.start
        return self._dressed(flight, whole_answer(flight, stored.dialect, stored.body, now))

    def failed(self, flight: Flight, error: TrimtabError) -> Finish:
        """Note the failure on the flight and shape it for the client."""
        request = flight.request
        codec = CODECS[request.dialect]
        flight.error = error.message
        if attempts := _attempts(flight):
            flight.end = End(attempts[-1].end)
            if flight.end is End.OK:
                flight.end = End.ERROR
        else:
            refused = error.status < 500 or isinstance(error, Overloaded)
            flight.end = End.REFUSED if refused else End.ERROR
        if flight.started:
            event = codec.error_event(error.status, error.code, error.message, error.param, request.id)
            return Finish(flight.status, None, event, cut=True)
        flight.status = error.status
        headers = self.headers(flight)
        headers.append((b"content-type", b"application/json"))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        if isinstance(error, UpstreamStatus):
            body = error.body
        else:
            body = codec.error(error.status, error.code, error.message, error.param, request.id)
        flight.response_bytes = len(body)
        return Finish(error.status, headers, body)

    def headers(self, flight: Flight) -> list[Header]:
        """Our response headers, from what is known when the head is sent."""
        request = flight.request
        headers = [(b"x-trimtab-request-id", request.id.encode())]
        if flight.decisions:
            said = ", ".join([f"{d.lever}={_step_name(d)} ({d.reason})" for d in flight.decisions])
            headers.append((b"x-trimtab-decision", said.encode("latin-1", "replace")))
        cache = flight.cache = flight.cache or _cache_word(flight)
        if cache:
            headers.append((b"x-trimtab-cache", cache.encode()))
        timing = ["%s;dur=%.3f" % (name, seconds * 1000) for name, seconds in flight.stages.items()]  # noqa: UP031 (faster)
        timing.append(f"total;dur={(self._clock.mono() - request.start) * 1000:.3f}")
        headers.append((b"server-timing", ", ".join(timing).encode()))
        if not request.stream:
            cost = self._cost_usd(flight)
            if cost:
                headers.append((b"x-trimtab-cost-usd", cost))
        return headers

    def _cost_usd(self, flight: Flight) -> bytes:
        if flight.stored is not None:
            return b"0"
        total = 0
        for attempt in (*flight.asided, *flight.attempts):
            nusd = self._cost(attempt.engine, attempt.provider, attempt.model, attempt.usage, attempt.machine_s)
            if nusd is None:
                return b""
            total += nusd
        return f"{total // 1_000_000_000}.{total % 1_000_000_000:09d}".encode()

    def settle(self, flight: Flight) -> Record:
        """Write the request's one row."""
        request, attempts, stages = flight.request, flight.attempts, flight.stages
        total_s = self._clock.mono() - request.start
        if attempts:
            last = attempts[-1]
            first_s = last.first_token_s if last.first_token_s is not None else last.end_s
            if len(attempts) > 1:
                stages["earlier_attempts"] = last.start_s - attempts[0].start_s
            stages["model_ttft"] = first_s - last.start_s
            stages["model_stream"] = last.end_s - first_s
        baseline, model, provider, engine, machine_s = _baseline(flight)
        record = Record(
            id=request.id,
            at=request.at,
            scope=request.scope,
            dialect=request.dialect,
            path=request.path,
            model=request.model,
            stream=request.stream,
            end=flight.end,
            status=flight.status,
            total_s=total_s,
            ttft_s=flight.ttft_s,
            chunks=flight.chunks,
            error=flight.error,
            cache=flight.cache or _cache_word(flight),
            stages=stages,
            app_stages=flight.app_stages,
            decisions=tuple([_decision_record(d, stages[d.lever]) for d in flight.decisions]),
            attempts=(*flight.asided, *attempts),
            baseline_usage=baseline,
            baseline_model=model,
            baseline_provider=provider,
            baseline_engine=engine,
            baseline_machine_s=machine_s,
            request_bytes=request.body_bytes,
            response_bytes=flight.response_bytes,
            trace=request.trace,
        )
        self._journal.row(record)
        self._settled(record)
        if self._capture is not None:
            self._capture(flight.asked, record)
        return record

    def gone(self, flight: Flight) -> None:
        """Settle a request whose client left before it was whole."""
        flight.end = End.CANCELLED
        flight.error = "the client left before its request was whole"
        self.settle(flight)

    async def _learn(self, flight: Flight, record: Record, wanting: list[tuple[Lever, Decision]]) -> None:
        make_reply, flight.make_reply = flight.make_reply, None  # it refers back to the flight: leave no cycle behind
        try:
            reply = make_reply() if make_reply is not None else None
            if flight.changed and self.watch is not None:
                self.watch.settled(flight, record, reply)
            outcome = Outcome(flight.request, record, reply)
            for lever, decision in wanting:
                await lever.learn(outcome, decision)
        except Exception:
            _log.exception("the levers could not learn from request %s", record.id)


class _Nobody:
    """The client of a call that none waits for."""

    def watch(self) -> asyncio.Task[None]:
        task = asyncio.current_task()
        assert task is not None
        return task

    def unwatch(self) -> None: ...

    def release(self, gone: Callable[[], None]) -> asyncio.Task[None]:
        return self.watch()

    def reply(self, status: int, headers: list[Header], body: bytes) -> None: ...

    def start(self, status: int, headers: list[Header]) -> None: ...

    async def write(self, piece: bytes) -> None: ...

    def finish(self, piece: bytes) -> None: ...

    def abort(self, piece: bytes) -> None: ...


def _send(finish: Finish, sink: Sink) -> None:
    if finish.headers is not None:
        sink.reply(finish.status, finish.headers, finish.body)
    elif finish.cut:
        sink.abort(finish.body)
    else:
        sink.finish(finish.body)


def _step_name(decision: Decision) -> str:
    if decision.reason.startswith("failed: "):
        return "failed"
    return _STEP_NAMES[type(decision.step)]


def _decision_record(d: Decision, took_s: float) -> DecisionRecord:
    return DecisionRecord(
        d.lever,
        d.version,
        d.slot.name,
        _step_name(d),
        d.reason,
        d.score,
        d.threshold,
        d.saving_nusd,
        d.saving_basis,
        took_s,
    )


def _cache_word(flight: Flight) -> str:
    if not flight.decisions:
        return ""
    asked = flight.request.scope.cache
    if asked in ("off", "refresh"):
        return asked
    return "miss" if any(d.wants_reply for d in flight.decisions) else "bypass"


def _attempts(flight: Flight) -> list[AttemptRecord]:
    """Its own upstream calls, or those of the request that it shared with."""
    return flight.attempts if flight.joined is None else flight.joined.attempts


def _baseline(flight: Flight) -> tuple[Usage, str, str, str, float]:
    """What the request would have used without the levers: as the stored answer did, or the one that it got.

    Usage, upstream model, provider, engine, machine seconds. Where a lever chose the model the tokens are those of its
    answer, and the model is the one that would have been asked.
    """
    if flight.stored is not None:
        stored, target = flight.stored, _unchanged(flight, flight.stored.target)
        return stored.usage, target.upstream_model, target.provider, target.engine, stored.machine_s
    for attempt in reversed(_attempts(flight)):
        if attempt.usage_source != "none":
            target = _unchanged(flight, Target("", attempt.engine, attempt.model, attempt.provider))
            return attempt.usage, target.upstream_model, target.provider, target.engine, attempt.machine_s
    return NO_USAGE, "", "", "", 0.0


def _unchanged(flight: Flight, served: Target) -> Target:
    """The target that would have been asked without the levers: the one that was, unless they changed the plan."""
    if not flight.changed or flight.plan is None or not flight.plan.attempts:
        return served
    planned = [one.target for one in flight.plan.attempts]
    known = any(one.engine == served.engine and one.upstream_model == served.upstream_model for one in planned)
    return served if known else planned[0]
