"""Measuring routing offline: a router learns from some of two models' recorded outcomes and routes the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.measure.route_data import (
    FOLDS,
    Examples,
    Job,
    borrowed,
    check,
    cost_words,
    examples,
    outcome,
    splits,
    taught,
    together,
    truth,
)
from trimtab.measure.stats import quantile
from trimtab.routing import acceptance, data, evaluate, predictor, setting
from trimtab.routing.dial import Dial, strong_share
from trimtab.routing.evaluate import Figures
from trimtab.routing.predictor import Embeds, Predictor

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

SETTLED: Final = 300  # requests after which a dial must be near its share
# The second one is the published protocol's: it serves the weak model's answers only, and has a row of its own where
# the first may serve a second cheap model's.
CASCADES: Final = ("ours cascade", "ours cascade, weak answers only")
_TIMED: Final = 500  # decisions timed
_STREAM_BUDGET: Final = 0.5  # the strong share asked of the stream if none is named


class Stream(msgspec.Struct, frozen=True):
    """A dial over requests in file order. `worst_after_300`: how far off the share so far is at most from then on."""

    router: str
    asked: float
    realised: float
    worst_after_300: float | None
    quality: float
    quality_random: float
    drift: float


class Choice(msgspec.Struct, frozen=True):
    """The setting chosen on what was learned from, and what it did to the prompts that were routed; 95% intervals.

    `kept` is of the best single model's score, `saved` of its cost; `kept_of_strong` and `saved_of_strong` of the
    strong model's.
    """

    setting: str
    pays: bool
    reason: str
    chosen_in: dict[str, int]
    kept: float
    kept_low: float
    kept_high: float
    saved: float
    saved_low: float
    saved_high: float
    kept_of_strong: float
    saved_of_strong: float
    strong_share: float


class Report(msgspec.Struct, frozen=True):
    """Everything that `trimtab bench route` prints. Scores and shares are of 1, latencies in milliseconds."""

    data: str
    weak: str
    strong: str
    prompts: int
    skipped: int
    learned_from: int
    weak_score: float
    strong_score: float
    split: str
    costs: str
    notes: list[str]
    rows: list[Figures]
    gain_over_length: dict[str, float]
    setting: Choice
    stream: list[Stream]
    latency_ms: dict[str, float]


class Remembered:
    """An embedder that embeds each text once: folds ask for the same ones."""

    def __init__(self, embedder: Embeds) -> None:
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the embedder's."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class _Look(msgspec.Struct, frozen=True):
    """A cascade's expected gains over cheap answers, and the scores of what it serves: learned from, and routed."""

    held_out: Any
    after: Any
    lesson_served: Any
    served: Any


class _Routed:
    """What routers say of the prompts that are routed, filled split by split.

    Expected gains are less the mean gain of what was learned from: pooled over folds, that mean would count against the
    router, for where it is high, the prompts left out have a low one.
    """

    def __init__(self, count: int) -> None:
        self.gains, self.task = np.zeros(count), np.zeros(count)
        self.after: dict[str, Floats] = {}  # by router: expected gains, and scores of what it serves; (2, count)
        self.strong, self.seen = (np.zeros(count, dtype=np.bool_) for _ in range(2))
        self.score, self.cost, self.best_score, self.best_cost = (np.zeros(count) for _ in range(4))
        self.settings: list[setting.Setting] = []
        self.fitted: dict[str, list[float]] = {}
        self.learned_from = 0
        self.predictor: Predictor | None = None


