"""RouteLLM's protocol: how much of the strong model's lead a router keeps for how many of its calls, with intervals.

A router is a score per prompt; the higher, the sooner the strong model is called. Its curve runs over all thresholds: x
is the strong model's share of calls, PGR (performance gap recovered) is 0 at the weak model's mean score and 1 at the
strong one's. Among equal scores the order is random, so the curve is a straight line there.
Source: Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data" (2024), section 3.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 1000
_TAIL = 2.5  # percent on either side of a 95% interval
_CHUNK = 1_000_000  # numbers in a block of resamples, so that memory stays small


class Truth(msgspec.Struct, frozen=True):
    """What happened, arrays of one number a prompt: scores (0 to 1), and money in any one unit (NaN: unpriced).

    `served` is the score of what a request gets that does not end at the strong model: the weak model's, or in a
    cascade with two cheap models that of the answer it prefers. `if_weak` is what such a request costs, `if_strong`
    what one costs that ends at the strong model, every attempt counted; `always_strong` is the strong model's call
    alone.
    """

    weak: Any
    strong: Any
    served: Any
    if_weak: Any
    if_strong: Any
    always_strong: Any

    def take(self, rows: Any) -> Truth:
        """Only these prompts, in this order."""
        return Truth(*(getattr(self, name)[rows] for name in self.__struct_fields__))


class Figures(msgspec.Struct, frozen=True):
    """A router's figures, with 95% intervals. None: undefined, never reached, or not priced.

    `cpt50` and `cpt80` are shares of calls in percent, as published. `saved_at_95` is the most that any threshold
    saves, of the cost of always calling the strong model, with a mean score of at least 95% of the strong model's; it
    is the best threshold in hindsight, and negative where routing costs more than it saves.
    """

    name: str
    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    saved_at_95: float | None
    saved_at_99: float | None
    apgr_low: float | None
    apgr_high: float | None
    saved_at_95_low: float | None
    saved_at_95_high: float | None
    saved_at_99_low: float | None
    saved_at_99_high: float | None


class Points(msgspec.Struct, frozen=True):
    """Curves at each threshold, arrays of shape (draws, thresholds): from no strong call at all to every one."""

    share: Any
    pgr: Any
    kept: Any
    saved: Any


class Curve:
    """One router's curve over prompts, to be drawn again for each resample."""

    def __init__(self, scores: Floats, truth: Truth) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        # Only where a run of equal scores ends is the curve more than a mean over orders.
        self._ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        self._truth = truth.take(self.order)

    def points(self, counts: Floats) -> Points:
        """The curve when each prompt counts so often; `counts` is (draws, prompts), in the prompts' own order."""
        truth, weight = self._truth, counts[:, self.order]
        strong, weak, served = ((weight @ one)[:, None] for one in (truth.strong, truth.weak, truth.served))
        reached = served + self._sums(weight * (truth.strong - truth.served))
        with np.errstate(divide="ignore", invalid="ignore"):
            pgr = np.where(strong > weak, (reached - weak) / (strong - weak), np.nan)
            kept = reached / strong
            cost = (weight @ truth.if_weak)[:, None] + self._sums(weight * (truth.if_strong - truth.if_weak))
            saved = 1 - cost / (weight @ truth.always_strong)[:, None]
        return Points(self._sums(weight) / weight.sum(axis=1, keepdims=True), pgr, kept, saved)

    def _sums(self, values: Floats) -> Floats:
        sums = np.cumsum(values, axis=1)[:, self._ends]
        return np.concatenate((np.zeros((len(values), 1)), sums), axis=1)


def figures(name: str, scores: Floats, truth: Truth, *, draws: int = DRAWS, seed: int = 0) -> Figures:
    """A router's figures; the intervals are percentiles over resampled prompts."""
    curve = Curve(scores, truth)
    point = _summary(curve.points(np.ones((1, len(scores)))))
    drawn = [_summary(curve.points(counts)) for counts in resamples(len(scores), draws, seed)]
    return _figures(name, point[:, 0], np.concatenate(drawn, axis=1))


