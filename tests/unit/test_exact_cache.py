"""The exact cache lever: when it answers, when it keeps, and what it says."""

import msgspec
import pytest

from trimtab.levers.exact_cache import Config, Memo, build
from trimtab.stores.memory import MemoryStore
from trimtab.types import (
    Answer,
    Attempt,
    AttemptRecord,
    Dialect,
    End,
    Outcome,
    Plan,
    Purpose,
    Record,
    Reply,
    Request,
    Scope,
    Selector,
    Slot,
    Target,
    Usage,
)

TARGET = Target("fast", "openai", "gpt-4o-mini", "openai")
OTHER = Target("slow", "anthropic", "claude", "anthropic")
PLAN = Plan((Attempt(TARGET), Attempt(TARGET, Purpose.RETRY), Attempt(OTHER, Purpose.FALLBACK)))
BODY = b'{"model":"fast","messages":[{"role":"user","content":"hi"}],"temperature":0}'


class FakeClock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def mono(self) -> float:
        return self.now


def whole(dialect, finish, fields) -> bool:
    return finish in ("stop", "end_turn")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return MemoryStore(100, 1 << 20, clock)


def lever(store, clock, **settings):
    by_route = {"default": Config(**settings), "off": Config(enabled=False), "bold": Config(any_temperature=True)}
    return build(by_route.__getitem__, store, clock, whole)


def ask(body: bytes = BODY, *, at: float = 1_800_000_000.0, **changes) -> Request:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    scope = Scope(**{"tenant": "acme", **changes.pop("scope", {})})
    values = {
        "id": "req-1",
        "dialect": Dialect.OPENAI,
        "path": "/v1/chat/completions",
        "scope": scope,
        "model": "fast",
        "fields": fields,
        "stream": False,
        "wants_usage": False,
        "body_bytes": len(body),
        "at": at,
        "start": 0.0,
    }
    return Request(**{**values, **changes})


def outcome(request: Request, *, end=End.OK, status=200, finish="stop", target=TARGET, reply=True) -> Outcome:
    call = AttemptRecord(0, "serve", "e", "m", "p", end, 0.0, 1.0)
    record = Record(
        request.id, request.at, request.scope, request.dialect, request.path, request.model, False, end, status, 1.0,
        attempts=(call,),
    )  # fmt: skip
    answer = Reply(b'{"id":"chatcmpl-1"}', "gpt-4o-mini-x", Usage(10, output=5), finish, target)
    return Outcome(request, record, answer if reply else None)


async def test_a_miss_is_kept_and_answers_the_next(store, clock):
    cache = lever(store, clock)
    first = await cache.decide(ask(), PLAN)
    assert (first.step, first.reason, first.wants_reply) == (None, "miss", True)
    assert (first.lever, first.version, first.slot) == ("exact_cache", "1", Slot.REUSE_EXACT)
    await cache.learn(outcome(ask()), first)
    clock.now += 12
    second = await cache.decide(ask(), PLAN)
    assert isinstance(second.step, Answer)
    assert second.reason == "hit age 12 s"
    assert not second.wants_reply
    stored = second.step.stored
    assert stored.body == b'{"id":"chatcmpl-1"}'
    assert (stored.model, stored.target, stored.usage) == ("gpt-4o-mini-x", TARGET, Usage(10, output=5))
    assert (stored.request_id, stored.dialect) == ("req-1", Dialect.OPENAI)
    assert (second.saving_nusd, second.saving_basis) == (None, "stored usage")