def run(job: Job, embedder: Embeds) -> Report:
    """Measure. Raises BadRequest that names the option, the folder, or the file and line at fault."""
    check(job)
    outcomes = data.read(job.data)
    whole, left_out = examples(outcomes, job)
    notes: list[str] = []
    others = [borrowed(folder, job, set(whole.keys), notes) for folder in job.train]
    remembered = Remembered(embedder)
    routed = _Routed(len(whole.prompts))
    foreign = bool(others) and job.labels is None and job.folds is None
    for learn, test in splits(whole, job, foreign):
        lesson = together([whole.take(learn), *others]) if len(learn) else together(others)
        _route(_Split(lesson, whole.take(test), test, foreign), routed, remembered, job, notes)
    rows = np.flatnonzero(routed.seen)
    report = _report(job, whole.take(rows), rows, routed, embedder, list(dict.fromkeys(notes)))
    return msgspec.structs.replace(report, skipped=left_out)


class _Split(msgspec.Struct, frozen=True):
    """Prompts to learn from and prompts to route, with the latter's rows; `foreign`: no label is from their folder."""

    lesson: Examples
    test: Examples
    rows: Ints
    foreign: bool


def _route(split: _Split, routed: _Routed, embedder: Embeds, job: Job, notes: list[str]) -> None:
    """Learn from one part and route the other, writing into `routed`."""
    lesson, test, rows = split.lesson, split.test, split.rows
    learned = predictor.fit(lesson.prompts, lesson.weak, lesson.strong, embedder, seed=job.seed)
    found = learned.predictor.estimates(test.prompts, embedder)
    gains, far = found.gain, found.far
    believed = not split.foreign or learned.predictor.believed_on(found)
    if not believed:
        notes.append(
            f"the predictor abstains, prompt-only routing tosses coins: {found.unusual.mean():.0%} of the prompts are "
            f"unusual for it (half are at home), and its skill at home is {learned.predictor.skill:.1f} standard errors"
        )
        gains = np.full(len(gains), learned.predictor.model.bias)
    looks = _looks(split, learned.held_out, gains, job.seed)
    best = looks[0] if looks else _Look(None, None, lesson.weak, test.weak)
    chosen = setting.choose(
        outcome(lesson, learned.held_out, np.zeros(len(lesson.prompts), np.bool_), best.held_out, best.lesson_served),
        floor=job.floor,
    )
    if split.foreign:
        chosen = setting.unproven(chosen)
    score, cost, strong = setting.played(chosen, outcome(test, gains, far, best.after, best.served))
    best_weak = not split.foreign and lesson.weak.mean() >= lesson.strong.mean()
    centre = _mean_gain(lesson)
    routed.gains[rows], routed.strong[rows], routed.seen[rows] = gains - centre, strong, True
    routed.score[rows], routed.cost[rows] = score, cost
    routed.best_score[rows] = test.weak if best_weak else test.strong
    routed.best_cost[rows] = test.costs["weak" if best_weak else "strong"]
    routed.task[rows] = _task_means(lesson, test)
    routed.settings.append(chosen)
    routed.fitted["prompt"] = (learned.held_out - centre).tolist() if believed else []
    for name, look in zip(CASCADES, looks, strict=False):
        column = routed.after.setdefault(name, np.zeros((2, len(routed.gains))))
        centre = float((lesson.strong - look.lesson_served).mean())
        column[:, rows] = look.after - centre, look.served
        routed.fitted[name] = (look.held_out - centre).tolist()
    routed.learned_from, routed.predictor = len(lesson.prompts), learned.predictor


def _looks(split: _Split, held_out: Floats, gains: Floats, seed: int) -> list[_Look]:
    """The cascades that the answers allow, the best one first; see CASCADES."""
    lesson, test = split.lesson, split.test
    if not test.answered:
        return []
    if split.foreign or not lesson.answered:
        after = acceptance.rule(test.answers, test.second)
        return [_Look(acceptance.rule(lesson.answers, lesson.second), after, lesson.weak, test.weak)]
    plain = _look(lesson, test, held_out, gains, seed)
    if lesson.second is None or not np.isfinite(lesson.second_score).all():
        return [plain]
    # Which of two cheap answers to serve is the same question as whether to escalate, with the second model as the
    # strong one.
    prefer = acceptance.fit(taught(msgspec.structs.replace(lesson, strong=lesson.second_score), held_out), seed=seed)
    by_lesson = prefer.held_out > 0
    by_test = prefer.acceptance.estimates(test.prompts, test.answers, gains, test.second) > 0
    return [_look(_swapped(lesson, by_lesson), _swapped(test, by_test), held_out, gains, seed), plain]


