"""Pass, fail or undecided: what each stratum says, and all of them together."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from trimtab.errors import BadRequest
from trimtab.quality.paired import Item
from trimtab.quality.verdict import GateTerms, Ruling, SequentialGate, Verdict, judge

BOTH, NONE = Item((1.0,), (1.0,)), Item((0.0,), (0.0,))
WORSE, BETTER = Item((1.0,), (0.0,)), Item((0.0,), (1.0,))


def items(both=0, none=0, worse=0, better=0):
    return [BOTH] * both + [NONE] * none + [WORSE] * worse + [BETTER] * better


GOOD = items(both=140, none=50, worse=5, better=5)
BAD = items(both=100, none=20, worse=30, better=5)
FEW = items(both=20, none=10)


def test_all_strata_have_to_pass():
    verdict = judge({"tools": GOOD, "safety": GOOD})
    assert (verdict.ruling, verdict.exit_code, verdict.more_items) == (Ruling.PASS, 0, None)
    assert verdict.reason == "within the margin of 0.05 in each of 2 strata"
    one = verdict.strata[0]
    assert (one.stratum, one.items, one.worse, one.better) == ("tools", 200, 5, 5)
    assert one.loss == 0.0
    assert one.reference_score == one.candidate_score == 0.725
    assert one.lower < 0 < one.upper <= 0.05


def test_one_bad_stratum_fails_all_and_an_open_one_leaves_them_open():
    failed = judge({"tools": GOOD, "safety": BAD, "arithmetic": FEW})
    assert (failed.ruling, failed.exit_code, failed.more_items) == (Ruling.FAIL, 1, None)
    assert failed.reason == "worse than the margin of 0.05 in safety"
    assert failed.strata[1].reason.startswith("at least 0.0")
    undecided = judge({"tools": GOOD, "arithmetic": FEW})
    assert (undecided.ruling, undecided.exit_code, undecided.more_items) == (Ruling.UNDECIDED, 2, 29)
    assert undecided.reason == "not decided in arithmetic"
    assert "about 29 more items would decide it" in undecided.strata[1].reason


def test_strata_share_the_chance_of_a_wrong_fail():
    close = items(both=100, none=20, worse=17, better=1)
    assert judge({"one": close}).ruling is Ruling.FAIL
    assert judge({"one": close} | {f"good {n}": GOOD for n in range(8)}).ruling is Ruling.UNDECIDED


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (items(both=19, none=81), "the reference scores 19%: too hard"),
        (items(both=5, worse=10, none=85), "the reference scores 15%: too hard"),
        (items(both=995, none=5), "the reference scores 99.5%: too easy"),
        (items(both=50, worse=50), "the reference scores 100.0%: too easy"),
    ],
)
def test_a_reference_out_of_range_judges_nobody(sample, says):
    verdict = judge({"one": sample})
    assert verdict.ruling is Ruling.UNDECIDED
    assert verdict.strata[0].reason.startswith(says)
    assert verdict.more_items is None


def test_the_ends_of_the_range_judge():
    assert judge({"one": items(both=200, none=800)}).ruling is Ruling.PASS
    assert judge({"one": items(both=980, none=20)}).ruling is Ruling.PASS


def test_nothing_is_undecided():
    verdict = judge({"one": []})
    assert (verdict.ruling, verdict.more_items) == (Ruling.UNDECIDED, 59)
    assert verdict.strata[0].upper is None
    assert SequentialGate(["one"]).verdict().more_items == 84


@pytest.mark.parametrize("counts", [(50, 30, 10, 10), (70, 18, 10, 2), (60, 36, 3, 1), (55, 20, 14, 11)])
def test_as_many_more_items_as_it_says_decide_if_they_are_alike(counts):
    verdict = judge({"one": items(*counts)})
    assert verdict.ruling is Ruling.UNDECIDED
    times = math.ceil(1 + verdict.more_items / sum(counts))
    assert judge({"one": items(*counts) * times}).ruling is not Ruling.UNDECIDED
    assert judge({"one": items(*counts) * (times - 1)}).ruling is Ruling.UNDECIDED


def test_a_loss_at_the_margin_is_never_decided():
    verdict = judge({"one": items(both=60, none=33, worse=6, better=1)})
    assert verdict.ruling is Ruling.UNDECIDED
    assert verdict.more_items is None
    assert verdict.strata[0].reason.endswith("more items would hardly decide it")


def test_weights_count():
    heavy = [Item((1.0,), (0.0,), weight=10.0)] * 6
    assert judge({"one": items(both=300, none=100)}).ruling is Ruling.PASS
    assert judge({"one": items(both=300, none=100) + [WORSE] * 6}).ruling is Ruling.PASS
    weighted = judge({"one": items(both=300, none=100) + heavy}).strata[0]
    assert weighted.ruling is not Ruling.PASS
    assert weighted.loss == pytest.approx(60 / 460)


def test_graded_scores_and_repeats():
    sample = [Item((0.6, 0.8), (0.7, 0.6)), Item((0.5, 0.5), (0.6,)), Item((0.7,), (0.7, 0.7, 0.7))] * 60
    verdict = judge({"one": sample})
    assert verdict.ruling is Ruling.PASS
    assert verdict.strata[0].loss == pytest.approx(-0.05 / 3)
    assert verdict.strata[0].items == 180


def test_a_verdict_is_json():
    verdict = judge({"tools": GOOD, "arithmetic": FEW})
    data = msgspec.json.encode(verdict)
    assert msgspec.json.decode(data, type=Verdict) == verdict
    assert b'"ruling":"undecided"' in data


@pytest.mark.parametrize(("kind", "ruling"), [((0.02, 0.02), Ruling.PASS), ((0.3, 0.02), Ruling.FAIL)])
def test_the_sequential_gate_stops_early(kind, ruling):
    rng = random.Random(2)
    gate = SequentialGate(["one", "two"])
    for name in ("one", "two"):
        shares = [*kind, 0.4, 0.6 - sum(kind)]
        stream = rng.choices([WORSE, BETTER, NONE, BOTH], shares, k=1000)
        assert any(gate.add(name, item) is ruling for item in stream)
    assert gate.wanted == []
    verdict = gate.verdict()
    assert verdict.sequential
    assert verdict.ruling is ruling
    one = verdict.strata[0]
    assert one.upper <= 0.05 + 1e-6 if ruling is Ruling.PASS else one.lower >= 0.05 - 1e-6
    assert gate.add("one", WORSE) is ruling  # decided is decided
    assert gate.verdict() == verdict


def test_the_sequential_gate_says_what_it_lacks():
    gate = SequentialGate(["one", "two"])
    for item in items(both=30, none=20, worse=1):
        gate.add("one", item)
    assert gate.wanted == ["one", "two"]
    verdict = gate.verdict()
    assert verdict.ruling is Ruling.UNDECIDED
    assert verdict.more_items > 84 + 30


def test_the_sequential_gate_does_not_pass_by_a_reference_that_is_always_right():
    gate = SequentialGate(["one"])
    assert {gate.add("one", BOTH) for _ in range(300)} == {Ruling.UNDECIDED}
    for _ in range(7):
        ruling = gate.add("one", NONE)
    assert ruling is Ruling.PASS


def test_what_is_refused():
    with pytest.raises(BadRequest, match="at least one stratum"):
        judge({})
    with pytest.raises(BadRequest, match="comes twice"):
        SequentialGate(["one", "one"])
    with pytest.raises(BadRequest, match="none of the strata"):
        SequentialGate(["one"]).add("two", BOTH)
    with pytest.raises(BadRequest, match="fixed mode"):
        SequentialGate(["one"]).add("one", Item((1.0,), (1.0,), weight=2.0))
    with pytest.raises(BadRequest, match="margin"):
        GateTerms(margin=5)
    with pytest.raises(BadRequest, match="alpha"):
        GateTerms(alpha=0.5)


def test_a_stratum_worse_by_the_margin_seldom_passes():
    rng = random.Random(21)
    passed = 0
    for _ in range(400):
        bad = rng.choices([WORSE, BETTER, NONE, BOTH], [0.1, 0.05, 0.3, 0.55], k=120)
        passed += judge({"bad": bad, "good": GOOD}).ruling is Ruling.PASS
    assert passed <= 33  # of 400 at 5% each: more come once in 1,000 times
