"""HTTP/1.1 for clients: asyncio protocol + httptools, one task and one `Exchange` a request.

Why our own and not an ASGI server: ASGI's dictionaries, its queue of messages and the task that waits for a disconnect
cost 20 to 25 us a request (measured beside uvicorn; `docs/design.md`). Here a reply is one call and one write, and a
client that leaves cancels its request's task directly.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools

from trimtab.errors import TooLarge
from trimtab.outbox import outbox
from trimtab.protocols import CODECS
from trimtab.types import Dialect

_log = logging.getLogger("trimtab.server")

Header = tuple[bytes, bytes]

_MAX_HEAD_BYTES = 64 * 1024
_KEEP_ALIVE_S = 75.0  # longer than what load balancers commonly hold, so that they close first
_SWEEP_S = 5.0
_CANCEL_S = 5.0  # for requests that were cancelled at the end to settle
_JOIN_BYTES = 64 * 1024  # larger bodies are written after their head instead of copied behind it
_STATUS_LINE = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_NO_BODY = (204, 304)
_UPGRADE = (b"connection", b"upgrade", b"http2-settings")


class ClientGone(Exception):
    """The client left before its request was whole."""


class Exchange:
    """One request and the way back for its reply. Implements `ports.Sink`.

    `path` is decoded, `target` is what stood in the request line, `query` is without its question mark.
    """

    __slots__ = (
        "_chunked", "_connection", "_gone", "_head", "_keep_alive", "_modern", "_pieces", "_size", "_waiter",
        "_watching", "_whole", "closed", "headers", "method", "path", "query", "replied", "target", "task",
    )  # fmt: skip

    def __init__(self, connection: _Connection, url: bytes, headers: list[Header]) -> None:
        parser = connection.parser
        self.method: str = parser.get_method().decode("latin-1")
        self._modern = parser.get_http_version() == "1.1"
        # To keep an HTTP/1.0 connection open we would have to say so; its clients wait for the close otherwise.
        self._keep_alive: bool = self._modern and parser.should_keep_alive()
        if not url.startswith(b"/"):
            url = _origin_form(url)
        self.target = url
        path, _, self.query = url.partition(b"?")
        self.path = path.decode("latin-1") if b"%" not in path else unquote(path)
        self.headers = headers
        self.task: asyncio.Task[None] | None = None
        self.replied = False  # the whole reply was handed to the socket, or broken off
        self.closed = False  # the client left
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False  # the request's body is
        self._waiter: asyncio.Future[None] | None = None
        self._watching = False
        self._gone: Callable[[], None] | None = None  # called in place of cancelling the task
        self._head = b""  # held until the first piece: one write
        self._chunked = False

    # The request

    async def body(self, limit_bytes: int, declared_bytes: int = 0) -> bytes:
        """The whole request body. Raises TooLarge beyond the limit, ClientGone when the client leaves first.

        `declared_bytes` is its content-length: what is too large by that is not waited for.
        """
        while not self._whole and max(self._size, declared_bytes) <= limit_bytes:
            if self.closed:
                raise ClientGone
            if not self._size and (b"expect", b"100-continue") in self.headers:
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._waiter = waiter = self._connection.server.loop.create_future()
            try:
                await waiter
            finally:
                self._connection.server.outbox.resumed(waiter)
        if max(self._size, declared_bytes) > limit_bytes:
            raise TooLarge(f"the request is larger than {limit_bytes} bytes; the limit is server.max_request_bytes")
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def feed(self, piece: bytes) -> None:
        """A piece of the body has come."""
        if not self.replied:
            self._pieces.append(piece)
            self._size += len(piece)
            self.wake()

    def end(self) -> None:
        """The body is whole."""
        self._whole = True
        self.wake()

    def wake(self) -> None:
        """Something changed: let `body` look."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._connection.server.outbox.wake(waiter)

    def lost(self) -> None:
        """The client left."""
        self.closed = True
        self.wake()
        if self._watching:
            self._leave()

    # The reply

    def watch(self) -> asyncio.Task[None]:
        """From now on a client that leaves cancels the task, which is returned."""
        assert self.task is not None
        self._watching = True
        if self.closed:
            self._leave()
        return self.task

    def unwatch(self) -> None:
        """No longer."""
        self._watching = False

    def release(self, gone: Callable[[], None]) -> asyncio.Task[None]:
        """The task, returned, goes on for others: writes do not wait for this client; if it leaves `gone` is called."""
        assert self.task is not None
        self._gone = gone
        self._connection.stop_waiting()
        return self.task

    def _leave(self) -> None:
        if self._gone is not None:
            self._gone()
        elif self.task is not None:
            self.task.cancel()

    def reply(self, status: int, headers: list[Header], body: bytes) -> None:
        """The whole reply at once."""
        head = self._lines(status, headers) + b"content-length: %d\r\n\r\n" % len(body)
        if self.method == "HEAD":
            body = b""
        if len(body) < _JOIN_BYTES:
            self._connection.write(head + body)
        else:
            self._connection.write(head)
            self._connection.write(body)
        self._end()

    def start(self, status: int, headers: list[Header]) -> None:
        """The head of a reply that comes in pieces; it goes out with the first of them."""
        head = self._lines(status, headers)
        if status in _NO_BODY:
            self._head = head + b"\r\n"
            return
        if self._modern:
            self._chunked = True
            head += b"transfer-encoding: chunked\r\n"
        else:
            self._keep_alive = False  # the body ends where the connection does
        self._head = head + b"\r\n"

    async def write(self, piece: bytes) -> None:
        """Send a piece; waits while the client's socket is full."""
        connection = self._connection
        if piece:
            connection.write(self._framed(piece))
        if connection.paused and self._gone is None:
            await connection.drained()

    def finish(self, piece: bytes) -> None:
        """Send the last piece and the end of the body."""
        data = self._framed(piece)
        self._connection.write(data + b"0\r\n\r\n" if self._chunked else data)
        self._end()

    def abort(self, piece: bytes) -> None:
        """Send a last piece and break the connection, so that the body cannot look finished."""
        self._connection.write(self._framed(piece))
        self._keep_alive = False
        self._end()

    def _lines(self, status: int, headers: list[Header]) -> bytes:
        lines = b"\r\n".join([b": ".join(header) for header in headers])
        start = _STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status
        if self._connection.retiring:
            self._keep_alive = False
        if not self._keep_alive:
            start += b"connection: close\r\n"
        return start + lines + b"\r\n" if lines else start

    def _framed(self, piece: bytes) -> bytes:
        head, self._head = self._head, b""
        if not piece:
            return head
        return b"%b%x\r\n%b\r\n" % (head, len(piece), piece) if self._chunked else head + piece

    def _end(self) -> None:
        self.replied = True
        self._connection.replied(self._keep_alive)


