"""HTTP/1.1 on real sockets: framing, keep-alive, pipelining, refusals, slow readers, shutdown."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from trimtab.errors import TooLarge
from trimtab.wire import server as server_module
from trimtab.wire.server import ClientGone, Exchange, Server

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQB\r\n"
TEXT = [(b"content-type", b"text/plain")]


async def echo(exchange: Exchange) -> None:
    """Says what it understood; other paths do as they are called."""
    if exchange.path == "/stream":
        exchange.start(200, TEXT)
        for piece in (b"one", b"", b"two"):
            await exchange.write(piece)
        exchange.finish(b"three")
    elif exchange.path == "/cut":
        exchange.start(200, TEXT)
        exchange.abort(b"half")
    elif exchange.path == "/empty":
        exchange.start(204, [])
        exchange.finish(b"")
    elif exchange.path == "/silent":
        return
    elif exchange.path == "/broken":
        raise ValueError("a bug")
    else:
        try:
            body = await exchange.body(1000)
        except TooLarge:
            exchange.reply(413, TEXT, b"too large")
            return
        said = f"{exchange.method} {exchange.path} ?{exchange.query.decode()} {len(body)}"
        exchange.reply(200, TEXT, said.encode())


class Peer:
    """A server with an application, and raw connections to it."""

    def __init__(self, application):
        self.application = application
        self.stop = asyncio.Event()

    async def __aenter__(self):
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.server = Server(self.application)
        ready = asyncio.Event()
        self.task = asyncio.create_task(self.server.serve(sock, self.stop, 0.3, ready.set))
        await ready.wait()
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        await asyncio.wait_for(self.task, 5)

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """Send, and read until the server closes or says nothing more for a moment."""
        reader, writer = await self.connect()
        writer.write(data)
        said = await read_all(reader)
        writer.close()
        return said


async def read_all(reader) -> bytes:
    said = b""
    while True:
        try:
            piece = await asyncio.wait_for(reader.read(65536), 0.3)
        except TimeoutError:
            return said
        if not piece:
            return said + b"<closed>"
        said += piece


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /a?b=c HTTP/1.1\r\nhost: x\r\n\r\n", rb"200 OK\r\ncontent-type: text/plain\r\n.*GET /a \?b=c 0$"),
        (b"GET /a%20b HTTP/1.1\r\n\r\n", rb"GET /a b \? 0$"),
        (b"GET http://host/a?q HTTP/1.1\r\nhost: x\r\n\r\n", rb"GET /a \?q 0$"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", rb"POST / \? 3$"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", rb"POST / \? 3$"),
        (b"HEAD /a HTTP/1.1\r\n\r\n", rb"content-length: 11\r\n\r\n$"),
        (b"GET / HTTP/1.0\r\n\r\n", rb"connection: close\r\n.*GET / \? 0<closed>$"),
        (b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", rb"connection: close\r\n.*GET / \? 0<closed>$"),
        (b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", rb"connection: close\r\n.*GET / \? 0<closed>$"),
        (b"GET /stream HTTP/1.1\r\n\r\n", rb"chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n$"),
        (b"GET /stream HTTP/1.0\r\n\r\n", rb"text/plain\r\n\r\nonetwothree<closed>$"),
        (b"GET /cut HTTP/1.1\r\n\r\n", rb"\r\n4\r\nhalf\r\n<closed>$"),
        (b"GET /empty HTTP/1.1\r\n\r\n", rb"^HTTP/1.1 204 No Content\r\n\r\n$"),
        (b"GET /silent HTTP/1.1\r\n\r\n", rb"^<closed>$"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1001\r\n\r\n" + b"x" * 1001, rb"413 .*too large$"),
        (b"nonsense\r\n\r\n", rb'^HTTP/1.1 400 Bad Request\r\n.*"malformed_http".*<closed>$'),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", rb"^HTTP/1.1 400 .*<closed>$"),
        (b"POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", rb"^HTTP/1.1 400 "),
        (b"GET /a HTTP/1.1\r\n" + H2C + b"\r\n", rb"^HTTP/1.1 200 .*GET /a \? 0$"),
        (b"POST /a HTTP/1.1\r\n" + H2C + b"content-length: 2\r\n\r\nab", rb"^HTTP/1.1 200 .*POST /a \? 2$"),
        (b"CONNECT host:1 HTTP/1.1\r\n\r\n", rb"^HTTP/1.1 400 .*no proxy.*<closed>$"),
    ],
)
async def test_what_goes_in_and_what_comes_out(request_bytes, expected):
    async with Peer(echo) as peer:
        said = await peer.ask(request_bytes)
    assert re.search(expected, said, re.DOTALL), said


async def test_a_bug_outside_the_pipeline_breaks_the_connection_and_is_logged(caplog):
    async with Peer(echo) as peer:
        assert await peer.ask(b"GET /broken HTTP/1.1\r\n\r\n") == b"<closed>"
    assert "a bug" in caplog.text


async def test_a_head_without_end_is_refused():
    async with Peer(echo) as peer:
        reader, writer = await peer.connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(18):
            writer.write(b"x-filler: " + b"y" * 4000 + b"\r\n")
            await asyncio.sleep(0.002)
        assert (await read_all(reader)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_one_connection_serves_many_and_answers_pipelined_requests_in_order():
    async with Peer(echo) as peer:
        reader, writer = await peer.connect()
        for _ in range(3):
            writer.write(b"POST /x HTTP/1.1\r\ncontent-length: 2\r\n\r\nab")
            assert (await read_all(reader)).endswith(b"POST /x ? 2")
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(20)))
        assert re.findall(rb"GET /(\d+)", await read_all(reader)) == [b"%d" % number for number in range(20)]
        writer.close()


async def test_garbage_behind_a_request_does_not_cost_it_its_answer():
    async with Peer(echo) as peer:
        said = await peer.ask(b"GET /stream HTTP/1.1\r\n\r\nnonsense\r\n\r\n")
    assert said.endswith(b"0\r\n\r\n<closed>")


async def test_a_client_that_waits_for_100_continue_is_told():
    async with Peer(echo) as peer:
        reader, writer = await peer.connect()
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert await read_all(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert (await read_all(reader)).endswith(b"POST / ? 2")
        writer.close()


async def test_a_client_that_leaves_ends_the_wait_for_its_body_and_cancels_a_watched_task():
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def application(exchange: Exchange) -> None:
        try:
            if exchange.method == "POST":
                await exchange.body(1000)
            exchange.watch()
            await asyncio.sleep(30)
        except (ClientGone, asyncio.CancelledError) as end:
            ends.put_nowait(type(end).__name__)
            raise

    async with Peer(application) as peer:
        for start in (b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc", b"GET / HTTP/1.1\r\n\r\n"):
            _, writer = await peer.connect()
            writer.write(start)
            await asyncio.sleep(0.05)
            writer.close()
        assert await asyncio.wait_for(ends.get(), 2) == "ClientGone"
        assert await asyncio.wait_for(ends.get(), 2) == "CancelledError"
        assert not peer.server.exchanges


async def test_a_slow_reader_holds_up_its_writer_and_nobody_else():
    written = 0

    async def application(exchange: Exchange) -> None:
        nonlocal written
        if exchange.path == "/other":
            exchange.reply(200, TEXT, b"fast")
            return
        exchange.start(200, TEXT)
        for _ in range(400):
            await exchange.write(b"x" * 100_000)
            written += 100_000
        exchange.finish(b"")

    async with Peer(application) as peer:
        reader, writer = await peer.connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.3)
        assert written < 20_000_000
        assert (await peer.ask(b"GET /other HTTP/1.1\r\n\r\n")).endswith(b"fast")
        size = 0
        while size < 40_000_000:
            size += len(await asyncio.wait_for(reader.read(1 << 20), 5))
        assert written == 40_000_000
        writer.close()


async def test_idle_connections_are_closed_in_time(monkeypatch):
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.02)
    monkeypatch.setattr(server_module, "_KEEP_ALIVE_S", 0.1)
    async with Peer(echo) as peer:
        reader, writer = await peer.connect()
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()


async def test_shutdown_lets_requests_finish_and_cancels_those_that_do_not():
    began = asyncio.Event()

    async def application(exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        await exchange.write(b"begun")
        began.set()
        await asyncio.sleep(0.1 if exchange.path == "/short" else 30)
        exchange.finish(b"done")

    async with Peer(application) as peer:
        idle_reader, idle = await peer.connect()
        asked = []
        for path in (b"/short", b"/long"):
            reader, writer = await peer.connect()
            began.clear()
            writer.write(b"GET %b HTTP/1.1\r\n\r\n" % path)
            await began.wait()
            asked.append((reader, writer))
        peer.stop.set()
        assert await asyncio.wait_for(idle_reader.read(), 2) == b""
        assert (await asyncio.wait_for(asked[0][0].read(), 2)).endswith(b"4\r\ndone\r\n0\r\n\r\n")
        assert (await asyncio.wait_for(asked[1][0].read(), 2)).endswith(b"5\r\nbegun\r\n")  # cut, not finished
        await asyncio.wait_for(peer.task, 5)
        for writer in (idle, *(writer for _, writer in asked)):
            writer.close()
