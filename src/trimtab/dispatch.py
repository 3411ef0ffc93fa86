"""Executes a Plan: one attempt after another until one is answered, each with its intent and its record.

It sends every piece of a stream to the sink except the last, which it returns in a `Finish`, so that the pipeline can
settle the request before the client can see it end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import structs

from trimtab.errors import (
    TrimtabError,
    UpstreamCut,
    UpstreamError,
    UpstreamInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from trimtab.flight import BusyShare, Deadline, Deadlines, Finish, Flight, Head, Header, Message
from trimtab.ports import Clock, Engine, Journal, Sink, UpstreamReply
from trimtab.protocols import CODECS, Scanner, StreamTranslator, translate_error, translate_reply, translate_request
from trimtab.types import (
    NO_USAGE,
    Attempt,
    AttemptRecord,
    Dialect,
    End,
    Intent,
    Plan,
    Reply,
    Request,
    Target,
    Timeouts,
    Usage,
)

_CHAT_PATH = {Dialect.OPENAI: "/v1/chat/completions", Dialect.ANTHROPIC: "/v1/messages"}
PROVIDER_HEADERS = (b"anthropic-", b"openai-")
_FATAL_STATUS = frozenset({400, 413, 422})  # the client's mistake: another target would say the same
_ERROR_BODY_BYTES = 1 << 20
_HOP_HEADERS = frozenset(
    ("connection", "content-length", "keep-alive", "transfer-encoding", "date", "server", "trailer")
)
_BYTES_PER_TOKEN = 4  # English text; only for estimates, which are marked as such


class _Call:
    """One upstream call as a context: its intent on entry; its end, machine time and record on exit, whatever happens.

    On exit a passed deadline becomes UpstreamTimeout, and a reply that was not read to its end is aborted.
    """

    __slots__ = (
        "_mark", "_owner", "_task", "at_end", "attempt", "deadline", "engine", "finish", "first_s", "flight",
        "last_at", "machine_s", "model", "n", "reply", "start_s", "usage", "usage_source", "whole",
    )  # fmt: skip

    def __init__(
        self, owner: Dispatcher, flight: Flight, attempt: Attempt, engine: Engine, task: asyncio.Task[None]
    ) -> None:
        self._owner = owner
        self._task = task
        self.flight = flight
        self.attempt = attempt
        self.engine = engine
        self.n = len(flight.attempts)
        self.first_s: float | None = None  # first token, seconds after the request's arrival
        self.reply: UpstreamReply | None = None
        self.model = ""
        self.finish = ""
        self.usage = NO_USAGE
        self.usage_source = "none"
        self.whole = False  # the reply came to its own end
        self.at_end = False  # its body ended, with or without its end mark
        self.machine_s = 0.0

    def __enter__(self) -> _Call:
        owner, limits = self._owner, self.attempt.timeouts
        started = owner.clock.mono()
        self.start_s = started - self.flight.request.start
        self.last_at = started + limits.total_s
        owner.journal.intent(_intent(self.flight.request, self))
        self._mark = owner.busy[self.engine.name].start(started)
        if self.flight.request.stream and limits.first_token_s < limits.total_s:
            self.deadline = owner.deadlines.start(self._task, started + limits.first_token_s, "first_token_s")
        else:  # an answer that is not streamed comes at once, after all of its tokens
            self.deadline = owner.deadlines.start(self._task, self.last_at, "total_s")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        owner, flight, deadline = self._owner, self.flight, self.deadline
        owner.deadlines.stop(deadline)
        late: UpstreamTimeout | None = None
        end, error = flight.end, flight.error
        if exc is not None:
            end, error = _END_OF.get(type(exc), End.ERROR), str(exc)
            if kind is asyncio.CancelledError:
                end, error = End.CANCELLED, "the client left"
                if deadline.expired:
                    deadline.task.uncancel()
                    end, error = End.TIMEOUT, _late(deadline, self.attempt.timeouts, self.attempt.target)
                    late = UpstreamTimeout(error)
        owner.hang_up(self)
        now = owner.clock.mono()
        self.machine_s = owner.busy[self.engine.name].stop(self._mark, now)
        _record_attempt(flight, self, end, error, now - flight.request.start)
        if late is not None:
            raise late from None


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
        self.deadlines = Deadlines(clock)
        self.busy = {name: BusyShare() for name in engines}
        self.journal = journal
        self.clock = clock
        self._max_response_bytes = max_response_bytes
        self._sleep = sleep
        self._jitter = jitter
        self._drains: set[asyncio.Task[None]] = set()

    async def execute(self, flight: Flight, plan: Plan, sink: Sink, head: Head) -> Finish:
        """Run the plan. Raises the last attempt's error when none was answered.

        `head` makes our response headers. Where a lever asked for it, `flight.reply` is the whole answer.
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
                return await self._attempt(flight, attempt, engine, task, sink, head)
            except UpstreamError as exc:
                error = exc
                if flight.started or (isinstance(exc, UpstreamStatus) and exc.status in _FATAL_STATUS):
                    break
                if not exc.retryable:
                    spent.add(attempt.target)
        assert error is not None
        raise error

    async def relay(self, flight: Flight, attempt: Attempt, message: Message, sink: Sink, head: Head) -> Finish:
        """Pass one call through as it is, its reply piece by piece. Usage is read from JSON replies that state it."""
        request, limits, engine = flight.request, attempt.timeouts, self.engines[attempt.target.engine]
        with _Call(self, flight, attempt, engine, sink.watch()) as call:
            reply = call.reply = await engine.open(
                message.method, message.path, message.headers, message.body, limits, request.client_key
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
                _read_usage(call, b"".join(seen))
            return Finish(reply.status, None, b"")

    async def _attempt(
        self, flight: Flight, attempt: Attempt, engine: Engine, task: asyncio.Task[None], sink: Sink, head: Head
    ) -> Finish:
        request = flight.request
        body = _upstream_body(request, attempt.target, engine.dialect)
        with _Call(self, flight, attempt, engine, task) as call:
            path = request.path if engine.dialect == request.dialect else _CHAT_PATH[engine.dialect]
            headers = _upstream_headers(request, engine.dialect)
            call.reply = await engine.open("POST", path, headers, body, attempt.timeouts, request.client_key)
            if call.reply.status >= 300:
                raise await _status_error(call, request)
            if request.stream:
                return await self._stream(flight, call, sink, head)
            return await self._buffered(flight, call)

    async def _buffered(self, flight: Flight, call: _Call) -> Finish:
        request, reply, dialect = flight.request, call.reply, call.engine.dialect
        assert reply is not None
        body = await reply.read(self._max_response_bytes)
        call.first_s = self.clock.mono() - request.start
        if "json" not in reply.content_type:
            raise UpstreamInvalid(f"{call.engine.name} answered {reply.content_type or 'no content type'}, not JSON")
        facts = CODECS[dialect].read_reply(body)
        call.model, call.finish = facts.model, facts.finish
        call.whole = True
        _count(call, facts.usage, request.body_bytes, facts.text_chars // _BYTES_PER_TOKEN)
        if dialect != request.dialect:
            body = translate_reply(body, dialect, request.dialect, created=int(request.at))
        flight.status = 200
        flight.served = call.attempt.target
        flight.response_bytes = len(body)
        if flight.wants_reply:
            flight.make_reply = lambda: _reply(call, body, request)
        return Finish(200, [(b"content-type", b"application/json")], body)

    async def _stream(self, flight: Flight, call: _Call, sink: Sink, head: Head) -> Finish:
        """Forward every piece but the end mark; nothing before the first token, so until then it can be retried."""
        request, deadline, idle_s = flight.request, call.deadline, call.attempt.timeouts.idle_s
        scanner = _scanner(call, request)
        kept: list[bytes] | None = [] if flight.wants_reply else None
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
            _count(call, scanner.usage, request.body_bytes, scanner.tokens_seen)
        if scanner.error:
            flight.error = f"the upstream reported an error inside the stream: {scanner.error}"
            flight.end = End.ERROR
        elif kept is not None:
            kept.append(scanner.tail)
            whole = kept
            usage = scanner.usage  # taken out of a stream whose client did not ask for it, but not out of the answer
            codec = CODECS[request.dialect]
            flight.make_reply = lambda: _reply(call, codec.assemble(b"".join(whole), usage=usage), request)
        flight.response_bytes += len(scanner.tail)
        return Finish(200, None, scanner.tail, cut=not scanner.ended)

    def _start_stream(self, flight: Flight, call: _Call, sink: Sink, head: Head) -> None:
        flight.started = True
        flight.status = 200
        flight.served = call.attempt.target
        headers = head(flight)
        headers.append((b"content-type", b"text/event-stream; charset=utf-8"))
        headers.append((b"cache-control", b"no-cache"))
        sink.start(200, headers)

    def hang_up(self, call: _Call) -> None:
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


_END_OF: dict[type[BaseException], End] = {UpstreamTimeout: End.TIMEOUT, UpstreamCut: End.CUT}


async def _drain(reply: UpstreamReply) -> None:
    try:
        async with asyncio.timeout(0.2):
            while await reply.next() is not None:
                pass
    except (TimeoutError, UpstreamError):
        pass
    finally:
        reply.abort()


def _scanner(call: _Call, request: Request) -> Scanner:
    """What watches, and where the dialects differ translates, the reply's stream."""
    kind, dialect = _of(call).content_type, call.engine.dialect
    if kind != "text/event-stream":
        raise UpstreamInvalid(f"{call.engine.name} answered {kind or 'no content type'}, not an event stream")
    if dialect == request.dialect:
        return CODECS[dialect].scanner(strip_usage=not request.wants_usage)
    return StreamTranslator(dialect, request.dialect, include_usage=request.wants_usage, created=int(request.at))


def _of(call: _Call) -> UpstreamReply:
    assert call.reply is not None
    return call.reply


async def _until_first_token(call: _Call, scanner: Scanner) -> bytes:
    """Everything up to the piece with the first token, or up to the end of a stream that has none.

    Raises UpstreamInvalid, which may be retried, for a stream that fails or ends before either.
    """
    held = b""
    while not scanner.first_token and not scanner.ended:
        piece = await _of(call).next()
        held += scanner.close() if piece is None else scanner.feed(piece)
        if scanner.error:
            raise UpstreamInvalid(f"{call.engine.name} reported inside the stream: {scanner.error}")
        if piece is None and not scanner.ended:
            raise UpstreamInvalid(f"{call.engine.name} ended the stream before its first token")
    return held


async def _next(call: _Call, scanner: Scanner) -> bytes:
    """The next bytes for the client. Raises UpstreamCut when the stream breaks off."""
    try:
        piece = await _of(call).next()
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


def _upstream_headers(request: Request, dialect: Dialect) -> list[Header]:
    """The client's headers, without those that speak to another provider."""
    headers = [(b"content-type", b"application/json")]
    if dialect == request.dialect:
        headers.extend(request.headers)
    else:
        headers.extend([(name, value) for name, value in request.headers if not name.startswith(PROVIDER_HEADERS)])
    return headers


def _intent(request: Request, call: _Call) -> Intent:
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
        input_estimate=request.body_bytes // _BYTES_PER_TOKEN,
    )


def _count(call: _Call, usage: Usage | None, request_bytes: int, output_tokens: int) -> None:
    """Usage as the upstream reported it; where it did not, or was cut off before its last word, an estimate."""
    if usage is not None and call.whole:
        call.usage, call.usage_source = usage, "reported"
    elif usage is not None:
        missing = max(0, output_tokens - usage.output_total)
        call.usage, call.usage_source = structs.replace(usage, output=usage.output + missing), "estimated"
    elif call.first_s is not None or call.whole:
        call.usage, call.usage_source = (
            Usage(input=request_bytes // _BYTES_PER_TOKEN, output=output_tokens),
            "estimated",
        )


def _read_usage(call: _Call, body: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        said = msgspec.json.decode(body)
        if isinstance(said, dict) and isinstance(said.get("usage"), dict):
            call.usage, call.usage_source = CODECS[call.engine.dialect].usage(said["usage"]), "reported"
            call.model = str(said.get("model", ""))


def _record_attempt(flight: Flight, call: _Call, end: End, error: str, now_s: float) -> None:
    target, reply = call.attempt.target, call.reply
    if (
        call.usage_source == "none"
        and end in (End.CANCELLED, End.TIMEOUT, End.CUT)
        and (reply is None or reply.status < 300)
    ):
        # The upstream may have read the prompt, and bills it: an estimate is nearer the truth than nothing.
        call.usage, call.usage_source = Usage(input=flight.request.body_bytes // _BYTES_PER_TOKEN), "estimated"
    flight.attempts.append(
        AttemptRecord(
            n=call.n,
            purpose=call.attempt.purpose,
            engine=target.engine,
            model=target.upstream_model,
            provider=target.provider,
            end=end,
            start_s=call.start_s,
            end_s=now_s,
            first_token_s=call.first_s,
            status=reply.status if reply is not None else 0,
            error=error,
            response_model=call.model,
            finish=call.finish,
            usage=call.usage,
            usage_source=call.usage_source,
            upstream_id=reply.upstream_id if reply is not None else "",
            machine_s=call.machine_s,
        )
    )


def _reply(call: _Call, body: bytes, request: Request) -> Reply:
    """The whole answer in the client's dialect, stop reason included."""
    finish = call.finish
    if call.engine.dialect != request.dialect:
        finish = CODECS[request.dialect].read_reply(body).finish
    return Reply(body, call.model, call.usage, finish, call.attempt.target, call.machine_s)


def _late(deadline: Deadline, limits: Timeouts, target: Target) -> str:
    what = {
        "first_token_s": f"sent no token within {limits.first_token_s:g} s",
        "idle_s": f"sent nothing for {limits.idle_s:g} s in mid-stream",
        "total_s": f"was not done within {limits.total_s:g} s",
    }[deadline.label]
    return f"{target.engine} ({target.upstream_model}) {what}; the limit is timeouts.{deadline.label} of the route"


async def _status_error(call: _Call, request: Request) -> UpstreamError:
    """The upstream's HTTP error as ours, its body in the client's dialect."""
    reply, dialect = call.reply, call.engine.dialect
    assert reply is not None
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
