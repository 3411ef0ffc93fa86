"""How much worse a candidate may be than its reference: a bound on the mean of paired losses, for a fixed sample.

The loss of an item is its reference's score minus its candidate's, -1 to 1. The bound is Gaffke's: the quantile of the
losses' mean under random weights from a flat Dirichlet distribution, with one more item that lost everything. For
losses of two values it is the exact Clopper-Pearson bound: 0.095 after 30 ties, below 0.05 after 59. No bound that
holds can say less: of 59 items, each lost with a chance of 0.05, none is lost in 5% of the samples. With many items it
is as narrow as a t interval. That it holds for all bounded losses is proven in special cases only. No counter-example
is known, and `bench/gate.py` finds none: for binary pairs it adds up the chances of all outcomes.

Source: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
Mathematical Methods of Statistics (2005); Learned-Miller and Thomas, "A new confidence interval for the mean of a
bounded random variable", arXiv 1905.06208 (2019).
"""

from __future__ import annotations

import cmath
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from trimtab.errors import BadRequest

_STEP: Final = 0.15  # of the integral, whose error falls exponentially: below 1e-10 with this
_BEND: Final = 0.5  # of its curve: upright it would swing where a few losses stand against thousands of ties
_LAST_TERM: Final = 1e-13  # of the integral, against its sum
_PRECISION: Final = 1e-9  # of a bound

Counts = dict[tuple[float, float], float]  # how many items have this (loss, weight); fractions are for extrapolation


class Item(msgspec.Struct, frozen=True):
    """What both sides scored on one item, each 0 to 1; several values are repeats, which are averaged first."""

    reference: tuple[float, ...]
    candidate: tuple[float, ...]
    weight: float = 1.0

    @property
    def reference_score(self) -> float:
        """The reference's mean over its repeats."""
        return math.fsum(self.reference) / len(self.reference)

    @property
    def loss(self) -> float:
        """By how much the candidate was worse, -1 to 1. Its repeats count as one: they are not independent."""
        return self.reference_score - math.fsum(self.candidate) / len(self.candidate)

    def __post_init__(self) -> None:
        for name, scores in (("reference", self.reference), ("candidate", self.candidate)):
            if not scores:
                raise BadRequest(f"an item without a score of the {name}: leave it out of both sides", param=name)
            if not all(0.0 <= score <= 1.0 for score in scores):
                raise BadRequest(f"a score of the {name} is not from 0 to 1: {scores}", param=name)
        if not 0.0 < self.weight < math.inf:
            raise BadRequest(f"an item's weight has to be above 0: {self.weight}", param="weight")


def counted(losses: Iterable[float], weights: Iterable[float] | None = None) -> Counts:
    """Losses (-1 to 1) and their weights (1 if not given), grouped for `upper_bound` and its like."""
    values = list(losses)
    each = [1.0] * len(values) if weights is None else list(weights)
    if len(each) != len(values):
        raise ValueError(f"{len(values)} losses and {len(each)} weights")
    counts = Counter(zip(values, each, strict=True))
    if not all(-1.0 <= loss <= 1.0 and 0.0 < weight < math.inf for loss, weight in counts):
        raise ValueError("a loss is not from -1 to 1, or a weight not above 0")
    return dict(counts)


def mean_loss(counts: Counts) -> float:
    """The weighted mean, -1 to 1. Raises ValueError of nothing."""
    if not counts:
        raise ValueError("no items")
    total = math.fsum(weight * count for (_, weight), count in counts.items())
    return math.fsum(loss * weight * count for (loss, weight), count in counts.items()) / total