def random_figures(truth: Truth, *, draws: int = 200, seed: int = 0) -> Figures:
    """A router that tosses coins: what it gets on average, and the interval over its luck on these very prompts."""
    count = len(truth.weak)
    rng = np.random.default_rng(seed)
    ones = np.ones((1, count))
    drawn = [_summary(Curve(rng.random(count), truth).points(ones)) for _ in range(draws)]
    return _figures("random", _summary(Curve(np.zeros(count), truth).points(ones))[:, 0], np.concatenate(drawn, axis=1))


def paired(
    one: Floats, other: Floats, truth: Truth, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """APGR of `one` minus that of `other` on the same resampled prompts: the difference, and its 95% interval."""
    first, second = Curve(one, truth), Curve(other, truth)

    def gap(counts: Floats) -> Floats:
        return area(first.points(counts)) - area(second.points(counts))

    drawn = np.concatenate([gap(counts) for counts in resamples(len(one), draws, seed)])
    low, high = _interval(drawn)
    return float(gap(np.ones((1, len(one))))[0]), low, high


def mean_interval(
    values: Floats, over: Floats | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of `values`, or the ratio of its sum to that of `over`, with its 95% interval over resamples."""
    below = np.ones(len(values)) if over is None else over
    drawn = np.concatenate([counts @ values / (counts @ below) for counts in resamples(len(values), draws, seed)])
    low, high = _interval(drawn)
    return float(values.sum() / below.sum()), low, high


def resamples(count: int, draws: int, seed: int) -> list[Floats]:
    """How often each of `count` prompts is in each of `draws` resamples, in blocks of shape (some, count)."""
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // max(count, 1))
    even = np.full(count, 1 / count)
    return [
        rng.multinomial(count, even, size=min(block, draws - done)).astype(np.float64)
        for done in range(0, draws, block)
    ]  # fmt: skip


def area(points: Points) -> Floats:
    """APGR: the area under PGR over the strong model's share, shape (draws,); NaN without a lead."""
    found: Floats = (np.diff(points.share, axis=1) * (points.pgr[:, 1:] + points.pgr[:, :-1]) / 2).sum(axis=1)
    return found


def _summary(points: Points) -> Floats:
    """APGR, CPT50, CPT80, saved at 95%, saved at 99%: shape (5, draws)."""
    return np.stack(
        (
            area(points),
            100 * _first(points.pgr, points.share, 0.5),
            100 * _first(points.pgr, points.share, 0.8),
            _most_saved(points, 0.95),
            _most_saved(points, 0.99),
        )
    )


def _first(heights: Floats, places: Floats, level: float) -> Floats:
    """Where a curve first reaches `level`, on straight lines between its points; NaN where it never does."""
    reached = heights >= level
    at = np.argmax(reached, axis=1)
    rows = np.arange(len(heights))
    before = np.maximum(at - 1, 0)
    low, high = heights[rows, before], heights[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high > low, (level - low) / (high - low), 0.0)
    found = places[rows, before] + part * (places[rows, at] - places[rows, before])
    return np.where(reached.any(axis=1), found, np.nan)


def _most_saved(points: Points, floor: float) -> Floats:
    """The greatest saving on the curve where at least `floor` of the quality is kept; NaN where none does."""
    kept, saved = points.kept, points.saved
    low, high = kept[:, :-1], kept[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((floor - low) / (high - low), 0, 1)
    crosses = (low < floor) != (high < floor)
    between = np.where(crosses, saved[:, :-1] + part * np.diff(saved, axis=1), -np.inf)
    at_points = np.where(kept >= floor, saved, -np.inf)
    best = np.maximum(between.max(axis=1, initial=-np.inf), at_points.max(axis=1))
    return np.where(np.isfinite(best), best, np.nan)


def _figures(name: str, point: Floats, drawn: Floats) -> Figures:
    apgr, at_95, at_99 = (_interval(drawn[row]) for row in (0, 3, 4))
    return Figures(name, *(_known(value) for value in (*point, *apgr, *at_95, *at_99)))


def _interval(drawn: Floats) -> tuple[float, float]:
    real = drawn[np.isfinite(drawn)]
    if not len(real):
        return float("nan"), float("nan")
    low, high = np.percentile(real, (_TAIL, 100 - _TAIL))
    return float(low), float(high)


def _known(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