def _look(lesson: Examples, test: Examples, held_out: Floats, gains: Floats, seed: int) -> _Look:
    fitted = acceptance.fit(taught(lesson, held_out), seed=seed)
    after = fitted.acceptance.estimates(test.prompts, test.answers, gains, test.second)
    return _Look(fitted.held_out, after, lesson.weak, test.weak)


def _swapped(of: Examples, swap: Bools) -> Examples:
    """The second model's answer in place of the weak one's where `swap` says so and its score is known."""
    assert of.second is not None
    swap = swap & np.isfinite(of.second_score)
    pairs = list(zip(of.answers, of.second, swap, strict=True))
    return msgspec.structs.replace(
        of,
        weak=np.where(swap, of.second_score, of.weak),
        answers=tuple(other if turn else own for own, other, turn in pairs),
        second=tuple(own if turn else other for own, other, turn in pairs),
    )


def _mean_gain(of: Examples) -> float:
    return float((of.strong - of.weak).mean())


def _task_means(lesson: Examples, test: Examples) -> Floats:
    """By how much the mean gain of each prompt's category differs from the mean of all; 0 for a new one."""
    gain = lesson.strong - lesson.weak
    by_name: dict[str, list[float]] = {}
    for name, value in zip(lesson.categories, gain, strict=True):
        by_name.setdefault(name, []).append(float(value))
    overall = _mean_gain(lesson)
    means = {name: sum(values) / len(values) for name, values in by_name.items()}
    return np.array([means.get(name, overall) - overall for name in test.categories])


def _report(job: Job, test: Examples, rows: Ints, routed: _Routed, embedder: Embeds, notes: list[str]) -> Report:
    gains = routed.gains[rows]
    length = np.array([float(len(one)) for one in test.prompts])
    by_prompt = truth(test)
    weak_leads = test.weak.mean() >= test.strong.mean()
    if weak_leads:
        notes.append(f"{job.strong} scores no more than {job.weak} here: there is no lead to recover")
    table = [
        evaluate.random_figures(by_prompt, seed=job.seed),
        evaluate.figures("length rule", length, by_prompt, seed=job.seed),
        evaluate.figures("best single", np.zeros(len(rows)), by_prompt, seed=job.seed),
        evaluate.figures("task mean", routed.task[rows], by_prompt, seed=job.seed),
        evaluate.figures("ours prompt-only", gains, by_prompt, seed=job.seed),
    ]
    routers = {"ours prompt-only": (gains, test.weak, routed.fitted["prompt"])}
    for name, (after, served) in ((name, values[:, rows]) for name, values in routed.after.items()):
        table.append(evaluate.figures(name, after, truth(test, served), seed=job.seed))
        routers[name] = (after, served, routed.fitted[name])
    if job.second is not None:
        notes.append(f"the second model, {job.second[1]}, alone scores {np.nanmean(test.second_score):.1%}")
    if not routed.after:
        notes.append("no cascade: the data has no answers of the weak model")
    table.append(evaluate.figures("oracle", test.strong - test.weak, by_prompt, seed=job.seed))
    difference, low, high = evaluate.paired(gains, length, by_prompt, seed=job.seed)
    asked = _STREAM_BUDGET if job.budget is None else job.budget
    assert routed.predictor is not None
    return Report(
        data=str(job.data),
        weak=job.weak,
        strong=job.strong,
        prompts=len(rows),
        skipped=0,
        learned_from=routed.learned_from,
        weak_score=_rounded(test.weak.mean()),
        strong_score=_rounded(test.strong.mean()),
        split=_split_words(job),
        costs=cost_words(job.prices),
        notes=notes,
        rows=table,
        gain_over_length={"apgr": _rounded(difference), "low": _rounded(low), "high": _rounded(high)},
        setting=_choice(test, rows, routed),
        stream=[_stream(name, asked, *one, test) for name, one in routers.items()],
        latency_ms=_latency(test.prompts, routed.predictor, embedder),
    )


