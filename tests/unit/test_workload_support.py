"""The workload `support`: the same for a seed, with the shares that it promises."""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec
import pytest

from trimtab.measure.workloads import support


def _question(asked) -> str:
    return asked.fields["messages"][-1]["content"]


def test_the_data_has_sixty_intents_with_forty_paraphrases_each_and_no_text_twice():
    intents = support.intents()
    assert len(intents) == 60
    assert {len(intent.paraphrases) for intent in intents} == {40}
    texts = [text for intent in intents for text in (intent.canonical, *intent.paraphrases)]
    assert len({*texts}) == len(texts) == 60 * 41
    assert all(text.isascii() and 15 <= len(text) <= 160 for text in texts)


def test_a_seed_gives_the_same_workload_and_another_seed_another():
    one, again, other = support.workload(1, 50), support.workload(1, 50), support.workload(2, 50)
    assert one == again
    assert one.asked != other.asked
    assert one.gaps != other.gaps


@pytest.mark.parametrize("count", [1, 2, support.COUNT])
def test_it_has_as_many_requests_as_are_asked_for_and_one_gap_fewer(count):
    workload = support.workload(3, count)
    assert len(workload.asked) == count
    assert len(workload.gaps) == count - 1
    assert len(workload.calls("m", 2.0)) == count


def test_labels_are_the_intents_of_the_questions():
    of_text = {}
    for intent in support.intents():
        of_text.update(dict.fromkeys((intent.canonical, *intent.paraphrases), intent.name))
    workload = support.workload(0, 300)
    assert all(one.label == of_text[_question(one)] for one in workload.asked)


def test_half_of_the_requests_use_the_usual_question_and_popularity_follows_zipf():
    usual = {intent.canonical for intent in support.intents()}
    asked = support.workload(0, 6000).asked
    assert 0.48 < sum(_question(one) in usual for one in asked) / len(asked) < 0.52
    most = [count for _, count in Counter(one.label for one in asked).most_common()]
    weights = [(rank + 1) ** -0.9 for rank in range(60)]
    assert most[0] / len(asked) == pytest.approx(weights[0] / sum(weights), abs=0.02)
    assert sum(most[:10]) / len(asked) == pytest.approx(sum(weights[:10]) / sum(weights), abs=0.02)


def test_about_three_of_ten_requests_repeat_an_earlier_one_to_the_byte():
    shares = []
    for seed in range(20):
        workload = support.workload(seed, support.COUNT)
        shares.append(1 - len({*workload.groups}) / support.COUNT)
    print(f"exact repeats of {support.COUNT}: {statistics.mean(shares):.1%}, {min(shares):.1%} to {max(shares):.1%}")
    assert 0.25 < statistics.mean(shares) < 0.33


def test_requests_differ_in_their_question_alone_so_that_similar_ones_may_share_an_answer():
    workload = support.workload(0, support.COUNT)
    rest = set()
    for one in workload.asked:
        system, user = one.fields["messages"]
        assert system["content"] == support.POLICY
        assert user.keys() == {"role", "content"}
        rest.add(msgspec.json.encode({**one.fields, "messages": [system]}))
    assert len(rest) == 1


def test_what_warms_begins_like_the_requests_and_asks_for_next_to_nothing():
    (warm,) = support.workload(0, 1).warm
    assert warm["messages"][0] == {"role": "system", "content": support.POLICY}
    assert warm["max_tokens"] == 1


def test_the_policy_is_of_the_promised_length():
    assert 1100 <= len(support.POLICY) <= 1350  # some 300 tokens