async def test_a_stream_and_a_buffered_request_share_an_answer(store, clock):
    cache = lever(store, clock)
    await cache.learn(outcome(ask()), await cache.decide(ask(), PLAN))
    streamed = BODY[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'
    assert isinstance((await cache.decide(ask(streamed, stream=True), PLAN)).step, Answer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scope": {"route": "off"}}, "off for this route"),
        ({"path": "/v1/embeddings"}, "not a chat request"),
        ({"scope": {"cache": "off"}}, "client asked cache off"),
        ({"body": b'{"messages":[]}'}, "temperature not set"),
        ({"body": b'{"messages":[],"seed":7}'}, "temperature not set"),
        ({"body": b'{"messages":[],"temperature":null}'}, "temperature not set"),
        ({"body": b'{"messages":[],"temperature":0.7}'}, "temperature 0.7 above 0.1"),
        ({"body": b'{"messages":[],"temperature":1}'}, "temperature 1 above 0.1"),
        ({"body": b'{"messages":[],"temperature":1e0}'}, "temperature 1 above 0.1"),
        ({"body": b'{"messages":[],"temperature":"0"}'}, "temperature is not a number"),
        ({"body": b'{"messages":[],"temperature":[0]}'}, "temperature is not a number"),
        ({"body": b'{"messages":[],"temperature":0,"store":true}'}, "store asks the provider to keep the answer"),
        ({"body": b'{"messages":[],"temperature":0,"audio":{"voice":"a"}}'}, "audio answers expire at the provider"),
        (
            {"body": b'{"messages":[],"temperature":0,"web_search_options":{}}'},
            "web_search_options looks outside the request",
        ),
        (
            {"body": b'{"messages":[],"temperature":0,"tools":[{"type": "web_search_20250305","name":"web_search"}]}'},
            "a tool that the provider runs looks outside the request",
        ),
    ],
)
async def test_what_it_leaves_alone_and_why(store, clock, change, reason):
    cache = lever(store, clock)
    change = dict(change)
    request = ask(change.pop("body", BODY), **change)
    decision = await cache.decide(request, PLAN)
    assert (decision.step, decision.reason, decision.wants_reply) == (None, reason, False)
    await cache.learn(outcome(request), decision)
    assert store.stats()["entries"] == store.stats()["misses"] == 0


async def test_a_plan_without_a_target_is_left_alone(store, clock):
    assert (await lever(store, clock).decide(ask(), Plan(()))).reason == "no target"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[],"temperature":0}',
        b'{"messages":[],"temperature":0.0}',
        b'{"messages":[],"temperature":0.1}',
        b'{"messages":[],"temperature":1e-3}',
        b'{"messages":[],"temperature":0,"n":3}',
        b'{"messages":[],"temperature":0,"store":false,"audio":null}',
        b'{"messages":[],"temperature":0,"tools":[{"type":"function","function":{"name":"web_search"}}]}',
    ],
)
async def test_what_it_does_take(store, clock, body):
    assert (await lever(store, clock).decide(ask(body), PLAN)).reason == "miss"


async def test_a_route_may_take_any_temperature(store, clock):
    cache = lever(store, clock)
    request = ask(b'{"messages":[],"temperature":0.9}', scope={"route": "bold"})
    await cache.learn(outcome(request), await cache.decide(request, PLAN))
    assert isinstance((await cache.decide(request, PLAN)).step, Answer)
    assert (await cache.decide(ask(b'{"messages":[]}', scope={"route": "bold"}), PLAN)).reason == "miss"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages?beta=true"])
async def test_anthropic_messages_are_taken_too(store, clock, path):
    cache = lever(store, clock)
    request = ask(dialect=Dialect.ANTHROPIC, path=path)
    await cache.learn(outcome(request, finish="end_turn"), await cache.decide(request, PLAN))
    assert isinstance((await cache.decide(request, PLAN)).step, Answer)


@pytest.mark.parametrize(
    "how",
    [
        {"end": End.ERROR, "status": 502},
        {"end": End.CUT},
        {"end": End.CANCELLED, "status": 0},
        {"end": End.TIMEOUT, "status": 504},
        {"status": 400},
        {"finish": "length"},
        {"finish": "content_filter"},
        {"finish": ""},
        {"target": OTHER},  # a fallback's answer
        {"reply": False},
    ],
)
async def test_errors_cut_filtered_and_foreign_answers_are_never_kept(store, clock, how):
    cache = lever(store, clock)
    await cache.learn(outcome(ask(), **how), await cache.decide(ask(), PLAN))
    assert store.stats()["entries"] == 0


async def test_refresh_does_not_read_and_does_write(store, clock):
    cache = lever(store, clock)
    await cache.learn(outcome(ask()), await cache.decide(ask(), PLAN))
    request = ask(scope={"cache": "refresh"}, id="req-2")
    decision = await cache.decide(request, PLAN)
    assert (decision.step, decision.reason, decision.wants_reply) == (None, "client asked cache refresh", True)
    await cache.learn(outcome(request), decision)
    step = (await cache.decide(ask(), PLAN)).step
    assert isinstance(step, Answer) and step.stored.request_id == "req-2"


async def test_users_share_only_when_told_to(store, clock):
    cache = lever(store, clock)
    ann, bob = ask(scope={"user": "ann"}), ask(scope={"user": "bob"})
    await cache.learn(outcome(ann), await cache.decide(ann, PLAN))
    assert (await cache.decide(bob, PLAN)).reason == "miss"

    ann, bob = ask(scope={"user": "ann", "cache": "public"}), ask(scope={"user": "bob", "cache": "public"})
    await cache.learn(outcome(ann), await cache.decide(ann, PLAN))
    assert isinstance((await cache.decide(bob, PLAN)).step, Answer)
    stranger = ask(scope={"tenant": "other", "user": "bob", "cache": "public"})
    assert (await cache.decide(stranger, PLAN)).reason == "miss; shared unless PII: client asked public"

    shared = lever(store, clock, share_users=True)
    assert isinstance((await shared.decide(ask(scope={"user": "eve"}), PLAN)).step, Answer)


