"""Rules: which requests they fit, and that nobody overrules them."""

import msgspec
import pytest
from test_config import ENV, OPENAI
from test_conversation import USER, ask
from test_pipeline import A, B

from trimtab.config import load
from trimtab.errors import ConfigError, Forbidden
from trimtab.levers import ab, policy
from trimtab.types import Attempt, Continue, Plan, Purpose, Refuse, Scope

PLAN = Plan((Attempt(A), Attempt(A, Purpose.RETRY), Attempt(B, Purpose.FALLBACK)))


def lever(**rules):
    config = policy.Config({name: policy.Rule(**rule) for name, rule in rules.items()})
    return policy.build(lambda route: config, lambda model, dialect: B if model == "b" else A)


def of(messages=(USER,), scope=None, **fields):
    return msgspec.structs.replace(ask(list(messages), **fields), scope=Scope("acme", **(scope or {})))


async def test_a_model_is_pinned_and_its_fallbacks_are_not_reached():
    decision = await lever(eu={"model": "b", "tenants": ("acme",)}).decide(of(), PLAN)
    assert isinstance(decision.step, Continue)
    assert [one.target for one in decision.step.plan.attempts] == [B, B]
    assert decision.reason == "rule eu sends it to b"
    split = ab.build(lambda route: ab.Config("a", 1.0), lambda *_: A, lambda *_: "")
    assert (await split.decide(of(), decision.step.plan)).step is None


async def test_a_refusal_is_in_the_rules_words():
    decision = await lever(no={"refuse": "no legal advice here", "words": ("lawsuit",)}).decide(
        of([{"role": "user", "content": "May I file a Lawsuit?"}]), PLAN
    )
    assert isinstance(decision.step, Refuse)
    assert isinstance(decision.step.error, Forbidden)
    assert "no legal advice here" in decision.step.error.message


async def test_the_first_rule_that_fits_decides():
    rules = {"one": {"keep": True, "words": ("moon",)}, "two": {"model": "b"}}
    decision = await lever(**rules).decide(of(), PLAN)
    assert (decision.step.plan.pinned, decision.step.plan.attempts) == ("one", PLAN.attempts)
    assert (await lever(two={"model": "b", "words": ("mars",)}).decide(of(), PLAN)).reason == "no rule fits"


CODE = {"role": "user", "content": "Write a Python function that sorts."}


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({"tenants": ("acme",)}, True),
        ({"tenants": ("other",)}, False),
        ({"users": ("ann",)}, True),
        ({"permissions": ("staff",)}, False),
        ({"workflows": ("triage",)}, True),
        ({"models": ("m",)}, True),
        ({"models": ("other",)}, False),
        ({"tasks": ("code",)}, True),
        ({"tasks": ("translation", "summary")}, False),
        ({"words": ("python",)}, True),
        ({"words": ("pyth",)}, False),
        ({"tools": True}, False),
        ({"tools": False}, True),
        ({"json": True}, False),
        ({"kinds": ("image",)}, False),
        ({"min_tokens": 101}, False),
        ({"min_tokens": 100, "max_tokens": 100}, True),
        ({"max_tokens": 99}, False),
        ({"tenants": ("acme",), "words": ("ruby",)}, False),
    ],
)
async def test_all_that_is_named_has_to_hold(rule, fits):
    request = of([CODE], scope={"user": "ann", "workflow": "triage"})
    decision = await lever(r={"keep": True} | rule).decide(request, PLAN)
    assert (decision.step is not None) is fits


def test_mistakes_in_rules_are_told_with_their_names(tmp_path):
    text = f"""{OPENAI}
[models.fast]
engine = "openai"
[levers.policy.rules.none]
words = ["x"]
[levers.policy.rules.both]
model = "fast"
keep = true
[levers.policy.rules.unknown]
model = "nowhere"
[levers.policy.rules.wide]
refuse = "no"
min_tokens = 10
max_tokens = 5
[levers.policy.rules.typo]
keep = true
tenant = ["acme"]
"""
    (tmp_path / "trimtab.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "trimtab.toml", ENV)
    said = str(caught.value)
    for words in ("rules.none", "says nothing to do", "keep at once", "nowhere", "nothing fits", "typo.tenant"):
        assert words in said, words
