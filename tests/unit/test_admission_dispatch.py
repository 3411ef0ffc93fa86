"""The queue on the straight line: who waits has no intent, who is refused has a row, and a fallback may take over."""

from __future__ import annotations

import asyncio
import gc

import pytest
from test_pipeline import (
    CHUNK,
    DONE,
    FALLBACK,
    LAST,
    RETRY,
    USAGE,
    A,
    B,
    Clock,
    Engine,
    Sink,
    World,
    buffered,
    flights,
    stream,
)

from trimtab.admission import Asking, Gate, GateTerms
from trimtab.dispatch import Dispatcher
from trimtab.errors import UpstreamUnreachable
from trimtab.flight import Flight, Message
from trimtab.types import Aside, Attempt, Dialect, Plan, Purpose, Request, Scope, Target


class Queued(World):
    """A straight line with a queue in front of engine "one"."""

    def __init__(self, *engines, most=1, **terms):
        super().__init__(*engines)
        self.refused = []
        self.gate = Gate("one", GateTerms(most, **terms), Clock(), self.refused.append)
        self.dispatcher.gates = {"one": self.gate}

    async def taken(self):
        return await self.gate.turn(Asking("other", 1.0, 60.0))


def asked(batch=False, stream=False, **scope):
    scope = Scope("t", priority="batch" if batch else "", **scope)
    return Request("id1", Dialect.OPENAI, "/v1/chat/completions", scope, "a", {}, stream, False, 400, 100.0, 100.0)


async def test_who_waits_has_no_intent_yet_and_the_wait_is_a_stage():
    world = Queued(Engine("one", buffered()))
    other = await world.taken()
    task = asyncio.create_task(world.run(Attempt(A)))
    await asyncio.sleep(0.01)
    assert (world.journal.intents, world.gate.waiting) == ([], 1)
    other.leave()
    row = await task
    assert (row.end, len(row.attempts)) == ("ok", 1)
    assert row.stages["queue"] > 0
    assert row.attempts[0].start_s >= row.stages["queue"]
    assert "queue;dur=" in world.sink.headers["server-timing"]
    assert (world.gate.running, world.gate.waiting) == (0, 0)


async def test_a_stream_says_how_long_its_first_token_took_and_what_it_cost():
    world, heard = Queued(Engine("one", stream(CHUNK, LAST + USAGE, DONE))), []
    leave = world.gate.leave
    world.gate.leave = lambda place, done: (heard.append(done), leave(place, done))
    await world.run(Attempt(A), stream=True)
    (done,) = heard
    assert (done.cost, done.busy, done.whole) == (10 + 2 * 2, False, True)
    assert 0 < done.first_s < 1


@pytest.mark.parametrize("failure", [UpstreamUnreachable("reset"), "hang"])
async def test_a_failed_call_frees_its_place(failure):
    world = Queued(Engine("one", failure))
    task = asyncio.create_task(world.run(Attempt(A)))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (world.gate.running, world.gate.waiting) == (0, 0)


