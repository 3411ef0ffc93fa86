"""Bounds that hold at every look, and what is kept of them."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.quality.sequential import ConfidenceSequence, Wager, log_evidence

LOSSES = st.lists(st.floats(-1, 1), min_size=1, max_size=40)
NEEDED = -math.log(0.05)


def sequence_of(losses):
    sequence = ConfidenceSequence()
    for loss in losses:
        sequence.add(loss)
    return sequence


def ever_refuted(limit, losses):
    wager = Wager(limit)
    for loss in losses:
        wager.add(loss)
        if wager.log_evidence >= NEEDED:
            return True
    return False


@pytest.mark.parametrize("shares", [(0.05, 0.0), (0.15, 0.1), (0.45, 0.4)])
def test_a_true_claim_is_seldom_ever_refuted(shares):
    worse, better = shares
    rng = random.Random(11)
    refuted = 0
    for _ in range(300):
        losses = rng.choices([1.0, -1.0, 0.0], [worse, better, 1 - worse - better], k=300)
        refuted += ever_refuted(0.05, losses)
    assert refuted <= 26  # of 300 at 5% each: more come once in 1,500 times


def test_a_false_claim_is_refuted():
    rng = random.Random(12)
    losses = [
        rng.choices([[1.0, -1.0, 0.0]], k=1)[0][rng.choices([0, 1, 2], [0.01, 0.01, 0.98])[0]] for _ in range(600)
    ]
    assert ever_refuted(0.05, losses)


def test_ties_are_believed_only_after_a_while():
    assert sequence_of([0.0] * 30).upper() > 0.09
    assert sequence_of([0.0] * 83).upper() > 0.05 > sequence_of([0.0] * 84).upper()
    assert ConfidenceSequence().upper() == 1.0
    assert ConfidenceSequence().lower() == -1.0


@given(LOSSES)
def test_the_bounds_enclose_the_mean_mirror_each_other_and_forget_the_order(losses):
    sequence = sequence_of(losses)
    assert -1 <= sequence.lower() <= sequence.mean + 1e-3
    assert sequence.mean - 1e-3 <= sequence.upper() <= 1
    assert sequence.upper(0.01) >= sequence.upper()
    turned = sequence_of([-loss for loss in losses])
    assert turned.lower() == pytest.approx(-sequence.upper(), abs=1e-6)
    assert sequence_of(sorted(losses)).upper() == pytest.approx(sequence.upper(), abs=1e-6)


@given(st.lists(st.integers(-4, 4).map(lambda quarter: quarter / 4), min_size=1, max_size=40), st.floats(-0.9, 0.9))
def test_the_bound_is_where_the_wager_wins(losses, limit):
    wager = Wager(limit)
    for loss in losses:
        wager.add(loss)
    sequence = sequence_of(losses)
    assert wager.log_evidence == pytest.approx(log_evidence(sequence.losses(), limit), abs=1e-9)
    if abs(wager.log_evidence - NEEDED) > 1e-4:
        assert (wager.log_evidence >= NEEDED) == (sequence.upper() <= limit)


@given(LOSSES, st.floats(-1, 1), st.floats(0, 1))
def test_a_worse_item_raises_the_bounds(losses, loss, more):
    better, worse = sequence_of([*losses, loss]), sequence_of([*losses, min(loss + more, 1.0)])
    assert worse.upper() >= better.upper() - 1e-6
    assert worse.lower() >= better.lower() - 1e-6


@given(LOSSES, LOSSES)
def test_a_saved_sequence_goes_on_as_if_nothing_had_happened(before, after):
    sequence = sequence_of(before)
    again = ConfidenceSequence.load(sequence.save())
    for loss in after:
        sequence.add(loss)
        again.add(loss)
    assert again.save() == sequence.save()
    assert (again.count, again.mean, again.upper(), again.lower()) == (
        sequence.count,
        sequence.mean,
        sequence.upper(),
        sequence.lower(),
    )


def test_its_state_stays_small():
    rng = random.Random(1)
    sequence = sequence_of([rng.gauss(0, 0.01) for _ in range(5000)])
    assert len(sequence.save()) < 3000


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 4), (1, 9.0), (2, {"0": 2}), (2, {"2000": 3}), (3, {"0": 4, "1": -1}), (3, {}), (0, "x")],
)
def test_other_data_is_refused(place, value):
    state = json.loads(sequence_of([0.0, 1.0, -0.5]).save())
    state[place] = value
    with pytest.raises(ValueError, match="not a saved confidence sequence"):
        ConfidenceSequence.load(json.dumps(state).encode())


@pytest.mark.parametrize("loss", [1.01, -2.0, float("nan"), float("inf")])
def test_losses_out_of_range_are_refused(loss):
    with pytest.raises(ValueError, match="from -1 to 1"):
        ConfidenceSequence().add(loss)
    with pytest.raises(ValueError, match="from -1 to 1"):
        Wager(0.05).add(loss)
    with pytest.raises(ValueError, match="between -1 and 1"):
        Wager(1.0)
