"""The gate: pass, fail or undecided, by stratum and in all.

A candidate passes if in every stratum the bound of its loss is within the margin. As all must pass, a chance of `alpha`
in each is one of `alpha` in all (intersection-union). It fails if in any stratum the loss is surely above the margin;
each of them can be wrong about that, so there the strata share `alpha`. Margins, losses and scores are shares of 1.

Source: Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics (1982).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.quality.paired import Item, counted, lower_bound, mean_loss, p_value, upper_bound
from trimtab.quality.sequential import ConfidenceSequence, Wager, log_evidence

_MOST_ITEMS: Final = 1_000_000  # in a stratum; beyond that more items are no way out
_TIE: Final = {(0.0, 1.0): 1}


class Ruling(StrEnum):
    """What the gate says."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


class GateTerms(msgspec.Struct, frozen=True):
    """The loss that is allowed, the chance of passing what exceeds it, and the reference's scores that can judge."""

    margin: float = 0.05
    alpha: float = 0.05
    reference_low: float = 0.2
    reference_high: float = 0.98

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 1.0:
            raise BadRequest(
                f"the margin has to lie between 0 and 1 (5% is 0.05), not at {self.margin}", param="margin"
            )
        if not 0.0 < self.alpha <= 0.3:
            raise BadRequest(f"alpha has to be above 0 and at most 0.3, not {self.alpha}", param="alpha")


STANDARD: Final = GateTerms()


class StratumVerdict(msgspec.Struct, frozen=True):
    """One stratum. `lower` and `upper` are one-sided bounds of the true mean loss; None of no items, as the scores are.

    `more_items` is about how many more it takes to decide if they are like those so far; often enough it takes more
    than that. None: decided, or no number of items helps.
    """

    stratum: str
    ruling: Ruling
    reason: str
    items: int
    worse: int
    better: int
    reference_score: float | None
    candidate_score: float | None
    loss: float | None
    lower: float | None
    upper: float | None
    more_items: int | None


class Verdict(msgspec.Struct, frozen=True):
    """The gate's answer, ready to be written as JSON; `more_items` is summed over the strata that lack some."""

    ruling: Ruling
    reason: str
    margin: float
    alpha: float
    sequential: bool
    more_items: int | None
    strata: tuple[StratumVerdict, ...]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 undecided."""
        return {Ruling.PASS: 0, Ruling.FAIL: 1, Ruling.UNDECIDED: 2}[self.ruling]


def judge(strata: Mapping[str, Iterable[Item]], terms: GateTerms = STANDARD) -> Verdict:
    """Judge samples whose sizes were fixed before anybody saw a score. Raises BadRequest if there is no stratum.

    To add items to a sample and judge it again is a second look: in five looks 13% of bad candidates pass. Whoever
    lacks items takes a new sample, or `SequentialGate`.
    """
    _check(strata)
    fail_alpha = terms.alpha / len(strata)
    return _overall([_judged(name, [*items], terms, fail_alpha) for name, items in strata.items()], terms, False)


class SequentialGate:
    """Judges item by item and may be stopped at any time; items of a stratum have to come in random order.

    Its price against `judge`: it may need twice the items where the loss is near the margin.
    """

    def __init__(self, strata: Sequence[str], terms: GateTerms = STANDARD) -> None:
        _check(strata)
        self.terms = terms
        self._trials = {name: _Trial(terms, terms.alpha / len(strata)) for name in strata}

    def add(self, stratum: str, item: Item) -> Ruling:
        """Count an item; what is known of its stratum now. Decided strata need no more and count no more."""
        trial = self._trials.get(stratum)
        if trial is None:
            raise BadRequest(f"{stratum!r} is none of the strata that the gate was made for", param="stratum")
        if item.weight != 1.0:
            raise BadRequest("weights need the gate's fixed mode: the sequential one has none", param="weight")
        return trial.add(item)

    @property
    def wanted(self) -> list[str]:
        """Strata that are not decided."""
        return [name for name, trial in self._trials.items() if trial.ruling is Ruling.UNDECIDED]

    def verdict(self) -> Verdict:
        """What is known now."""
        return _overall([trial.verdict(name) for name, trial in self._trials.items()], self.terms, True)


class _Trial:
    """A stratum of the sequential gate."""

    def __init__(self, terms: GateTerms, fail_alpha: float) -> None:
        self.terms = terms
        self.fail_alpha = fail_alpha
        self.ruling = Ruling.UNDECIDED
        self._scores = _Scores()
        self._passing = Wager(terms.margin)
        self._failing = Wager(-terms.margin)
        self._sequence = ConfidenceSequence()

    def add(self, item: Item) -> Ruling:
        if self.ruling is not Ruling.UNDECIDED:
            return self.ruling
        loss = self._scores.add(item)
        self._sequence.add(loss)
        self._passing.add(loss)
        self._failing.add(-loss)
        if self._scores.why_not(self.terms) is None:
            if self._passing.log_evidence >= -math.log(self.terms.alpha):
                self.ruling = Ruling.PASS
            elif self._failing.log_evidence >= -math.log(self.fail_alpha):
                self.ruling = Ruling.FAIL
        return self.ruling

    def verdict(self, name: str) -> StratumVerdict:
        sequence, margin = self._sequence, self.terms.margin
        bounds = (sequence.lower(self.fail_alpha), sequence.upper(self.terms.alpha)) if sequence.count else (-1.0, 1.0)

        def decided(scale: float) -> bool:
            side, alpha = (1, self.terms.alpha) if sequence.mean < margin else (-1, self.fail_alpha)
            grown = {loss: count * scale for loss, count in (sequence.losses(side) or {0.0: 1}).items()}
            return log_evidence(grown, side * margin) >= -math.log(alpha)

        return self._scores.verdict(name, self.terms, self.ruling, bounds, decided)


class _Scores:
    """Sums over a stratum's items."""

    def __init__(self) -> None:
        self.items = self.worse = self.better = 0
        self.weight = self.reference = self.loss = 0.0

    def add(self, item: Item) -> float:
        """Count it; its loss."""
        loss = item.loss
        self.items += 1
        self.worse += loss > 0
        self.better += loss < 0
        self.weight += item.weight
        self.reference += item.weight * item.reference_score
        self.loss += item.weight * loss
        return loss

    def why_not(self, terms: GateTerms) -> str | None:
        """Why this stratum cannot judge, if it cannot."""
        if not self.items:
            return "no items"
        score = self.reference / self.weight
        if score < terms.reference_low:
            return f"the reference scores {score:.0%}: too hard to judge a model by (under {terms.reference_low:.0%})"
        if score > terms.reference_high:
            return f"the reference scores {score:.1%}: too easy to judge a model by (over {terms.reference_high:.0%})"
        return None

    def verdict(
        self, name: str, terms: GateTerms, ruling: Ruling, bounds: tuple[float, float], decided: Callable[[float], bool]
    ) -> StratumVerdict:
        """Bounds: lower, upper. `decided` says whether so many times these items (of none: so many ties) would do."""
        if not self.items:
            more = _more_items(0, decided)
            return StratumVerdict(name, ruling, "no items", 0, 0, 0, None, None, None, None, None, more)
        reference, loss, margin = self.reference / self.weight, self.loss / self.weight, terms.margin
        reason, more = self.why_not(terms), None
        if reason is None and ruling is Ruling.PASS:
            reason = f"at most {max(bounds[1], 0.0):.3f} worse, the margin is {margin:g}"
        elif reason is None and ruling is Ruling.FAIL:
            reason = f"at least {bounds[0]:.3f} worse, the margin is {margin:g}"
        elif reason is None:
            more = _more_items(self.items, decided)
            lack = "more items would hardly decide it" if more is None else f"about {more:,} more items would decide it"
            reason = f"{loss:.3f} worse, between {bounds[0]:.3f} and {bounds[1]:.3f}, the margin is {margin:g}; {lack}"
        return StratumVerdict(
            name, ruling, reason, self.items, self.worse, self.better, reference, reference - loss, loss, *bounds, more
        )


