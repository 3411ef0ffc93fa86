"""The A/B lever: who is in which arm, and that nothing passes from one arm to the other."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config import OPENAI
from test_exact_cache import PLAN, ask

from trimtab.errors import ConfigError
from trimtab.levers import ab, exact_cache
from trimtab.types import Attempt, Continue, Plan, Purpose, Scope, Target

CANDIDATE = Target("cheap", "other", "fast-up", "openai")
BODY = b'{"messages":[{"role":"user","content":"Hi"}],"temperature":0}'


def lever(no_verdict="", **config):
    settings = ab.Config(**({"model": "cheap"} | config))
    return ab.build(lambda route: settings, lambda model, dialect: CANDIDATE, lambda scope, model: no_verdict)


async def decide(scope, **config):
    return await lever(**config).decide(ask(BODY, scope=scope), PLAN)


async def test_off_by_default():
    decision = await ab.build(lambda route: ab.Config(), lambda *_: CANDIDATE, lambda *_: "").decide(ask(BODY), PLAN)
    assert (decision.step, decision.reason, decision.score) == (None, "off for this route", None)


async def test_the_arm_is_said_and_the_candidate_takes_the_first_targets_place():
    first, fallback = PLAN.attempts[0], Attempt(Target("c", "third", "c-up"), Purpose.FALLBACK)
    plan = Plan((first, Attempt(first.target, Purpose.RETRY, backoff_s=2.0), fallback), 7.0)
    request = ask(BODY, scope={"user": "ann"})
    b = await lever(share=1.0).decide(request, plan)
    assert isinstance(b.step, Continue)
    assert [one.target for one in b.step.plan.attempts] == [CANDIDATE, CANDIDATE, fallback.target]
    assert [one.purpose for one in b.step.plan.attempts] == [Purpose.SERVE, Purpose.RETRY, Purpose.FALLBACK]
    assert (b.step.plan.attempts[1].backoff_s, b.step.plan.retry_after_max_s) == (2.0, 7.0)
    assert (b.reason, b.threshold) == ("arm B cheap against fast, by user", 1.0)
    a = await lever(share=0.0).decide(request, plan)
    assert (a.step, a.reason, a.score) == (None, f"arm A {first.target.model} against cheap, by user", b.score)


@pytest.mark.parametrize(("share", "arm"), [(1.0, "B cheap against fast"), (0.0, "A fast against cheap")])
async def test_without_a_verdict_nobody_gets_the_candidate(share, arm):
    request = ask(BODY, scope={"user": "ann"})
    decision = await lever("no verdict", share=share).decide(request, PLAN)
    assert (decision.step, decision.score) == (None, None)  # in neither arm, for the report as well
    assert decision.reason == f"shadow (no verdict), would be arm {arm}, by user"
    advisory = await lever("no verdict", share=share, gate="advisory").decide(request, PLAN)
    assert advisory.reason == f"arm {arm}, by user, gate advisory"
    assert isinstance(advisory.step, Continue) == (share == 1.0)
    assert advisory.score == (await lever(share=share).decide(request, PLAN)).score


async def test_a_request_for_the_candidate_is_in_no_arm():
    decision = await lever(share=1.0).decide(ask(BODY), Plan((Attempt(CANDIDATE),)))
    assert (decision.step, decision.score) == (None, None)


@pytest.mark.parametrize(
    ("by", "scope", "kind"),
    [
        ("user", {"user": "u", "session": "s"}, "user"),
        ("user", {"session": "s"}, "session"),
        ("user", {}, "request"),
        ("session", {"user": "u", "session": "s"}, "session"),
        ("session", {"user": "u"}, "request"),
        ("request", {"user": "u", "session": "s"}, "request"),
    ],
)
async def test_who_stays_in_one_arm(by, scope, kind):
    assert (await decide(scope, by=by)).reason.endswith(f"by {kind}")


async def test_an_arm_is_the_same_everywhere_and_always():
    # Fixed figures: a change would move users from one arm to the other in the middle of an experiment.
    assert ab.position(Scope("acme", "faq"), "fast", "user", "ann") == 0.04435628876190523
    assert (await decide({"user": "ann"})).score == (await decide({"user": "ann", "session": "s"})).score


def test_other_experiments_split_users_anew():
    scopes = [Scope("acme"), Scope("acme", "faq"), Scope("other")]
    places = {ab.position(scope, model, "user", "ann") for scope in scopes for model in ("fast", "tiny")}
    assert len(places) == 6
    both = [
        (ab.position(scopes[0], "fast", "user", str(n)) < 0.5, ab.position(scopes[1], "fast", "user", str(n)) < 0.5)
        for n in range(4000)
    ]
    assert 900 < both.count((True, True)) < 1100  # a quarter of them: independent


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_the_share_is_kept(share, start):
    places = [ab.position(Scope("acme"), "fast", "user", str(n)) for n in range(start, start + 2000)]
    assert all(0 <= place < 1 for place in places)
    found = sum(place < share for place in places) / 2000
    assert abs(found - share) <= 6 * (share * (1 - share) / 2000) ** 0.5 + 0.005
    assert abs(statistics.fmean(places) - 0.5) < 6 * (1 / 12 / 2000) ** 0.5


async def test_the_caches_key_is_the_arms_own():
    """It decides before them, so that what they hash is the target of the arm."""
    request = ask(BODY, scope={"user": "ann"})
    a, b = await lever(share=0.0).decide(request, PLAN), await lever(share=1.0).decide(request, PLAN)
    assert lever().slot < exact_cache.ExactCache.slot
    assert a.step is None and isinstance(b.step, Continue)
    keys = {
        exact_cache.cache_key(request, plan.attempts[0].target, share_users=shared)
        for plan in (PLAN, b.step.plan)
        for shared in (True, False)
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[routes.faq.levers.ab]\nmodel = "slow"', "routes.faq.levers.ab.model: unknown model"),
        ('[levers.ab]\nmodel = "slow"', "levers.ab.model: unknown model"),
        ("[levers.ab]\nshare = 2", "levers.ab.share: must be a share from 0 to 1"),
        ('[levers.ab]\nby = "phase"', "levers.ab.by"),
        ('[routes.faq]\nmodel = "fast"\n[routes.faq.levers.ab]\nmodel = "fast"', "the route's own model"),
        ('[routes.faq.shadow]\njudge_model = "slow"', "routes.faq.shadow.judge_model: unknown model"),
        ("[routes.faq.shadow]\nmargin = 0", "routes.faq.shadow.margin: must be a share above 0"),
    ],
)
def test_the_configuration_names_what_is_wrong(tmp_path, text, problem):
    from trimtab import config

    (tmp_path / "t.toml").write_text(f'{OPENAI}\n[models.fast]\nengine = "openai"\n{text}\n')
    with pytest.raises(ConfigError) as raised:
        config.load(tmp_path / "t.toml", {})
    assert problem in str(raised.value)


def test_a_shadowed_route_needs_the_process_that_compares(tmp_path):
    from trimtab import config

    text = f'{OPENAI}\n[models.fast]\nengine = "openai"\n'
    (tmp_path / "t.toml").write_text(text)
    without = config.load(tmp_path / "t.toml", {})
    (tmp_path / "t.toml").write_text(text + "[routes.faq.shadow]\nshare = 1\n")
    with_it = config.load(tmp_path / "t.toml", {})
    assert [config.keeps_similar(one) for one in (without, with_it)] == [False, True]
    assert not config.is_used(with_it, "semantic_cache")
    assert config.restart_needed(without, with_it) == ["routes.faq.shadow"]
