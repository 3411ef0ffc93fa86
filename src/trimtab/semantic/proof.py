"""The strict rule: no limit is used before an exact test has shown that its hits keep the promise."""

from __future__ import annotations

import math
from typing import Final

from trimtab.semantic.bounds import share_upper
from trimtab.semantic.saved import Ladder

_RISK: Final = 0.05  # that any limit is ever used that breaks the promise, while questions stay as they are
_RUNGS: Final = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.0)  # limits on the estimated probability, times the promise
_LOOK_GROWTH: Final = 1.3


class Proof:
    """A ladder of limits, each tested with Clopper-Pearson at looks that grow geometrically, the risk spent over them.

    Labels of misses lie above the limit in force and count in full, audited hits lie below and count in part. So the
    share of wrong ones is overestimated, never under: the test errs to the safe side.
    """

    def __init__(self, max_wrong: float) -> None:
        self._max_wrong = max_wrong
        self._limits = tuple(rung * max_wrong for rung in _RUNGS)
        self._labels = [0] * len(_RUNGS)
        self._wrong = [0] * len(_RUNGS)
        fewest = math.log(_RISK / len(_RUNGS) / 2) / math.log1p(-max_wrong)
        self._next_look = [max(fewest, 1.0)] * len(_RUNGS)
        self._looks = [0] * len(_RUNGS)
        self._proven = [False] * len(_RUNGS)

    @property
    def limit(self) -> float:
        """The highest proven limit; -1.0 if none is."""
        return max((limit for limit, proven in zip(self._limits, self._proven, strict=True) if proven), default=-1.0)

    def see(self, p_wrong: float, wrong: bool) -> None:
        """Count a label whose probability had been estimated before it was known."""
        for n, limit in enumerate(self._limits):
            if p_wrong > limit:
                continue
            self._labels[n] += 1
            self._wrong[n] += wrong
            if self._labels[n] >= self._next_look[n]:
                self._look(n)

    def save(self) -> Ladder:
        """All that it has seen."""
        return Ladder([*self._labels], [*self._wrong], [*self._next_look], [*self._looks], [*self._proven])

    @classmethod
    def load(cls, max_wrong: float, saved: Ladder) -> Proof:
        """A proof as it was saved, for the same promise. Raises ValueError if its ladder had other rungs."""
        parts = (saved.labels, saved.wrong, saved.next_look, saved.looks, saved.proven)
        if any(len(part) != len(_RUNGS) for part in parts):
            raise ValueError(f"a proof's state without {len(_RUNGS)} rungs")
        proof = cls(max_wrong)
        proof._labels, proof._wrong, proof._next_look = [*saved.labels], [*saved.wrong], [*saved.next_look]
        proof._looks, proof._proven = [*saved.looks], [*saved.proven]
        return proof

    def _look(self, n: int) -> None:
        self._looks[n] += 1
        self._next_look[n] = self._labels[n] * _LOOK_GROWTH
        risk = _RISK / len(_RUNGS) * 6 / (math.pi * self._looks[n]) ** 2
        self._proven[n] = share_upper(self._wrong[n], self._labels[n], 1 - risk) <= self._max_wrong