def reply_of(request: Request, text: str) -> Outcome:
    body = msgspec.json.encode({"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": text}}]})
    made = outcome(request)
    assert made.reply is not None
    return msgspec.structs.replace(made, reply=msgspec.structs.replace(made.reply, body=body))


@pytest.mark.parametrize("how", ["public", "share_users"])
@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Write to ann.lee@example.org.", "EMAIL"),
        ("Her card is 4111 1111 1111 1111.", "CARD"),
        ("Call +49 30 901820.", "PHONE"),
        ("From 203.0.113.9, it seems", "IP"),
        ("Dear Ann, your flat is ready.", "NAME"),
        ("The order of Maria Lopez has left.", "NAME"),
    ],
)
async def test_an_answer_that_identifies_somebody_is_for_its_own_user(store, clock, how, text, label):
    cache = lever(store, clock, share_users=how == "share_users")
    word = {"cache": "public"} if how == "public" else {}
    policy = "client asked public" if how == "public" else "share_users"
    ann, bob = ask(scope={"user": "ann", **word}), ask(scope={"user": "bob", **word}, id="req-2")
    decision = await cache.decide(ann, PLAN)
    assert decision.reason == f"miss; shared unless PII: {policy}"
    await cache.learn(reply_of(ann, text), decision)
    clock.now += 3
    again = await cache.decide(ann, PLAN)
    assert isinstance(again.step, Answer) and text.encode() in again.step.stored.body
    assert again.reason == f"hit age 3 s; not shared: {label} in an answer"
    other = await cache.decide(bob, PLAN)
    assert (other.step, other.reason) == (None, f"miss; not shared: {label} in an answer")
    # What identifies nobody is shared from then on, with the first user as well.
    later = msgspec.structs.replace(bob, at=clock.now)
    await cache.learn(reply_of(later, "The shop opens at nine."), other)
    for who in (ann, bob):
        found = await cache.decide(who, PLAN)
        assert isinstance(found.step, Answer) and b"nine" in found.step.stored.body
        assert found.reason == f"hit age 0 s; shared unless PII: {policy}"


@pytest.mark.parametrize(
    ("names", "text", "kept_apart"),
    [
        ("context", "Marie Curie discovered radium.", False),
        ("any", "Marie Curie discovered radium.", True),
        ("any", "Radium was discovered in 1898.", False),
        ("off", "Dear Ann,\nyour flat is ready.", False),
        ("off", "Dear Ann, write to ann.lee@example.org.", True),
    ],
)
async def test_which_names_keep_an_answer_apart_is_a_setting(store, clock, names, text, kept_apart):
    cache = lever(store, clock, share_users=True, person_names=names)
    ann, bob = ask(scope={"user": "ann"}), ask(scope={"user": "bob"}, id="req-2")
    await cache.learn(reply_of(ann, text), await cache.decide(ann, PLAN))
    assert ((await cache.decide(bob, PLAN)).step is None) == kept_apart


async def test_which_names_count_may_differ_by_route(store, clock):
    cache = build(
        lambda route: Config(share_users=True, person_names="off" if route == "bold" else "context"),
        store,
        clock,
        whole,
    )
    for route, shared in (("bold", True), ("default", False)):
        ann, bob = (ask(scope={"user": user, "route": route}) for user in ("ann", "bob"))
        await cache.learn(reply_of(ann, "Dear Ann, it is done."), await cache.decide(ann, PLAN))
        assert isinstance((await cache.decide(bob, PLAN)).step, Answer) == shared


async def test_without_a_user_an_answer_that_identifies_somebody_is_not_kept(store, clock):
    cache = lever(store, clock, share_users=True)
    await cache.learn(reply_of(ask(), "ann.lee@example.org"), await cache.decide(ask(), PLAN))
    assert (await cache.decide(ask(), PLAN)).reason == "miss; not shared: EMAIL in an answer"
    assert (await cache.decide(ask(scope={"user": "bob"}), PLAN)).step is None


