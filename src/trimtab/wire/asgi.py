"""The ASGI application: clients' HTTP in, replies out, one task a request.

Paths: POST /v1/chat/completions and /v1/messages take the straight line; GET /v1/models, /healthz, /readyz, /metrics
and /v1/trimtab/requests/ID are answered here; every other /v1/* path passes through to its upstream with a ledger row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from msgspec import structs

from trimtab.errors import MethodNotAllowed, NotFound, TrimtabError, Unauthenticated
from trimtab.flight import Flight, Message
from trimtab.protocols import CODECS
from trimtab.types import Attempt, Dialect, Request, Scope
from trimtab.wire.gateway import Gateway
from trimtab.wire.intake import ClientGone, Head, Receive, read_body, scope_of

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CHAT = {"/v1/chat/completions": Dialect.OPENAI, "/v1/messages": Dialect.ANTHROPIC}
_NO_HEAD = Head([])
_RELAYED = ("GET", "POST", "PUT", "PATCH", "DELETE")
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class AsgiSink:
    """A client's connection. Implements `ports.Sink`."""

    __slots__ = ("_receive", "_send", "_watcher")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Cancel the current task when the client leaves."""
        if self._watcher is None:
            task = asyncio.current_task()
            assert task is not None
            self._watcher = asyncio.get_running_loop().create_task(self._until_gone(task))

    async def _until_gone(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    def unwatch(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        """Send a piece; waits while the client's socket is full."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, piece: bytes) -> None:
        """Send the last piece and the end of the body."""
        await self._send({"type": "http.response.body", "body": piece})

    async def abort(self, piece: bytes) -> None:
        """Send the last piece without an end: the server closes the connection when the application returns."""
        if piece:
            await self.write(piece)


