"""Reuse at a fixed cosine: what it reuses and how many of the reused answers it has audited."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.semantic.fixed import Fixed
from trimtab.semantic.promise import Terms

NEAR, FAR = np.array([0.9]), np.array([0.7])


def audits(rule: Fixed, hits: int) -> list[bool]:
    return [rule.rule(NEAR).audit for _ in range(hits)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_as_many_hits_are_audited_as_were_asked_for_however_few_there_are(share: float, seed: int) -> None:
    rule = Fixed(Terms(0.02, audit=share, seed=seed), 0.85)
    asked = np.cumsum(audits(rule, 1000))
    wanted = share * np.arange(1, 1001)
    assert np.all(np.abs(asked - wanted) <= 1.0 + 1e-9)


def test_which_hit_is_audited_cannot_be_foreseen() -> None:
    places = np.flatnonzero(audits(Fixed(Terms(0.02, audit=0.05), 0.85), 2000)) % 20
    assert len(set(places)) > 15


def test_a_restart_does_not_begin_the_audits_anew() -> None:
    terms = Terms(0.02, audit=0.05)
    straight, stopped = Fixed(terms, 0.85), Fixed(terms, 0.85)
    expected, got = audits(straight, 200), []
    for _ in range(20):
        got += audits(stopped, 10)
        again = Fixed(terms, 0.85)
        again.restore(stopped.save())
        stopped = again
    assert got == expected


def test_only_hits_are_audited() -> None:
    rule = Fixed(Terms(0.02, audit=1.0), 0.85)
    rulings = [rule.rule(values) for values in (FAR, None, NEAR)]
    assert [(ruling.hit, ruling.audit) for ruling in rulings] == [(False, False), (False, False), (True, True)]
