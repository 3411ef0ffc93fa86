"""The cheapest way to call two models that keeps the quality; often that is one of them alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.routing.router import Kind

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


FLOOR: Final = 0.99  # of the best single model's mean score
LEAST_SAVING: Final = 0.05  # of the best single model's cost; below, a second model is not worth its trouble
_CAUTION: Final = 1.0  # standard errors by which the estimate must be above the floor
_THRESHOLDS: Final = 101
_SKIPS: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SLACK: Final = 1e-9


class Outcome(msgspec.Struct, frozen=True):
    """What is known of prompts, arrays of one number a prompt.

    `gains` are the predictor's, `far` its flags, `after` the acceptance model's (None: no answers are known). Costs are
    those of one call, in any one unit; `check_cost` is the second cheap model's, paid with each answer that is checked.
    `served` is the score of the cheap answer that a cascade serves.
    """

    gains: Any
    far: Any
    after: Any | None
    weak: Any
    strong: Any
    served: Any
    weak_cost: Any
    strong_cost: Any
    check_cost: Any

    def take(self, rows: Any) -> Outcome:
        """Only these prompts."""
        values = [getattr(self, name) for name in self.__struct_fields__]
        return Outcome(*(None if value is None else value[rows] for value in values))


class Setting(msgspec.Struct, frozen=True):
    """A way to call two models, and what was expected of it where it was chosen.

    `skip`: a prompt whose expected gain is above it goes straight to the strong model. `accept`: a weak answer whose
    expected gain is above it is escalated (cascade only). `saved` is of the best single model's cost, `kept` of its
    score.
    """

    kind: Kind
    skip: float | None
    accept: float | None
    kept: float
    saved: float
    pays: bool
    reason: str


def played(setting: Setting, outcome: Outcome) -> tuple[Floats, Floats, Bools]:
    """Score and cost of each prompt under a setting, every attempt counted, and which ended at the strong model."""
    strong = _strong(setting, outcome)
    skipped = _skipped(setting, outcome)
    cheap = outcome.served if setting.kind == "cascade" else outcome.weak
    score = np.where(strong, outcome.strong, cheap)
    cost = np.where(strong, outcome.strong_cost, 0.0) + np.where(skipped, 0.0, outcome.weak_cost)
    if setting.kind == "cascade":
        cost = cost + np.where(skipped, 0.0, outcome.check_cost)
    return score, cost, strong


def choose(outcome: Outcome, *, floor: float = FLOOR) -> Setting:
    """The setting that saves most while its score stays at `floor` of the best single model's, with some caution.

    Where nothing saves LEAST_SAVING, it is the best single model, and `reason` says so.
    """
    single = _single(outcome)
    best_score, best_cost, _ = played(single, outcome)
    found = single
    closest = 0.0
    for kind, skip, accept in _candidates(outcome):
        tried = Setting(kind, skip, accept, 1.0, 0.0, True, "")
        score, cost, _ = played(tried, outcome)
        lost = best_score - score
        error = float(lost.std()) / np.sqrt(len(lost))
        if float(lost.mean()) + _CAUTION * error > (1 - floor) * float(best_score.mean()) + _SLACK:
            continue
        saved = 1 - float(cost.sum()) / float(best_cost.sum()) if best_cost.sum() > 0 else 0.0
        closest = max(closest, saved)
        if saved >= LEAST_SAVING and saved > found.saved:
            kept = float(score.mean() / best_score.mean()) if best_score.mean() > 0 else 1.0
            found = msgspec.structs.replace(tried, kept=kept, saved=saved)
    if found.pays:
        words = "checks each weak answer and escalates" if found.kind == "cascade" else "chooses by the prompt alone"
        return msgspec.structs.replace(
            found, reason=f"{words}: saves {found.saved:.0%} of the cost and keeps {found.kept:.1%} of the score"
        )
    return msgspec.structs.replace(
        single,
        reason=f"routing does not pay here: within {1 - floor:.1%} of the best single model's score it saves at most "
        f"{closest:.0%}, less than {LEAST_SAVING:.0%}",
    )


def unproven(chosen: Setting) -> Setting:
    """What to do where no label of the traffic is known: the strong model alone, whatever paid elsewhere."""
    reason = (
        "no label of this traffic is known, so nothing shows that a setting keeps its quality here "
        f"(where the labels are from, it would be: {chosen.kind})"
    )
    return Setting("always strong", None, None, 1.0, 0.0, False, reason)


def _single(outcome: Outcome) -> Setting:
    """The better model alone; the weak one if it is as good, for it is cheaper."""
    weak_leads = outcome.weak.mean() >= outcome.strong.mean()
    return Setting("always weak" if weak_leads else "always strong", None, None, 1.0, 0.0, False, "")


def _candidates(outcome: Outcome) -> Iterator[tuple[Kind, float | None, float | None]]:
    if outcome.strong.mean() <= outcome.weak.mean():
        return
    yield "always weak", None, None
    near = outcome.gains[~outcome.far]
    if not len(near):
        return
    for skip in np.unique(np.quantile(near, np.linspace(0, 1, _THRESHOLDS))):
        yield "prompt", float(skip), None
    if outcome.after is None:
        return
    accepts = np.unique(np.quantile(outcome.after, np.linspace(0, 1, _THRESHOLDS)))
    for skip in (None, *np.unique(np.quantile(near, _SKIPS))):
        for accept in accepts:
            yield "cascade", None if skip is None else float(skip), float(accept)


def _skipped(setting: Setting, outcome: Outcome) -> Bools:
    """Prompts that the weak model is not asked at all."""
    none = np.zeros(len(outcome.weak), dtype=np.bool_)
    if setting.kind == "always weak":
        return none
    if setting.kind == "always strong":
        return ~none
    above = none if setting.skip is None else outcome.gains > setting.skip
    skipped: Bools = above | outcome.far
    return skipped


def _strong(setting: Setting, outcome: Outcome) -> Bools:
    skipped = _skipped(setting, outcome)
    if setting.kind != "cascade" or setting.accept is None or outcome.after is None:
        return skipped
    escalated: Bools = skipped | (outcome.after > setting.accept)
    return escalated
