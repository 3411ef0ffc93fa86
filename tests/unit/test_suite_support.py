"""The suite `support`: its patterns tell its facts apart, and it asks nothing that the workload asks."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from trimtab.evals import gates, verdicts
from trimtab.evals.suite import load
from trimtab.measure.workloads import support

VERDICT = Path(__file__).parents[2] / "bench" / "results" / "gate-semantic-support-2026-11-22.json"


@pytest.fixture(scope="module")
def items():
    return load("support").items


def _intent(item) -> str:
    return item.id.rsplit("-", 1)[0]


def test_three_strata_ask_sixty_questions_of_each_of_three_intents(items):
    assert Counter(item.stratum for item in items) == {"fees": 180, "times": 180, "menus": 180}
    assert set(Counter(_intent(item) for item in items).values()) == {60}


def test_it_asks_nothing_that_the_workload_asks_and_nothing_twice(items):
    asked = [item.messages[-1]["content"] for item in items]
    ours = {text for intent in support.intents() for text in (intent.canonical, *intent.paraphrases)}
    assert len({*asked}) == len(asked)
    assert not {*asked} & ours


def test_all_that_comes_before_the_question_is_the_same_in_a_stratum_so_that_answers_may_be_mistaken(items):
    before = {(item.stratum, str(item.messages[:-1]), str(item.request)) for item in items}
    assert len(before) == 3


def test_each_intents_pattern_finds_its_own_answer_and_no_other_of_its_stratum(items):
    for item in items:
        answers = {turn["content"] for turn in item.messages if turn["role"] == "assistant"}
        assert len(answers) == 3
        assert sum(bool(re.search(item.reference, answer)) for answer in answers) == 1


def test_intents_are_mixed_so_that_like_questions_do_not_come_in_one_block(items):
    runs = Counter()
    for stratum in ("fees", "times", "menus"):
        intents = [_intent(item) for item in items if item.stratum == stratum]
        runs[stratum] = sum(a != b for a, b in pairwise(intents))
    assert min(runs.values()) > 90


def test_the_committed_verdict_is_of_this_suite_and_speaks_for_its_own_settings_alone():
    found = verdicts.read(VERDICT)
    assert found.candidate.suite_sha256 == found.reference.suite_sha256 == load("support").sha256
    ours = gates.settings_in(found.candidate.settings, "semantic_cache", "default")
    assert tomllib.loads(found.candidate.settings)["levers"]["semantic_cache"]["threshold"] == ours.threshold == 0.93
    assert gates.objection(found, ours, "semantic_cache", "default") == ""
    looser = msgspec.structs.replace(ours, threshold=0.92)
    assert gates.objection(found, looser, "semantic_cache", "default") == "the verdict is of other settings"
