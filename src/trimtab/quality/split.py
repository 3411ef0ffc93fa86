"""Two arms of a split of traffic: did the split come out as asked, and a mean score with an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from trimtab.quality.sequential import ConfidenceSequence

MISMATCH_P: Final = 0.001
"""Below it the arms' sizes do not fit the share: something puts units into arms, or loses them, by more than chance."""

_LEAST_EXPECTED: Final = 5.0  # in either arm, for the approximation to hold


def sample_ratio_p(in_a: int, in_b: int, share: float) -> float | None:
    """How likely arms as uneven as these are if each unit goes to B with a chance of `share`; None of too few units.

    Pearson's chi-square test with one degree of freedom. Units, not requests: a unit's requests are no draws of their
    own.
    """
    units = in_a + in_b
    expected_a, expected_b = units * (1 - share), units * share
    if (share in (0.0, 1.0) and units) and (in_b if share == 0.0 else in_a):
        return 0.0
    if min(expected_a, expected_b) < _LEAST_EXPECTED:
        return None
    chi_square = (in_a - expected_a) ** 2 / expected_a + (in_b - expected_b) ** 2 / expected_b
    return math.erfc(math.sqrt(chi_square / 2))


def mean_score(scores: Iterable[float]) -> tuple[int, float, float, float] | None:
    """Of scores from 0 to 1: how many, their mean, and between which bounds the true one is, at any time, with 95%."""
    sequence = ConfidenceSequence()
    for score in scores:
        sequence.add(2 * score - 1)
    if not sequence.count:
        return None
    lower, upper = sequence.lower(0.025), sequence.upper(0.025)
    return sequence.count, (sequence.mean + 1) / 2, (lower + 1) / 2, (upper + 1) / 2