def _choice(test: Examples, rows: Ints, routed: _Routed) -> Choice:
    """What the settings did, each to the prompts that it had not seen."""
    names = [one.kind for one in routed.settings]
    counted: dict[str, int] = {name: names.count(name) for name in dict.fromkeys(names)}
    usual = max(counted, key=lambda name: counted[name])
    shown = next(one for one in routed.settings if one.kind == usual)
    score, cost = routed.score[rows], routed.cost[rows]
    kept = evaluate.mean_interval(score, routed.best_score[rows])
    spent = evaluate.mean_interval(cost, routed.best_cost[rows])
    return Choice(
        setting=usual,
        pays=shown.pays,
        reason=shown.reason,
        chosen_in=counted,
        kept=_rounded(kept[0]),
        kept_low=_rounded(kept[1]),
        kept_high=_rounded(kept[2]),
        saved=_rounded(1 - spent[0]),
        saved_low=_rounded(1 - spent[2]),
        saved_high=_rounded(1 - spent[1]),
        kept_of_strong=_rounded(score.sum() / max(test.strong.sum(), 1e-12)),
        saved_of_strong=_rounded(1 - cost.sum() / max(test.costs["strong"].sum(), 1e-300)),
        strong_share=_rounded(routed.strong[rows].mean()),
    )


def _stream(
    router: str, asked: float, values: Floats, served: Floats, fitted: Sequence[float], test: Examples
) -> Stream:
    """A dial over the prompts in file order."""
    dial = Dial(strong_share(asked), fitted)
    chosen = np.zeros(len(values), dtype=np.bool_)
    for n, value in enumerate(values):
        chosen[n] = dial.choose(float(value))
        dial.spend(float(chosen[n]))
    so_far = np.abs(np.cumsum(chosen) / np.arange(1, len(chosen) + 1) - asked)[SETTLED - 1 :]
    share = float(chosen.mean())
    return Stream(
        router=router,
        asked=asked,
        realised=_rounded(share),
        worst_after_300=_rounded(so_far.max()) if len(so_far) else None,
        quality=_rounded(np.where(chosen, test.strong, served).mean()),
        quality_random=_rounded(share * test.strong.mean() + (1 - share) * test.weak.mean()),
        drift=_rounded(dial.drift),
    )


def _latency(prompts: Sequence[str], one: Predictor, embedder: Embeds) -> dict[str, float]:
    """CPU time of a decision by the prompt, one at a time, embedding included: what a free core would take."""
    dial = Dial(strong_share(0.5))
    step = max(1, len(prompts) // _TIMED)
    one.score(prompts[0], embedder)  # the first call of a session allocates
    took_ms = []
    for prompt in prompts[::step]:
        began = time.process_time()
        dial.choose(one.score(prompt, embedder).gain)
        took_ms.append((time.process_time() - began) * 1e3)
    return {"p50": _rounded(quantile(took_ms, 0.5) or 0.0), "p99": _rounded(quantile(took_ms, 0.99) or 0.0)}


def _split_words(job: Job) -> str:
    parts = []
    if job.train:
        parts.append("learned from " + ", ".join(folder.name for folder in job.train))
    if job.labels is not None:
        parts.append(f"{job.labels} labels of its own")
    elif job.folds or not job.train:
        parts.append(f"{job.folds or FOLDS}-fold cross-validation by question")
    return "; ".join(parts)


def _rounded(value: float) -> float:
    return round(float(value), 4)
