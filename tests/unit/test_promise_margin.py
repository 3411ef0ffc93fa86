"""How careful the promise is: on unkind evidence, on few labels, and when audits find nothing."""

from __future__ import annotations

import numpy as np

from trimtab.semantic.promise import Promise, Terms


def bent(seed, requests=1500):
    """Evidence, and whether a hit would be wrong: whose chance does not fall among the surest cases as a line would."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0.0, 1.0, requests)
    odds = -(2.0 + 1.5 * score - 0.3 * (score**2 - 1))
    values = rng.normal(0.0, 1.0, (requests, 12))
    values[:, :3] = score[:, None] + rng.normal(0.0, 0.5, (requests, 3))
    return values, rng.random(requests) < 1 / (1 + np.exp(-odds))


def played(promise, seed):
    hits = wrong_hits = 0
    for values, wrong in zip(*bent(seed), strict=True):
        ruling = promise.rule(values)
        if ruling.hit:
            hits, wrong_hits = hits + 1, wrong_hits + int(wrong)
        if not ruling.hit or ruling.audit:
            promise.label(values, ruling, bool(wrong))
    return hits, wrong_hits


def test_it_is_seldom_broken_where_the_model_cannot_bend():
    found = [played(Promise(Terms(0.10, seed=seed)), seed) for seed in range(10)]
    assert sum(wrong > 0.10 * hits for hits, wrong in found) <= 2


def test_audits_that_find_nothing_do_not_lower_the_estimate():
    promise = Promise(Terms(0.10, audit=1.0))
    rng = np.random.default_rng(0)
    expected = 0.0
    while promise.hits < 200:
        strength = rng.normal(1.5, 2.0)
        values = np.array([strength, rng.normal()])
        ruling = promise.rule(values)
        expected += ruling.p_wrong * ruling.hit
        wrong = not ruling.hit and bool(rng.random() < 1 / (1 + np.exp(strength)))
        promise.label(values, ruling, wrong)
        assert promise.wrong_estimate >= expected - 1e-9
    assert promise.audits == promise.hits
    assert promise.audited_wrong == 0
    assert expected > 0
