"""The HTTP client against a raw socket server that says exactly what a test wants it to say."""

import asyncio
import contextlib
import socket
import time

import pytest

from trimtab.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from trimtab.transport import Origin


class Server:
    """Answers each request with the next of `answers`: bytes, or a coroutine function of (reader, writer)."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.connections = 0
        self.gone_at = None

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.origin = Origin(f"http://127.0.0.1:{port}/v1")
        return self

    async def __aexit__(self, *_):
        await self.origin.close()
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length")
                    ),
                    0,
                )
                self.requests.append((head, await reader.readexactly(length)))
                answer = self.answers.pop(0)
                if callable(answer):
                    await answer(reader, writer)
                else:
                    writer.write(answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone_at = time.monotonic()
        finally:
            writer.close()

    async def call(self, body=b"{}", **kwargs):
        return await self.origin.request("POST", "/v1/x", b"a: b\r\n", body, 5.0, **kwargs)


OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\n"
    b"x-request-id: up-1\r\ncontent-length: 2\r\n\r\nok"
)


async def test_a_buffered_reply_and_the_connection_is_used_again():
    async with Server(OK, OK) as server:
        for _ in range(2):
            reply = await server.call()
            assert (reply.status, await reply.read(100)) == (200, b"ok")
        assert reply.content_type == "application/json"
        assert reply.upstream_id == "up-1"
        assert reply.closed
        assert server.connections == 1
        head, body = server.requests[0]
        assert head.startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\na: b\r\ncontent-length: 2\r\n\r\n" in head
        assert body == b"{}"


async def test_a_large_request_body_arrives_whole():
    async with Server(OK) as server:
        body = b"x" * 20_000_000
        await (await server.call(body)).read(100)
        assert server.requests[0][1] == body


async def test_chunked_pieces_come_as_they_arrive():
    async def answer(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"6\r\n world\r\n0\r\n\r\n")

    async with Server(answer, OK) as server:
        reply = await server.call()
        assert [await reply.next(), await reply.next(), await reply.next()] == [b"hello", b" world", None]
        await (await server.call()).read(100)
        assert server.connections == 1


async def test_a_body_that_ends_with_the_connection():
    async def answer(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with Server(answer) as server:
        assert await (await server.call()).read(100) == b"all of it"


async def test_early_hints_are_passed_over():
    async with Server(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK) as server:
        reply = await server.call()
        assert (reply.status, await reply.read(100)) == (200, b"ok")
        assert reply.header(b"link") == ""


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_connection_that_breaks_off_is_unreachable(sent):
    async def answer(_, writer):
        writer.write(sent)
        await writer.drain()
        writer.close()

    async with Server(answer) as server:
        with pytest.raises(UpstreamUnreachable, match="closed the connection"):
            await (await server.call()).read(1000)


async def test_what_is_not_http_is_invalid():
    async with Server(b"garbage\r\n\r\n") as server:
        with pytest.raises(UpstreamInvalid, match="broke HTTP"):
            await server.call()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_beyond_the_limit_is_refused_and_aborted(declared):
    async def answer(_, writer):
        size = b"content-length: 9000000" if declared else b"x: y"
        writer.write(b"HTTP/1.1 200 OK\r\n" + size + b"\r\n\r\n" + b"x" * 9_000_000)
        await writer.drain()

    async with Server(answer) as server:
        with pytest.raises(UpstreamInvalid, match="larger than 1000 bytes"):
            await (await server.call()).read(1000)


@pytest.mark.parametrize("started", [True, False])
async def test_cancelling_reaches_the_upstream(started):
    async def answer(reader, writer):
        if started:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.readexactly(1)

    async def use(server):
        reply = await server.call()
        try:
            while await reply.next() is not None:
                pass
        finally:
            reply.abort()

    async with Server(answer) as server:
        task = asyncio.create_task(use(server))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            if server.gone_at:
                break
            await asyncio.sleep(0.01)
        assert server.gone_at


async def test_a_slow_reader_slows_the_sender():
    sent = 0

    async def answer(_, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(400):
            writer.write(b"x" * 100_000)
            sent += 100_000
            await writer.drain()
        writer.close()

    async with Server(answer) as server:
        reply = await server.call()
        await asyncio.sleep(0.5)
        assert sent < 40_000_000
        assert len(await reply.read(50_000_000)) == 40_000_000


async def test_nobody_listens():
    async with Server() as server:
        port = server.origin.port
    with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
        await Origin(f"http://127.0.0.1:{port}").request("GET", "/", b"", b"", 1.0)


async def test_connecting_has_a_deadline():
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # a full queue of connections that nobody accepts: the next one waits
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        with pytest.raises(UpstreamTimeout, match="did not accept a connection within"):
            await Origin(f"http://127.0.0.1:{deaf.getsockname()[1]}").request("GET", "/", b"", b"", 0.2)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(b"retry-after: 3", 3.0), (b"retry-after-ms: 250", 0.25), (b"retry-after: soon", None), (b"x: y", None)],
)
async def test_retry_after(header, seconds):
    async with Server(b"HTTP/1.1 429 Slow\r\n" + header + b"\r\ncontent-length: 0\r\n\r\n") as server:
        assert (await server.call()).retry_after_s == seconds


async def test_without_keep_alive_each_call_has_a_connection_of_its_own():
    async with Server() as server:
        host = f"http://127.0.0.1:{server.origin.port}"
        for keep_alive, connections in ((True, 1), (False, 2)):
            server.connections, server.answers = 0, [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"] * 2
            origin = Origin(host, keep_alive=keep_alive)
            for _ in range(2):
                reply = await origin.request("POST", "/v1/x", b"", b"{}", 5.0)
                assert await reply.read(10) == b"hi"
            await origin.close()
            assert server.connections == connections
