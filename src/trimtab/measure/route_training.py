"""Learns a router from two models' scores on the same prompts, and says what is expected of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest
from trimtab.measure.route_data import Examples, outcome, taught, truth
from trimtab.routing import acceptance, evaluate, predictor, router, setting, stored
from trimtab.routing.evaluate import Figures
from trimtab.routing.predictor import Embeds
from trimtab.routing.router import Head, Router

Floats = NDArray[np.float64]

ROWS: Final = ("length rule", "prompt-only", "cascade")
_DIGITS: Final = 6


class Labels(msgspec.Struct, frozen=True):
    """What a router learns from: examples, the names of the models, where they are from, what a reader must know.

    `second` is "" without a second cheap model. `costs` says in words how calls are priced.
    """

    examples: Examples
    weak: str
    strong: str
    second: str
    source: str
    costs: str
    notes: tuple[str, ...] = ()


class Trained(msgspec.Struct, frozen=True):
    """A router and its figures on prompts left out of the fitting, with 95% intervals.

    `gain_over_length` is the APGR of its order of prompts minus that of their length, None where there is no lead.
    """

    router: Router
    prompts: int
    weak_score: float
    strong_score: float
    costs: str
    rows: list[Figures]
    gain_over_length: dict[str, float | None]
    notes: list[str]


def train(
    labels: Labels, embedder: Embeds, *, floor: float, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> Trained:
    """Learn a router; its setting keeps `floor` of the best single model's score. `say` hears what is under way.

    Raises BadRequest for fewer than predictor.FEWEST different prompts.
    """
    whole = labels.examples
    _check_enough(whole)
    count = f"{len(whole.prompts):,} prompts"
    say(f"learning from {count}")
    learned = predictor.fit(whole.prompts, whole.weak, whole.strong, embedder, seed=seed)
    looked = None
    if whole.answered:
        say(f"learning from {count}' answers")
        looked = acceptance.fit(taught(whole, learned.held_out), seed=seed)
    after = None if looked is None else looked.held_out
    say("choosing the setting")
    near = np.zeros(len(whole.prompts), dtype=np.bool_)
    chosen = setting.choose(outcome(whole, learned.held_out, near, after, whole.weak), floor=floor)
    head = _head(labels, chosen, learned, after, floor)
    made = Router(
        router.FORMAT,
        head,
        stored.dumps(learned.predictor),
        b"" if looked is None else stored.dumps(looked.acceptance),
    )
    say("measuring it on left-out prompts")
    return _figures(labels, made, learned.held_out, after, seed)


def _check_enough(whole: Examples) -> None:
    different = len(set(whole.keys))
    if different < predictor.FEWEST:
        raise BadRequest(
            f"{different} different prompts to learn from; at least {predictor.FEWEST} are needed that both models "
            "have answered, and some hundreds to learn anything",
            param="data",
        )


def _head(
    labels: Labels, chosen: setting.Setting, learned: predictor.Fitted, after: Floats | None, floor: float
) -> Head:
    whole = labels.examples
    return Head(
        weak=labels.weak,
        strong=labels.strong,
        second=labels.second,
        kind=chosen.kind,
        skip=chosen.skip,
        accept=chosen.accept,
        floor=floor,
        kept=round(chosen.kept, _DIGITS),
        saved=round(chosen.saved, _DIGITS),
        pays=chosen.pays,
        reason=chosen.reason,
        rows=len(whole.prompts),
        skill=round(learned.predictor.skill, _DIGITS),
        trained_on=labels.source,
        data_sha256=data_sha256(whole),
        gains=quantiles(learned.held_out),
        after=() if after is None else quantiles(after),
    )


def quantiles(values: Floats) -> tuple[float, ...]:
    """As many evenly spread quantiles as a router's head has, in order."""
    found = np.quantile(values, np.linspace(0, 1, router.QUANTILES))
    return tuple(round(float(one), _DIGITS) for one in found)


def data_sha256(whole: Examples) -> str:
    """The hash of all that was learned from: prompts, scores, answers."""
    parts: list[Any] = [whole.prompts, whole.weak.tolist(), whole.strong.tolist(), whole.answers, whole.second]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _figures(labels: Labels, made: Router, gains: Floats, after: Floats | None, seed: int) -> Trained:
    whole = labels.examples
    length = np.array([float(len(one)) for one in whole.prompts])
    by_prompt = truth(whole)
    rows = [
        evaluate.figures(ROWS[0], length, by_prompt, seed=seed),
        evaluate.figures(ROWS[1], gains, by_prompt, seed=seed),
    ]
    if after is not None:
        rows.append(evaluate.figures(ROWS[2], after, truth(whole, whole.weak), seed=seed))
    leads = whole.strong.mean() > whole.weak.mean()
    gap = evaluate.paired(gains, length, by_prompt, seed=seed) if leads else (None,) * 3
    return Trained(
        made,
        len(whole.prompts),
        round(float(whole.weak.mean()), 4),
        round(float(whole.strong.mean()), 4),
        labels.costs,
        rows,
        {name: one if one is None else round(one, 4) for name, one in zip(("apgr", "low", "high"), gap, strict=True)},
        [*labels.notes, *_notes(labels, made.head, after)],
    )


def _notes(labels: Labels, head: Head, after: Floats | None) -> list[str]:
    found, whole = [], labels.examples
    if whole.strong.mean() <= whole.weak.mean():
        found.append(f"{labels.strong} scores no more than {labels.weak} here: there is no lead to recover")
    if head.skill <= predictor.SURE:
        found.append(
            f"the prompts alone tell next to nothing of the gain: {head.skill:.1f} standard errors from chance; more "
            "labels may help"
        )
    if after is None:
        found.append("no cascade: the weak model's answers are not in the data")
    return found
