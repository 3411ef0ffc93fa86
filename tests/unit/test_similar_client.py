"""A worker's end of the semantic cache, when the process hangs: requests go on, and the log has two lines."""

from __future__ import annotations

import asyncio

import pytest

from trimtab.similar.client import Client
from trimtab.similar.messages import DECODE_ASKED, Compare, Compared, Found, Learn, Told, framed, read
from trimtab.types import Asked, Dialect, ReuseTerms, Similar, Stored, Target, Usage

ASKED = Asked("acme", "faq", bytes(32), "what is it")
TERMS = ReuseTerms("static", 0.1, 0.0, False, 0.9, 1000, "accurate")


@pytest.fixture
async def process(tmp_path):
    """A socket whose other end answers while `awake` is set."""
    awake = asyncio.Event()

    async def attend(reader, writer):
        while True:
            try:
                asked = DECODE_ASKED(await read(reader))
            except asyncio.IncompleteReadError:
                break
            if isinstance(asked, Learn):
                writer.write(framed(Told(asked.token, asked.tell)))
            elif isinstance(asked, Compare):
                writer.write(framed(Compared(asked.n, [one == asked.fresh for one in asked.others])))
            elif awake.is_set():
                writer.write(framed(Found(asked.n, Similar(asked.n, False, None, 1.0, "nothing known yet"), 7)))
        writer.close()

    server = await asyncio.start_unix_server(attend, tmp_path / "s")
    client = Client(tmp_path / "s")
    await client.start()
    assert await client.connected()
    yield client, awake
    await client.stop()
    server.close()


async def test_a_process_that_hangs_is_one_line_and_one_when_it_is_back(process, caplog):
    client, awake = process
    for _ in range(50):
        assert await client.look(ASKED, TERMS, 0.01) is None
    assert client.skipped == 50
    assert len(caplog.messages) == 1 and "requests go on without it" in caplog.text
    awake.set()
    client._again_at = 0.0  # as if the pause were over
    for _ in range(5):
        assert await client.look(ASKED, TERMS, 10.0) is not None
    assert (client.skipped, client.errors) == (50, 7)
    assert caplog.messages[1:] == ["the semantic cache answers again"]


async def test_verdicts_come_back_to_who_asked(process):
    client, awake = process
    assert await client.compare("a", ["a", "b"], 5.0) == [True, False]
    awake.set()
    found = await client.look(ASKED, TERMS, 5.0)
    heard = asyncio.get_running_loop().create_future()
    stored = Stored(Dialect.OPENAI, b"{}", "m", Target("m", "e", "m"), Usage(), "r", 0.0, 1.0)
    client.learn(found.token, stored, None, heard.set_result)
    assert await asyncio.wait_for(heard, 5.0) is True
    client.learn(found.token, stored, None, heard.set_result)  # a token counts once


async def test_a_process_that_is_not_there_is_others_news(tmp_path, caplog):
    client = Client(tmp_path / "nobody")
    await client.start()
    for _ in range(20):
        assert await client.look(ASKED, TERMS, 0.01) is None
    assert client.skipped == 20 and caplog.messages == []
    await client.stop()
