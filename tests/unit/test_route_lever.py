"""Routing by expected gain: who is asked, what is read before it goes out, and that conversations stay."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec
import pytest
from test_config import ENV, OPENAI
from test_conversation import CALL, RESULT, SAID, USER, ask
from test_pipeline import ANSWER, A, B, Clock, Engine, Reply, World

from trimtab.config import load
from trimtab.errors import ConfigError, UpstreamUnreachable
from trimtab.flight import Flight
from trimtab.levers import route
from trimtab.levers.route import thread
from trimtab.ports import Thread
from trimtab.protocols import CODECS, conversation
from trimtab.routing.router import Head, Router, write
from trimtab.stores.threads import ThreadTable
from trimtab.types import Attempt, Plan, Purpose, Scope

C = msgspec.structs.replace(B, model="c", engine="three", upstream_model="c-up")
PLAN = Plan((Attempt(A), Attempt(A, Purpose.RETRY)))
TRAINED = Head("b", "a", "", "prompt", 0.2, None, 0.99, 1.0, 0.5, True, "pays", 100, 9.0, "tests", "0" * 64, (0.0,) * 9)
PRICES = {"a-up": 1000, "b-up": 100}


class Routed(World):
    """Two or three engines behind a pipeline with the routing lever; gains are looked up by prompt."""

    def __init__(self, tmp_path, gains=None, after=0.0, head=TRAINED, verdict="", replies=None, **config):
        self.gains, self.after, self.dials = gains or {}, after, {}
        self.scored, self.counts, self.clock = [], [], Clock()
        replies = replies or {}
        super().__init__(*[Engine(name, *replies.get(name, [])) for name in ("one", "two", "three")])
        self.config = route.Config(**({"mode": "on", "weak": "b", "predictor": "x.router"} | config))
        targets = {"a": A, "b": B, "c": C, "grader": C}
        facts = route.Facts(
            lambda name: self.config,
            lambda name: name,
            lambda model, dialect: targets[model],
            lambda settings: None if settings.predictor == route.CLASSIFIER else (head, "hash"),
            lambda settings: settings.predictor,
            lambda dialect, finish, fields: CODECS[dialect].finish_is_whole(finish, fields),
            lambda scope, model: verdict,
            lambda name: "",
            self.price,
            lambda record: sum(
                PRICES.get(one.model, 100) * (one.usage.input + 2 * one.usage.output) for one in record.attempts
            ),
        )
        self.threads = ThreadTable(tmp_path / "threads")
        means = route.Means(
            self, self.threads, self.pipeline.ask_within, self.clock, self.dials, lambda *what: self.counts.append(what)
        )
        self.lever = route.build(facts, means)

    def price(self, target, usage):
        rate = PRICES.get(target.upstream_model, 100)
        return rate * (usage.input + 2 * usage.output) + rate * usage.cache_read // 10

    async def gain(self, router, prompt, timeout_s):
        self.scored.append(prompt)
        return self.gains.get(prompt, (0.0, False))

    async def gain_after(self, router, answered, timeout_s):
        self.scored.append((answered.prompt, answered.answer, answered.second))
        return self.after

    async def ask(self, messages=(USER,), *, scope=None, stream=False, **fields):
        request = ask(list(messages), **({"model": "a"} | fields))
        request = msgspec.structs.replace(
            request, id=f"tt-{len(self.rows)}", scope=Scope("t", **(scope or {})), model="a", stream=stream,
            start=self.clock.mono(), at=self.clock.wall(),
        )  # fmt: skip
        self.flight, self.sink.body = Flight(request), b""
        await self.pipeline.run(self.flight, PLAN, [self.lever], self.sink)
        self.row = self.rows[-1]
        return [attempt.model for attempt in self.row.attempts]

    @property
    def rows(self):
        return self.journal.rows

    @property
    def why(self):
        return self.row.decisions[-1].reason


def says(text, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return Reply([json.dumps(ANSWER | {"choices": [choice]}).encode()])


def many(*texts):
    return [says(text) for text in texts]


HARD = {USER["content"]: (0.9, False)}


def both():
    return {"one": many(*["strong"] * 20), "two": many(*["weak"] * 20)}


async def test_an_easy_prompt_goes_to_the_weak_model_and_a_hard_one_does_not(tmp_path):
    world = Routed(tmp_path, replies=both())
    assert await world.ask() == ["b-up"]
    assert (world.why, world.row.decisions[0].score, world.row.decisions[0].threshold) == ("b: gain +0.00", 0.0, 0.2)
    assert world.row.decisions[0].saving_nusd == 900 * 700
    assert (world.row.baseline_model, world.row.attempts[0].purpose) == ("a-up", "serve")
    world.gains = HARD
    assert await world.ask() == ["a-up"]
    assert (world.why, world.row.decisions[0].step) == ("a: gain +0.90", "continue")


async def test_what_is_far_from_the_data_and_what_has_no_score_go_to_the_strong_model(tmp_path):
    world = Routed(tmp_path, {USER["content"]: (-0.5, True)}, replies=both())
    assert await world.ask() == ["a-up"]
    assert "far from all" in world.why
    world.gains = {USER["content"]: None}
    assert await world.ask() == ["a-up"]
    assert "no score in time" in world.why


async def test_a_weak_model_that_is_down_costs_no_answer(tmp_path):
    down = [UpstreamUnreachable("down"), UpstreamUnreachable("down")]
    world = Routed(tmp_path, replies={"one": many("strong"), "two": down})
    assert await world.ask() == ["b-up", "b-up", "a-up"]
    assert (world.row.end, world.row.attempts[-1].purpose) == ("ok", "fallback")


@pytest.mark.parametrize(("mode", "verdict", "asked"), [("shadow", "", "a-up"), ("on", "no verdict", "a-up")])
async def test_without_a_verdict_it_only_says_what_it_would_do(tmp_path, mode, verdict, asked):
    world = Routed(tmp_path, mode=mode, verdict=verdict, replies=both())
    assert await world.ask() == [asked]
    assert "would ask b: gain +0.00" in world.why
    world.config = msgspec.structs.replace(world.config, mode="on", gate="advisory")
    assert await world.ask() == ["b-up"]


async def test_a_share_is_kept_whatever_the_scores(tmp_path):
    head = msgspec.structs.replace(TRAINED, skip=None, kind="always strong", gains=tuple(n / 100 for n in range(100)))
    replies = {"one": many(*["strong"] * 400), "two": many(*["weak"] * 400)}
    world = Routed(tmp_path, head=head, strong_share=0.3, replies=replies)
    models = []
    for n in range(300):
        prompt = f"question {n}"
        world.gains[prompt] = (0.5 + n % 7 / 100, False)
        models += await world.ask([{"role": "user", "content": prompt}])
    assert abs(models.count("a-up") / 300 - 0.3) < 0.05
    assert world.row.decisions[0].threshold is not None


async def test_a_ceiling_on_cost_is_kept(tmp_path):
    replies = {"one": many(*["strong"] * 400), "two": many(*["weak"] * 400)}
    world = Routed(tmp_path, max_usd_per_request=6e-6, strong="a", replies=replies)
    cost = 0
    for n in range(300):
        models = await world.ask([{"role": "user", "content": f"question {n}"}])
        cost += sum(PRICES[model] * 14 for model in models)
    assert cost / 300 == pytest.approx(6000, rel=0.15)  # 1,400 by the weak model alone, 14,000 by the strong one


CASCADE = msgspec.structs.replace(TRAINED, kind="cascade", skip=0.5, accept=0.1)


async def test_a_held_answer_goes_out_whole_if_it_is_accepted(tmp_path):
    world = Routed(tmp_path, head=CASCADE, replies=both())
    assert await world.ask() == ["b-up"]
    assert b'"weak"' in world.sink.body
    assert "b first: gain +0.00; accepted after" in world.why
    assert world.scored == [USER["content"], (USER["content"], "weak", None)]


async def test_a_held_answer_that_is_not_good_enough_is_never_seen(tmp_path):
    world = Routed(tmp_path, head=CASCADE, after=0.4, replies=both())
    assert await world.ask() == ["b-up", "a-up"]
    assert b"weak" not in world.sink.body
    assert [one.purpose for one in world.row.attempts] == ["serve", "cascade"]
    assert world.counts == [("default", "escalated")]
    assert [one.n for one in world.row.attempts] == [0, 1]
    assert "escalated after" in world.why
    assert (world.row.decisions[0].score, world.row.decisions[0].threshold) == (0.4, 0.1)
    assert world.flight.changed == ()  # nothing for a shadow call to compare


async def test_a_hopeless_prompt_skips_the_weak_model(tmp_path):
    world = Routed(tmp_path, HARD, head=CASCADE, replies=both())
    assert await world.ask() == ["a-up"]
    assert "hopeless" in world.why


async def test_a_stream_is_held_and_written_out_at_once(tmp_path):
    world = Routed(tmp_path, head=CASCADE, replies={"two": many("weak")})
    assert await world.ask(stream=True) == ["b-up"]
    assert world.sink.body.startswith(b"data: ") and b"weak" in world.sink.body
    assert world.sink.body.endswith(b"data: [DONE]\n\n")
    assert world.row.ttft_s is not None


async def test_a_route_that_does_not_hold_streams_asks_the_strong_model_for_them(tmp_path):
    from test_pipeline import CHUNK, DONE, LAST, stream

    world = Routed(tmp_path, head=CASCADE, hold_streams=False, replies={"one": [stream(CHUNK, LAST, DONE)]})
    assert await world.ask(stream=True) == ["a-up"]
    assert "not held here" in world.why


@pytest.mark.parametrize(
    ("answer", "fields", "config", "why"),
    [
        ("I'm sorry, but I can't help with that.", {}, {}, "it declines"),
        ("", {}, {}, "an empty answer"),
        ("no json", {"response_format": {"type": "json_object"}}, {}, "it is no JSON"),
        ('```json\n{"a": 1}\n```', {"response_format": {"type": "json_object"}}, {}, "JSON in a code fence"),
        ("It might be seven.", {}, {"checks": ("hedging",)}, "it hedges"),
    ],
)
async def test_what_is_wrong_with_an_answer(tmp_path, answer, fields, config, why):
    world = Routed(tmp_path, head=CASCADE, replies={"one": many("strong"), "two": many(answer)}, **config)
    assert await world.ask(**fields) == ["b-up", "a-up"]
    assert why in world.why


async def test_an_answer_that_was_cut_is_none(tmp_path):
    cut = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "wea"}, "finish_reason": "length"}]}
    replies = {"one": many("strong"), "two": [Reply([json.dumps(ANSWER | cut).encode()])]}
    assert await Routed(tmp_path, head=CASCADE, replies=replies).ask() == ["b-up", "a-up"]


async def test_a_schema_is_checked(tmp_path):
    schema = {"type": "object", "required": ["n"]}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    replies = {"one": many("strong"), "two": many('{"m": 1}', '{"n": 1}')}
    world = Routed(tmp_path, head=CASCADE, replies=replies)
    assert await world.ask(**form) == ["b-up", "a-up"]
    assert "not of the schema" in world.why
    assert await world.ask(**form) == ["b-up"]


@pytest.mark.parametrize(("third", "served"), [("The answer is 7.", "b-up"), ("The answer is 8.", "a-up")])
async def test_a_second_model_is_asked_at_the_same_time_and_its_answer_is_scored(tmp_path, third, served):
    world = Routed(
        tmp_path, head=CASCADE, second="c", predictor=route.CLASSIFIER, classifier_model="grader", cascade=True
    )
    world.engines["one"].replies = many("strong")
    world.engines["two"].replies = many("7")
    world.engines["three"].replies = many('{"complexity": 1}', third)
    models = await world.ask()
    assert models[-1] == served
    assert [one.purpose for one in world.row.attempts][:2] == ["judge", "judge"]  # its grade, and its answer
    assert sorted(one.n for one in world.row.attempts) == list(range(len(models)))


async def test_the_second_answer_goes_to_the_router(tmp_path):
    world = Routed(tmp_path, head=CASCADE, second="c", replies={"two": many("7"), "three": many("8")})
    await world.ask()
    assert world.scored[-1] == (USER["content"], "7", "8")
    assert [one.model for one in world.row.attempts] == ["c-up", "b-up"]


async def test_answers_of_its_own_that_differ_are_a_doubt(tmp_path):
    replies = {"one": many("strong"), "two": many("7", "8", "9", "7", "7", "9")}
    world = Routed(tmp_path, head=CASCADE, samples=2, replies=replies)
    assert await world.ask() == ["b-up", "b-up", "b-up", "a-up"]
    assert "0 of 2 further answers" in world.why
    assert (await world.ask())[-1] == "b-up"


@pytest.mark.parametrize(
    ("verdict", "served"), [('{"correct": true}', "b-up"), ('{"correct": false}', "a-up"), ("eh?", "a-up")]
)
async def test_a_verifier_has_the_last_word(tmp_path, verdict, served):
    world = Routed(tmp_path, head=CASCADE, verifier_model="c", replies=both() | {"three": many(verdict)})
    assert (await world.ask())[-1] == served
    assert world.row.attempts[0].purpose == "judge"


@pytest.mark.parametrize(("grade", "served"), [("1", "b-up"), ("5", "a-up"), ("no idea", "a-up")])
async def test_a_model_grades_requests(tmp_path, grade, served):
    world = Routed(tmp_path, predictor=route.CLASSIFIER, classifier_model="grader")
    world.engines["one"].replies, world.engines["two"].replies = many("strong"), many("weak")
    world.engines["three"].replies = many(f'{{"complexity": {grade}}}')
    assert await world.ask() == ["c-up", served]


async def test_low_probabilities_are_a_doubt(tmp_path):
    choice = {
        "index": 0, "message": {"role": "assistant", "content": "weak"}, "finish_reason": "stop",
        "logprobs": {"content": [{"token": "w", "logprob": -3.0}, {"token": "eak", "logprob": -1.0}]},
    }  # fmt: skip
    replies = {"one": many("strong"), "two": [Reply([json.dumps(ANSWER | {"choices": [choice]}).encode()])]}
    world = Routed(tmp_path, head=CASCADE, min_logprob=-1.5, replies=replies)
    assert await world.ask() == ["b-up", "a-up"]
    assert "mean log probability -2.00" in world.why


LOOP = [USER, CALL, RESULT]


async def test_a_session_stays_with_its_model_in_a_tool_loop_and_after_it(tmp_path):
    world = Routed(tmp_path, tools="route", replies=both())
    assert await world.ask([USER]) == ["b-up"]
    world.gains = HARD | {"And the sun?": (0.9, False)}
    assert await world.ask(LOOP) == ["b-up"]
    assert "in a tool loop" in world.why
    assert await world.ask([*LOOP, SAID, {"role": "user", "content": "And the sun?"}]) == ["b-up"]
    assert "stays with its model" in world.why
    # another conversation is another question, and another tenant's is never this one
    assert await world.ask([{"role": "user", "content": "And the sun?"}]) == ["a-up"]


@pytest.mark.parametrize(
    ("head", "after", "served"), [(TRAINED, 0.0, "b-up"), (CASCADE, 0.0, "b-up"), (CASCADE, 0.4, "a-up")]
)
async def test_a_conversation_is_known_before_its_answer_is_out(tmp_path, monkeypatch, head, after, served):
    world = Routed(tmp_path, head=head, after=after, tools="route", replies=both())

    async def not_yet(outcome, decision):
        """The next request comes to another worker before this one has learned."""

    monkeypatch.setattr(world.lever, "learn", not_yet)
    assert (await world.ask([USER]))[-1] == served
    assert await world.ask(LOOP) == [served]
    assert "in a tool loop" in world.why


async def test_a_conversation_that_nobody_knows_is_the_strong_models(tmp_path):
    world = Routed(tmp_path, tools="route", replies=both())
    assert await world.ask(LOOP) == ["a-up"]
    signed = {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "abc"}]}
    assert await world.ask([USER, signed, {"role": "user", "content": "More?"}]) == ["a-up"]
    assert "only its author" in world.why


async def test_a_named_session_is_known_by_its_name(tmp_path):
    world = Routed(tmp_path, replies=both())
    await world.ask([USER], scope={"session": "s1"})
    trimmed = [SAID, {"role": "user", "content": "Something quite different, and longer?"}]
    world.gains = {trimmed[1]["content"]: (0.9, False)}
    assert await world.ask(trimmed, scope={"session": "s1"}) == ["b-up"]
    assert await world.ask(trimmed, scope={"session": "s2"}) == ["a-up"]


async def test_a_nod_is_as_hard_as_what_it_nods_to(tmp_path):
    world = Routed(tmp_path, HARD, sticky="turn", cache_life_s=0.0, replies=both())
    assert await world.ask([USER], scope={"session": "s"}) == ["a-up"]
    assert await world.ask([USER, SAID, {"role": "user", "content": "yes, commit it"}], scope={"session": "s"}) == [
        "a-up"
    ]
    assert world.scored == [USER["content"]]
    assert "of its conversation" in world.why


async def test_a_warm_prefix_keeps_the_model_unless_the_change_pays(tmp_path):
    easy = {"role": "user", "content": "And what is two plus two, by the way?"}
    world = Routed(tmp_path, HARD, sticky="turn", replies=both())
    assert await world.ask([USER], scope={"session": "s"}) == ["a-up"]
    assert await world.ask([USER, SAID, easy], scope={"session": "s"}) == ["b-up"]  # ten times cheaper, even cold
    world.gains = HARD | {easy["content"]: (0.9, False)}
    assert await world.ask([USER, SAID, easy], scope={"session": "s"}) == ["b-up"]
    assert "its prefix is warm" in world.why


@pytest.mark.parametrize(("warm", "stays"), [(3000, True), (500, False)])
def test_what_is_new_since_the_last_answer_is_counted_and_not_what_frames_it(warm, stays):
    question = ask([USER, SAID, {"role": "user", "content": "And the sun?"}])
    talk = conversation.read(
        msgspec.structs.replace(question, body_bytes=20_000)
    )  # tools, say: a provider knows better
    found = thread.Found(Thread(1, 0.0, warm, 0.0), weak=False)
    prices = {"a-up": 10, "b-up": 4}

    def cost(target, usage):
        return prices[target.upstream_model] * (usage.input + usage.cache_read // 10 + 2 * usage.output)

    assert talk.fresh < 20
    assert bool(thread.too_warm(talk, found, (A, B), cost)) is stays


async def test_tools_pictures_and_other_models_are_left_alone(tmp_path):
    world = Routed(tmp_path, replies=both())
    assert await world.ask(tools=[{"type": "function"}]) == ["a-up"]
    picture = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}]}
    assert await world.ask([picture]) == ["a-up"]
    world.config = msgspec.structs.replace(world.config, strong="other")
    assert await world.ask() == ["a-up"]
    assert world.scored == []


async def test_a_lever_that_cannot_judge_escalates(tmp_path):
    world = Routed(tmp_path, head=CASCADE, replies=both())
    world.gain_after = None
    assert await world.ask() == ["b-up", "a-up"]
    assert "TypeError" in world.why


def test_caches_name_how_the_model_is_chosen(tmp_path):
    world = Routed(tmp_path)
    first = world.lever.identity("x")
    world.config = msgspec.structs.replace(world.config, strong_share=0.2)
    assert first and world.lever.identity("x") not in ("", first)
    world.config = msgspec.structs.replace(world.config, mode="shadow")
    assert world.lever.identity("x") == ""


def test_conversations_are_shared_and_damage_is_forgotten(tmp_path):
    one, two = ThreadTable(tmp_path / "t"), ThreadTable(tmp_path / "t")
    one.keep(b"k" * 16, Thread(7, 0.5, 100, 1000.0))
    assert two.find(b"k" * 16) == Thread(7, 0.5, 100, 1000.0)
    assert two.find(b"j" * 16) is None
    data = bytearray((tmp_path / "t").read_bytes())
    place = data.index((7).to_bytes(4, "little"))
    data[place] = 8
    (tmp_path / "t").write_bytes(data)
    assert ThreadTable(tmp_path / "t").find(b"k" * 16) is None


def test_workers_that_begin_at_once_share_one_table(tmp_path):
    for name in map(str, range(20)):
        began = Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            tables = list(pool.map(lambda _, name=name, began=began: begin(tmp_path / name, began), range(4)))
        tables[0].keep(b"k" * 16, Thread(7, 0.5, 100, 1000.0))
        assert [one.find(b"k" * 16) for one in tables] == [Thread(7, 0.5, 100, 1000.0)] * 4


def begin(path, together):
    together.wait()
    return ThreadTable(path)


MODELS = f"""{OPENAI}
[models.cheap]
engine = "openai"
name = "gpt-4o-mini"
[models.dear]
engine = "openai"
name = "gpt-4o"
[models.unknown]
engine = "openai"
name = "nobody-knows-its-price"
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "weak: is missing"),
        ('weak = "nowhere"\nstrong_share = 0.5', 'weak: unknown model "nowhere"'),
        ('weak = "cheap"\nstrong = "nowhere"\nstrong_share = 0.5', 'strong: unknown model "nowhere"'),
        ('weak = "cheap"\nstrong = "cheap"\nstrong_share = 0.5', "is the weak model itself"),
        ('weak = "cheap"\nstrong_share = 0.5\nquality_floor = 0.9', "only one budget can be kept"),
        ('weak = "cheap"\nstrong_share = 1.5', "a share from 0 to 1"),
        ('weak = "cheap"\npredictor = "classifier"', "classifier_model: is missing"),
        ('weak = "cheap"\npredictor = "no.router"', "predictor: cannot read the router"),
        ('weak = "dear"\nstrong = "cheap"\nmax_usd_per_request = 0.1', "is not cheaper than"),
        ('weak = "cheap"\nstrong = "unknown"\nmax_usd_per_request = 0.1', 'no price is known for "unknown"'),
        ('weak = "cheap"', "only orders requests"),
    ],
)
def test_mistakes_are_told_at_the_start(tmp_path, settings, said):
    (tmp_path / "trimtab.toml").write_text(f'{MODELS}\n[levers.route]\nmode = "on"\n{settings}\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "trimtab.toml", ENV)
    assert said in str(caught.value)
    assert "levers.route" in str(caught.value)


def test_a_router_whose_setting_cannot_be_kept_is_told_at_the_start(tmp_path):
    made = Router(1, msgspec.structs.replace(TRAINED, weak="gpt-4o-mini", strong="gpt-4o", kind="cascade"), b"")
    write(tmp_path / "own.router", made)
    base = f'{MODELS}\n[levers.route]\nmode = "on"\nweak = "cheap"\nstrong = "dear"\npredictor = "own.router"\n'
    for settings, said in (
        ("cascade = false", "leave it on, or set strong_share"),
        ("cascade = true\nquality_floor = 0.9", "learned from no answers"),
        ('second = "unknown"', ""),
        ("cascade = false\nstrong_share = 0.5", ""),
    ):
        (tmp_path / "trimtab.toml").write_text(base + settings)
        if not said:
            load(tmp_path / "trimtab.toml", ENV)
            continue
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / "trimtab.toml", ENV)
    (tmp_path / "trimtab.toml").write_text(base.replace('"cheap"', '"unknown"'))
    with pytest.raises(ConfigError, match="trained for"):
        load(tmp_path / "trimtab.toml", ENV)