class App:
    """The application; `gateway` is swapped whole when the configuration is reloaded."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            return
        gateway = self.gateway
        gateway.in_flight += 1
        sink = AsgiSink(receive, send)
        try:
            dialect = _CHAT.get(scope["path"])
            if dialect is not None:
                await _chat(gateway, scope, receive, sink, dialect)
            else:
                await _other(gateway, scope, receive, sink)
        except asyncio.CancelledError:
            # The client left, or the server shuts down; the request is settled either way.
            pass
        finally:
            sink.unwatch()
            gateway.in_flight -= 1


async def _chat(
    gateway: Gateway, scope: MutableMapping[str, Any], receive: Receive, sink: AsgiSink, dialect: Dialect
) -> None:
    mono = gateway.clock.mono
    start, at = mono(), gateway.clock.wall()
    path, where, head, parsed = scope["path"], Scope(""), _NO_HEAD, None
    try:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{path} takes POST, not {scope['method']}")
        head = Head(scope["headers"])
        where = Scope(gateway.access.tenant(head.secret))
        authorised = mono()
        body = await read_body(receive, head, gateway.config.server.max_request_bytes)
        read = mono()
        parsed = CODECS[dialect].parse(body)
        where = scope_of(where.tenant, {**parsed.metadata, **head.ours} if parsed.metadata else head.ours)
        gateway.access.allow(head.secret, where.route)
        plan = gateway.targets.plan(where.route, parsed.model, dialect)
    except Unauthenticated as exc:
        # No row: whoever holds no key must not be able to fill the ledger. It is counted.
        await _say(gateway, dialect, exc, sink)
        return
    except (ClientGone, TrimtabError) as exc:
        stub = _stub(gateway, dialect, path, where, (at, start))
        if parsed is not None:
            stub = structs.replace(stub, model=parsed.model, stream=parsed.stream)
        await _turn_away(gateway, structs.replace(stub, body_bytes=head.content_length), exc, sink)
        return
    query = scope["query_string"]
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
        )
    )
    flight.stages = {"auth": authorised - start, "read": read - authorised, "parse": mono() - read}
    await gateway.pipeline.run(flight, plan, gateway.levers, sink)


def _stub(gateway: Gateway, dialect: Dialect, path: str, where: Scope, times: tuple[float, float]) -> Request:
    """What is known of a request that was turned away; `times` are its arrival in unix and monotonic seconds."""
    return Request(gateway.ids.next(), dialect, path, where, "", {}, False, False, 0, *times)


async def _turn_away(gateway: Gateway, request: Request, why: ClientGone | TrimtabError, sink: AsgiSink) -> None:
    if isinstance(why, ClientGone):
        gateway.pipeline.gone(Flight(request))
    else:
        await gateway.pipeline.refuse(Flight(request), why, sink)


async def _other(gateway: Gateway, scope: MutableMapping[str, Any], receive: Receive, sink: AsgiSink) -> None:
    path: str = scope["path"]
    method: str = scope["method"]
    try:
        if path == "/healthz":
            await _reply(sink, 200, [_TEXT], b"ok\n")
        elif path == "/readyz":
            problems = await gateway.not_ready()
            await _reply(sink, 503 if problems else 200, [_TEXT], ("; ".join(problems) or "ready").encode() + b"\n")
        elif path == "/metrics":
            await _reply(sink, 200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], gateway.scrape())
        elif path.startswith("/v1/trimtab/requests/") and method == "GET":
            await _request_detail(gateway, scope, sink)
        elif path == "/v1/models" and method == "GET":
            await _models(gateway, scope, sink)
        elif path.startswith("/v1/") and not path.startswith("/v1/trimtab/") and method in _RELAYED:
            await _relay(gateway, scope, receive, sink)
        else:
            raise NotFound(f"there is nothing at {method} {path}; the API lives under /v1")
    except TrimtabError as exc:
        await _say(gateway, _dialect_of(scope), exc, sink)


async def _models(gateway: Gateway, scope: MutableMapping[str, Any], sink: AsgiSink) -> None:
    gateway.access.tenant(Head(scope["headers"]).secret)
    body = CODECS[_dialect_of(scope)].models(gateway.targets.models(), gateway.created)
    await _reply(sink, 200, [_JSON], body)


async def _request_detail(gateway: Gateway, scope: MutableMapping[str, Any], sink: AsgiSink) -> None:
    tenant = gateway.access.tenant(Head(scope["headers"]).secret)
    request_id = scope["path"].rpartition("/")[2]
    found = await gateway.request_detail(request_id, tenant if gateway.access.required else None)
    if found is None:
        raise NotFound(
            f"no request {request_id!r} of this tenant is in the ledger; rows arrive within a second of its end"
        )
    await _reply(sink, 200, [_JSON], found)


async def _relay(gateway: Gateway, scope: MutableMapping[str, Any], receive: Receive, sink: AsgiSink) -> None:
    clock, dialect, path = gateway.clock, _dialect_of(scope), scope["path"]
    start, at = clock.mono(), clock.wall()
    head = Head(scope["headers"])
    tenant = gateway.access.tenant(head.secret)
    try:
        body = await read_body(receive, head, gateway.config.server.max_request_bytes)
        where = scope_of(tenant, head.ours)
        gateway.access.allow(head.secret, where.route)
        model = gateway.model_in(body, head.content_type)
        target = gateway.relay_target(where.route, model, dialect)
    except (ClientGone, TrimtabError) as exc:
        await _turn_away(gateway, _stub(gateway, dialect, path, Scope(tenant), (at, start)), exc, sink)
        return
    secret = gateway.access.passed(head.secret)
    flight = Flight(
        Request(gateway.ids.next(), dialect, path, where, model, {}, False, False, len(body), at, start, secret)
    )
    headers = list(head.forward)
    if head.content_type:
        headers.append((b"content-type", head.content_type))
    raw = scope.get("raw_path") or path.encode()
    query = scope["query_string"]
    body = gateway.relay_body(body, model, target)
    message = Message(
        scope["method"], (raw.split(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1"), headers, body
    )
    await gateway.pipeline.relay(
        flight, Attempt(target, timeouts=gateway.config.route(where.route).timeouts), message, sink
    )


def _dialect_of(scope: MutableMapping[str, Any]) -> Dialect:
    """Which dialect a client speaks on a path that both have: Anthropic's always names its version."""
    if scope["path"].startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    named = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return Dialect.ANTHROPIC if named else Dialect.OPENAI


async def _say(gateway: Gateway, dialect: Dialect, error: TrimtabError, sink: AsgiSink) -> None:
    if isinstance(error, Unauthenticated):
        gateway.metrics.add(("trimtab_unauthenticated_total",))
    body = CODECS[dialect].error(error.status, error.code, error.message, error.param, "")
    await _reply(sink, error.status, [_JSON], body)


async def _reply(sink: AsgiSink, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await sink.start(status, [*headers, (b"content-length", str(len(body)).encode())])
    await sink.finish(body)
