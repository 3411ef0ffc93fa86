"""The bound of a paired loss: exact where that is known, honest about ties, and monotone."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import BadRequest
from trimtab.quality.paired import Item, counted, lower_bound, mean_loss, p_value, upper_bound

LOSSES = st.lists(st.integers(-4, 4).map(lambda quarter: quarter / 4), min_size=1, max_size=60)
MARGIN = 0.05


def binomial_at_most(count, size, share):
    return sum(math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(count + 1))


def trinomial(worse, better, size):
    pairs = {(1.0, 1.0): worse, (-1.0, 1.0): better, (0.0, 1.0): size - worse - better}
    return {key: count for key, count in pairs.items() if count}


@pytest.mark.parametrize(("size", "lost"), [(1, 0), (5, 2), (30, 0), (30, 1), (59, 0), (200, 17), (3000, 1)])
@pytest.mark.parametrize("alpha", [0.05, 0.005, 0.2])
def test_losses_of_two_values_have_the_exact_bound(size, lost, alpha):
    bound = upper_bound(trinomial(lost, 0, size), alpha)
    assert binomial_at_most(lost, size, bound) == pytest.approx(alpha, rel=1e-7)


def test_ties_do_not_prove_equality():
    assert upper_bound(trinomial(0, 0, 30)) == pytest.approx(1 - 0.05 ** (1 / 30), abs=1e-8)
    assert upper_bound(trinomial(0, 0, 58)) > MARGIN >= upper_bound(trinomial(0, 0, 59))


def test_all_lost_and_nothing_seen():
    assert upper_bound({}) == upper_bound(trinomial(7, 0, 7)) == 1.0
    assert lower_bound({}) == lower_bound(trinomial(0, 7, 7)) == -1.0


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_quantile_of_the_mean_under_random_weights(weighted):
    rng = random.Random(3)
    losses = [rng.choice([-1.0, -0.3, 0.0, 0.0, 0.2, 1.0]) for _ in range(25)]
    weights = [rng.choice([0.2, 1.0, 3.0]) if weighted else 1.0 for _ in losses]
    bound = upper_bound(counted(losses, weights), 0.1)
    above = 0
    for _ in range(20_000):
        drawn = [(rng.expovariate(1) * weight, loss) for loss, weight in zip(losses, weights, strict=True)]
        drawn.append((rng.expovariate(1) * max(weights), 1.0))
        above += sum(weight * (loss - bound) for weight, loss in drawn) > 0
    assert above / 20_000 == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("size", [20, 59, 93])
def test_binary_pairs_at_the_margin_never_pass_more_often_than_promised(size):
    passing = [
        (worse, better)
        for better in range(size + 1)
        for worse in range(size - better + 1)
        if worse <= better + 2 and p_value(trinomial(worse, better, size), MARGIN) <= 0.05
    ]
    for gains in (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.45, 0.475):
        losses = gains + MARGIN
        chance = sum(
            math.comb(size, worse)
            * math.comb(size - worse, better)
            * losses**worse
            * gains**better
            * max(1 - losses - gains, 0.0) ** (size - worse - better)
            for worse, better in passing
        )
        assert chance <= 0.05 + 1e-6


def test_it_is_nearly_as_narrow_as_a_t_interval():
    counts = trinomial(60, 50, 1000)
    deviation = math.sqrt(0.11 - 0.01**2)
    assert upper_bound(counts) == pytest.approx(0.01 + 1.645 * deviation / math.sqrt(1000), abs=0.0015)


@given(LOSSES)
def test_the_bounds_enclose_the_mean_and_mirror_each_other(losses):
    counts, turned = counted(losses), counted(-loss for loss in losses)
    low, high = lower_bound(counts), upper_bound(counts)
    assert -1 <= low <= mean_loss(counts) <= high <= 1
    assert lower_bound(turned) == pytest.approx(-high, abs=1e-8)
    assert upper_bound(counts, 0.01) >= high - 1e-8


@given(LOSSES, st.data())
def test_a_worse_item_raises_the_bound(losses, data):
    place = data.draw(st.integers(0, len(losses) - 1))
    worse = [*losses]
    worse[place] = data.draw(st.integers(int(losses[place] * 4), 4)) / 4
    assert upper_bound(counted(worse)) >= upper_bound(counted(losses)) - 1e-8
    assert lower_bound(counted(worse)) >= lower_bound(counted(losses)) - 1e-8


@given(LOSSES)
def test_twice_the_same_data_narrows(losses):
    counts, twice = counted(losses), counted(losses * 2)
    assert upper_bound(twice) <= upper_bound(counts) + 1e-8
    assert lower_bound(twice) >= lower_bound(counts) - 1e-8


@given(LOSSES, st.floats(0.1, 5))
def test_only_the_ratio_of_weights_counts(losses, weight):
    bound = upper_bound(counted(losses))
    assert upper_bound(counted(losses, [weight] * len(losses))) == pytest.approx(bound, abs=1e-7)


@settings(max_examples=50)
@given(LOSSES, st.floats(-0.5, 0.9), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_p_value_agrees_with_the_bound(losses, limit, alpha):
    counts = counted(losses)
    bound = upper_bound(counts, alpha)
    if abs(bound - limit) > 1e-6:
        assert (p_value(counts, limit) <= alpha) == (bound <= limit)


def test_repeats_are_averaged_within_their_item():
    item = Item((1.0, 1.0, 0.0, 1.0), (0.0, 0.5))
    assert item.reference_score == 0.75
    assert item.loss == 0.5
    alone = upper_bound(counted([item.loss] * 20))
    assert alone > upper_bound(counted([item.loss] * 40))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (((), (1.0,)), "without a score of the reference"),
        (((1.0,), ()), "without a score of the candidate"),
        (((1.2,), (1.0,)), "not from 0 to 1"),
        (((1.0,), (float("nan"),)), "not from 0 to 1"),
        (((1.0,), (1.0,), 0.0), "above 0"),
        (((1.0,), (1.0,), float("inf")), "above 0"),
    ],
)
def test_bad_items_are_refused(fields, says):
    with pytest.raises(BadRequest, match=says):
        Item(*fields)


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="from -1 to 1"):
        counted([1.5])
    with pytest.raises(ValueError, match="2 losses and 1 weights"):
        counted([0.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="at most"):
        upper_bound(trinomial(1, 1, 5), 0.5)
    with pytest.raises(ValueError, match="no items"):
        mean_loss({})
