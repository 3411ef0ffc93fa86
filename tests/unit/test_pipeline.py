"""The straight line with a scripted engine: order of things, attempts, and exactly one row whatever happens."""

import asyncio
import gc
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.dispatch import Dispatcher
from trimtab.errors import RateLimited, UpstreamUnreachable
from trimtab.flight import BusyShare, Flight
from trimtab.pipeline import Pipeline
from trimtab.types import (
    Attempt,
    Continue,
    Decision,
    Dialect,
    Intent,
    Plan,
    Purpose,
    Refuse,
    Request,
    Scope,
    Slot,
    Target,
    Timeouts,
    Usage,
)

A = Target("a", "one", "a-up", "openai")
B = Target("b", "two", "b-up", "openai")
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "a-up",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}  # fmt: skip
CHUNK = b'data: {"model":"a-up","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"model":"a-up","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"model":"a-up","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Clock:
    def __init__(self):
        self.now = 100.0

    def wall(self):
        return self.now

    def mono(self):
        self.now += 0.001
        return self.now


class Reply:
    def __init__(self, pieces=(), status=200, kind="application/json", retry_after_s=None):
        self.pieces, self.status, self.content_type, self.retry_after_s = list(pieces), status, kind, retry_after_s
        self.upstream_id, self.aborted, self.closed = "up", False, False

    async def next(self):
        if not self.pieces:
            self.closed = True
            return None
        piece = self.pieces.pop(0)
        if piece == "hang":
            await asyncio.sleep(3600)
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def read(self, limit):
        body = b""
        while (piece := await self.next()) is not None:
            body += piece
        return body

    def abort(self):
        self.aborted = self.aborted or not self.closed

    def header_items(self):
        return [("content-type", self.content_type), ("x-up", "1"), ("content-length", "3")]


class Engine:
    kind, dialect, provider, holds_secret = "test", Dialect.OPENAI, "openai", False

    def __init__(self, name, *replies):
        self.name, self.replies, self.calls = name, list(replies), []

    def refuse(self, request):
        return None

    async def open(self, method, path, headers, body, timeouts, client_key):
        self.calls.append((method, path, body))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if reply == "hang":
            await asyncio.sleep(3600)
        return reply


class Journal:
    def __init__(self, log):
        self.log, self.rows, self.intents = log, [], []

    def intent(self, intent):
        self.intents.append(intent)
        self.log.append("intent")

    def row(self, record):
        # What can be encoded can be kept.
        self.rows.append(msgspec.json.decode(msgspec.json.encode(record), type=type(record)))
        self.log.append("row")


class Sink:
    def __init__(self, log):
        self.log, self.status, self.headers, self.body, self.end = log, 0, {}, b"", ""

    def watch(self):
        return asyncio.current_task()

    def unwatch(self):
        pass

    def reply(self, status, headers, body):
        self.start(status, headers)
        self.finish(body)

    def start(self, status, headers):
        self.status, self.headers = status, {k.decode(): v.decode() for k, v in headers}
        self.log.append("start")

    async def write(self, piece):
        self.body += piece
        self.log.append("write")

    def finish(self, piece):
        self.body += piece
        self.end = "finished"
        self.log.append("finish")

    def abort(self, piece):
        self.body += piece
        self.end = "aborted"


class World:
    def __init__(self, *engines):
        self.log, self.slept = [], []
        self.journal, self.sink = Journal(self.log), Sink(self.log)
        self.engines = {engine.name: engine for engine in engines}

        async def sleep(seconds):
            self.slept.append(seconds)

        self.dispatcher = Dispatcher(
            self.engines, self.journal, Clock(), max_response_bytes=1000_000, sleep=sleep, jitter=lambda: 0.5
        )
        self.pipeline = Pipeline(self.dispatcher, self.journal, Clock(), lambda record: None, lambda *_: 5_000_000_000)

    async def run(self, *attempts, levers=(), stream=False, fields=None, **plan):
        raw = {k: msgspec.Raw(json.dumps(v).encode()) for k, v in (fields or {"model": "a", "messages": [{}]}).items()}
        request = Request(
            "id1", Dialect.OPENAI, "/v1/chat/completions", Scope("t"), "a", raw, stream, False, 400, 100.0, 100.0
        )
        sweep = asyncio.create_task(self.dispatcher.deadlines.sweep())
        try:
            await self.pipeline.run(Flight(request), Plan(tuple(attempts), **plan), levers, self.sink)
        finally:
            sweep.cancel()
        assert len(self.journal.rows) == 1
        return self.journal.rows[0]


def buffered(**kwargs):
    return Reply([json.dumps(ANSWER).encode()], **kwargs)


def stream(*pieces):
    return Reply(pieces, kind="text/event-stream")


RETRY = Attempt(A, Purpose.RETRY, backoff_s=1.0)
FALLBACK = Attempt(B, Purpose.FALLBACK)


