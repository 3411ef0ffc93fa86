"""The rarer ends of a shared call: the first one is answered otherwise, or ends without a word; what stays behind."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from test_pipeline import CHUNK, DONE, LAST, A, Engine, Reply, Sink, World, buffered, no_cycles, stream

from trimtab.errors import BadRequest
from trimtab.flight import Flight
from trimtab.types import Answer, Attempt, Decision, Dialect, Join, Plan, Refuse, Request, Scope, Slot, Stored, Usage


class Slow(Engine):
    async def open(self, *args):
        await asyncio.sleep(0.02)
        return await super().open(*args)


class Same:
    """Says that all requests are the same; `after` is what a later lever does with the first of them."""

    name, version, slot, fails_open = "same", "1", Slot.REUSE_EXACT, True
    changes_answers = False

    async def decide(self, request, plan):
        return Decision(self.name, self.version, self.slot, None, "miss", wants_reply=True, share_key=b"k")

    async def learn(self, outcome, decision):
        pass


class Later:
    """Waits, then does `step` with the first request and nothing with the others."""

    name, version, slot, fails_open = "later", "1", Slot.ROUTE, False
    changes_answers = False

    def __init__(self, step):
        self.step = step

    async def decide(self, request, plan):
        await asyncio.sleep(0.05)
        return Decision(self.name, self.version, self.slot, self.step if request.id == "r0" else None, "")

    async def learn(self, outcome, decision):
        pass


class Client(Sink):
    def __init__(self):
        super().__init__([])
        self.gone = None

    def release(self, gone):
        self.gone = gone
        return self.task


def a_request(name, streamed):
    fields = {"model": msgspec.Raw(b'"a"'), "messages": msgspec.Raw(b"[{}]")}
    scope = Scope("t")
    return Request(name, Dialect.OPENAI, "/v1/chat/completions", scope, "a", fields, streamed, False, 400, 100.0, 100.0)


def ask(world, name, client, levers, streamed=False):
    flight = Flight(a_request(name, streamed))
    client.task = asyncio.create_task(world.pipeline.run(flight, Plan((Attempt(A),)), levers, client))
    return client.task


async def together(world, levers, count=3, streamed=False):
    clients = [Client() for _ in range(count)]
    tasks = []
    for n, client in enumerate(clients):
        tasks.append(ask(world, f"r{n}", client, levers, streamed))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return clients


@pytest.mark.parametrize("streamed", [False, True])
async def test_those_who_join_are_answered_by_the_first_ones_call(streamed):
    world = World(Slow("one", stream(CHUNK, LAST, DONE) if streamed else buffered()))
    clients = await together(world, [Same()], streamed=streamed)
    assert len({client.body for client in clients}) == 1
    assert len(world.engines["one"].calls) == 1
    rows = {row.id: row for row in world.journal.rows}
    assert [len(rows[f"r{n}"].attempts) for n in range(3)] == [1, 0, 0]
    assert [rows[f"r{n}"].cache for n in range(3)] == ["miss", "coalesced", "coalesced"]
    assert rows["r2"].baseline_usage == rows["r0"].attempts[0].usage
    assert rows["r2"].decisions[0].step == "join"
    assert "shared_call" in rows["r2"].stages


@pytest.mark.parametrize("step", ["refuse", "answer"])
async def test_a_first_one_that_makes_no_call_leaves_the_others_to_their_own(step):
    stored = Stored(Dialect.OPENAI, b"{}", "m", A, Usage(), "r", 0.0, 1e12)
    later = Later(Refuse(BadRequest("no")) if step == "refuse" else Answer(stored))
    world = World(Engine("one", buffered(), buffered()))
    clients = await together(world, [Same(), later])
    assert [client.status for client in clients] == [400 if step == "refuse" else 200, 200, 200]
    rows = {row.id: row for row in world.journal.rows}
    assert [len(rows[f"r{n}"].attempts) for n in range(3)] == [0, 1, 1]
    assert [d.step for d in rows["r1"].decisions] == ["continue", "continue"]
    assert rows["r1"].cache == "miss"


async def test_a_first_one_that_is_cancelled_in_mid_stream_looks_finished_to_nobody():
    world = World(Engine("one", stream(CHUNK, "hang")))
    first, second = Client(), Client()
    leader = ask(world, "r0", first, [Same()], streamed=True)
    await asyncio.sleep(0.01)
    other = ask(world, "r1", second, [Same()], streamed=True)
    await asyncio.sleep(0.01)
    assert CHUNK in second.body
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    await other
    assert second.end == "aborted"
    assert b"broken off" in second.body
    assert json.loads(second.body.split(b"data: ")[-1])["error"]


async def test_the_call_ends_with_the_last_client():
    world = World(Engine("one", stream(CHUNK, "hang")))
    first, second = Client(), Client()
    leader = ask(world, "r0", first, [Same()], streamed=True)
    await asyncio.sleep(0.01)
    other = ask(world, "r1", second, [Same()], streamed=True)
    await asyncio.sleep(0.01)
    first.gone()
    await asyncio.sleep(0.01)
    assert not leader.done()
    other.cancel()
    await asyncio.wait([leader, other])
    assert leader.cancelled()
    assert {row.end for row in world.journal.rows} == {"cancelled"}
    assert world.pipeline._flying == {}


async def test_nothing_stays_behind():
    with no_cycles():
        for replies in ([buffered()], [Reply([b"{}"], status=500)]):
            world = World(Engine("one", *replies))
            await together(world, [Same()], count=1)
            assert world.pipeline._flying == {}
        del world


def test_a_step_of_its_own():
    assert Join("r").request_id == "r"
