"""A new sample of the suite `small-model`, large enough for what a verdict left undecided.

Adding items to a sample that somebody has looked at would let bad candidates pass more often; so all items are new.
"""

from __future__ import annotations

import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import make_suites
from suites import small_model

from trimtab.quality.paired import counted, p_value

LOSS: Final = 0.03  # planned for at least, also where the earlier sample lost less
POWER: Final = 0.9
SIZES: Final = range(1200, 3001, 300)
MOST_FORMS: Final = 600  # there are no more words
_RUNS: Final = 1000


def planned(verdict: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Items by stratum and the chance that they pass, if losses are as in an earlier verdict but 3 points at least."""
    found = {}
    for one in verdict["strata"]:
        differ = (one["worse"] + one["better"]) / one["items"]
        loss = max((one["worse"] - one["better"]) / one["items"], LOSS)
        worse, better = max((differ + loss) / 2, loss), max((differ - loss) / 2, 0.0)
        sizes = [MOST_FORMS] if one["stratum"] == "forms" else list(SIZES)
        chances = ((size, power(worse, better, size, verdict["margin"])) for size in sizes)
        found[one["stratum"]] = next(pair for pair in chances if pair[1] >= POWER or pair[0] == sizes[-1])
    return found


def power(worse: float, better: float, items: int, margin: float) -> float:
    """The chance that a stratum passes in which such shares of the items are lost and gained, by simulation."""

    @cache
    def passes(lost: int, gained: int) -> bool:
        losses = [1.0] * lost + [-1.0] * gained + [0.0] * (items - lost - gained)
        return p_value(counted(losses), margin) <= 0.05

    dice = random.Random(items)
    found = 0
    for _ in range(_RUNS):
        drawn = [dice.random() for _ in range(items)]
        lost = sum(one < worse for one in drawn)
        found += passes(lost, sum(one < worse + better for one in drawn) - lost)
    return found / _RUNS


def write(folder: Path, seed: str, sizes: dict[str, int]) -> None:
    """The suite `small-model-SEED`."""
    head = small_model.HEAD.replace('"small-model"', json.dumps(f"small-model-{seed}"))
    make_suites.write(folder, head + small_model.STRATA, small_model.new_sample(seed, sizes))
