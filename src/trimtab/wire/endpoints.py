"""What the server answers, path by path.

POST /v1/chat/completions and /v1/messages take the straight line; GET /v1/models, /healthz, /readyz, /metrics,
/v1/trimtab/requests/ID, POST /v1/trimtab/requests/ID/stages and POST /v1/feedback are answered here; every other /v1/*
path passes through to its upstream with a ledger row.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import structs

from trimtab.errors import MethodNotAllowed, NotFound, TrimtabError, Unauthenticated
from trimtab.flight import Flight, Message
from trimtab.protocols import CODECS
from trimtab.types import Attempt, Dialect, Feedback, Plan, Purpose, Request, Scope, Stages
from trimtab.wire import embeddings
from trimtab.wire.gateway import Gateway
from trimtab.wire.intake import Head, feedback_in, scope_of, stages_after
from trimtab.wire.server import ClientGone, Exchange

_CHAT = {"/v1/chat/completions": Dialect.OPENAI, "/v1/messages": Dialect.ANTHROPIC}
_NO_HEAD = Head([])
_STAGES_PATH = re.compile(r"/v1/trimtab/requests/(tt-[0-9a-f]{20,32})/stages")
_FEEDBACK_PATH = "/v1/feedback"
_MOST_STAGES_BYTES = 64 << 10
_RELAYED = ("GET", "POST", "PUT", "PATCH", "DELETE")
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class App:
    """The application; `gateway` is swapped whole when the configuration is reloaded."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one exchange."""
        gateway = self.gateway
        gateway.in_flight += 1
        try:
            dialect = _CHAT.get(exchange.path)
            if dialect is not None:
                await _chat(gateway, exchange, dialect)
            else:
                await _other(gateway, exchange)
        finally:
            gateway.in_flight -= 1


async def _chat(gateway: Gateway, exchange: Exchange, dialect: Dialect) -> None:
    mono = gateway.clock.mono
    start, at = mono(), gateway.clock.wall()
    path, where, head, parsed = exchange.path, Scope(""), _NO_HEAD, None
    try:
        if exchange.method != "POST":
            raise MethodNotAllowed(f"{path} takes POST, not {exchange.method}")
        head = Head(exchange.headers)
        where = Scope(gateway.access.tenant(head.secret))
        authorised = mono()
        body = await exchange.body(gateway.config.server.max_request_bytes, head.content_length)
        read = mono()
        parsed = CODECS[dialect].parse(body)
        where = scope_of(where.tenant, {**parsed.metadata, **head.ours} if parsed.metadata else head.ours)
        gateway.access.allow(head.secret, where)
        plan = gateway.targets.plan(where.route, parsed.model, dialect)
        if where.purpose:
            plan = _for_purpose(plan, Purpose(where.purpose))
    except Unauthenticated as exc:
        # No row: whoever holds no key must not be able to fill the ledger. It is counted.
        _say(gateway, dialect, exc, exchange)
        return
    except (ClientGone, TrimtabError) as exc:
        stub = _stub(gateway, dialect, path, where, (at, start))
        if parsed is not None:
            stub = structs.replace(stub, model=parsed.model, stream=parsed.stream)
        _turn_away(gateway, structs.replace(stub, body_bytes=head.content_length), exc, exchange)
        return
    query = exchange.query
    flight = Flight(
        Request(
            gateway.ids.next(),
            dialect,
            f"{path}?{query.decode('latin-1')}" if query else path,
            where,
            parsed.model,
            parsed.fields,
            parsed.stream,
            parsed.wants_usage,
            len(body),
            at,
            start,
            gateway.access.passed(head.secret),
            tuple(head.forward),
            head.variant,
            head.trace,
            head.idempotency,
        )
    )
    flight.app_stages = head.app_stages
    flight.stages = {"auth": authorised - start, "read": read - authorised, "parse": mono() - read}
    await gateway.pipeline.run(flight, plan, gateway.levers, exchange)


def _for_purpose(plan: Plan, purpose: Purpose) -> Plan:
    """The same attempts; their tokens are a class of their own in the ledger."""
    return structs.replace(plan, attempts=tuple([structs.replace(one, purpose=purpose) for one in plan.attempts]))


def _stub(gateway: Gateway, dialect: Dialect, path: str, where: Scope, times: tuple[float, float]) -> Request:
    """What is known of a request that was turned away; `times` are its arrival in unix and monotonic seconds."""
    return Request(gateway.ids.next(), dialect, path, where, "", {}, False, False, 0, *times)


def _turn_away(gateway: Gateway, request: Request, why: ClientGone | TrimtabError, exchange: Exchange) -> None:
    if isinstance(why, ClientGone):
        gateway.pipeline.gone(Flight(request))
    else:
        gateway.pipeline.refuse(Flight(request), why, exchange)


