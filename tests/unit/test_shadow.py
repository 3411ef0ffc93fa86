"""Shadow calls: which answers are compared with the reference's, what that costs, and what is said of it."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exact_cache import FakeClock
from test_pipeline import ANSWER, CHUNK, DONE, LAST, USAGE, A, B, Engine, Reply, World, stream

from trimtab.errors import Overloaded
from trimtab.flight import Flight
from trimtab.shadow import TEXTS, Calls, Spending, Terms, Watch, sampled
from trimtab.types import (
    Answer,
    Attempt,
    Continue,
    Decision,
    Dialect,
    Plan,
    Request,
    Scope,
    Slot,
    Stored,
    Usage,
)

HI = {"messages": [{"role": "user", "content": "Hello?"}], "temperature": 0}
TERMS = Terms("faq", 1.0, 0.05, 1e9)


def said(text, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return Reply([json.dumps(ANSWER | {"choices": [choice]}).encode()])


class Switch:
    """A lever that sends every request to B."""

    name, version, slot, fails_open = "ab", "1", Slot.ADMIT, True
    changes_answers = True

    def __init__(self, step="to b", name="ab"):
        self.name, self.asked = name, 0
        self.step = step

    async def decide(self, request, plan):
        self.asked += 1
        step = Continue(request, Plan((Attempt(B),))) if self.step == "to b" else self.step
        return Decision(self.name, "1", Slot.ADMIT, step, "arm B b, by user", 0.1, 0.5)

    async def learn(self, outcome, decision):
        pass


class Rig:
    """A pipeline with engines one (A, the reference) and two (B), and the watch over it."""

    def __init__(self, reference=(), served=("hi",), terms=TERMS, verdicts=None, judge=None, price=0):
        engines = [Engine(name, *replies) for name, replies in (("one", reference), ("two", served))]
        for engine in engines:
            engine.replies = [said(one) if isinstance(one, str) else one for one in engine.replies]
        self.world = World(*engines)
        self.notes, self.counts, self.judged, self.compared = [], [], [], []
        self.world.journal.note = self.notes.append
        self.spending = Spending(FakeClock())
        self.off = ""

        async def ask(request, plan, purpose):
            reply = await self.world.pipeline.ask_aside(request, plan, purpose)
            self.spending.add(TERMS.route, price)
            return reply

        async def compare(fresh, others, timeout_s):
            self.compared.append((fresh, others))
            return [one == fresh for one in others] if verdicts is None else list(verdicts)

        async def ask_judge(request, model, question, fresh, other):
            self.judged.append((request.id, model, fresh, other))
            return judge

        self.watch = self.world.pipeline.watch = Watch(
            lambda route: terms if route == "faq" else None,
            lambda lever, route: self.off,
            Calls(ask, compare, ask_judge),
            self.spending,
            self.world.journal,
            lambda *what: self.counts.append(what),
        )

    async def ask(self, *levers, fields=None, streaming=False, scope=None, request_id="tt-1", headers=()):
        raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in (HI | (fields or {})).items()}
        raw["model"] = msgspec.Raw(b'"a"')
        where = Scope("t", **{"route": "faq", **(scope or {})})
        path = "/v1/chat/completions"
        request = Request(request_id, Dialect.OPENAI, path, where, "a", raw, streaming, False, 9, 100.0, 100.0)
        request = msgspec.structs.replace(request, headers=tuple(headers))
        await self.world.pipeline.run(Flight(request), Plan((Attempt(A),)), levers or [Switch()], self.world.sink)
        await asyncio.gather(*self.watch._running)

    @property
    def rows(self):
        return {row.id: row for row in self.world.journal.rows}

    def calls(self, engine="one"):
        return len(self.world.engines[engine].calls)


async def test_the_reference_is_asked_after_the_client_has_its_answer():
    rig = Rig(["hi"])
    await rig.ask()
    (word,) = rig.notes
    assert (word.id, word.route, word.lever, word.model, word.margin) == ("tt-1", "faq", "ab", "b", 0.05)
    assert (word.loss, word.judge, word.at) == (0.0, TEXTS, 100.0)
    assert rig.world.log.index("finish") < rig.world.log.index("intent", 2)
    aside = rig.rows["tt-1-shadow"]
    assert (aside.scope.purpose, aside.attempts[0].purpose, aside.attempts[0].model) == ("shadow", "shadow", "a-up")
    assert rig.rows["tt-1"].cache == "bypass"  # the reply was kept for the comparison, not for a cache
    assert rig.counts == [("faq", "ab", "judged")]


async def test_the_baseline_is_the_model_that_would_have_been_asked():
    rig = Rig(["hi"])
    await rig.ask()
    row = rig.rows["tt-1"]
    assert (row.attempts[0].model, row.baseline_model, row.baseline_engine) == ("b-up", "a-up", "one")
    assert row.baseline_usage == Usage(input=10, output=2)


async def test_a_stream_is_compared_as_a_whole():
    rig = Rig(["ho"], [stream(CHUNK, LAST, USAGE, DONE)])
    await rig.ask(streaming=True)
    assert rig.compared == [("ho", ["hi"])]
    assert rig.notes[0].loss == 1.0
    assert json.loads(rig.world.engines["one"].calls[0][2]).get("stream") is None


@pytest.mark.parametrize(
    ("texts", "loss"),
    [(("hi", "hi", "hi"), 0.0), (("ho", "hi", "hi"), 1.0), (("ho", "hi", "ha"), 0.0), (("hi", "hi", "ha"), -1.0)],
)
async def test_what_samples_is_measured_against_the_reference_itself(texts, loss):
    served, *reference = texts
    rig = Rig(reference, [served])
    await rig.ask(fields={"temperature": 1})
    assert rig.calls() == 2
    assert set(rig.rows) == {"tt-1", "tt-1-shadow", "tt-1-again-shadow"}
    assert rig.notes[0].loss == loss


async def test_a_model_judges_what_the_texts_do_not_tell():
    rig = Rig(["hi"], verdicts=[None], terms=msgspec.structs.replace(TERMS, judge_model="wise"), judge=False)
    await rig.ask()
    assert (rig.notes[0].loss, rig.notes[0].judge) == (1.0, "wise")
    assert [judged[:2] for judged in rig.judged] == [("tt-1-shadow", "wise")]


@pytest.mark.parametrize(("verdicts", "judge"), [([None], None), (None, None)])
async def test_what_nobody_can_tell_is_no_evidence(verdicts, judge):
    terms = msgspec.structs.replace(TERMS, judge_model="wise")
    rig = Rig(["hi" if verdicts else said(None, tool_calls=[])], verdicts=verdicts, judge=judge, terms=terms)
    await rig.ask()
    assert (rig.notes[0].loss, rig.notes[0].judge) == (None, "")
    assert rig.counts == [("faq", "ab", "unknown")]


async def test_an_answer_that_is_no_text_costs_no_call():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rig = Rig([], [said(None, tool_calls=[call])])
    await rig.ask()
    assert rig.calls() == 0
    assert rig.notes[0].loss is None


async def test_a_reference_that_is_down_is_no_verdict():
    rig = Rig([Reply([b"{}"], status=500)])
    await rig.ask()
    assert rig.notes == []
    assert rig.counts == [("faq", "ab", "unanswered")]
    assert rig.rows["tt-1"].end == "ok"


STORED = Stored(Dialect.OPENAI, json.dumps(ANSWER).encode(), "b-up", B, Usage(input=1), "tt-0", 0.0, 9e9)


@pytest.mark.parametrize(
    ("levers", "more"),
    [
        ([Switch(step=None)], {}),  # arm A
        ([Switch(), Switch(name="other")], {}),  # whose loss would it be
        ([Switch(), Switch(step=Answer(STORED), name="semantic_cache")], {}),
        ([Switch(step=Answer(STORED))], {}),  # compared by the lever's own audits
        ([Switch()], {"scope": {"route": "other"}}),
        ([Switch()], {"scope": {"purpose": "eval"}}),
        ([Switch()], {"fields": {"store": True}}),
        ([Switch()], {"fields": {"web_search_options": {}}}),
    ],
)
async def test_what_is_not_compared(levers, more):
    rig = Rig(["hi"])
    await rig.ask(*levers, **more)
    assert rig.notes == rig.counts == []
    assert not any("shadow" in name for name in rig.rows)


async def test_an_exact_hit_of_arm_b_is_an_answer_of_arm_b():
    class Hit(Switch):
        changes_answers = False

    rig = Rig(["ho"])
    await rig.ask(Switch(), Hit(step=Answer(STORED)))
    assert rig.calls("two") == 0
    assert rig.compared == [("ho", ["hi"])]
    assert (rig.rows["tt-1"].cache, rig.rows["tt-1"].baseline_model) == ("hit", "a-up")


async def test_a_failed_answer_is_not_compared():
    rig = Rig(["hi"], [Reply([b"{}"], status=500)])
    await rig.ask()
    assert rig.notes == rig.counts == []


async def test_the_providers_memory_of_retries_is_not_asked():
    rig = Rig(["hi"])
    seen = []
    opened = rig.world.engines["one"].open

    async def open_(method, path, headers, body, timeouts, client_key):
        seen.extend(headers)
        return await opened(method, path, headers, body, timeouts, client_key)

    rig.world.engines["one"].open = open_
    await rig.ask(headers=[(b"idempotency-key", b"k"), (b"openai-organization", b"o")])
    assert (b"openai-organization", b"o") in seen
    assert not any(name == b"idempotency-key" for name, _ in seen)


async def test_the_budget_ends_it_and_a_new_day_begins_it():
    rig = Rig(["hi"] * 5, ["hi"] * 10, terms=msgspec.structs.replace(TERMS, budget_nusd=3.0), price=1)
    for _ in range(5):
        await rig.ask()
    assert rig.calls() == 3
    assert [result for *_, result in rig.counts] == ["judged"] * 3 + ["budget"] * 2
    rig.spending._clock.now += 86_400
    await rig.ask()
    assert rig.calls() == 4


async def test_never_more_than_a_few_at_once():
    rig = Rig([Reply(["hang"]) for _ in range(20)], ["hi"] * 20)
    asking = [asyncio.create_task(rig.ask(request_id=f"tt-{n}")) for n in range(20)]
    for _ in range(1000):
        await asyncio.sleep(0)
    assert (rig.watch.running, rig.calls(), len(rig.counts)) == (8, 8, 12)
    assert {result for *_, result in rig.counts} == {"busy"}
    await rig.watch.close()
    assert rig.watch.running == 0
    await asyncio.gather(*asking, return_exceptions=True)
    assert sum(row.end == "cancelled" for row in rig.world.journal.rows) == 8  # settled, each once


async def test_a_full_disk_loses_a_verdict_and_nothing_else(caplog):
    rig = Rig(["hi"])

    def note(word):
        raise Overloaded("full")

    rig.world.journal.note = note
    await rig.ask()
    assert "a verdict on request tt-1 is lost" in caplog.text


async def test_a_lever_that_is_off_is_not_asked():
    rig = Rig(["hi"])
    rig.off = "switched off: quality (since then)"
    lever = Switch()
    await rig.ask(lever)
    assert (lever.asked, rig.calls("two")) == (0, 0)
    (decision,) = rig.rows["tt-1"].decisions
    assert (decision.lever, decision.step, decision.reason) == ("ab", "continue", rig.off)
    assert rig.notes == []


async def test_levers_that_change_nothing_cannot_be_off():
    class Other(Switch):
        changes_answers = False

    rig = Rig(["hi"])
    rig.off = "off"
    lever = Other(step=None)
    await rig.ask(lever)
    assert lever.asked == 1


async def test_an_audit_counts_as_a_verdict():
    rig = Rig()
    request = Request("tt-9", Dialect.OPENAI, "/v1", Scope("t", "faq"), "a", {}, False, False, 1, 5.0, 5.0)
    for same in (True, False, None):
        rig.watch.audited(request, "semantic_cache", same)
    rig.watch.audited(msgspec.structs.replace(request, scope=Scope("t")), "semantic_cache", False)
    assert [(word.lever, word.model, word.loss, word.judge) for word in rig.notes] == [
        ("semantic_cache", "", 0.0, "audit"),
        ("semantic_cache", "", 1.0, "audit"),
        ("semantic_cache", "", None, ""),
    ]


@given(st.text("0123456789abcdef", min_size=8), st.floats(0, 1))
def test_the_sample_is_the_same_each_time_and_grows_with_its_share(name, share):
    assert sampled(name, share) == sampled(name, share)
    assert sampled(name, 1.0) and not sampled(name, 0.0)
    if sampled(name, share / 2):
        assert sampled(name, share)


def test_the_share_is_kept():
    assert 900 < sum(sampled(f"tt-{n:020x}", 0.1) for n in range(10_000)) < 1100
