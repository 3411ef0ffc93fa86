"""Which answers the semantic cache may learn, by whom they name."""

from __future__ import annotations

import pytest
from test_exact_cache import BODY, PLAN, FakeClock, ask, reply_of, whole

from trimtab.levers import semantic_cache
from trimtab.ports import AnswerJudge, AuditHeard
from trimtab.redact import identity_in
from trimtab.types import Asked, PersonNames, ReuseTerms, Similar, Stored


class Answers:
    """Knows nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.learned: list[Stored] = []

    async def look(self, asked: Asked, terms: ReuseTerms, timeout_s: float) -> Similar | None:
        return Similar(7, False, None, -1.0, "nothing near")

    def learn(
        self, token: int, stored: Stored, judge: AnswerJudge | None = None, heard: AuditHeard | None = None
    ) -> None:
        self.learned.append(stored)


async def no_audit(*_):
    raise AssertionError("no audit was due")


@pytest.mark.parametrize(
    ("names", "text", "user", "share", "kept"),
    [
        ("context", "Dear Ann,\nyour flat is ready.", "", False, False),
        ("context", "Dear Ann,\nyour flat is ready.", "ann", False, True),
        ("context", "Dear Ann,\nyour flat is ready.", "ann", True, False),
        ("context", "Marie Curie discovered radium.", "", False, True),
        ("any", "Marie Curie discovered radium.", "", False, False),
        ("off", "Dear Ann,\nyour flat is ready.", "", False, True),
        ("off", "Dear Ann, write to ann.lee@example.org.", "", False, False),
    ],
)
async def test_an_answer_with_a_name_needs_a_user_of_its_own(
    names: PersonNames, text: str, user: str, share: bool, kept: bool
) -> None:
    config = semantic_cache.Config(mode="static", person_names=names, share_users=share)
    answers = Answers()
    facts = semantic_cache.Facts(whole, lambda *_: "", identity_in, lambda *_: "")
    calls = semantic_cache.Calls(no_audit, no_audit, lambda *_: None)
    cache = semantic_cache.build(lambda _: config, answers, FakeClock(), facts, calls)
    request = ask(BODY.replace(b'"hi"', b'"How do I open the door?"'), scope={"user": user})
    decision = await cache.decide(request, PLAN)
    assert decision.reason == "nothing near"
    await cache.learn(reply_of(request, text), decision)
    assert bool(answers.learned) == kept
