"""Change one thing about a request and it never gets the other's answer: real levers, real stores, the real line."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from asked import SCOPE, Asked, equals, other_questions, others, requests
from hypothesis import HealthCheck, given, settings

from trimtab.dispatch import Dispatcher
from trimtab.errors import BadRequest
from trimtab.flight import Flight
from trimtab.levers import exact_cache, semantic_cache
from trimtab.pipeline import Pipeline
from trimtab.protocols import CODECS
from trimtab.redact import identity_in
from trimtab.similar.messages import Learn, Look
from trimtab.similar.service import Service
from trimtab.stores.lmdb import LmdbStore
from trimtab.stores.memory import MemoryStore
from trimtab.stores.valkey import ValkeyStore
from trimtab.types import Attempt, Dialect, Plan, Request, Scope
from trimtab.wire.intake import Head, scope_of

KINDS = ["memory", "lmdb", "lmdb-with-front", "valkey", "valkey-with-front"]
ENGINES = {"oai": Dialect.OPENAI, "oai2": Dialect.OPENAI, "ant": Dialect.ANTHROPIC, "ant2": Dialect.ANTHROPIC}
FEW = settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))


class Clock:
    wall = staticmethod(time.time)
    mono = staticmethod(time.perf_counter)


class Journal:
    def intent(self, intent): ...

    def row(self, record): ...


class Reply:
    """What an engine says: a body of its own for each call."""

    status, retry_after_s, upstream_id, closed = 200, None, "", True

    def __init__(self, body, content_type):
        self.content_type = content_type
        self._pieces = [body]

    async def next(self):
        return self._pieces.pop() if self._pieces else None

    async def read(self, limit_bytes):
        return await self.next()

    def abort(self): ...

    def header_items(self):
        return []


class Engine:
    kind, holds_secret = "test", False

    def __init__(self, name, dialect, count):
        self.name, self.dialect, self.provider, self._count = name, dialect, "", count

    def refuse(self, request):
        return None

    async def open(self, method, path, headers, body, timeouts, client_key):
        text = f"<answer {next(self._count)}>"
        said = {"id": "1", "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 9, "input_tokens": 9}}
        if self.dialect is Dialect.OPENAI:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            said |= {"object": "chat.completion", "created": 1, "choices": [choice]}
        else:
            said |= {"type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]}
            said |= {"stop_reason": "end_turn", "stop_sequence": None}
            said["usage"]["output_tokens"] = 9
        whole = json.dumps(said).encode()
        if json.loads(body).get("stream") is True:
            return Reply(CODECS[self.dialect].replay(whole, include_usage=True), "text/event-stream")
        return Reply(whole, "application/json")


class Sink:
    """A client: the number of the answer that it got, and what the cache said."""

    def __init__(self):
        self.body, self.headers = b"", {}

    def watch(self):
        return asyncio.current_task()

    def unwatch(self): ...

    def reply(self, status, headers, body):
        self.start(status, headers)
        self.body += body

    def start(self, status, headers):
        self.headers = dict(headers)

    async def write(self, piece):
        self.body += piece

    def finish(self, piece):
        self.body += piece

    abort = finish

    @property
    def answer(self):
        found = re.findall(rb"<answer (\d+)>", self.body)
        return int(found[0]) if found else None

    @property
    def cache(self):
        return self.headers.get(b"x-trimtab-cache", b"").decode()


class Gate:
    """A gateway without sockets: intake, pipeline, dispatcher and levers are the real ones."""

    def __init__(self):
        self.calls, self._ids = itertools.count(1), itertools.count(1)
        engines = {name: Engine(name, dialect, self.calls) for name, dialect in ENGINES.items()}
        dispatcher = Dispatcher(engines, Journal(), Clock(), max_response_bytes=1 << 20)
        self._pipeline = Pipeline(dispatcher, Journal(), Clock(), lambda record: None, lambda *_: None)
        self.levers = []
        self.identity = ""

    async def ask(self, asked: Asked) -> Sink:
        """As `wire.endpoints` does it."""
        sink, head = Sink(), Head(asked.all_headers)
        try:
            parsed = CODECS[asked.dialect].parse(asked.body)
            scope = scope_of(asked.tenant, {**parsed.metadata, **head.ours})
        except BadRequest:
            return sink
        request = Request(
            f"r{next(self._ids)}", asked.dialect, asked.path, scope, parsed.model, parsed.fields, parsed.stream,
            parsed.wants_usage, len(asked.body), time.time(), time.perf_counter(), asked.client_key,
            tuple(head.forward), head.variant, head.trace, head.idempotency,
        )  # fmt: skip
        self.identity = asked.identity
        await self._pipeline.run(Flight(request), Plan((Attempt(asked.target),)), self.levers, sink)
        return sink

    def whole(self, dialect, finish, fields):
        return CODECS[dialect].finish_is_whole(finish, fields)


async def assert_apart(gate, settle, asked, same, apart, word):
    """All of `same` get the answer to `asked`, none of `apart` ever does, in whatever order they come."""
    first = await gate.ask(asked)
    assert first.answer is not None and first.cache == "miss", first.body
    await settle()
    own = {}
    for name, other in apart.items():
        got = await gate.ask(other)
        assert got.answer != first.answer, name
        own[name] = got.answer
    await settle()
    kept = 0
    for name, other in apart.items():
        got = await gate.ask(other)
        assert got.answer != first.answer, name
        if got.cache == word:
            assert got.answer == own[name], name
            kept += 1
    assert kept > len(apart) / 2  # most could have been mixed up
    for name, other in same.items():
        got = await gate.ask(other)
        assert (got.answer, got.cache) == (first.answer, word), name


@pytest.fixture(params=KINDS)
def stored(request, tmp_path):
    """A gate before each of the stores, and how to wait until what was put lies in them."""
    with ExitStack() as end:
        runner = end.enter_context(asyncio.Runner())
        front = MemoryStore(50, 1 << 20, Clock()) if request.param.endswith("front") else None
        if request.param.startswith("valkey"):
            server = request.getfixturevalue("valkey_server")
            server.empty()
            store = ValkeyStore(server.url, Clock(), front, timeout_s=5.0)
            settle = store.flush
        elif request.param == "memory":
            store = MemoryStore(5000, 64 << 20, Clock())
            settle = store.start
        else:
            store = LmdbStore(tmp_path, 64 << 20, Clock(), front)

            async def settle():
                store.flush()

        runner.run(store.start())
        end.callback(lambda: runner.run(store.stop()))
        yield SimpleNamespace(run=runner.run, store=store, settle=settle, gate=Gate())


NONCE = itertools.count(1)


def fresh(asked: Asked, talk):
    """The same request with a field that no example before had."""
    return asked.with_field("nonce", str(next(NONCE)))


def exact(gate, store, **config):
    settings_ = exact_cache.Config(**config)
    return exact_cache.build(lambda route: settings_, store, Clock(), gate.whole, lambda engine, route: gate.identity)


@FEW
@given(requests())
def test_the_exact_cache_gives_no_answer_to_another_request(stored, drawn):
    asked, talk = fresh(*drawn), drawn[1]
    stored.gate.levers = [exact(stored.gate, stored.store)]
    apart = others(asked, talk) | other_questions(asked, talk)
    stored.run(assert_apart(stored.gate, stored.settle, asked, equals(asked), apart, "hit"))


@settings(FEW, max_examples=3)
@given(requests())
def test_users_who_share_share_nothing_else(stored, drawn):
    for config, word in ({"share_users": True}, ""), ({}, "public"):
        asked, talk = fresh(*drawn).saying("cache", word), drawn[1]
        stored.gate.levers = [exact(stored.gate, stored.store, **config)]
        apart = {n: o for n, o in others(asked, talk).items() if _but_user(o) != _but_user(asked)}
        stored.run(assert_apart(stored.gate, stored.settle, asked, equals(asked) | _users(asked), apart, "hit"))


def _users(asked: Asked) -> dict[str, Asked]:
    return {f"user {user!r}": asked.saying("user", user) for user in ("", "x", "ann")}


def _but_user(asked: Asked) -> Asked:
    return asked.meaning.saying("user", "")


class OneVector:
    """Every text means the same."""

    dim = 8

    def embed(self, texts):
        return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(texts), 1))

    def tokens(self, texts):
        return len(texts)


class Answers:
    """The process of the semantic cache, without a socket between."""

    def __init__(self, service):
        self._service, self._count = service, itertools.count(1)

    async def look(self, asked, terms, timeout_s):
        return self._service.look(Look(next(self._count), asked, terms)).similar

    def learn(self, token, stored, judge=None, heard=None):
        self._service.learn(Learn(token, stored))


@pytest.fixture
def similar(tmp_path):
    """A gate before the semantic cache alone, which takes all questions for the same and every one that it may."""
    service = Service(tmp_path, OneVector(), OneVector(), Clock())
    with asyncio.Runner() as runner:
        yield SimpleNamespace(run=runner.run, gate=Gate(), answers=Answers(service))
    service.close()


def semantic(similar, **config):
    rules = {"history": "exact", "tools": True, "time_sensitive": True, "personal": True, "any_temperature": True}
    settings_ = semantic_cache.Config(mode="static", threshold=-1.0, audit_share=0.0, **rules | config)
    facts = semantic_cache.Facts(
        similar.gate.whole, lambda engine, route: similar.gate.identity, identity_in, lambda *_: ""
    )
    return semantic_cache.build(lambda route: settings_, similar.answers, Clock(), facts, None)


async def nothing():
    pass


@settings(FEW, max_examples=8)
@given(requests())
def test_the_semantic_cache_gives_no_answer_to_another_context(similar, drawn):
    asked, talk = fresh(*drawn), drawn[1]
    similar.gate.levers = [semantic(similar)]
    same = equals(asked) | other_questions(asked, talk)
    similar.run(assert_apart(similar.gate, nothing, asked, same, others(asked, talk), "semantic"))


@settings(FEW, max_examples=3)
@given(requests())
def test_users_who_share_similar_answers_share_nothing_else(similar, drawn):
    for config, word in ({"share_users": True}, ""), ({}, "public"):
        asked, talk = fresh(*drawn).saying("cache", word), drawn[1]
        similar.gate.levers = [semantic(similar, **config)]
        apart = {n: o for n, o in others(asked, talk).items() if _but_user(o) != _but_user(asked)}
        same = equals(asked) | _users(asked)
        similar.run(assert_apart(similar.gate, nothing, asked, same, apart, "semantic"))


def test_every_part_of_the_scope_is_among_the_changes():
    free = {"tenant", "session", "workflow", "cache", "purpose", "priority"}
    assert set(Scope.__struct_fields__) - free == set(SCOPE)
