"""Memories by context, promises by tenant and route, all of it on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sqlite3
from itertools import count

import numpy as np
import pytest

from trimtab.similar.messages import Doubt, Learn, Look, Told
from trimtab.similar.service import Service
from trimtab.stores._purges import Purges
from trimtab.types import Asked, Dialect, ReuseTerms, Selector, Stored, Target, Usage

PROMISE = ReuseTerms("promise", 0.1, 0.1, False, 0.85, 1000, "accurate")
STATIC = ReuseTerms("static", 0.1, 0.0, False, 0.9, 1000, "accurate")
TOPICS = [[f"w{topic}x{n}" for n in range(12)] for topic in range(12)]
TARGET = Target("m", "e", "m")


class Bag:
    """Embeds a text as the sum of fixed random vectors of its words."""

    dim = 64

    def embed(self, texts):
        return np.array([self._one(text) for text in texts], dtype=np.float32).reshape(-1, self.dim)

    def tokens(self, texts):
        return sum(len(text.split()) for text in texts)

    def _one(self, text):
        total = np.zeros(self.dim, dtype=np.float32)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            total += np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)
        length = float(np.linalg.norm(total))
        return total / length if length else total


class Clock:
    now = 1_800_000_000.0

    def wall(self):
        return self.now

    def mono(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    opened = []

    def begin():
        opened.append(Service(tmp_path / "cache", Bag(), Bag(), clock))
        return opened[-1]

    yield begin
    for service in opened:
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed by the test
            service.close()


def context(name):
    return hashlib.sha256(name.encode()).digest()


def answer(text, clock, ttl_s=1000.0, **more):
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})
    facts = {"model": "m", "target": TARGET, "usage": Usage(input=9, output=9), "request_id": "r1"} | more
    return Stored(Dialect.OPENAI, body.encode(), created=clock.now, expires=clock.now + ttl_s, **facts)


NUMBERS = count()


def ask(service, text, terms=STATIC, tenant="acme", route="faq", where="c"):
    return service.look(Look(next(NUMBERS), Asked(tenant, route, context(where), text), terms)).similar


def teach(service, clock, text, said, *terms, **where):
    similar = ask(service, text, *terms, **where)
    service.learn(Learn(similar.token, answer(said, clock)))


def question(rng):
    topic = rng.randrange(len(TOPICS))
    return topic, " ".join(rng.sample(TOPICS[topic], 8))


def live(service, clock, requests, rng, **where):
    """Ask on like this; hits and wrong hits."""
    hits = wrong = 0
    for _ in range(requests):
        topic, text = question(rng)
        similar = ask(service, text, PROMISE, **where)
        if similar.stored is not None:
            hits += 1
            wrong += f"topic {topic} " not in similar.stored.body.decode()
        if similar.stored is None or similar.audit:
            service.learn(Learn(similar.token, answer(f"All about topic {topic} it is.", clock)))
    return hits, wrong


def test_it_opens_by_itself_keeps_its_promise_and_goes_on_after_a_restart(make, clock):
    rng = random.Random(1)
    service = make()
    assert live(service, clock, 40, rng) == (0, 0)  # closed at first
    hits, wrong = live(service, clock, 500, rng)
    assert hits > 150 and wrong <= 0.1 * hits
    (before,) = service.census()
    service.close()
    service = make()
    hits, wrong = live(service, clock, 50, rng)
    assert hits > 20 and wrong <= 5  # at once
    (after,) = service.census()
    assert after.requests == before.requests + 50
    assert after.entries >= before.entries


@pytest.mark.parametrize(
    "other",
    [{"tenant": "other"}, {"route": "other"}, {"where": "other"}],
    ids=["tenant", "route", "context"],
)
def test_nothing_is_found_from_elsewhere(make, clock, other):
    service = make()
    teach(service, clock, "a b c d", "Yes.")
    assert ask(service, "a b c d").stored is not None
    assert ask(service, "a b c d", **other).stored is None
    service.close()
    service = make()
    assert ask(service, "a b c d", **other).stored is None
    assert ask(service, "a b c d").stored is not None


def test_random_contexts_never_meet(make, clock):
    rng = random.Random(2)
    service = make()
    homes = [(f"t{rng.randrange(3)}", f"r{rng.randrange(3)}", f"c{n}") for n in range(20)]
    for n in range(200):
        tenant, route, where = rng.choice(homes)
        similar = ask(service, "one and the same", tenant=tenant, route=route, where=where)
        if similar.stored is None:
            service.learn(Learn(similar.token, answer(f"of {tenant} {route} {where}", clock)))
        else:
            assert f"of {tenant} {route} {where}" in similar.stored.body.decode(), n


def test_answers_end_with_their_time(make, clock):
    service = make()
    teach(service, clock, "a b c d", "Yes.")
    clock.now += 1000.0
    assert ask(service, "a b c d").stored is None
    assert service.census()[0].entries == 0


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("selected", [False, True])
def test_a_purge_reaches_it_running_or_not(make, clock, tmp_path, restart, selected):
    service = make()
    teach(service, clock, "a b c d", "Yes.")
    if restart:
        service.close()
    clock.now += 1
    purges = Purges(tmp_path / "cache", clock.now)
    if selected:
        purges.select(Selector(request="r1"), clock.now)
    else:
        purges.everything(clock.now)
    if restart:
        service = make()
    assert ask(service, "a b c d").stored is None


def test_a_token_counts_once_and_a_strangers_never(make, clock):
    service = make()
    similar = ask(service, "a b c d")
    service.learn(Learn(similar.token + 1, answer("No.", clock)))
    service.learn(Learn(similar.token, answer("Yes.", clock)))
    service.learn(Learn(similar.token, answer("No.", clock)))
    assert service.census()[0].entries == 1
    stored = ask(service, "a b c d").stored
    assert stored is not None and b"Yes." in stored.body


@pytest.mark.parametrize(("fresh", "same"), [("It is 42.", True), ("It is 43.", False)])
def test_whoever_wants_to_hears_the_verdict_on_what_was_found(make, clock, fresh, same):
    service = make()
    teach(service, clock, "what is six times seven", "It is 42.")
    again = ask(service, "what is six times seven")
    assert again.stored is not None
    assert service.learn(Learn(again.token, answer(fresh, clock), tell=True)) == Told(again.token, same)
    other = ask(service, "what is six times seven", where="elsewhere")
    assert service.learn(Learn(other.token, answer("Blue.", clock), tell=True)) == Told(other.token, None)
    quiet = ask(service, "what is six times seven")
    assert service.learn(Learn(quiet.token, answer(fresh, clock))) is None


def test_a_models_verdict_is_heard_too(make, clock):
    service = make()
    teach(service, clock, "what is the colour", "It is blue with a touch of green in the morning light over there.")
    again = ask(service, "what is the colour")
    fresh = answer("It is blue with a touch of grey in the evening mist over there.", clock)
    doubt = service.learn(Learn(again.token, fresh, may_ask=True, tell=True))
    assert isinstance(doubt, Doubt)
    assert service.judged(again.token, True) == Told(again.token, True)
    assert service.judged(again.token, True) is None


def test_it_compares_what_it_is_given(make):
    assert make().compare("It is 42.", ["it is 42", "It is 43.", ""]) == [True, False, None]


def test_tools_and_other_answers_that_are_no_text_are_not_kept(make, clock):
    service = make()
    similar = ask(service, "a b c d")
    stored = answer("", clock)
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    body = json.dumps({"choices": [{"message": call}]}).encode()
    service.learn(
        Learn(similar.token, Stored(stored.dialect, body, "m", TARGET, Usage(), "r", clock.now, clock.now + 9))
    )
    assert service.census()[0].entries == 0


def test_other_terms_keep_what_was_learned(make, clock):
    service = make()
    teach(service, clock, "a b c d", "Yes.")
    looser = ReuseTerms("static", 0.1, 0.0, False, 0.5, 1000, "accurate")
    assert ask(service, "a b c d", looser).stored is not None
    (space,) = service.census()
    assert (space.requests, space.hits) == (2, 1)


def test_a_broken_file_is_set_aside(make, clock, tmp_path):
    service = make()
    teach(service, clock, "a b c d", "Yes.")
    service.close()
    (tmp_path / "cache" / "similar.sqlite").write_bytes(b"garbage" * 5000)
    service = make()
    assert ask(service, "a b c d").stored is None
    assert (tmp_path / "cache" / "similar.corrupt").exists()


class Unused(Bag):
    def embed(self, texts):
        assert not texts
        return np.zeros((0, self.dim), dtype=np.float32)


def test_the_fast_embedder_alone_answers_and_learns_for_itself(clock, tmp_path, make):
    fast = ReuseTerms("static", 0.1, 0.0, False, 0.9, 1000, "fast")
    service = Service(tmp_path / "fast", Unused(), Bag(), clock)
    service._judge = make()._judge  # which compares answers by the accurate one
    teach(service, clock, "a b c d", "Yes.", fast)
    assert ask(service, "a b c d", fast).stored is not None
    service.close()
    service = Service(tmp_path / "fast", Bag(), Bag(), clock)
    assert ask(service, "a b c d", STATIC).stored is None  # other vectors: another memory, another promise
    assert ask(service, "a b c d", fast).stored is not None
    service.close()
