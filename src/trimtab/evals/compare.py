"""Runs beside each other: scores by stratum with intervals, and items on which two runs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from trimtab.errors import BadRequest
from trimtab.evals.runs import Answered, Run
from trimtab.quality.paired import Item, counted, lower_bound, mean_loss, upper_bound

_EACH_SIDE = 0.025  # of a two-sided 95% interval


class Cell(msgspec.Struct, frozen=True):
    """A run's mean score in a stratum, 0 to 1, and its loss against the first run, both with 95% intervals.

    `loss` is None of the first run, and where the two have no item in common.
    """

    items: int
    score: float
    low: float
    high: float
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None


class Table(msgspec.Struct, frozen=True):
    """Cells by stratum and by run, `runs` in their order."""

    suite: str
    runs: tuple[str, ...]
    strata: dict[str, tuple[Cell | None, ...]]


class Changed(msgspec.Struct, frozen=True):
    """An item that two runs score differently; `loss` is above 0 where the second is worse."""

    item: str
    stratum: str
    loss: float
    before: str
    after: str
    why: str


def pairs(reference: Run, candidate: Run) -> dict[str, list[Item]]:
    """What both answered, by stratum, in the reference's order. Raises BadRequest if they are of different suites."""
    require_same_suite(reference, candidate)
    ours, theirs = by_item(reference), by_item(candidate)
    found: dict[str, list[Item]] = {}
    for item, answers in ours.items():
        if item in theirs:
            scores = tuple(one.score for one in answers), tuple(one.score for one in theirs[item])
            found.setdefault(answers[0].stratum, []).append(Item(*scores, answers[0].weight))
    return found


def table(runs: Sequence[Run]) -> Table:
    """All runs beside each other, losses against the first. Raises BadRequest if their suites differ."""
    strata: dict[str, list[Cell | None]] = {}
    for n, run in enumerate(runs):
        paired = pairs(runs[0], run) if n else {}
        for stratum, answers in _by_stratum(run).items():
            cells = strata.setdefault(stratum, [None] * len(runs))
            cells[n] = _cell(answers, paired.get(stratum, []))
    return Table(
        runs[0].head.suite, tuple(run.name for run in runs), {name: tuple(cells) for name, cells in strata.items()}
    )


def changed(before: Run, after: Run) -> list[Changed]:
    """Items whose scores differ, the worst first. Raises BadRequest if the suites differ."""
    require_same_suite(before, after)
    theirs = by_item(after)
    found = []
    for item, answers in by_item(before).items():
        others = theirs.get(item)
        if others is None:
            continue
        loss = _mean(answers) - _mean(others)
        if loss:
            worst = min(others, key=lambda one: one.score) if loss > 0 else max(others, key=lambda one: one.score)
            found.append(Changed(item, answers[0].stratum, loss, answers[0].text, worst.text, worst.why))
    return sorted(found, key=lambda one: -one.loss)


def require_same_suite(one: Run, other: Run) -> None:
    """Raises BadRequest for runs of different suites."""
    if one.head.suite_sha256 != other.head.suite_sha256:
        raise BadRequest(
            f"{one.name} and {other.name} are runs of different suites, or of different versions of "
            f"{one.head.suite!r}: run both with the same",
            param="candidate",
        )


def require_same_items(one: Run, other: Run) -> None:
    """Raises BadRequest where one of two runs lacks items that the other has."""
    missing = {item for item, _ in one.answers} ^ {item for item, _ in other.answers}
    if missing:
        raise BadRequest(
            f"{one.name} and {other.name} did not answer the same items ({len(missing)} differ, such as "
            f"{min(missing)}): run both to their end, for what is missing may not be missing by chance",
            param="candidate",
        )


def by_item(run: Run) -> dict[str, list[Answered]]:
    """An item's answers, one for each repeat."""
    found: dict[str, list[Answered]] = {}
    for (item, _), answered in run.answers.items():
        found.setdefault(item, []).append(answered)
    return found


def _by_stratum(run: Run) -> dict[str, list[list[Answered]]]:
    found: dict[str, list[list[Answered]]] = {}
    for answers in by_item(run).values():
        found.setdefault(answers[0].stratum, []).append(answers)
    return found


def _cell(items: list[list[Answered]], paired: list[Item]) -> Cell:
    # Scores, 0 to 1, as the bounds take values: from -1 to 1, and the lower the better.
    counts = counted([1.0 - 2 * _mean(answers) for answers in items], [answers[0].weight for answers in items])
    score = (1.0 - mean_loss(counts)) / 2
    low, high = (1.0 - upper_bound(counts, _EACH_SIDE)) / 2, (1.0 - lower_bound(counts, _EACH_SIDE)) / 2
    if not paired:
        return Cell(len(items), score, low, high)
    losses = counted([item.loss for item in paired], [item.weight for item in paired])
    return Cell(
        len(items),
        score,
        low,
        high,
        mean_loss(losses),
        lower_bound(losses, _EACH_SIDE),
        upper_bound(losses, _EACH_SIDE),
    )


def _mean(answers: list[Answered]) -> float:
    return math.fsum(one.score for one in answers) / len(answers)
