"""Calls to the embedded engine while its server is gone, loads, or dies: waited for, and never sent twice by itself."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ports import free_port
from trimtab.engines.llama_cpp import Config, build
from trimtab.errors import UpstreamNotConnected, UpstreamUnreachable
from trimtab.types import Timeouts

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
PATIENT, HASTY = Timeouts(connect_s=30.0), Timeouts(connect_s=0.25)


class Server:
    """Answers by what `health` and `chat` say at the moment; b"" closes the connection."""

    def __init__(self):
        self.port, self.health, self.chat, self.asked = free_port(), OK, OK, 0
        self.was_asked = asyncio.Event()
        self._server = None

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client is done
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                is_health = head.startswith(b"GET /health")
                if not is_health:
                    self.asked += 1
                    self.was_asked.set()
                answer = self.health if is_health else self.chat
                writer.write(answer)
                if not answer:
                    break
        writer.close()


@pytest.fixture
async def engine():
    server = Server()
    made = build("local", Config(), server.port)
    yield made, server
    await made.close()
    if server._server is not None:
        await server.stop()


async def call(engine, timeouts=PATIENT):
    reply = await engine.open("POST", "/v1/chat/completions", [], b"", timeouts, "")
    await reply.read(100)
    return reply.status


async def test_calls_that_find_nobody_wait_until_the_server_is_ready(engine):
    engine, server = engine
    calls = [asyncio.create_task(call(engine)) for _ in range(5)]
    await asyncio.sleep(0.05)
    server.health = server.chat = LOADING
    await server.start()
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in calls)
    server.health = server.chat = OK
    assert await asyncio.gather(*calls) == [200] * 5
    assert server.asked >= 5


async def test_a_server_that_loads_is_waited_for(engine):
    engine, server = engine
    server.health = server.chat = LOADING
    await server.start()
    waiting = asyncio.create_task(call(engine))
    await server.was_asked.wait()
    server.health = server.chat = OK
    assert (await waiting, server.asked) == (200, 2)


async def test_one_that_does_not_come_back_in_time_is_a_clear_error(engine):
    engine, server = engine
    with pytest.raises(UpstreamUnreachable, match=r"engine local is down and was not back within 0\.25 s.*connect_s"):
        await call(engine, HASTY)
    server.health = server.chat = LOADING
    await server.start()
    assert await call(engine, HASTY) == 503


async def test_a_call_that_was_sent_is_not_sent_again(engine):
    engine, server = engine
    server.chat = b""
    await server.start()
    with pytest.raises(UpstreamUnreachable) as died:
        await call(engine)
    assert not isinstance(died.value, UpstreamNotConnected)
    assert server.asked == 1


async def test_closing_ends_the_waiting(engine):
    engine, _ = engine
    waiting = asyncio.create_task(call(engine))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not engine._polling.done()  # it may be another's
    await engine.close()
    assert engine._polling.cancelled()
