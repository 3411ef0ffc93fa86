"""The semantic cache's lever: whose answers it hands on to be kept."""

from __future__ import annotations

import msgspec
import pytest
from test_exact_cache import PLAN, FakeClock, ask, outcome, reply_of

from trimtab.levers.semantic_cache import Config, Facts, build
from trimtab.redact import identity_in
from trimtab.types import Answer, Similar, Stored

ASK = b'{"messages":[{"role":"user","content":"Who wrote this?"}],"temperature":0}'
MAIL = "Write to ann.lee@example.org."


class Answers:
    """Stands in for the process: finds `stored`, and remembers what it is taught."""

    def __init__(self, stored: Stored | None = None) -> None:
        self.learned: list[bytes] = []
        self.contexts: list[bytes] = []
        self.stored = stored

    async def look(self, asked, terms, timeout_s):
        self.contexts.append(asked.context)
        return Similar(1, False, None, 1.0, "cosine 1.00 at least 0.85", self.stored)

    def learn(self, token, stored, judge=None, heard=None):
        self.learned.append(stored.body)


def lever(answers: Answers, **config):
    facts = Facts(lambda *_: True, lambda engine, route: "", identity_in, lambda *_: "")
    return build(lambda route: Config(mode="static", **config), answers, FakeClock(), facts, None)


@pytest.mark.parametrize(
    ("scope", "config", "kept"),
    [
        ({}, {}, False),  # everybody without a name shares one context
        ({"user": "ann"}, {}, True),  # her own
        ({"user": "ann"}, {"share_users": True}, False),
        ({"user": "ann", "cache": "public"}, {}, False),
        ({"cache": "public"}, {}, False),
    ],
)
async def test_what_identifies_somebody_is_kept_for_its_own_user_only(scope, config, kept):
    answers = Answers()
    cache, request = lever(answers, **config), ask(ASK, scope=scope)
    await cache.learn(reply_of(request, MAIL), await cache.decide(request, PLAN))
    assert len(answers.learned) == kept
    await cache.learn(reply_of(request, "Someone."), await cache.decide(request, PLAN))
    assert len(answers.learned) == kept + 1


async def test_users_meet_in_one_context_only_where_they_share():
    answers = Answers()
    for config, scope in (({}, {}), ({}, {"cache": "public"}), ({"share_users": True}, {})):
        for user in ("ann", "bob"):
            await lever(answers, **config).decide(ask(ASK, scope=scope | {"user": user}), PLAN)
    contexts = answers.contexts
    assert [one == two for one, two in zip(contexts[::2], contexts[1::2], strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("word", "reason"), [("refresh", "client asked cache refresh"), ("public", "older than ttl_s")]
)
async def test_an_old_answer_says_why_it_is_not_given(word, reason):
    request = ask(ASK, scope={"cache": word})
    answers = Answers()
    cache = lever(answers)
    made = outcome(request)
    assert made.reply is not None
    clock = FakeClock()
    stored = Stored(request.dialect, b"{}", "m", made.reply.target, made.reply.usage, "r", clock.now, clock.now + 9e9)
    answers.stored = stored if word == "refresh" else msgspec.structs.replace(stored, created=clock.now - 9e5)
    assert (await cache.decide(request, PLAN)).reason == reason
    answers.stored = stored
    assert isinstance((await cache.decide(ask(ASK), PLAN)).step, Answer)