class _Connection(asyncio.Protocol):
    """One client's socket: requests are served one after another, pipelined ones wait."""

    __slots__ = (
        "_drain", "_feed", "_head_bytes", "_headers", "_next", "_reading", "_url", "current", "idle_since", "parser",
        "paused", "retiring", "server", "transport",
    )  # fmt: skip

    def __init__(self, server: Server) -> None:
        self.server = server
        self.retiring = False  # close after the reply that is under way
        self.paused = False  # the client reads slower than we write
        self.current: Exchange | None = None  # being answered
        self.idle_since = server.loop.time()
        self.transport: asyncio.Transport
        self._drain: asyncio.Future[None] | None = None
        self._reading: Exchange | None = None  # its body is arriving
        self._next: deque[Exchange] = deque()
        self._url = b""
        self._headers: list[Header] = []
        self._head_bytes = 0  # of a head that came in several reads
        self._parse_anew()

    def _parse_anew(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self._feed = self.parser.feed_data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.retiring = True
        self._next.clear()
        self.resume_writing()
        if self.current is not None:
            self.current.lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade as exc:
            self._stay(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._refuse(400, f"this is not HTTP/1.1: {exc}")
        else:
            if self._url:
                self._head_bytes += len(data)
                if self._head_bytes > _MAX_HEAD_BYTES:
                    self._refuse(431, f"the request's head is larger than {_MAX_HEAD_BYTES} bytes")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.stop_waiting()
        if self._next:
            self._go_on()

    def stop_waiting(self) -> None:
        """Let a write go on that waits for the client to read."""
        waiter, self._drain = self._drain, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def write(self, data: bytes) -> None:
        """Write unless the client left."""
        self.server.outbox.write(self.transport, data)

    async def drained(self) -> None:
        """Wait until the client has read some."""
        self._drain = self.server.loop.create_future()
        await self._drain

    def replied(self, keep_alive: bool) -> None:
        """The current exchange's reply is complete, or broken off."""
        self.current = None
        if not keep_alive or self.retiring:
            self.close()
        else:
            self.idle_since = self.server.loop.time()
            if self._next:
                self._go_on()

    def close(self) -> None:
        """Close once all is sent."""
        self.server.outbox.flush()
        self.transport.close()

    def retire(self) -> None:
        """Close now if idle, or after the reply that is under way."""
        self.retiring = True
        if self.current is None:
            self.close()

    def _go_on(self) -> None:
        if self.current is None and not self.paused:
            self._begin(self._next.popleft())
            if not self._next:
                self.transport.resume_reading()

    def _begin(self, exchange: Exchange) -> None:
        self.current = exchange
        server = self.server
        server.exchanges.add(exchange)
        server.outbox.expect()
        exchange.task = server.loop.create_task(server.answer(exchange))

    def _stay(self, rest: bytes) -> None:
        """Answer a wish for another protocol in this one, as RFC 9110 allows: Java's client asks for h2c each time.

        The parser stopped behind the head, so a new one gets the head again, without the wish.
        """
        method, headers = self.parser.get_method(), self._headers
        if method == b"CONNECT":
            self._refuse(400, "this server is no proxy")
            return
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
        kept = [header for header in headers if header[0] not in _UPGRADE]
        lines = [b"%b: %b\r\n" % header for header in [*kept, *([(b"connection", b"close")] if closes else [])]]
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self._url, b"".join(lines))
        self._parse_anew()
        self.data_received(head + rest)

    def _refuse(self, status: int, message: str) -> None:
        """What came is no request: its boundaries are lost, so nothing more can be read from this client."""
        self.retiring = True
        if self.current is None and not self._next:
            code = "malformed_http" if status == 400 else "headers_too_large"
            body = CODECS[Dialect.OPENAI].error(status, code, message, "", "")
            head = b"connection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.write(_STATUS_LINE[status] + head + body)
            self.close()
        elif self._reading is self.current and self.current is not None and not self.current.replied:
            self.transport.abort()  # it broke in the middle of a request's body
        else:
            self.transport.pause_reading()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_stay` takes over
        self._reading = exchange = Exchange(self, self._url, self._headers)
        self._url, self._headers = b"", []  # what comes after the body (trailers) is no header
        if self.current is None and not self.paused and not self._next:
            self._begin(exchange)
        else:
            self._next.append(exchange)
            self.transport.pause_reading()

    def on_body(self, piece: bytes) -> None:
        if self._reading is not None:
            self._reading.feed(piece)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            self._reading.end()
            self._reading = None


class Server:
    """Serves a listening socket with `application`, which must answer each exchange."""

    def __init__(self, application: Callable[[Exchange], Awaitable[None]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self.exchanges: set[Exchange] = set()
        self.outbox = outbox()
        self._application = application

    async def serve(self, sock: socket.socket, stop: asyncio.Event, grace_s: float, ready: Callable[[], None]) -> None:
        """Serve until `stop`; then requests under way may finish within `grace_s`, and the rest is cancelled."""
        listener = await self.loop.create_server(lambda: _Connection(self), sock=sock)
        sweeper = self.loop.create_task(self._sweep())
        ready()
        try:
            await stop.wait()
        finally:
            listener.close()
            sweeper.cancel()
            await self._drain(grace_s)

    async def answer(self, exchange: Exchange) -> None:
        """One exchange, from its head to the end of its task."""
        self.outbox.began()
        try:
            await self._application(exchange)
        except asyncio.CancelledError:
            pass  # the client left, or the server stops; the application has settled it
        except Exception:
            _log.exception("a request failed outside the pipeline")
        finally:
            self.exchanges.discard(exchange)
            exchange.task = None  # it refers back to the exchange: leave no cycle behind
            if not exchange.replied:
                exchange.abort(b"")

    async def _drain(self, grace_s: float) -> None:
        for connection in list(self.connections):
            connection.retire()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=grace_s)
        for task in self._tasks():
            task.cancel()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        for connection in list(self.connections):
            connection.close()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [exchange.task for exchange in self.exchanges if exchange.task is not None]

    async def _sweep(self) -> None:
        """Close connections that have been idle too long: a timer for each request would cost microseconds."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            oldest = self.loop.time() - _KEEP_ALIVE_S
            for connection in list(self.connections):
                if connection.current is None and connection.idle_since < oldest:
                    connection.transport.close()


def _origin_form(url: bytes) -> bytes:
    """The path and query of an absolute URL; empty for what has none (CONNECT, "*")."""
    try:
        parts = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return b""
    path = parts.path or b""
    return path + b"?" + parts.query if parts.query else path
