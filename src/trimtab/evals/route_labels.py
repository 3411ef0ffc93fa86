"""Labels to train a router on, from two models' finished runs of one suite: its questions, their answers and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest, ConfigError
from trimtab.evals.compare import by_item, require_same_items, require_same_suite
from trimtab.evals.runs import Answered, Run, read
from trimtab.evals.suite import Suite, load
from trimtab.measure.route_data import COSTS, Examples, cost_words
from trimtab.measure.route_training import Labels
from trimtab.protocols.conversation import last_turn
from trimtab.routing import questions
from trimtab.routing.data import Answer

_REUSED: Final = frozenset({"hit", "semantic", "coalesced"})  # what such an answer cost says nothing of a call
_MILLION: Final = 1e6


def of_runs(paths: Sequence[Path], *, suite: str = "", prices: tuple[float, ...] | None = None) -> Labels:
    """Labels from the weak model's run, the strong one's, and perhaps that of a second cheap one.

    `suite` is its folder or name; without, it is the shipped suite that the runs name. One example is one answer of the
    weak model; of the others' repeats the mean counts. Raises BadRequest for runs that do not fit each other.
    """
    runs = [read(path) for path in paths]
    for other in runs[1:]:
        require_same_suite(runs[0], other)
        require_same_items(runs[0], other)
    asked = {item.id: last_turn(msgspec.json.encode(item.messages)) for item in _suite_of(runs[0], suite).items}
    weak, strong, *others = runs
    rows = [one for one in weak.answers.values() if asked.get(one.item)]
    if not rows:
        raise BadRequest(f"{paths[0]} has no answer to a question that ends with a user's text", param="runs")
    names = _names(runs)
    costs, words = _costs(rows, runs, prices)
    whole = Examples(
        tuple(asked[one.item] for one in rows),
        tuple(questions.key(asked[one.item]) for one in rows),
        tuple(one.stratum for one in rows),
        np.array([one.score for one in rows]),
        _means(strong, rows, lambda one: one.score),
        tuple(_answer(one) for one in rows),
        _twins(others[0], rows) if others else None,
        _means(others[0], rows, lambda one: one.score) if others else np.full(len(rows), np.nan),
        costs,
    )
    source = f"runs of the suite {weak.head.suite} ({len(asked):,} items)"
    notes = _notes(weak, len(rows))
    return Labels(whole, names[0], names[1], names[2] if others else "", source, words, notes)


def _suite_of(run: Run, where: str) -> Suite:
    try:
        suite = load(where or run.head.suite)
    except ConfigError as error:
        if where:
            raise
        raise BadRequest(
            f"the runs hold no questions; name the folder of their suite, {run.head.suite!r}, with --suite",
            param="suite",
        ) from error
    if suite.sha256 != run.head.suite_sha256:
        raise BadRequest(
            f"{where or suite.name} is not the suite of the runs, or has changed since; name that one with --suite, or "
            "run it again",
            param="suite",
        )
    return suite


def _names(runs: Sequence[Run]) -> list[str]:
    """The models' names; the settings' where two runs asked the same model."""
    models = [run.head.model for run in runs]
    names = models if len(set(models)) == len(models) else [run.name for run in runs]
    if len(set(names)) < len(names):
        raise BadRequest(f"the runs are all of {names[0]}; two models are needed to learn a gain", param="runs")
    return names


def _answer(one: Answered) -> Answer:
    return Answer(text=one.text, chars=len(one.text))


def _twins(run: Run, rows: Sequence[Answered]) -> tuple[Answer, ...]:
    """A run's answers to the same items, of the same repeats if it has those."""
    firsts = {item: answers[0] for item, answers in by_item(run).items()}
    return tuple(_answer(run.answers.get((one.item, one.repeat), firsts[one.item])) for one in rows)


def _means(run: Run, rows: Sequence[Answered], value: Callable[[Answered], float]) -> NDArray[np.float64]:
    means = {item: float(np.mean([value(one) for one in answers])) for item, answers in by_item(run).items()}
    return np.array([means[one.item] for one in rows])


def _costs(
    rows: Sequence[Answered], runs: Sequence[Run], prices: tuple[float, ...] | None
) -> tuple[dict[str, Any], str]:
    """What a call of each model costs, USD a prompt by the names in COSTS, and in words how that is known."""
    found: dict[str, Any] = {name: np.zeros(len(rows)) for name in COSTS}
    if prices is not None:
        pairs = (prices[:2], prices[2:4], prices[4:] or prices[:2])
        words = "recorded tokens at the given prices, every attempt counted"
        return found | {
            name: _means(run, rows, _by_tokens(*pair)) for name, run, pair in zip(COSTS, runs, pairs, strict=False)
        }, words
    paid = [[one.cost_usd for one in run.answers.values() if _fresh(one)] for run in runs]
    if not all(any(costs) for costs in paid):
        return found | {"strong": np.ones(len(rows))}, cost_words(None)
    for name, run, costs in zip(COSTS, runs, paid, strict=False):
        found[name] = _means(run, rows, _as_paid(sum(one or 0.0 for one in costs) / len(costs)))
    return found, "what the runs' calls cost, every attempt counted"


def _by_tokens(in_price: float, out_price: float) -> Callable[[Answered], float]:
    return lambda one: (one.input_tokens * in_price + one.output_tokens * out_price) / _MILLION


def _as_paid(typical: float) -> Callable[[Answered], float]:
    """The cost of an answer's call; a typical one where it is not known."""
    return lambda one: one.cost_usd if _fresh(one) and one.cost_usd is not None else typical


def _fresh(one: Answered) -> bool:
    return one.cost_usd is not None and one.cache not in _REUSED


def _notes(weak: Run, rows: int) -> tuple[str, ...]:
    found = []
    if left_out := len(weak.answers) - rows:
        found.append(f"{left_out:,} answers left out: their question does not end with a user's text")
    if any(one.weight != 1.0 for one in weak.answers.values()):
        found.append("the suite's weights are not used: every prompt counts once")
    return tuple(found)
