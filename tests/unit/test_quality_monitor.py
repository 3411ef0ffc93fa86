"""A lever that turns bad goes off soon, an equal one stays on, and a restart changes nothing."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.quality.monitor import Monitor, MonitorTerms


def losses(rng, size, wrong, noise=0.0):
    share = wrong + (1 - wrong) * noise
    return rng.choices([1.0, -1.0, 0.0], [share, (1 - wrong) * noise, 1 - share - (1 - wrong) * noise], k=size)


def off_after(stream):
    monitor = Monitor()
    for place, loss in enumerate(stream, 1):
        if not monitor.add(loss):
            return place
    return None


@pytest.mark.parametrize("good", [0, 200, 1000])
def test_a_lever_that_turns_bad_goes_off(good):
    found = []
    for seed in range(40):
        rng = random.Random(seed)
        found.append((off_after(losses(rng, good, 0.0) + losses(rng, 600, 0.2)) or 10**6) - good)
    assert min(found) > 0
    assert sorted(found)[20] <= 60
    assert sorted(found)[37] <= 120


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.45])
def test_an_equal_lever_stays_on(noise):
    off = sum(off_after(losses(random.Random(seed), 1000, 0.0, noise)) is not None for seed in range(40))
    assert off <= 6  # of 40 at 5% each: more come once in 300 times


def test_one_bad_pair_is_no_reason():
    assert off_after([1.0, 1.0, 1.0]) is None
    assert off_after([1.0] * 30) is not None


def test_gains_do_not_switch_off():
    assert off_after([-1.0] * 3000) is None


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), max_size=60), st.lists(st.floats(-0.2, 1), max_size=60))
def test_a_saved_monitor_goes_on_as_if_nothing_had_happened(before, after):
    monitor = Monitor(MonitorTerms(margin=0.1, horizon_pairs=50))
    for loss in before:
        monitor.add(loss)
    again = Monitor.load(monitor.save())
    assert again.terms == monitor.terms
    for loss in after:
        assert monitor.add(loss) == again.add(loss)
    assert again.save() == monitor.save()
    assert again.report() == monitor.report()


def test_what_it_reports():
    monitor = Monitor()
    assert monitor.report().reason == "no evidence yet that it is worse than the margin of 0.05"
    rng = random.Random(4)
    for loss in losses(rng, 500, 0.0, 0.01):
        monitor.add(loss)
    report = monitor.report()
    assert report.on
    assert report.interval[0] < report.loss < report.interval[1] <= 0.05
    assert report.reason == "within the margin of 0.05"
    assert 0 <= report.evidence < 1
    while monitor.add(rng.choice([1.0, 0.0])):
        pass
    report = monitor.report()
    assert not report.on
    assert report.evidence == 1.0
    assert report.recent_loss > 0.2
    assert 5 <= report.recent_pairs <= 60
    assert report.reason.startswith("worse than the margin of 0.05: 0.")
    for _ in range(100):
        assert not monitor.add(-1.0)  # off is off
    assert monitor.report().recent_pairs == report.recent_pairs
    assert monitor.report().pairs == report.pairs + 100


def test_a_wider_margin_lets_more_pass():
    rng = random.Random(8)
    stream = losses(rng, 400, 0.12)
    strict, lenient = Monitor(), Monitor(MonitorTerms(margin=0.2))
    for loss in stream:
        strict.add(loss)
        lenient.add(loss)
    assert not strict.on
    assert lenient.on


def test_other_data_is_refused():
    monitor = Monitor()
    monitor.add(1.0)
    state = json.loads(monitor.save())
    for place, value in (
        (2, [[1.0], [1.0, 1.0]]),
        (2, [[1.0, -1.0], [1.0, 1.0]]),
        (0, {"margin": 2.0}),
        (4, [1, 5, {}, {}]),
    ):
        changed = [*state]
        changed[place] = value
        with pytest.raises(ValueError, match="not a saved"):
            Monitor.load(json.dumps(changed).encode())
    with pytest.raises(ValueError, match="from -1 to 1"):
        monitor.add(2.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        MonitorTerms(margin=0.0)