def _judged(name: str, items: list[Item], terms: GateTerms, fail_alpha: float) -> StratumVerdict:
    scores = _Scores()
    counts = counted([scores.add(item) for item in items], [item.weight for item in items])
    bounds = lower_bound(counts, fail_alpha), upper_bound(counts, terms.alpha)
    ruling = Ruling.UNDECIDED
    if scores.why_not(terms) is None:
        if bounds[1] <= terms.margin:
            ruling = Ruling.PASS
        elif bounds[0] > terms.margin:
            ruling = Ruling.FAIL

    def decided(scale: float) -> bool:
        side, alpha = (1, terms.alpha) if not counts or mean_loss(counts) < terms.margin else (-1, fail_alpha)
        grown = {(side * loss, weight): count * scale for (loss, weight), count in (counts or _TIE).items()}
        return p_value(grown, side * terms.margin) <= alpha

    return scores.verdict(name, terms, ruling, bounds, decided)


def _more_items(items: int, decided: Callable[[float], bool]) -> int | None:
    """How many more, to a hundredth of them; None if a million are not enough."""
    unit = max(items, 1)
    low, high = unit, 2 * unit
    while not decided(high / unit):
        low, high = high, 2 * high
        if low > _MOST_ITEMS:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle / unit) else (middle, high)
    return high - items


def _overall(strata: list[StratumVerdict], terms: GateTerms, sequential: bool) -> Verdict:
    names = {ruling: [one.stratum for one in strata if one.ruling is ruling] for ruling in Ruling}
    lacking = [one.more_items for one in strata if one.more_items is not None]
    ruling = next((one for one in (Ruling.FAIL, Ruling.UNDECIDED) if names[one]), Ruling.PASS)
    if ruling is Ruling.PASS:
        reason = f"within the margin of {terms.margin:g} in each of {len(strata)} strata"
    elif ruling is Ruling.FAIL:
        reason = f"worse than the margin of {terms.margin:g} in {', '.join(names[ruling])}"
    else:
        reason = f"not decided in {', '.join(names[ruling])}"
    more = sum(lacking) if lacking and ruling is Ruling.UNDECIDED else None
    return Verdict(ruling, reason, terms.margin, terms.alpha, sequential, more, tuple(strata))


def _check(strata: Iterable[str]) -> None:
    names = list(strata)
    if not names:
        raise BadRequest("the gate needs at least one stratum", param="strata")
    if len({*names}) != len(names):
        raise BadRequest(f"a stratum comes twice: {', '.join(names)}", param="strata")