def upper_bound(counts: Counts, alpha: float = 0.05) -> float:
    """What the true mean loss exceeds with a chance of `alpha` at most; 1.0 of nothing. `alpha` is 0.3 at most.

    Weights are those of the suite: they are fixed with its items, not drawn with them.
    """
    if not 0.0 < alpha <= 0.3:
        raise ValueError(f"alpha has to be above 0 and at most 0.3, not {alpha}")
    terms = _terms(counts)
    low, spread = _centre(terms)
    # In theta the chance falls about as a normal one does, so the root of its logarithm is nearly a line.
    wanted = math.sqrt(-2 * math.log(alpha))
    high, last, last_root = 1.0, low, 0.8
    guess = low + 1.7 * spread
    while high - low > _PRECISION:
        if not low < guess < high:
            guess = (low + high) / 2
        root = math.sqrt(-2 * math.log(_chance_above(terms, guess)))
        low, high = (guess, high) if root < wanted else (low, guess)
        if abs(guess - last) <= _PRECISION:
            return guess
        slope = (root - last_root) / (guess - last)
        last, last_root = guess, root
        guess = guess + (wanted - root) / slope if slope > 0 else (low + high) / 2
    return high


def lower_bound(counts: Counts, alpha: float = 0.05) -> float:
    """What the true mean loss stays below with a chance of `alpha` at most; -1.0 of nothing."""
    return -upper_bound({(-loss, weight): count for (loss, weight), count in counts.items()}, alpha)


def p_value(counts: Counts, limit: float) -> float:
    """Of the claim that the true mean loss is `limit` or more; at most alpha where `upper_bound` is at most `limit`.

    It costs a fifth of the bound. Values above 0.3 say no more than that.
    """
    terms = _terms(counts)
    if limit <= _centre(terms)[0]:
        return 1.0
    return 0.0 if limit >= 1.0 else _chance_above(terms, limit)


def _terms(counts: Counts) -> list[tuple[float, float, float]]:
    """(Loss, weight, count), with one more item of the heaviest weight that lost everything."""
    heaviest = max((weight for _, weight in counts), default=1.0)
    terms = [(loss, weight / heaviest, count) for (loss, weight), count in counts.items()]
    return [*terms, (1.0, 1.0, 1.0)]


def _centre(terms: list[tuple[float, float, float]]) -> tuple[float, float]:
    """The terms' mean loss and about its standard error."""
    total = math.fsum(weight * count for _, weight, count in terms)
    mean = math.fsum(loss * weight * count for loss, weight, count in terms) / total
    return mean, math.sqrt(math.fsum((weight * (loss - mean)) ** 2 * count for loss, weight, count in terms)) / total


def _chance_above(terms: list[tuple[float, float, float]], theta: float) -> float:
    """P(mean > theta) of losses under random weights; terms are (loss, weight, count), a count being a Gamma's shape.

    The mean is above theta where a sum of Gamma variables times weight * (loss - theta) is above 0. That chance is an
    integral of the sum's moment generating function along a curve through its saddle point that bends away from 0.
    """
    factors = [(weight * (loss - theta), count) for loss, weight, count in terms if loss != theta]
    pole = 1 / max(factor for factor, _ in factors)
    saddle, width = _saddle(factors, pole)
    total = 0.0
    u = _STEP / 2
    while True:
        s = complex(saddle + width * _BEND * (math.cosh(u) - 1), width * math.sinh(u))
        along = complex(_BEND * math.sinh(u), math.cosh(u))
        exponent = -sum([count * cmath.log(1 - s * factor) for factor, count in factors])
        term = cmath.exp(exponent) / s * along
        total += term.imag
        if abs(term) <= _LAST_TERM * abs(total) or u > 40:
            return min(max(total * _STEP * width / math.pi, 1e-300), 1.0)
        u += _STEP


def _saddle(factors: Sequence[tuple[float, float]], pole: float) -> tuple[float, float]:
    """Where the generating function is least between 0 and its pole, roughly, and its width across."""
    low, high = 0.0, pole
    at = pole / 2
    for _ in range(60):
        slope = curve = 0.0
        for factor, count in factors:
            part = factor / (1 - at * factor)
            slope += count * part
            curve += count * part * part
        low, high = (at, high) if slope < 0 else (low, at)
        step = slope / curve
        if step * step * curve < 1e-4:  # any curve near it gives the same integral
            break
        at = at - step if low < at - step < high else (low + high) / 2
    width = 1 / math.sqrt(curve)
    return max(at, min(width / 2, pole / 2)), width
