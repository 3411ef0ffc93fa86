"""A scripted upstream on a real socket: speaks the OpenAI and Anthropic shapes, misbehaves when told to, remembers all.

It runs in a thread of the test's process, so that tests script it and read what it saw without a protocol between them.
`prompt(*acts)` returns a marker to put into a prompt; requests that carry it get those acts in turn (the last repeats).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from upstream_shapes import (
    Act,
    Event,
    anthropic_buffered,
    anthropic_error,
    anthropic_stream,
    check_anthropic,
    check_openai,
    openai_buffered,
    openai_error,
    openai_stream,
)

_MARKER = re.compile(rb"ask-\d{6}-[0-9a-z]+")
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_PIECE = 256 * 1024


@dataclass
class Seen:
    """One request as it reached the upstream; times are monotonic seconds."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    dropped_at: float | None = None  # the peer closed before the answer was out
    answered: bool = False
    sent_pieces: int = 0
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Upstream:
    """Start with `with Upstream() as upstream`; `port`, `openai_url` and `anthropic_url` say where it is."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._scripts: dict[str, list[Act]] = {}
        self._served: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="scripted-upstream", daemon=True)
        self._ready = threading.Event()
        self._connections: set[_Connection] = set()
        self.port = 0

    def __enter__(self) -> Upstream:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prompt(self, *acts: Act) -> str:
        """A marker for a prompt; requests that carry it are treated as `acts` say, one after the other."""
        marker = f"ask-{next(self._numbers):06d}-x"
        self._scripts[marker] = list(acts) or [Act()]
        return marker

    def script(self, marker: str, *acts: Act) -> None:
        """Replace what `marker` means from now on."""
        self._scripts[marker] = list(acts)
        self._served[marker] = 0

    def requests(self, marker: str) -> list[Seen]:
        """What arrived with `marker` in its body, in order."""
        return [seen for seen in list(self.seen) if marker.encode() in seen.body]

    def wait(self, marker: str, count: int = 1, timeout_s: float = 10.0) -> list[Seen]:
        """`requests(marker)` once there are `count`."""
        wait_until(lambda: len(self.requests(marker)) >= count, timeout_s, f"{count} upstream requests with {marker}")
        return self.requests(marker)

    def act(self, body: bytes) -> Act:
        found = _MARKER.search(body)
        acts = self._scripts.get(found.group().decode()) if found else None
        if not acts or found is None:
            return Act()
        marker = found.group().decode()
        turn = self._served.get(marker, 0)
        self._served[marker] = turn + 1
        return acts[min(turn, len(acts) - 1)]

    def track(self, connection: _Connection, *, alive: bool) -> None:
        (self._connections.add if alive else self._connections.discard)(connection)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=512)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until `condition()` is true. Raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {timeout_s} s for {what}"
        time.sleep(0.01)


class ClosedPort:
    """A port that refuses connections and that nobody else gets meanwhile: bound, not listening."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return int(self._socket.getsockname()[1])

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive; answers one request at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None] | None = None
        self.current: Seen | None = None
        self.can_write = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.can_write.set()
        self.upstream.track(self, alive=True)
        self._begin()

    def _begin(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.track(self, alive=False)
        self.can_write.set()
        if self.current is not None and not self.current.answered:
            self.current.dropped_at = time.monotonic()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def abort(self) -> None:
        self.transport.abort()

    # httptools callbacks

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        seen = Seen(method, self.url.decode(), self.headers, bytes(self.body), time.monotonic())
        self.upstream.seen.append(seen)
        self.current = seen
        self._begin()
        self.task = asyncio.get_running_loop().create_task(self._answer(seen))

    # answering

    async def _answer(self, seen: Seen) -> None:
        act = self.upstream.act(seen.body)
        if act.reset:
            self.current = None
            self._rst()
            return
        await asyncio.sleep(act.head_after_s)
        path = seen.path.split("?")[0]
        anthropic = path.startswith("/v1/messages") or "anthropic-version" in seen.headers
        key = seen.headers.get("x-api-key") or seen.headers.get("authorization", "").removeprefix("Bearer ")
        if key == "sk-wrong":
            await self._error(401, "Incorrect API key provided.", anthropic=anthropic)
        elif act.status != 200:
            await self._error(act.status, f"scripted {act.status}", anthropic=anthropic, headers=act.headers)
        elif act.raw is not None:
            await self._buffered(200, act.raw, act)
        elif path in {"/v1/chat/completions", "/v1/messages"}:
            await self._model(seen, act, anthropic=anthropic)
        else:
            await self._other(seen, path, anthropic=anthropic)
        seen.answered = True
        self.current = None

    async def _model(self, seen: Seen, act: Act, *, anthropic: bool) -> None:
        body = seen.json
        problem = check_anthropic(body) if anthropic else check_openai(body)
        if problem:
            await self._error(400, problem, anthropic=anthropic)
            return
        reply_id = f"{len(self.upstream.seen):08d}"
        if not body.get("stream"):
            make = anthropic_buffered if anthropic else openai_buffered
            await self._buffered(200, make(act, body, reply_id), act)
        else:
            make_events = anthropic_stream if anthropic else openai_stream
            await self._stream(seen, act, make_events(act, body, reply_id))

    async def _other(self, seen: Seen, path: str, *, anthropic: bool) -> None:
        if path == "/v1/messages/count_tokens":
            problem = check_anthropic(seen.json, counting=True)
            if problem:
                await self._error(400, problem, anthropic=True)
            else:
                await self._buffered(200, b'{"input_tokens": 2095}', Act())
        elif path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
            usage = {"prompt_tokens": 5, "total_tokens": 5}
            reply = {"object": "list", "data": [vector], "model": seen.json["model"], "usage": usage}
            await self._buffered(200, json.dumps(reply).encode(), Act())
        elif path == "/v1/audio/transcriptions":
            await self._buffered(200, json.dumps({"text": f"{len(seen.body)} bytes heard"}).encode(), Act())
        else:
            await self._error(404, f"Unknown request URL: {seen.method} {path}.", anthropic=anthropic)

    async def _error(
        self, status: int, message: str, *, anthropic: bool, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        body = anthropic_error(status, message) if anthropic else openai_error(status, message)
        await self._buffered(status, body, Act(headers=headers))

    def _head(self, status: int, content_type: str, extra: tuple[tuple[str, str], ...]) -> None:
        number = f"req_{len(self.upstream.seen):08d}"
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}",
            f"content-type: {content_type}",
            f"x-request-id: {number}",
            f"request-id: {number}",
            *(f"{name}: {value}" for name, value in extra),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def _buffered(self, status: int, body: bytes, act: Act) -> None:
        self._head(status, act.raw_type, (("content-length", str(len(body))), *act.headers))
        await asyncio.sleep(act.body_after_s)
        if act.break_after is not None:
            self.transport.write(body[: len(body) // 2])
            await self._break(act)
            return
        for at in range(0, len(body), _PIECE):
            await self.can_write.wait()
            self.transport.write(body[at : at + _PIECE])

    async def _stream(self, seen: Seen, act: Act, events: list[Event]) -> None:
        self._head(200, "text/event-stream; charset=utf-8", (("transfer-encoding", "chunked"), *act.headers))
        if act.body_after_s:
            await asyncio.sleep(act.body_after_s)
        tokens = 0
        for piece, is_token in events:
            if act.break_after is not None and tokens >= act.break_after and is_token:
                await self._break(act)
                return
            await self._chunk(piece)
            seen.sent_pieces += 1
            tokens += is_token
            if is_token and act.endless and tokens == 1:
                while True:
                    await self._chunk(piece)
                    await asyncio.sleep(act.gap_s)
            if act.gap_s:
                await asyncio.sleep(act.gap_s)
        self.transport.write(b"0\r\n\r\n")

    async def _chunk(self, piece: bytes) -> None:
        await self.can_write.wait()
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def _break(self, act: Act) -> None:
        await asyncio.sleep(0.05)  # what was written before leaves first
        if act.break_how == "stall":
            await asyncio.sleep(3600)
        self.current = None  # from here on it is not the peer who ends it
        if act.break_how == "clean":
            self.transport.write(b"0\r\n\r\n")
        elif act.break_how == "rst":
            self._rst()
        else:
            self.transport.close()

    def _rst(self) -> None:
        raw: socket.socket = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