async def _other(gateway: Gateway, exchange: Exchange) -> None:
    path, method = exchange.path, exchange.method
    try:
        if path == "/healthz":
            exchange.reply(200, [_TEXT], b"ok\n")
        elif path == "/readyz":
            problems = await gateway.not_ready()
            exchange.reply(503 if problems else 200, [_TEXT], ("; ".join(problems) or "ready").encode() + b"\n")
        elif path == "/metrics":
            exchange.reply(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], gateway.scrape())
        elif path.startswith("/v1/trimtab/requests/") and method == "GET":
            await _request_detail(gateway, exchange)
        elif (match := _STAGES_PATH.fullmatch(path)) and method == "POST":
            await _stages_after(gateway, exchange, match[1])
        elif path == _FEEDBACK_PATH:
            await _feedback(gateway, exchange)
        elif path == "/v1/models" and method == "GET":
            gateway.access.tenant(Head(exchange.headers).secret)
            models = CODECS[_dialect_of(exchange)].models(gateway.models(), gateway.created)
            exchange.reply(200, [_JSON], models)
        elif path.startswith("/v1/") and not path.startswith("/v1/trimtab/") and method in _RELAYED:
            await _relay(gateway, exchange)
        else:
            raise NotFound(f"there is nothing at {method} {path}; the API lives under /v1")
    except TrimtabError as exc:
        _say(gateway, _dialect_of(exchange), exc, exchange)


async def _request_detail(gateway: Gateway, exchange: Exchange) -> None:
    tenant = gateway.access.tenant(Head(exchange.headers).secret)
    request_id = exchange.path.rpartition("/")[2]
    found = await gateway.request_detail(request_id, tenant if gateway.access.required else None)
    if found is None:
        raise NotFound(
            f"no request {request_id!r} of this tenant is in the ledger; rows arrive within a second of its end"
        )
    exchange.reply(200, [_JSON], found)


async def _stages_after(gateway: Gateway, exchange: Exchange, request_id: str) -> None:
    """The row may not be in the ledger yet, so whether there is such a request is not asked: they meet there."""
    head = Head(exchange.headers)
    tenant = gateway.access.tenant(head.secret)
    stages = stages_after(await exchange.body(_MOST_STAGES_BYTES, head.content_length))
    gateway.shared.journal.note(Stages(request_id, tenant, gateway.clock.wall(), stages))
    exchange.reply(202, [_JSON], msgspec.json.encode({"request_id": request_id, "stages": stages}))


async def _feedback(gateway: Gateway, exchange: Exchange) -> None:
    """As with stages, row and feedback meet in the ledger, if the tenant is the same."""
    if exchange.method != "POST":
        raise MethodNotAllowed(f"{_FEEDBACK_PATH} takes POST, not {exchange.method}")
    head = Head(exchange.headers)
    tenant = gateway.access.tenant(head.secret)
    request_id, score, comment = feedback_in(await exchange.body(_MOST_STAGES_BYTES, head.content_length))
    gateway.shared.journal.note(Feedback(request_id, tenant, gateway.clock.wall(), score, comment))
    exchange.reply(202, [_JSON], msgspec.json.encode({"request_id": request_id, "score": score}))


async def _relay(gateway: Gateway, exchange: Exchange) -> None:
    clock, dialect, path = gateway.clock, _dialect_of(exchange), exchange.path
    start, at = clock.mono(), clock.wall()
    head = Head(exchange.headers)
    tenant = gateway.access.tenant(head.secret)
    try:
        body = await exchange.body(gateway.config.server.max_request_bytes, head.content_length)
        where = scope_of(tenant, head.ours)
        gateway.access.allow(head.secret, where)
        model = gateway.model_in(body, head.content_type)
        ours = path == embeddings.PATH and model in embeddings.MODELS and gateway.shared.similar is not None
        target = None if ours else gateway.relay_target(where.route, model, dialect)
    except (ClientGone, TrimtabError) as exc:
        _turn_away(gateway, _stub(gateway, dialect, path, Scope(tenant), (at, start)), exc, exchange)
        return
    secret = gateway.access.passed(head.secret)
    flight = Flight(
        Request(
            gateway.ids.next(),
            dialect,
            path,
            where,
            model,
            {},
            False,
            False,
            len(body),
            at,
            start,
            secret,
            trace=head.trace,
        )
    )
    flight.app_stages = head.app_stages
    if target is None:
        await gateway.pipeline.serve(flight, exchange, embeddings.answer(body, gateway.shared.similar))
        return
    headers = list(head.forward)
    if head.content_type:
        headers.append((b"content-type", head.content_type))
    body = gateway.relay_body(body, model, target)
    message = Message(exchange.method, exchange.target.decode("latin-1"), headers, body)
    await gateway.pipeline.relay(
        flight,
        Attempt(target, Purpose(where.purpose or Purpose.SERVE), gateway.config.route(where.route).timeouts),
        message,
        exchange,
    )


def _dialect_of(exchange: Exchange) -> Dialect:
    """Which dialect a client speaks on a path that both have: Anthropic's always names its version."""
    if exchange.path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    named = any(name == b"anthropic-version" for name, _ in exchange.headers)
    return Dialect.ANTHROPIC if named else Dialect.OPENAI


def _say(gateway: Gateway, dialect: Dialect, error: TrimtabError, exchange: Exchange) -> None:
    if isinstance(error, Unauthenticated):
        gateway.metrics.add(("trimtab_unauthenticated_total",))
    exchange.reply(
        error.status, [_JSON], CODECS[dialect].error(error.status, error.code, error.message, error.param, "")
    )
