"""The ladder of levers: what each step is told, what its figures are, and which levers stay."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from trimtab.config import load
from trimtab.errors import BadRequest
from trimtab.ladder import climb, figures, page, setup
from trimtab.ladder.figures import Run
from trimtab.ladder.setup import Terms
from trimtab.measure.load import Timing
from trimtab.measure.workloads import Asked, Workload

TERMS = Terms(
    workload="w",
    seed=1,
    requests=6,
    engine={"kind": "llama_cpp", "parallel": 4, "threads": 2},
    model="/weights/m-F16.gguf",
    quantized="/weights/m-Q8_0.gguf",
)
# Questions 0, 2, 4 are the same; 1 and 3 mean the same.
ASKED = [("a", "A"), ("b", "B"), ("a", "A"), ("b, please", "B"), ("a", "A"), ("c", "C")]
WORKLOAD = Workload(
    "w",
    "Made up.",
    tuple(Asked({"messages": text, "max_tokens": 40}, label) for text, label in ASKED),
    (1.0,) * 5,
    ({"messages": "hi"},),
)


def run(name="baseline", *, e2e=10.0, cost=1.0, cache="miss", texts=None, config="", cpu=6.0, **more):
    timings = tuple(
        Timing(n, ok=True, total_s=e2e + n, ttft_s=e2e / 2, cache=cache, text=(texts or {}).get(n, ASKED[n][1]))
        for n in range(6)
    )
    facts = {"beside_usd": 0.0, "calls": 6, "fresh_tokens": 60, "cached_tokens": 0, "output_tokens": 30} | more
    return Run(
        name=name,
        config=config,
        rate_per_s=0.7,
        timings=facts.pop("timings", timings),
        cost_usd=facts.pop("cost_usd", (cost,) * 6),
        cpu_s={"trimtab-engine": cpu, "trimtab-worker0": 1.0},
        others_cpu=0.0,
        pace=1.0,
        took_s=9.0,
        **facts,
    )


def same(one, other):
    return one == other


def step(found, baseline=None):
    return figures.step(found, baseline or found, WORKLOAD, same)


def test_each_setup_is_a_configuration_that_serves(tmp_path):
    weights = tmp_path / "m-F16.gguf"
    weights.write_bytes(b"")
    terms = msgspec.structs.replace(TERMS, model=str(weights), one_slot=True)
    now = setup.baseline(terms)
    assert now.engine["parallel"] == 4
    for rung in (setup.EXACT, setup.PREFIX):
        now = setup.with_rung(rung, now, terms, tmp_path, 257)
    file = tmp_path / "trimtab.toml"
    file.write_text(now.toml())
    config = load(file, {})
    assert config.engines["local"].settings.prefix_cache
    assert config.engines["local"].settings.parallel == now.warmed == 1
    assert not config.engines["local"].settings.flash_attention
    assert config.engines["local"].settings.context_tokens == 512
    assert config.lever_settings("exact_cache", "default").enabled
    assert config.models[setup.MODEL].name == "m-F16"
    file.write_text(setup.baseline(terms).toml())
    config = load(file, {})
    assert not config.engines["local"].settings.prefix_cache
    assert not config.lever_settings("exact_cache", "default").enabled
    assert setup.without_caches(now).toml() != now.toml()


@pytest.mark.parametrize(
    ("rung", "said"),
    [
        (setup.SEMANTIC, "needs a verdict"),
        (setup.QUANTIZATION, "needs a verdict"),
        (setup.ROUTING, "not configured"),
    ],
)
def test_what_can_change_answers_is_not_tried_without_a_verdict(rung, said, tmp_path):
    assert said in setup.with_rung(rung, setup.baseline(TERMS), TERMS, tmp_path, 300)


def test_a_way_to_speculate_is_tried_under_a_verdict_on_this_way(tmp_path):
    terms = under_a_verdict_on("ngram_mod", tmp_path)
    tried = setup.speculating("ngram_mod", setup.baseline(terms), terms)
    assert tried.engine["speculation"] == "ngram_mod"
    assert 'is not about speculation = "ngram"' in setup.speculating("ngram", setup.baseline(terms), terms)
    assert "needs a verdict" in setup.speculating("ngram", setup.baseline(TERMS), TERMS)


def under_a_verdict_on(way, folder):
    file = folder / "verdict.json"
    file.write_bytes(msgspec.json.encode(a_verdict(candidate=f'speculation = "{way}"')))
    return msgspec.structs.replace(TERMS, verdicts=setup.read_verdicts((f"speculation={file}",)))


def a_verdict(ruling="pass", candidate="m-Q8_0.gguf"):
    head = {"k": "run", "suite": "s", "suite_sha256": "", "config": "c", "settings": "m-F16.gguf", "model": setup.MODEL}
    head |= {"url": "", "seed": 0, "trimtab": "", "machine": "", "at": 1.0}
    verdict = {"ruling": ruling, "reason": "so it is", "margin": 0.05, "alpha": 0.05, "sequential": False}
    verdict |= {"more_items": None, "strata": []}
    return {"verdict": verdict, "reference": head, "candidate": {**head, "settings": candidate}, "at": 2.0}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (a_verdict(), ""),
        (a_verdict(ruling="undecided"), "says undecided"),
        (a_verdict(candidate="m-Q4_0.gguf"), "is not about m-Q8_0.gguf"),
    ],
)
def test_a_quant_is_tried_under_a_verdict_on_these_weights(found, said, tmp_path):
    file = tmp_path / "verdict.json"
    file.write_bytes(msgspec.json.encode(found))
    terms = msgspec.structs.replace(TERMS, verdicts=setup.read_verdicts((f"quantization={file}",)))
    tried = setup.with_rung(setup.QUANTIZATION, setup.baseline(terms), terms, tmp_path, 300)
    if said:
        assert said in tried
    else:
        assert (tried.engine["model"], tried.model_name) == (TERMS.quantized, "m-Q8_0")


@pytest.mark.parametrize("given", ["quantization", "prefix reuse=x", "quantization=nowhere.json"])
def test_verdicts_are_named_by_lever(given):
    with pytest.raises(BadRequest):
        setup.read_verdicts((given,))


def test_what_a_step_shows():
    baseline = run(texts={4: "another"})
    row = step(baseline)
    assert (row.e2e_p50_s, row.requests, row.hit_rate, row.tokens_per_call) == (12.5, 6, 0.0, 15.0)
    assert (row.cost_per_request, row.engine_cpu_s, row.cpu_s) == (1.0, 1.0, 7.0 / 6)
    assert row.quality == 0.5  # of the two repeats of question 0, one was answered otherwise
    assert row.quality_low < 0.5 < row.quality_high
    assert row.less == {}
    faster = step(run("prefix reuse", e2e=1.0, cost=0.2, cpu=1.5, beside_usd=0.6, cached_tokens=180), baseline)
    assert faster.cost_per_request == pytest.approx(0.3)
    assert faster.less["cost"].value == pytest.approx(1 / 0.3)
    assert faster.less["e2e_p50"].value == pytest.approx(12.5 / 3.5)
    assert faster.less["e2e_p50"].low <= faster.less["e2e_p50"].value <= faster.less["e2e_p50"].high
    assert faster.less["engine_cpu"].value == 4.0
    assert faster.prefix_share == 0.75
    assert (faster.quality, faster.identical) == (5 / 6, 5 / 6)


def test_two_runs_of_a_setup_count_half_each():
    both = figures.pooled(run(cpu=6.0), run(e2e=20.0, cost=3.0, cpu=12.0, beside_usd=1.2))
    row = step(both)
    assert (row.requests, row.answered, row.tokens_per_call) == (12, 12, 15.0)
    assert (row.cost_per_request, row.engine_cpu_s) == (pytest.approx(2.1), 1.5)
    other = step(run("x", cost=1.0, cpu=3.0), both)
    assert other.less["cost"].value == pytest.approx(2.1)
    assert other.less["cost"].low == pytest.approx(2.1)
    assert other.less["engine_cpu"].value == pytest.approx(3.0)
    assert other.less["e2e_p50"].value == pytest.approx(17.5 / 12.5)
    assert other.quality == 1.0


def test_a_reused_answer_that_an_audit_renewed_is_of_no_known_question():
    timings = (
        Timing(0, ok=True, total_s=1.0, cache="miss", text="A"),
        Timing(1, ok=True, total_s=1.0, cache="semantic", text="new"),
    )
    row = step(run("semantic cache", timings=timings, cost_usd=(1.0,) * 2), run())
    assert (row.semantic_wrong, row.semantic_unknown) == (0, 1)


def test_reused_answers_of_another_intent_are_counted():
    words = ("miss", "miss", "hit", "semantic", "semantic", "miss")
    said = ("A", "B", "A", "B", "B", "C")
    timings = tuple(
        Timing(n, ok=True, total_s=1.0, ttft_s=1.0, cache=word, text=text)
        for n, (word, text) in enumerate(zip(words, said, strict=True))
    )
    row = step(run("semantic cache", timings=timings, calls=3), run())
    assert (row.exact_share, row.semantic_share, row.semantic_wrong) == (1 / 6, 2 / 6, 1)
    assert row.semantic_unknown == 0
    assert row.hit_rate == 0.5
    assert row.engine_e2e_p50_s == 1.0


def judged(found, **more):
    baseline = run()
    return figures.ruled(step(found, baseline), found, step(baseline), baseline, **more)


@pytest.mark.parametrize(
    ("e2e", "cost", "stays"),
    [(10.0, 0.8, True), (5.0, 1.0, True), (10.0, 1.0, False), (5.0, 1.2, False), (20.0, 0.9, False)],
)
def test_a_lever_stays_if_it_saves_or_hastens(e2e, cost, stays):
    ruled = judged(run("x", e2e=e2e, cost=cost))
    assert ruled.accepted == stays
    assert ruled.reason.startswith("does not pay") != stays


def test_a_cache_that_answered_nothing_goes_whatever_it_seems_to_save():
    ruled = judged(run("x", cost=0.5), answers=True)
    assert (ruled.accepted, ruled.reason) == (False, "it answered nothing here")
    assert judged(run("x", cost=0.5, cache="hit"), answers=True).accepted


@pytest.mark.parametrize(("slow", "stays"), [(1, True), (3, False)])
def test_a_lever_that_saves_goes_only_if_it_surely_slows(slow, stays):
    one = run("x", cost=0.5)
    late = tuple(msgspec.structs.replace(timing, total_s=99.0) for timing in one.timings[-slow:])
    ruled = judged(msgspec.structs.replace(one, timings=(*one.timings[:-slow], *late)))
    assert ruled.accepted == stays


def test_a_context_has_to_hold_the_longest_prompt_and_answer():
    timings = tuple(msgspec.structs.replace(one, input_tokens=300 + one.group) for one in run().timings)
    assert figures.longest(run(timings=timings), WORKLOAD) == 305 + 40


def test_a_lever_that_loses_requests_goes():
    broken = run("x", e2e=1.0, cost=0.1)
    first = msgspec.structs.replace(broken.timings[0], ok=False, error="cut")
    broken = msgspec.structs.replace(broken, timings=(first, *broken.timings[1:]))
    ruled = judged(broken)
    assert (ruled.accepted, ruled.reason) == (False, "1 requests were not answered")


class View:
    def say(self, text):
        pass

    @contextlib.contextmanager
    def bar(self, title, total):
        yield lambda: None


class Climber(climb.Climber):
    """Measures nothing: a step costs what `costs` says."""

    def __init__(self, folder, costs, terms=TERMS):
        super().__init__(terms, WORKLOAD, folder, same, View())
        self.costs, self.measured = costs, []

    async def _measure_capacity(self, baseline):
        return climb.Capacity(1.0, 6)

    async def _measured(self, name, chosen, config):
        if (cost := self.costs[name]) is None:
            raise asyncio.CancelledError
        self.measured.append(name)
        return run(name, cost=cost, e2e=10 * cost, config=config, cache="hit" if chosen.exact else "miss")

    async def _trial(self, now, ways, calls, about):
        return tuple(on_trial(way, about, len(calls)) for way in ways)


def on_trial(way, about, prompts):
    """On so many requests; where some come again, the table that all share guesses half of the tokens."""
    from trimtab.measure import speculation

    plain = [speculation.Sample(n, "x", 0.1, 1.0, 10, 5, 0, None) for n in range(prompts)]
    guessed = [msgspec.structs.replace(one, decode_s=0.5, accepted=5) for one in plain]
    pays = way == "ngram_mod" and setup.WITHOUT_CACHES in about
    return speculation.row(way, about, plain, guessed if pays else plain)


COSTS = {
    "baseline": 1.0,
    "exact cache": 0.7,
    "prefix reuse": 0.9,
    "baseline again": 2.0,
    "without response caches": 1.0,
}


async def test_a_lever_that_does_not_pay_is_left_out_of_the_later_steps(tmp_path):
    climber = Climber(tmp_path, COSTS)
    await climber.climb()
    found = climber.found()
    assert found.finished
    rows = {row.name: row for row in found.steps}
    assert [row.name for row in found.steps if row.accepted] == ["baseline", "exact cache", "without response caches"]
    assert "does not pay" in rows["prefix reuse"].reason
    assert "prefix_cache = false" in rows["without response caches"].config
    assert rows["speculation"].reason.startswith("ngram refused: 0.00 drafted tokens")
    assert "speculation" not in rows["without response caches"].config, "it has no verdict"


async def test_without_caches_repeats_come_to_the_engine_and_may_be_guessed(tmp_path):
    climber = Climber(tmp_path, COSTS, under_a_verdict_on("ngram_mod", tmp_path))
    await climber.climb()
    found = climber.found()
    last = found.steps[-1]
    assert 'speculation = "ngram_mod"' in last.config
    assert last.reason.endswith("and speculation: decodes 2.00 times as fast; under verdict.json")
    assert [(one.name, one.prompts) for one in found.speculation] == [("ngram", 4), ("ngram_mod", 4), ("ngram_mod", 6)]


async def test_every_step_is_compared_with_both_runs_of_the_baseline_and_ruled_on_when_it_was_taken(tmp_path):
    climber = Climber(tmp_path, COSTS)
    await climber.climb()
    found = climber.found()
    rows = {row.name: row for row in found.steps}
    assert (rows["baseline"].requests, rows["baseline"].cost_per_request) == (12, 1.5)
    assert rows["exact cache"].reason.startswith("cost -30%")
    assert rows["exact cache"].less["cost"].value == pytest.approx(1.5 / 0.7)
    assert rows["without response caches"].less["cost"].value == 1.5
    assert found.again.less["cost"].value == 0.5


async def test_what_was_measured_is_not_measured_again(tmp_path):
    first = Climber(tmp_path, COSTS | {"prefix reuse": None})
    with pytest.raises(asyncio.CancelledError):
        await first.climb()
    assert not first.found().finished
    assert first.measured == ["baseline", "exact cache"]
    second = Climber(tmp_path, COSTS)
    await second.climb()
    assert second.measured == ["prefix reuse", "baseline again", "without response caches"]
    with pytest.raises(BadRequest, match="other settings"):
        Climber(tmp_path, COSTS, msgspec.structs.replace(TERMS, seed=2))


async def test_the_page_shows_every_step(tmp_path):
    climber = Climber(tmp_path, COSTS)
    await climber.climb()
    found = climber.found()
    ladder = page.Ladder(
        "1", "now", "machine", 2, "w", "Made <up>.", 1, 6, 4, "llama_cpp", "m", 0.1, 0.7, 1.0, 0.7, True, found.steps
    )
    ladder = msgspec.structs.replace(ladder, again=found.again)
    text = page.render(ladder)
    assert all(row.name in text for row in found.steps)
    assert "needs a verdict" in text
    assert "Made &lt;up&gt;." in text
    assert "<script" not in text
    assert "before the last step, in multiples of its first: p50 1.80, p99 1.67, cost 2.00; its row" in text
    keys = "name accepted reason ttft_p50_s ttft_p99_s e2e_p50_s e2e_p99_s tokens_per_call cost_per_request hit_rate"
    shown = msgspec.json.decode(msgspec.json.encode(ladder))["steps"][0]
    assert set(keys.split()) | {"quality", "quality_low"} <= set(shown)