async def test_the_row_is_written_before_the_answer_is_whole():
    world = World(Engine("one", buffered()))
    row = await world.run(Attempt(A))
    assert world.log == ["intent", "row", "start", "finish"]
    assert (row.end, row.status, world.sink.status) == ("ok", 200, 200)
    assert row.attempts[0].usage == row.baseline_usage == Usage(input=10, output=2)
    assert world.sink.headers["x-trimtab-cost-usd"] == "5.000000000"
    assert world.sink.headers["x-trimtab-request-id"] == "id1"
    assert isinstance(world.journal.intents[0], Intent)


async def test_a_stream_is_settled_before_its_end_mark():
    world = World(Engine("one", stream(CHUNK, LAST + USAGE, DONE)))
    row = await world.run(Attempt(A), stream=True)
    assert world.log == ["intent", "start", "write", "write", "row", "finish"]
    assert world.sink.body == CHUNK + LAST + DONE  # usage was asked for by us, so it is taken out again
    assert row.attempts[0].usage == Usage(input=10, output=2)
    assert row.ttft_s is not None
    sent = json.loads(world.engines["one"].calls[0][2])
    assert sent["stream_options"] == {"include_usage": True}


async def test_a_stream_that_is_cut_never_looks_finished():
    world = World(Engine("one", stream(CHUNK, CHUNK)))
    row = await world.run(Attempt(A), RETRY, stream=True)
    assert (row.end, world.sink.end) == ("cut", "aborted")
    assert b"[DONE]" not in world.sink.body
    assert b'"error"' in world.sink.body
    assert row.attempts[0].usage_source == "estimated"
    assert row.attempts[0].usage.output == 2


async def test_a_stream_that_breaks_before_its_first_token_is_retried():
    world = World(Engine("one", stream(UpstreamUnreachable("reset")), stream(CHUNK, LAST, USAGE, DONE)))
    row = await world.run(Attempt(A), RETRY, stream=True)
    assert (row.end, len(row.attempts), world.sink.end) == ("ok", 2, "finished")


async def test_retry_waits_as_long_as_it_is_told():
    world = World(Engine("one", Reply([b"{}"], status=429, retry_after_s=3.0), buffered()))
    row = await world.run(Attempt(A), RETRY)
    assert world.slept == [3.0]
    assert [(a.purpose, a.status, a.end) for a in row.attempts] == [("serve", 429, "error"), ("retry", 200, "ok")]


async def test_a_long_retry_after_goes_to_the_fallback():
    world = World(Engine("one", Reply([b"{}"], status=429, retry_after_s=300.0)), Engine("two", buffered()))
    row = await world.run(Attempt(A), RETRY, FALLBACK)
    assert (world.slept, [a.engine for a in row.attempts]) == ([], ["one", "two"])
    assert row.baseline_model == "b-up"


async def test_the_upstreams_error_is_passed_on_when_nothing_mends_it():
    body = b'{"error":{"message":"slow down","type":"rate_limit","code":"x","param":null}}'
    world = World(Engine("one", *(Reply([body], status=429, retry_after_s=2.0) for _ in range(2))))
    row = await world.run(Attempt(A), RETRY)
    assert (world.sink.status, world.sink.body, world.sink.headers["retry-after"]) == (429, body, "2")
    assert (row.end, row.status) == ("error", 429)


async def test_the_clients_mistake_is_not_retried():
    world = World(Engine("one", Reply([b"{}"], status=400)), Engine("two"))
    row = await world.run(Attempt(A), RETRY, FALLBACK)
    assert (len(row.attempts), world.sink.status) == (1, 400)


async def test_a_deadline_goes_to_the_fallback_and_is_not_retried():
    soon = Timeouts(total_s=0.1)
    world = World(Engine("one", "hang"), Engine("two", buffered()))
    row = await world.run(Attempt(A, timeouts=soon), RETRY, FALLBACK)
    assert [a.end for a in row.attempts] == ["timeout", "ok"]
    assert "total_s" in row.attempts[0].error


async def test_a_stream_has_a_deadline_for_its_first_token():
    soon = Timeouts(first_token_s=0.1)
    world = World(Engine("one", stream("hang")), Engine("two", stream(CHUNK, LAST, USAGE, DONE)))
    row = await world.run(Attempt(A, timeouts=soon), RETRY, FALLBACK, stream=True)
    assert [a.end for a in row.attempts] == ["timeout", "ok"]
    assert "first_token_s" in row.attempts[0].error


