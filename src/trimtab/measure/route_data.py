"""Two models' recorded outcomes, as `trimtab bench route` and `trimtab route train` need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest
from trimtab.routing import acceptance, data, evaluate, predictor, setting
from trimtab.routing.data import Answer, Outcomes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

FOLDS: Final = 5
_CHARS_A_TOKEN: Final = 4.0
ASSUMED_CHARS: Final = 400.0  # of an answer whose length was not recorded
_MILLION: Final = 1e6
COSTS: Final = ("weak", "strong", "check")


class Job(msgspec.Struct, frozen=True):
    """What to measure. `prices` are USD a million tokens, in and out, of the weak, the strong and perhaps the second.

    Without `train` and `labels` the data is split into `folds`; `labels` learns from so many of its prompts and routes
    the rest; `train` alone learns from other folders only.
    """

    data: Path
    weak: str
    strong: str
    second: tuple[Path, str] | None = None
    train: tuple[Path, ...] = ()
    folds: int | None = None
    labels: int | None = None
    prices: tuple[float, ...] | None = None
    budget: float | None = None
    floor: float = setting.FLOOR
    seed: int = 0


class Examples(msgspec.Struct, frozen=True):
    """Prompts with both models' scores, the weak model's answers where known, what calls cost; one of each a row."""

    prompts: tuple[str, ...]
    keys: tuple[str, ...]
    categories: tuple[str, ...]
    weak: Any
    strong: Any
    answers: tuple[Answer, ...]
    second: tuple[Answer, ...] | None  # a second cheap model's answers,
    second_score: Any  # and their scores; NaN where unknown
    costs: dict[str, Any]  # by the names in COSTS, see `priced`

    def take(self, rows: Ints) -> Examples:
        """Only these."""
        return Examples(
            tuple(self.prompts[n] for n in rows),
            tuple(self.keys[n] for n in rows),
            tuple(self.categories[n] for n in rows),
            self.weak[rows],
            self.strong[rows],
            tuple(self.answers[n] for n in rows),
            None if self.second is None else tuple(self.second[n] for n in rows),
            self.second_score[rows],
            {name: values[rows] for name, values in self.costs.items()},
        )

    @property
    def answered(self) -> bool:
        """Whether the weak model's answers are known."""
        return any(one.known for one in self.answers)


def check(job: Job) -> None:
    """Raises BadRequest for options that contradict each other."""
    if job.weak == job.strong:
        raise BadRequest(f"--weak and --strong are the same model: {job.weak}", param="strong")
    if job.labels is not None and job.folds is not None:
        raise BadRequest("name one of --labels and --folds", param="labels")
    if job.prices is not None and len(job.prices) not in (4, 6):
        raise BadRequest("--prices takes IN_A,OUT_A,IN_B,OUT_B, and two more for the second model", param="prices")


def examples(outcomes: Outcomes, job: Job) -> tuple[Examples, int]:
    """The folder's examples, and how many prompts were left out because a model has no score for them."""
    scores = outcomes.column(job.weak), outcomes.column(job.strong)
    rows = np.flatnonzero(np.isfinite(scores[0] + scores[1]))
    if not len(rows):
        raise BadRequest(
            f"{outcomes.folder} has no prompt with scores of both {job.weak} and {job.strong}", param="data"
        )
    answers: dict[str, Sequence[Answer]] = {"weak": outcomes.answers(job.weak), "strong": outcomes.answers(job.strong)}
    second_score = np.full(len(outcomes.prompts), np.nan)
    if job.second is not None:
        other = data.read(job.second[0])
        given, scored = other.answers(job.second[1]), other.column(job.second[1])
        joined = data.join(outcomes, other)
        if all(one is None for one in joined):
            raise BadRequest(f"{job.second[0]} has none of the questions of {outcomes.folder}", param="second")
        answers["check"] = [Answer() if one is None else given[one] for one in joined]
        second_score = np.array([np.nan if one is None else scored[one] for one in joined])
    prompts = tuple(one.prompt for one in outcomes.prompts)
    whole = Examples(
        prompts,
        tuple(outcomes.keys()),
        tuple(one.category for one in outcomes.prompts),
        *scores,
        tuple(answers["weak"]),
        tuple(answers["check"]) if "check" in answers else None,
        second_score,
        priced(job, prompts, answers),
    )
    return whole.take(rows), len(prompts) - len(rows)


def borrowed(folder: Path, job: Job, known: set[str], notes: list[str]) -> Examples:
    """Another folder's examples, without the questions that are `known`; adds to `notes` what a reader must know."""
    outcomes = data.read(folder)
    names = [job.weak, job.strong]
    if any(name not in outcomes.models for name in names):
        order = np.argsort(np.nanmean(outcomes.scores, axis=0), kind="stable")
        if len(order) < 2:
            raise BadRequest(f"{folder} has one model only; two are needed to learn a gain", param="train")
        names = [outcomes.models[order[0]], outcomes.models[order[-1]]]
        notes.append(f"{folder.name} has not both models; its weakest and strongest stand in: {names[0]}, {names[1]}")
    found, _ = examples(outcomes, msgspec.structs.replace(job, weak=names[0], strong=names[1], second=None))
    rows = np.array([n for n, name in enumerate(found.keys) if name not in known], dtype=np.intp)
    if len(rows) < len(found.keys):
        notes.append(
            f"{folder.name}: {len(found.keys) - len(rows)} prompts left out, they ask what {job.data.name} asks"
        )
    return found.take(rows)


