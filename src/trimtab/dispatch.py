"""Executes a Plan: one attempt after another until one is answered, each with its intent and its record.

It sends every piece of a stream to the sink except the last, which it returns in a `Finish`, so that the pipeline can
settle the request before the client can see it end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

from msgspec import structs

from trimtab import trace_context
from trimtab.admission import Gate
from trimtab.call import BYTES_PER_TOKEN, Call, Desk
from trimtab.errors import (
    Overloaded,
    RateLimited,
    TrimtabError,
    UpstreamCut,
    UpstreamError,
    UpstreamInvalid,
    UpstreamStatus,
    UpstreamUnreachable,
)
from trimtab.flight import Finish, Flight, Head, Header, Message
from trimtab.ports import Clock, Engine, Journal, Sink
from trimtab.protocols import CODECS, Scanner, StreamTranslator, translate_error, translate_reply, translate_request
from trimtab.turn import Turn
from trimtab.types import (
    Aside,
    Attempt,
    AttemptRecord,
    Dialect,
    End,
    Plan,
    Purpose,
    Reply,
    Request,
    Target,
)

Accept = Callable[[Reply, "list[Reply | None]"], Awaitable[bool]]
"""Whether a held answer is good enough, by it and by what was said beside it (None: no answer)."""

_CHAT_PATH = {Dialect.OPENAI: "/v1/chat/completions", Dialect.ANTHROPIC: "/v1/messages"}
PROVIDER_HEADERS = (b"anthropic-", b"openai-")
_FATAL_STATUS = frozenset({400, 413, 422})  # the client's mistake: another target would say the same
_ERROR_BODY_BYTES = 1 << 20
STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
_OF_STREAMS = frozenset({"stream", "stream_options"})
_IDEMPOTENCY_KEY = b"idempotency-key"  # the provider may answer a second call with the first one's answer
_HOP_HEADERS = frozenset(
    ("connection", "content-length", "keep-alive", "transfer-encoding", "date", "server", "trailer")
)


class Dispatcher:
    """Sends attempts to engines, and keeps their deadlines."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        journal: Journal,
        clock: Clock,
        *,
        max_response_bytes: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.engines = engines
        self.clock = clock
        self._desk = Desk(engines, journal, clock)
        self.deadlines = self._desk.deadlines
        self._max_response_bytes = max_response_bytes
        self.gates: Mapping[str, Gate] = {}  # queues in front of engines; may be set once, before the first request
        self._sleep = sleep
        self._jitter = jitter

    async def execute(self, flight: Flight, plan: Plan, sink: Sink, head: Head, accept: Accept | None = None) -> Finish:
        """Run the plan. Raises the last attempt's error when none was answered.

        `head` makes our response headers, `accept` reads held answers. Where a lever asked for it, `flight.make_reply`
        gives the whole answer.
        """
        task = sink.watch()
        error: TrimtabError | None = None
        tried: Target | None = None
        spent: set[Target] = set()  # targets that will not mend within this request
        for attempt in plan.attempts:
            if attempt.target in spent:
                continue
            if error is not None and attempt.target == tried:
                wait_s = attempt.backoff_s * (0.5 + self._jitter())
                if error.retry_after_s is not None:
                    if error.retry_after_s > plan.retry_after_max_s:
                        spent.add(attempt.target)
                        continue
                    wait_s = max(wait_s, error.retry_after_s)
                await self._sleep(wait_s)
            tried = attempt.target
            engine = self.engines[attempt.target.engine]
            refusal = engine.refuse(flight.request)
            if refusal is not None:
                error = error or refusal
                spent.add(attempt.target)
                continue
            try:
                if not attempt.held or accept is None:
                    return await self._attempt(flight, attempt, engine, task, sink, head)
                if (finish := await self._held(flight, attempt, accept)) is not None:
                    return finish
                tried = None
            except (Overloaded, RateLimited) as exc:  # no turn there; perhaps at a fallback
                error = error or exc
                spent.add(attempt.target)
            except UpstreamError as exc:
                error = exc
                if flight.started or (isinstance(exc, UpstreamStatus) and exc.status in _FATAL_STATUS):
                    break
                if not exc.retryable:
                    spent.add(attempt.target)
        assert error is not None
        try:
            raise error
        finally:
            error = None  # its traceback leads back here

    async def relay(self, flight: Flight, attempt: Attempt, message: Message, sink: Sink, head: Head) -> Finish:
        """Pass one call through as it is, its reply piece by piece. Usage is read from JSON replies that state it."""
        request, engine, task = flight.request, self.engines[attempt.target.engine], sink.watch()
        gate = self.gates.get(engine.name) if request.model else None  # what names no model keeps none busy
        async with Turn(gate, self._desk, flight, attempt, engine, task) as call:
            headers = [*message.headers, _traceparent(request, call.n)] if request.trace else message.headers
            reply = call.reply = await engine.open(
                message.method, message.path, headers, message.body, attempt.timeouts, request.client_key
            )
            flight.status, flight.started = reply.status, True
            passed = [(k.encode(), v.encode("latin-1")) for k, v in reply.header_items() if k not in _HOP_HEADERS]
            sink.start(reply.status, head(flight) + passed)
            seen: list[bytes] = []
            while (piece := await reply.next()) is not None:
                call.first_s = call.first_s or self.clock.mono() - request.start
                flight.chunks += 1
                flight.response_bytes += len(piece)
                if flight.response_bytes <= _ERROR_BODY_BYTES:
                    seen.append(piece)
                await sink.write(piece)
            flight.served = attempt.target
            flight.end = End.OK if reply.status < 400 else End.ERROR
            if reply.content_type == "application/json" and flight.response_bytes <= _ERROR_BODY_BYTES:
                call.read_usage(b"".join(seen))
            return Finish(reply.status, None, b"")

    async def ask(self, flight: Flight, attempt: Attempt, request: Request, attempts: list[AttemptRecord]) -> Reply:
        """The whole answer to a request that is not streamed; `attempts` of the flight gets the call's record.

        Raises UpstreamError, or what the engine refuses the request with.
        """
        engine, task = self.engines[attempt.target.engine], asyncio.current_task()
        assert task is not None
        if (refusal := engine.refuse(request)) is not None:
            raise refusal
        inner = flight.within(request, attempts)
        body = _upstream_body(request, attempt.target, engine.dialect)
        if attempts is flight.attempts:
            inner.stages = flight.stages  # its wait is one of the request's
        async with Turn(self.gates.get(engine.name), self._desk, inner, attempt, engine, task) as call:
            await _open(call, request, body)
            await self._buffered(inner, call)
        assert inner.make_reply is not None
        return inner.make_reply()

    async def ask_beside(self, flight: Flight, aside: Aside, request: Request) -> Reply | None:
        """What another says, only to judge an answer; None if it does not."""
        if aside.fields:
            request = structs.replace(request, fields=request.fields | aside.fields)
        attempt = Attempt(aside.target, Purpose.JUDGE, aside.timeouts)
        try:
            return await self.ask(flight, attempt, request, flight.asided)
        except TrimtabError:
            return None  # its record says why

    async def _held(self, flight: Flight, attempt: Attempt, accept: Accept) -> Finish | None:
        """Ask, and let the answer go only if it is accepted; None if it is not. A stream is written out at once."""
        request, asked = flight.request, unstreamed(flight.request)
        others = [asyncio.create_task(self.ask_beside(flight, aside, asked)) for aside in attempt.beside]
        try:
            reply = await self.ask(flight, attempt, asked, flight.attempts)
            heard = [await one for one in others]
        finally:
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)  # each has its record before the row is written
        if not await accept(reply, heard):
            return None
        flight.status, flight.served = 200, attempt.target
        if flight.wants_reply:
            flight.make_reply = lambda: reply
        return whole_answer(flight, request.dialect, reply.body, self.clock.mono())

    async def _attempt(
        self, flight: Flight, attempt: Attempt, engine: Engine, task: asyncio.Task[None], sink: Sink, head: Head
    ) -> Finish:
        request = flight.request
        body = _upstream_body(request, attempt.target, engine.dialect)
        async with Turn(self.gates.get(engine.name), self._desk, flight, attempt, engine, task) as call:
            await _open(call, request, body)
            if request.stream:
                return await self._stream(flight, call, sink, head)
            return await self._buffered(flight, call)

    async def _buffered(self, flight: Flight, call: Call) -> Finish:
        request, reply, dialect = flight.request, call.open_reply, call.engine.dialect
        body = await reply.read(self._max_response_bytes)
        call.first_s = self.clock.mono() - request.start
        if "json" not in reply.content_type:
            raise UpstreamInvalid(f"{call.engine.name} answered {reply.content_type or 'no content type'}, not JSON")
        facts = CODECS[dialect].read_reply(body)
        call.model, call.finish, call.work = facts.model, facts.finish, facts.work
        call.whole = True
        call.count(facts.usage, facts.text_chars // BYTES_PER_TOKEN)
        if dialect != request.dialect:
            body = translate_reply(body, dialect, request.dialect, created=int(request.at))
        flight.status = 200
        flight.served = call.attempt.target
        flight.response_bytes = len(body)
        if flight.wants_reply:
            flight.make_reply = lambda: _reply(call, body, request)
        return Finish(200, [(b"content-type", b"application/json")], body)

    async def _stream(self, flight: Flight, call: Call, sink: Sink, head: Head) -> Finish:
        """Forward every piece but the end mark; nothing before the first token, so until then it can be retried."""
        request, deadline, idle_s = flight.request, call.deadline, call.attempt.timeouts.idle_s
        scanner = _scanner(call, request)
        kept: list[bytes] | None = [] if flight.wants_reply else None
        flight.pieces = kept
        out: bytes | None
        try:
            out = await _until_first_token(call, scanner)
            call.first_s = flight.ttft_s = self.clock.mono() - request.start
            self._start_stream(flight, call, sink, head)
            while out is not None:
                if out:
                    flight.chunks += 1
                    flight.response_bytes += len(out)
                    if kept is not None:
                        kept.append(out)
                        if flight.shared is not None:
                            flight.shared.tell()
                    deadline.at, deadline.label = call.last_at, "total_s"  # the client's slowness is not the engine's
                    await sink.write(out)
                deadline.at = self.clock.mono() + idle_s
                if deadline.at < call.last_at:
                    deadline.label = "idle_s"
                else:
                    deadline.at = call.last_at
                out = None if scanner.ended or call.at_end else await _next(call, scanner)
        finally:
            call.model, call.finish, call.whole = scanner.model, scanner.finish, scanner.ended
            call.work = scanner.work
            call.count(scanner.usage, scanner.tokens_seen)
        if scanner.error:
            flight.error = f"the upstream reported an error inside the stream: {scanner.error}"
            flight.end = End.ERROR
        elif kept is not None:
            whole, tail = kept, scanner.tail  # others may still read the list: it stays as it is
            usage = scanner.usage  # taken out of a stream whose client did not ask for it, but not out of the answer
            codec = CODECS[request.dialect]
            flight.make_reply = lambda: _reply(call, codec.assemble(b"".join([*whole, tail]), usage=usage), request)
        flight.response_bytes += len(scanner.tail)
        return Finish(200, None, scanner.tail, cut=not scanner.ended)

    def _start_stream(self, flight: Flight, call: Call, sink: Sink, head: Head) -> None:
        flight.started = True
        flight.status = 200
        flight.served = call.attempt.target
        sink.start(200, head(flight) + STREAM_HEADERS)


def unstreamed(request: Request) -> Request:
    """The same, to be answered at once and by whoever is asked: without what belongs to the client's own call."""
    return structs.replace(
        request,
        fields={name: value for name, value in request.fields.items() if name not in _OF_STREAMS},
        headers=tuple([header for header in request.headers if header[0] != _IDEMPOTENCY_KEY]),
        stream=False,
        wants_usage=False,
        idempotency="",
    )


def whole_answer(flight: Flight, dialect: Dialect, body: bytes, now: float) -> Finish:
    """An answer that is there at once, in the form that the client asked for."""
    request = flight.request
    kind = b"application/json"
    if request.stream:
        body = CODECS[dialect].replay(body, include_usage=request.wants_usage)
        kind = b"text/event-stream; charset=utf-8"
        flight.chunks = 1
        flight.ttft_s = now - request.start
    flight.response_bytes = len(body)
    return Finish(200, [(b"content-type", kind)], body)


async def _open(call: Call, request: Request, body: bytes) -> None:
    engine = call.engine
    path = request.path if engine.dialect == request.dialect else _CHAT_PATH[engine.dialect]
    headers = _upstream_headers(request, engine.dialect, call.n)
    call.reply = await engine.open("POST", path, headers, body, call.attempt.timeouts, request.client_key)
    if call.reply.status >= 300:
        raise await _status_error(call, request)


def _scanner(call: Call, request: Request) -> Scanner:
    """What watches, and where the dialects differ translates, the reply's stream."""
    kind, dialect = call.open_reply.content_type, call.engine.dialect
    if kind != "text/event-stream":
        raise UpstreamInvalid(f"{call.engine.name} answered {kind or 'no content type'}, not an event stream")
    if dialect == request.dialect:
        return CODECS[dialect].scanner(strip_usage=not request.wants_usage)
    return StreamTranslator(dialect, request.dialect, include_usage=request.wants_usage, created=int(request.at))


async def _until_first_token(call: Call, scanner: Scanner) -> bytes:
    """Everything up to the piece with the first token, or up to the end of a stream that has none.

    Raises UpstreamInvalid, which may be retried, for a stream that fails or ends before either.
    """
    held = b""
    while not scanner.first_token and not scanner.ended:
        piece = await call.open_reply.next()
        held += scanner.close() if piece is None else scanner.feed(piece)
        if scanner.error:
            raise UpstreamInvalid(f"{call.engine.name} reported inside the stream: {scanner.error}")
        if piece is None and not scanner.ended:
            raise UpstreamInvalid(f"{call.engine.name} ended the stream before its first token")
    return held


async def _next(call: Call, scanner: Scanner) -> bytes:
    """The next bytes for the client. Raises UpstreamCut when the stream breaks off."""
    try:
        piece = await call.open_reply.next()
    except UpstreamUnreachable as exc:
        raise UpstreamCut(f"{exc.message}; what came so far is not whole") from exc
    if piece is not None:
        return scanner.feed(piece)
    call.at_end = True
    out = scanner.close()
    if not scanner.ended and not scanner.error:
        raise UpstreamCut(f"{call.engine.name} ended the stream before its end mark; what came so far is not whole")
    return out


def _upstream_body(request: Request, target: Target, dialect: Dialect) -> bytes:
    if dialect == request.dialect:
        model = target.upstream_model if target.upstream_model != request.model else None
        return CODECS[dialect].body(request.fields, model=model, stream_usage=request.stream)
    return translate_request(
        request.fields, request.dialect, dialect, model=target.upstream_model, stream=request.stream
    )


def _upstream_headers(request: Request, dialect: Dialect, n: int) -> list[Header]:
    """The client's headers, without those that speak to another provider."""
    headers = [(b"content-type", b"application/json")]
    if dialect == request.dialect:
        headers.extend(request.headers)
    else:
        headers.extend([(name, value) for name, value in request.headers if not name.startswith(PROVIDER_HEADERS)])
    if request.trace:
        headers.append(_traceparent(request, n))
    return headers


def _traceparent(request: Request, n: int) -> Header:
    return b"traceparent", trace_context.upstream(request.trace, request.id, n)


def _reply(call: Call, body: bytes, request: Request) -> Reply:
    """The whole answer in the client's dialect, stop reason included."""
    finish = call.finish
    if call.engine.dialect != request.dialect:
        finish = CODECS[request.dialect].read_reply(body).finish
    return Reply(body, call.model, call.usage, finish, call.attempt.target, call.machine_s)


async def _status_error(call: Call, request: Request) -> UpstreamError:
    """The upstream's HTTP error as ours, its body in the client's dialect."""
    reply, dialect = call.open_reply, call.engine.dialect
    body = await reply.read(_ERROR_BODY_BYTES)
    name = f"{call.engine.name} ({call.attempt.target.upstream_model})"
    if reply.status in (401, 403) and call.engine.holds_secret:
        return UpstreamError(
            f"{name} refused the gateway's own credentials ({reply.status}); check the variable named by api_key_env"
        )
    if reply.status < 400:
        return UpstreamInvalid(f"{name} answered {reply.status}, a redirect; correct its base_url")
    if dialect != request.dialect or not CODECS[dialect].is_error_body(body):
        body = translate_error(body, dialect, request.dialect, reply.status, request.id)
    return UpstreamStatus(
        f"{name} answered {reply.status}",
        status=reply.status,
        body=body,
        content_type="application/json",
        retry_after_s=reply.retry_after_s,
    )