async def test_a_stall_in_mid_stream_times_out():
    soon = Timeouts(idle_s=0.1)
    reply = stream(CHUNK, "hang")
    world = World(Engine("one", reply))
    row = await world.run(Attempt(A, timeouts=soon), stream=True)
    assert (row.end, world.sink.end, reply.aborted) == ("timeout", "aborted", True)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_is_settled_once_and_the_call_aborted(streaming):
    reply = stream(CHUNK, "hang") if streaming else Reply(["hang"])
    world = World(Engine("one", reply))
    task = asyncio.create_task(world.run(Attempt(A), RETRY, stream=streaming))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (row,) = world.journal.rows
    assert (row.end, row.attempts[0].end, reply.aborted) == ("cancelled", "cancelled", True)
    assert row.attempts[0].usage_source == "estimated"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply([b"<html>"], kind="text/html"), "not JSON"),
        (Reply([b"{not json"]), "JSON"),
        (Reply([b"x" * 10], status=302), "redirect"),
    ],
)
async def test_a_reply_that_breaks_the_protocol_is_a_bad_gateway(reply, error):
    world = World(Engine("one", reply))
    row = await world.run(Attempt(A))
    assert (world.sink.status, row.end) == (502, "error")
    assert error in json.loads(world.sink.body)["error"]["message"]


class Lever:
    name, version, slot, fails_open = "test", "1", Slot.ADMIT, True
    changes_answers = False

    def __init__(self, decision=None, fails_open=True):
        self.decision, self.fails_open, self.learned = decision, fails_open, []

    async def decide(self, request, plan):
        if self.decision is None:
            raise RuntimeError("broken")
        return self.decision

    async def learn(self, outcome, decision):
        self.learned.append(outcome)
        raise RuntimeError("broken too")


async def test_capture_gets_each_request_as_the_client_sent_it():
    world = World(Engine("one", buffered(), Reply(["hang"])))
    seen = []
    world.pipeline._capture = lambda request, record: seen.append((request, record))
    asked = Request(
        "id2", Dialect.OPENAI, "/v1", Scope("t"), "a", {"model": msgspec.Raw(b'"a"')}, False, False, 1, 0, 0
    )
    changed = msgspec.structs.replace(asked, fields={"model": msgspec.Raw(b'"b"')})
    lever = Lever(Decision("test", "1", Slot.ADMIT, Continue(changed, Plan((Attempt(A),))), "changed"))
    await world.pipeline.run(Flight(asked), Plan((Attempt(A),)), [lever], world.sink)
    leaving = asyncio.create_task(world.pipeline.run(Flight(asked), Plan((Attempt(A),)), [], world.sink))
    await asyncio.sleep(0.05)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert [request for request, _ in seen] == [asked, asked]
    assert [record for _, record in seen] == world.journal.rows
    assert [record.end for _, record in seen] == ["ok", "cancelled"]


async def test_a_broken_lever_lets_the_request_go_on():
    world = World(Engine("one", buffered()))
    row = await world.run(Attempt(A), levers=[Lever()])
    assert (row.end, row.decisions[0].step) == ("ok", "failed")


async def test_a_broken_policy_does_not():
    world = World(Engine("one"))
    row = await world.run(Attempt(A), levers=[Lever(fails_open=False)])
    assert (row.end, world.sink.status, world.engines["one"].calls) == ("error", 500, [])


async def test_a_lever_refuses():
    refusal = Decision("test", "1", Slot.ADMIT, Refuse(RateLimited("too fast", retry_after_s=7)), "over the limit")
    world = World(Engine("one"))
    row = await world.run(Attempt(A), levers=[Lever(refusal)])
    assert (row.end, world.sink.status, world.sink.headers["retry-after"]) == ("refused", 429, "7")


async def test_learning_sees_the_whole_stream_and_its_failure_loses_nothing():
    lever = Lever(Decision("test", "1", Slot.ADMIT, None, "look", wants_reply=True))
    world = World(Engine("one", stream(CHUNK, LAST, USAGE, DONE)))
    row = await world.run(Attempt(A), levers=[lever], stream=True)
    assert row.end == "ok"
    assert json.loads(lever.learned[0].reply.body)["choices"][0]["message"]["content"] == "hi"
    assert lever.learned[0].reply.finish == "stop"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=8))
def test_shares_of_machine_time_add_up_to_the_busy_time(calls):
    events = sorted(
        [(start, 1, i) for i, (start, _) in enumerate(calls)] + [(s + d, 0, i) for i, (s, d) in enumerate(calls)]
    )
    share, marks, total, busy, running, last = BusyShare(), {}, 0.0, 0.0, 0, 0.0
    for at, starts, i in events:
        busy += (at - last) * (running > 0)
        last = at
        running += 1 if starts else -1
        if starts:
            marks[i] = share.start(at)
        else:
            total += share.stop(marks[i], at)
    assert total == pytest.approx(busy)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_request_leaves_no_reference_cycle(streaming):
    # Cycles would keep prompts of 100 KB in memory until the collector comes by.
    class Quiet(Lever):
        async def learn(self, outcome, decision):
            pass

    lever = Quiet(Decision("test", "1", Slot.ADMIT, None, "look", wants_reply=True))
    gc.collect()
    gc.disable()
    try:
        before = flights()  # those that other tests' errors hold
        reply = stream(CHUNK, LAST, USAGE, DONE) if streaming else buffered()
        await World(Engine("one", reply)).run(Attempt(A), levers=[lever], stream=streaming)
        assert flights() <= before
    finally:
        gc.enable()


def flights():
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, Flight)}
