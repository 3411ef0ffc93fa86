"""Turns scores into choices that keep a budget, whatever the scores' scale and however the traffic drifts.

The owner sets a share of strong calls, a mean cost, or a mean loss of quality. A request goes to the strong model if
its score is among the top `level` of the last 2,048 scores. The level starts at the share and is corrected by
every request's excess, so that in n requests the realised share misses the asked one by at most (1 + step) / (step n),
for any sequence: 5 points from 300 requests on.
Source: Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift" (2021), proposition 4.1.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from trimtab.errors import BadRequest

WINDOW: Final = 2048  # recent scores kept; the longer, the better scores are told apart, the later it sees drift
SEEDED: Final = 512  # of them from the fitting, before there is traffic
_FAST: Final = 0.07  # step of the first requests
_SLOW: Final = 0.01  # the least step, reached after 2,100 requests
_DEBT: Final = 21.0  # step times requests in between: keeps the miss within 5 points
_LASTING: Final = 500  # requests that a measured unit remembers
_BEYOND: Final = 0.1  # more than a step
_REFERENCE: Final = 101  # quantiles of the fitted scores, kept to tell drift


class Budget(msgspec.Struct, frozen=True):
    """What is to be kept: the mean of what requests spend, in units of `unit`, at `target`.

    `raises` says which way: spending too much of a loss calls for more strong calls, too much money for fewer.
    """

    target: float
    unit: float
    start: float  # the first level: a guess at the strong share
    raises: bool = False


def strong_share(share: float) -> Budget:
    """So large a share of requests goes to the strong model. A strong call spends 1."""
    if not 0 <= share <= 1:
        raise BadRequest(f"a strong share of {share} is not from 0 to 1", param="budget")
    return Budget(share, 1.0, share)


def mean_cost(ceiling: float, weak: float, strong: float) -> Budget:
    """Requests cost so much on average; `weak` and `strong` are typical costs of either choice, in the same unit.

    Where they are not known beforehand see `Dial.measure`. Raises BadRequest if no choice can keep it.
    """
    if not weak < strong or ceiling < weak:
        raise BadRequest(
            f"a mean cost of {ceiling} cannot be kept: the weak model costs {weak}, the strong one {strong}",
            param="budget",
        )
    return Budget(ceiling, strong - weak, min(1.0, (ceiling - weak) / (strong - weak)))


def mean_loss(loss: float, start: float = 0.5) -> Budget:
    """So much score is lost on average against the strong model, as far as the scores (expected gains) are right."""
    if not 0 <= loss < 1:
        raise BadRequest(f"a mean loss of {loss} is not from 0 to 1", param="budget")
    return Budget(loss, 1.0, start, raises=True)


class State(msgspec.Struct, frozen=True):
    """A dial at rest; msgspec can store it."""

    budget: Budget
    level: float
    seen: int
    strong: int
    spent: float
    recent: tuple[float, ...]
    reference: tuple[float, ...]


class Dial:
    """Chooses request by request; constant memory, microseconds. One request is chosen, then its spending is told."""

    def __init__(self, budget: Budget, fitted: Sequence[float] = ()) -> None:
        ordered = sorted(fitted)
        self._reference = _spread(ordered, _REFERENCE)
        self._budget = budget
        self._level = budget.start
        self._recent = deque(_mixed(_spread(ordered, SEEDED)), maxlen=WINDOW)
        self._ordered = sorted(self._recent)
        self._seen = self._strong = 0
        self._spent = 0.0
        self._unit, self._measured = budget.unit, 0

    def choose(self, score: float) -> bool:
        """Whether the strong model is called. The higher the score, the sooner; equal scores take turns."""
        below = bisect.bisect_left(self._ordered, score)
        same = bisect.bisect_right(self._ordered, score, lo=below) - below
        # The share of recent scores that this one beats; among equals a place that runs evenly through them.
        beaten = (below + (same + 1) * _turn(self._seen)) / (len(self._ordered) + 1)
        strong = beaten >= 1 - self._level
        self._seen += 1
        self._strong += strong
        self._keep(score)
        return strong

    def passed(self, *, strong: bool) -> None:
        """A request was chosen by something else; what it spends counts, too."""
        self._seen += 1
        self._strong += strong

    def measure(self, unit: float) -> None:
        """How far apart the two choices were for one request, in the unit of what is spent: its running mean counts."""
        if unit > 0:
            self._measured += 1
            self._unit += (unit - self._unit) / min(self._measured, _LASTING)

    def spend(self, amount: float) -> None:
        """What the last request spent: 1 or 0 for a share of calls, money, or the score that was probably lost."""
        self._spent += amount
        budget = self._budget
        excess = (budget.target - amount) / self._unit
        step = max(_SLOW, min(_FAST, _DEBT / max(self._seen, 1)))
        level = self._level + step * max(-1.0, min(1.0, -excess if budget.raises else excess))
        # `choose` alone never leads further; where others choose as well, debts must not grow without end.
        self._level = max(-_BEYOND, min(1 + _BEYOND, level))

    @property
    def budget(self) -> Budget:
        """What is kept."""
        return self._budget

    @property
    def level(self) -> float:
        """The share of recent scores above which the strong model is called now; it may pass 0 and 1 by a step."""
        return self._level

    @property
    def threshold(self) -> float | None:
        """The score above which the strong model is called now; None before any score is known."""
        if not self._ordered:
            return None
        return self._ordered[min(len(self._ordered) - 1, max(0, round((1 - self._level) * len(self._ordered))))]

    @property
    def seen(self) -> int:
        """Requests chosen."""
        return self._seen

    @property
    def realised_share(self) -> float:
        """Of the requests chosen, how many went to the strong model; 0 before the first."""
        return self._strong / self._seen if self._seen else 0.0

    @property
    def realised_mean(self) -> float:
        """What requests spent on average."""
        return self._spent / self._seen if self._seen else 0.0

    @property
    def drift(self) -> float:
        """How far recent scores are from those of the fitting: the greatest gap between their shares, 0 to 1."""
        if not self._reference or not self._ordered:
            return 0.0
        recent = len(self._ordered)
        gaps = (
            abs(
                bisect.bisect_right(self._ordered, one) / recent
                - bisect.bisect_right(self._reference, one) / len(self._reference)
            )
            for one in self._reference
        )
        return max(gaps)

    def state(self) -> State:
        """To be stored; `of` makes an equal dial."""
        return State(
            self._budget,
            self._level,
            self._seen,
            self._strong,
            self._spent,
            tuple(self._recent),
            tuple(self._reference),
        )

    @classmethod
    def of(cls, state: State, budget: Budget | None = None) -> Dial:
        """The dial again; with another budget it starts at that one's level and keeps what it knows of the scores."""
        dial = cls(budget or state.budget)
        dial._reference = list(state.reference)
        dial._recent.extend(state.recent)
        dial._ordered = sorted(dial._recent)
        if budget is None or budget == state.budget:
            dial._level, dial._seen, dial._strong, dial._spent = state.level, state.seen, state.strong, state.spent
        return dial

    def _keep(self, score: float) -> None:
        if len(self._recent) == WINDOW:
            oldest = self._recent[0]
            del self._ordered[bisect.bisect_left(self._ordered, oldest)]
        self._recent.append(score)
        bisect.insort(self._ordered, score)


def _spread(ordered: Sequence[float], count: int) -> list[float]:
    """So many of the ordered values, evenly; all if there are fewer."""
    if len(ordered) <= count:
        return list(ordered)
    return [ordered[round(n * (len(ordered) - 1) / (count - 1))] for n in range(count)]


def _mixed(values: Sequence[float]) -> list[float]:
    """In an order whose every first part is as spread as the whole: the window drops them from the front."""
    return [value for _, value in sorted((_turn(n), value) for n, value in enumerate(values))]


def _turn(n: int) -> float:
    """Numbers from 0 to 1 that run evenly: n times the golden ratio, without its whole part."""
    return (n + 1) * 0.6180339887498949 % 1.0
