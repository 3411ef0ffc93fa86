"""Percentiles with bootstrap intervals, and whether two runs really differ."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec

from trimtab.sketch import QUANTILES

_COMPARED = ("avg", "p50", "p95", "p99")
_DRAWS = 2000
_TAIL = 0.025  # on either side of a 95% interval
_FEWEST = 5  # values on the thinner side of a percentile, below which a resample says nothing about it


class Summary(msgspec.Struct, frozen=True):
    """A metric over requests, in `unit`; the statistics are named as aiperf names them.

    `ci95` holds 95% bootstrap intervals by statistic, [low, high]. A percentile has one if five values lie beyond it
    (p95: 100 values); metrics whose values depend on each other have none.
    """

    unit: str
    count: int
    avg: float
    min: float
    max: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    ci95: dict[str, tuple[float, float]] = {}


class Difference(msgspec.Struct, frozen=True):
    """B minus A for one statistic, with its 95% interval. `real` says that the interval leaves out zero."""

    metric: str
    statistic: str
    unit: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    real: bool


def quantile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile (0 to 1) by linear interpolation between the nearest ranks; None of nothing.

    Source: Hyndman and Fan, "Sample quantiles in statistical packages" (1996), definition 7.
    """
    return _between(sorted(values), q) if values else None


def _between(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(values: Sequence[float], unit: str, *, intervals: bool = True, seed: int = 0) -> Summary | None:
    """The statistics of a metric; None of no values. `intervals` takes the values to be independent."""
    if not values:
        return None
    ordered = sorted(values)
    count = len(ordered)
    mean = math.fsum(ordered) / count
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / count)
    cuts = {name: _between(ordered, q) for name, q in QUANTILES.items()}
    ci95: dict[str, tuple[float, float]] = {}
    if intervals:
        rng = random.Random(seed)
        for statistic in _known(count):
            draws = sorted(_bootstrap(ordered, statistic, mean, spread, rng))
            ci95[statistic] = (_between(draws, _TAIL), _between(draws, 1 - _TAIL))
    return Summary(unit, count, mean, ordered[0], ordered[-1], spread, **cuts, ci95=ci95)


def differences(
    metric: str, a: Sequence[float], b: Sequence[float], unit: str, *, statistics: Sequence[str] = (), seed: int = 0
) -> list[Difference]:
    """How B differs from A, statistic by statistic, as far as both sides have enough values."""
    first, second = (summarise(values, unit, intervals=False) for values in (a, b))
    if first is None or second is None:
        return []
    known = _known(min(len(a), len(b)))
    rng = random.Random(seed)
    sides = [(sorted(values), side) for values, side in ((a, first), (b, second))]
    found = []
    for statistic in statistics or _COMPARED:
        if statistic not in known:
            continue
        draws_a, draws_b = (_bootstrap(ordered, statistic, side.avg, side.std, rng) for ordered, side in sides)
        gaps = sorted(y - x for x, y in zip(draws_a, draws_b, strict=True))
        low, high = _between(gaps, _TAIL), _between(gaps, 1 - _TAIL)
        was, now = getattr(first, statistic), getattr(second, statistic)
        found.append(Difference(metric, statistic, unit, was, now, now - was, low, high, low > 0 or high < 0))
    return found


def _bootstrap(ordered: Sequence[float], statistic: str, mean: float, spread: float, rng: random.Random) -> list[float]:
    """Draws of a statistic of resamples, without making resamples.

    The k-th smallest of a resample of n is x[ceil(n B)] with B of the law Beta(k, n - k + 1): the exact bootstrap of an
    order statistic. The interpolated quantile takes the nearer rank. A mean's is normal for all but tiny samples.
    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); David and Nagaraja, "Order statistics".
    """
    count = len(ordered)
    if statistic == "avg":
        error = spread / math.sqrt(count)
        return [rng.gauss(mean, error) for _ in range(_DRAWS)]
    place = QUANTILES[statistic] * (count - 1)
    below = math.floor(place)
    share = place - below
    draws = []
    for _ in range(_DRAWS):
        rank = below + (1 if rng.random() < share else 0)
        at = rng.betavariate(rank + 1, count - rank)
        draws.append(ordered[min(count - 1, int(at * count))])
    return draws


def _known(count: int) -> list[str]:
    """The statistics that so many values allow an interval for."""
    if count < _FEWEST:
        return []
    return ["avg", *(name for name, q in QUANTILES.items() if count * (1 - q) >= _FEWEST - 1e-9)]