async def test_an_answer_of_ones_own_may_identify_somebody(store, clock):
    cache = lever(store, clock)
    await cache.learn(reply_of(ask(), "ann.lee@example.org"), await cache.decide(ask(), PLAN))
    assert (await cache.decide(ask(), PLAN)).reason == "hit age 0 s"


async def test_what_cannot_be_read_is_not_shared(store, clock):
    cache = lever(store, clock, share_users=True)
    request = ask(scope={"user": "ann"})
    made = outcome(request)
    broken = msgspec.structs.replace(made, reply=msgspec.structs.replace(made.reply, body=b'{"content":"\\ud800"}'))
    await cache.learn(broken, await cache.decide(request, PLAN))
    assert (await cache.decide(ask(scope={"user": "bob"}), PLAN)).reason == "miss; not shared: UNREADABLE in an answer"


async def test_users_do_not_join_each_others_calls(store, clock):
    cache = lever(store, clock, share_users=True)
    keys = [(await cache.decide(ask(scope={"user": user}), PLAN)).share_key for user in ("ann", "ann", "bob")]
    assert keys[0] == keys[1] != keys[2]


async def test_a_request_that_is_sent_again_is_its_senders_own(store, clock):
    cache = lever(store, clock, share_users=True)
    ann, bob = (ask(scope={"user": user}, idempotency="once") for user in ("ann", "bob"))
    await cache.learn(outcome(ann), await cache.decide(ann, PLAN))
    assert isinstance((await cache.decide(ann, PLAN)).step, Answer)
    assert (await cache.decide(bob, PLAN)).reason == "miss"


async def test_what_is_kept_says_whose_it_is(store, clock):
    cache = lever(store, clock)
    request = ask(scope={"user": "ann", "route": "bold", "corpus_version": "c7", "session": "s"}, model="asked")
    await cache.learn(outcome(request), await cache.decide(request, PLAN))
    step = (await cache.decide(request, PLAN)).step
    assert isinstance(step, Answer)
    assert step.stored.scope == Scope("acme", route="bold", corpus_version="c7")
    assert step.stored.asked_model == "asked"
    assert store.purge(Selector(tenant="acme", model="asked", corpus_version="c7")) == 1


async def test_another_first_target_is_another_question(store, clock):
    cache = lever(store, clock)
    await cache.learn(outcome(ask()), await cache.decide(ask(), PLAN))
    assert (await cache.decide(ask(), Plan((Attempt(OTHER),)))).reason == "miss"
    newer = msgspec.structs.replace(TARGET, upstream_model="gpt-5-mini")
    assert (await cache.decide(ask(), Plan((Attempt(newer),)))).reason == "miss"


async def test_an_engine_that_is_pointed_elsewhere_is_another_question(store, clock):
    urls = {"openai": "https://one.test/v1"}
    cache = build(lambda route: Config(), store, clock, whole, lambda engine, route: urls[engine])
    await cache.learn(outcome(ask()), await cache.decide(ask(), PLAN))
    assert isinstance((await cache.decide(ask(), PLAN)).step, Answer)
    urls["openai"] = "https://two.test/v1"
    assert (await cache.decide(ask(), PLAN)).reason == "miss"


async def test_ttl_runs_from_the_request_and_a_lowered_one_counts_at_once(store, clock):
    cache = lever(store, clock, ttl_s=100.0)
    decision = await cache.decide(ask(at=clock.now), PLAN)
    asked_at = clock.now
    clock.now += 30  # the model took so long
    await cache.learn(outcome(ask(at=asked_at)), decision)
    clock.now = asked_at + 99
    assert (await cache.decide(ask(), PLAN)).reason == "hit age 99 s"
    strict = lever(store, clock, ttl_s=50.0)
    decision = await strict.decide(ask(), PLAN)
    assert (decision.reason, decision.wants_reply) == ("stored answer is 99 s old, above ttl_s", True)
    clock.now = asked_at + 100
    assert (await cache.decide(ask(), PLAN)).reason == "miss"


async def test_a_purge_while_the_model_answers_rejects_the_answer(store, clock):
    cache = lever(store, clock)
    request = ask(at=clock.now)
    decision = await cache.decide(request, PLAN)
    clock.now += 1
    store.purge()
    await cache.learn(outcome(request), decision)
    assert store.stats()["entries"] == 0


async def test_the_memo_is_all_that_learn_needs(store, clock):
    cache = lever(store, clock)
    decision = await cache.decide(ask(), PLAN)
    assert isinstance(decision.memo, Memo) and len(decision.memo.key) == 32
    await cache.learn(outcome(ask()), msgspec.structs.replace(decision, memo=None))
    assert store.stats()["entries"] == 0