async def test_a_client_that_leaves_in_line_makes_no_call():
    world = Queued(Engine("one", buffered()))
    other = await world.taken()
    task = asyncio.create_task(world.run(Attempt(A)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (row,) = world.journal.rows
    assert (row.end, row.attempts, world.journal.intents, world.gate.waiting) == ("cancelled", (), [], 0)
    other.leave()


async def test_a_refused_request_has_a_row_and_hears_when_to_come_again():
    world = Queued(Engine("one", buffered()), max_wait_s=0.01)
    await world.taken()
    row = await world.run(Attempt(A), RETRY)
    assert (row.end, row.status, row.attempts, world.journal.intents) == ("refused", 503, (), [])
    assert world.sink.headers["retry-after"] == "1"
    assert world.refused == ["late"]
    assert "no turn within 0.01 s" in row.error


async def test_a_fallback_takes_what_its_engine_has_no_place_for():
    world = Queued(Engine("one"), Engine("two", buffered()), max_wait_s=0.01)
    await world.taken()
    row = await world.run(Attempt(A), RETRY, FALLBACK)
    assert (row.end, [one.engine for one in row.attempts]) == ("ok", ["two"])
    assert world.slept == []


async def test_the_first_failure_is_told_where_a_retry_gets_no_place():
    world = Queued(Engine("one", UpstreamUnreachable("reset")), max_wait_s=0.01)
    take = world.dispatcher._sleep

    async def sleep(seconds):
        await take(seconds)
        await world.taken()

    world.dispatcher._sleep = sleep
    row = await world.run(Attempt(A), RETRY)
    assert (row.status, row.end, len(row.attempts)) == (502, "error", 1)


async def test_a_retrys_wait_lies_between_attempts_and_is_counted_once():
    world = Queued(Engine("one", UpstreamUnreachable("reset"), buffered()))

    async def sleep(_):
        place = await world.taken()
        asyncio.get_running_loop().call_later(0.01, place.leave)

    world.dispatcher._sleep = sleep
    row = await world.run(Attempt(A), RETRY)
    assert (row.end, len(row.attempts)) == ("ok", 2)
    assert row.stages["queue"] == pytest.approx(0.001)  # the clock's next tick: the first attempt did not wait


async def test_calls_that_no_client_waits_for_are_batch():
    seen = []
    world = Queued(Engine("one", buffered(), buffered(), buffered()))
    world.gate.turn = seen_by(world.gate, seen)
    await world.pipeline.ask_aside(asked(), Plan((Attempt(A),)), Purpose.SHADOW)
    await world.dispatcher.ask(Flight(asked(batch=True)), Attempt(A), asked(batch=True), [])
    await world.dispatcher.ask_beside(Flight(asked()), Aside(A), asked())  # its client waits for the judge, too
    assert [one.batch for one in seen] == [True, True, False]


def seen_by(gate, seen):
    turn = gate.turn

    async def asking(what):
        seen.append(what)
        return await turn(what)

    return asking


async def test_asides_and_the_held_answer_each_need_a_place_and_never_block_each_other():
    world = Queued(Engine("one", buffered(), buffered()))

    async def accept(reply, beside):
        return all(one is not None for one in beside)

    flight = Flight(asked())
    attempt = Attempt(A, held=True, beside=(Aside(Target("a", "one", "a-up")),))
    finish = await world.dispatcher.execute(flight, Plan((attempt,)), Sink([]), lambda _: [], accept)
    assert finish.status == 200
    assert (len(flight.attempts), len(flight.asided), world.gate.running) == (1, 1, 0)


async def test_a_passed_through_call_waits_only_if_it_names_a_model():
    for model in ("", "a"):
        world = Queued(Engine("one", buffered()), max_wait_s=0.01)
        await world.taken()
        request = Request("id1", Dialect.OPENAI, "/v1/x", Scope("t"), model, {}, False, False, 4, 100.0, 100.0)
        await world.pipeline.relay(Flight(request), Attempt(A), Message("POST", "/v1/x", [], b"{}"), world.sink)
        assert world.sink.status == (503 if model else 200)


async def test_an_engine_without_a_queue_knows_of_none():
    world = Queued(Engine("two", buffered()))
    row = await world.run(Attempt(B))
    assert (row.end, "queue" in row.stages) == ("ok", False)
    assert Dispatcher({}, world.journal, Clock(), max_response_bytes=1).gates == {}


async def test_waiting_and_being_refused_leave_no_cycles_behind():
    gc.collect()
    gc.disable()
    try:
        before = flights()
        world = Queued(Engine("one", buffered()), max_wait_s=0.01)
        other = await world.taken()
        await world.run(Attempt(A))
        other.leave()
        world.journal.rows.clear()
        await world.run(Attempt(A))
        assert flights() <= before
    finally:
        gc.enable()