def splits(whole: Examples, job: Job, foreign: bool) -> list[tuple[Ints, Ints]]:
    """Rows to learn from and rows to route, equal questions on one side; `foreign`: only other folders teach."""
    count = len(whole.keys)
    if foreign:
        return [(np.arange(0), np.arange(count))]
    if job.labels is not None:
        order = predictor.folds_of(whole.keys, count, job.seed)  # a group of equal questions a place
        places = np.argsort(order, kind="stable")
        if job.labels >= count:
            raise BadRequest(
                f"--labels {job.labels}: there are only {count} prompts, none would be left", param="labels"
            )
        last = order[places[job.labels - 1]]
        learn = order <= last
        if learn.all():
            raise BadRequest(f"--labels {job.labels} leaves no other question to route", param="labels")
        return [(np.flatnonzero(learn), np.flatnonzero(~learn))]
    folds = job.folds or FOLDS
    if len(set(whole.keys)) < folds:
        raise BadRequest(f"--folds {folds}: there are only {len(set(whole.keys))} different questions", param="folds")
    fold = predictor.folds_of(whole.keys, folds, job.seed + 1)  # not the folds that the fitting itself uses
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(folds)]


def together(parts: Sequence[Examples]) -> Examples:
    """All of them, in order."""
    checks: tuple[Answer, ...] | None = None
    if any(one.second is not None for one in parts):
        checks = tuple(answer for one in parts for answer in one.second or [Answer()] * len(one.prompts))
    return Examples(
        tuple(text for one in parts for text in one.prompts),
        tuple(name for one in parts for name in one.keys),
        tuple(name for one in parts for name in one.categories),
        np.concatenate([one.weak for one in parts]),
        np.concatenate([one.strong for one in parts]),
        tuple(answer for one in parts for answer in one.answers),
        checks,
        np.concatenate([one.second_score for one in parts]),
        {name: np.concatenate([one.costs[name] for one in parts]) for name in COSTS},
    )


def taught(of: Examples, gains: Floats) -> acceptance.Examples:
    """What an acceptance model learns from; `gains` are the predictor's on left-out prompts."""
    return acceptance.Examples(of.prompts, of.answers, of.weak, of.strong, gains, of.second)


def outcome(of: Examples, gains: Floats, far: Bools, after: Floats | None, served: Floats) -> setting.Outcome:
    """What a setting is chosen by; `served` are the scores of the cheap answers that a cascade serves."""
    costs = of.costs
    return setting.Outcome(
        gains, far, after, of.weak, of.strong, served, costs["weak"], costs["strong"], costs["check"]
    )


def truth(of: Examples, served: Floats | None = None) -> evaluate.Truth:
    """What the prompts give and cost a router of prompts, or a cascade that serves cheap answers of such scores."""
    weak, strong = of.costs["weak"], of.costs["strong"]
    if served is None:
        return evaluate.Truth(of.weak, of.strong, of.weak, weak, strong, strong)
    first = weak + of.costs["check"]
    return evaluate.Truth(of.weak, of.strong, served, first, first + strong, strong)


def cost_words(prices: tuple[float, ...] | None) -> str:
    """How calls are priced by `priced`."""
    if prices is None:
        return "strong calls: no --prices were given, and the weak model counts as free"
    return "tokens (characters / 4) at the given prices, every attempt counted"


def priced(job: Job, prompts: Sequence[str], answers: dict[str, Sequence[Answer]]) -> dict[str, Any]:
    """What one call of each model costs, USD a prompt; without prices a strong call is 1, the others 0.

    Tokens are characters by four; an answer whose length is unknown counts ASSUMED_CHARS.
    """
    count = len(prompts)
    if job.prices is None:
        return {"weak": np.zeros(count), "strong": np.ones(count), "check": np.zeros(count)}
    asked = np.array([len(one) for one in prompts]) / _CHARS_A_TOKEN
    prices = dict(zip(COSTS, (job.prices[:2], job.prices[2:4], job.prices[4:] or job.prices[:2]), strict=True))
    found = {}
    for name, (in_price, out_price) in prices.items():
        given = answers.get(name)
        if given is None:
            found[name] = np.zeros(count)
            continue
        chars = np.array([ASSUMED_CHARS if one.chars is None else one.chars for one in given])
        found[name] = (asked * in_price + chars / _CHARS_A_TOKEN * out_price) / _MILLION
    return found
