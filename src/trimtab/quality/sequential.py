"""Bounds on a mean loss that all hold at once, however often one looks and whenever one stops: betting.

A bettor who starts with 1 and bets at fair odds against a true claim has a chance of `alpha` at most of ever owning
1 / alpha. Against "the mean loss is `limit` or more" each of `_BETS` stakes a share of what may be staked; the evidence
is what all own together. It depends only on how many losses of which size there were, not on their order. The bound
lies between the limits that are refuted and the others. Losses are rounded outwards to thousandths, so that the state
stays small.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
Statistical Society B (2024); the stakes are a mixture, as in Robbins, "Statistical methods related to the law of the
iterated logarithm" (1970).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

# Share of the largest stake, and what it starts with. Chosen by simulation at a margin of 0.05: the large ones decide
# where both sides mostly agree (84 ties are enough), the small ones where they differ in a fifth of the items.
_BETS: Final = ((0.99, 0.25), (0.396, 0.25), (0.158, 0.25), (0.063, 0.125), (0.025, 0.125))
_GRID: Final = 1000
_PRECISION: Final = 1e-7


class _State(msgspec.Struct, array_like=True):
    count: int
    total: float
    above: dict[int, int]  # losses in thousandths, rounded up
    below: dict[int, int]


class Wager:
    """Evidence against "the mean loss is `limit` or more", updated item by item."""

    def __init__(self, limit: float) -> None:
        if not -1.0 < limit < 1.0:
            raise ValueError(f"a limit has to lie between -1 and 1, not at {limit}")
        self._limit = limit
        self._logs = [math.log(start) for _, start in _BETS]
        self._steps: dict[int, list[float]] = {}  # by the loss in thousandths: what it adds to each of the logarithms

    def add(self, loss: float) -> None:
        """Bet on the next item's loss, -1 to 1, rounded up. Raises ValueError."""
        above = _outward(loss)[1]
        steps = self._steps.get(above)
        if steps is None:
            odds = (self._limit - above / _GRID) / (1 - self._limit)
            steps = self._steps[above] = [math.log1p(stake * odds) for stake, _ in _BETS]
        self._logs = [log + step for log, step in zip(self._logs, steps, strict=True)]

    @property
    def log_evidence(self) -> float:
        """The logarithm of what the bettors own; `log(1 / alpha)` refutes the claim."""
        return _log_sum(self._logs)


class ConfidenceSequence:
    """The mean of all losses so far, between bounds that are valid at any time."""

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0
        self._above: dict[int, int] = {}
        self._below: dict[int, int] = {}

    def add(self, loss: float) -> None:
        """Count one item's loss, -1 to 1; it costs a microsecond. Raises ValueError."""
        below, above = _outward(loss)
        self.count += 1
        self._total += loss
        self._above[above] = self._above.get(above, 0) + 1
        self._below[below] = self._below.get(below, 0) + 1

    @property
    def mean(self) -> float:
        """The mean loss; 0.0 of nothing."""
        return self._total / self.count if self.count else 0.0

    def upper(self, alpha: float = 0.05) -> float:
        """The true mean loss is ever above this with a chance of `alpha` at most."""
        return _bound({loss / _GRID: count for loss, count in self._above.items()}, alpha)

    def lower(self, alpha: float = 0.05) -> float:
        """The true mean loss is ever below this with a chance of `alpha` at most."""
        return -_bound({-loss / _GRID: count for loss, count in self._below.items()}, alpha)

    def losses(self, side: int = 1) -> dict[float, int]:
        """How many losses of which size, rounded up if `side` is 1; rounded down, with the sign turned, if it is -1."""
        counts = self._above if side > 0 else self._below
        return {side * loss / _GRID: count for loss, count in counts.items()}

    def save(self) -> bytes:
        """All that it knows, as JSON."""
        return msgspec.json.encode(_State(self.count, self._total, self._above, self._below))

    @classmethod
    def load(cls, data: bytes) -> ConfidenceSequence:
        """A sequence as it was saved. Raises ValueError."""
        try:
            state = msgspec.json.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a saved confidence sequence: {error}") from error
        for counts in (state.above, state.below):
            if sum(counts.values()) != state.count or any(abs(loss) > _GRID for loss in counts):
                raise ValueError("not a saved confidence sequence: its counts do not fit together")
        if not all(count > 0 for counts in (state.above, state.below) for count in counts.values()):
            raise ValueError("not a saved confidence sequence: a count is below one")
        if not abs(state.total) <= state.count:
            raise ValueError(f"not a saved confidence sequence: {state.count} losses cannot add up to {state.total}")
        sequence = cls()
        sequence.count, sequence._total = state.count, state.total
        sequence._above, sequence._below = state.above, state.below
        return sequence


def _outward(loss: float) -> tuple[int, int]:
    """A loss in thousandths, rounded down and up. Raises ValueError if it is not from -1 to 1."""
    if not -1.0 <= loss <= 1.0:
        raise ValueError(f"a loss has to be from -1 to 1, not {loss}")
    scaled = loss * _GRID
    nearest = round(scaled)
    return (nearest, nearest) if abs(scaled - nearest) < 1e-9 else (math.floor(scaled), math.ceil(scaled))


def log_evidence(losses: Mapping[float, float], limit: float) -> float:
    """What `Wager` would have after these losses (how many of which size; fractions are for extrapolation)."""
    odds = [((limit - loss) / (1 - limit), count) for loss, count in losses.items()]
    return _log_sum(
        [math.log(start) + sum([count * math.log1p(stake * odd) for odd, count in odds]) for stake, start in _BETS]
    )


def _bound(losses: Mapping[float, float], alpha: float) -> float:
    if not losses:
        return 1.0
    needed = -math.log(alpha)
    count = sum(losses.values())
    low, high = sum(loss * many for loss, many in losses.items()) / count, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if log_evidence(losses, middle) >= needed else (middle, high)
    return high


def _log_sum(logs: list[float]) -> float:
    most = max(logs)
    return most + math.log(sum([math.exp(log - most) for log in logs]))
