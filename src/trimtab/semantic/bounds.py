"""Exact limits on shares and counts, without SciPy."""

from __future__ import annotations

import math


def share_upper(wrong: int, of: int, confidence: float = 0.95) -> float:
    """One-sided upper Clopper-Pearson limit of a share after `wrong` of `of`; 1.0 of nothing.

    Source: Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial",
    Biometrika (1934).
    """
    if of <= 0 or wrong >= of:
        return 1.0
    low, high = wrong / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_at_most(wrong, of, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def binomial_at_most(count: int, of: int, share: float) -> float:
    """P(X <= count) for X ~ Binomial(of, share)."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(count >= of)
    log_p, log_q = math.log(share), math.log1p(-share)
    total = 0.0
    for k in range(count + 1):
        log_term = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * log_p + (of - k) * log_q
        total += math.exp(log_term)
    return min(total, 1.0)


def poisson_at_least(count: int, mean: float) -> float:
    """P(X >= count) for X ~ Poisson(mean)."""
    if count <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    below = sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count))
    return max(0.0, 1.0 - below)
