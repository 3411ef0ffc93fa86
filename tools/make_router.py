"""Writes the router that Trimtab ships: `python tools/make_router.py DATA_FOLDER [--measure]`.

The folder holds a folder each of recorded outcomes: llmrouter_train, mmlupro, routellm_gsm8k, routellm_mmlu,
zeroeval_gsm, zeroeval_mathl5 (see bench/README.md). The same bytes every time on one machine. With --measure it is
trained on all sets but one, in turn, and routes that one: how much does it know of a subject that it has not seen?
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.measure.route_training import quantiles
from trimtab.routing import data, evaluate, predictor, router, setting, stored
from trimtab.routing.predictor import Embeds, Fitted
from trimtab.routing.router import Head, Router
from trimtab.semantic.embed import load_fast
from trimtab.wheels import cache_dir, shown_on_stderr

SETS = {
    "llmrouter_train": "LLMRouter's training prompts (ulab-uiuc, MIT)",
    "mmlupro": "MMLU-Pro's results (TIGER-AI-Lab, Apache-2.0)",
    "routellm_gsm8k": "RouteLLM's GSM8K half (lm-sys, Apache-2.0)",
    "routellm_mmlu": "RouteLLM's MMLU half (lm-sys, Apache-2.0)",
    "zeroeval_gsm": "ZeroEval's GSM results (WildEval, Apache-2.0)",
    "zeroeval_mathl5": "ZeroEval's MATH level 5 results (WildEval, Apache-2.0)",
}
LABEL = (
    "other models than yours: {sets}. On subjects that it has not seen its order of prompts is little better than "
    "chance (APGR 0.49 to 0.63, that of the prompt's length 0.46 to 0.63): train your own"
)
MOST = 1000  # prompts of a set, so that no set outweighs the others
LANDMARKS = 256  # 512 and 1,024 order left-out sets no better, and are twice and four times as large
SEED = 0
WEAK, STRONG = (0.1, 0.25, 0.5), (0.7, 1.0)  # places in a left-out set's ranking: pairs that are routed between
LEAST_LEAD = 0.05  # of a pair's strong model
DRAWS = 300

Floats = NDArray[np.float64]


class Set(msgspec.Struct, frozen=True):
    """A set's prompts and their keys, and its models' scores, worst model first; shape (prompts, models)."""

    prompts: list[str]
    keys: list[str]
    scores: Any

    def pair(self) -> tuple[Floats, Floats]:
        """The scores of a weak model, a quarter up from the worst, and of the best; of two models, these."""
        return self.scores[:, (self.scores.shape[1] - 1) // 4], self.scores[:, -1]


class Lesson(msgspec.Struct, frozen=True):
    """What was learned, and the weak and the strong model's scores of the prompts learned from."""

    fitted: Fitted
    weak: Any
    strong: Any


def read(folder: Path) -> Set:
    """A set, without the models that did not answer everything."""
    outcomes = data.read(folder)
    scores = outcomes.scores[:, np.isfinite(outcomes.scores).all(axis=0)]
    order = np.argsort(scores.mean(axis=0), kind="stable")
    return Set([one.prompt for one in outcomes.prompts], outcomes.keys(), scores[:, order])


def train(sets: Sequence[Set], embedder: Embeds, without: frozenset[str] = frozenset(), seed: int = SEED) -> Lesson:
    """Learn from so many prompts of each set, none of whose questions is in `without`.

    Each set's gains are moved to the mean of all: that one set is harder than another says nothing of a prompt.
    """
    rng = np.random.default_rng(seed)
    prompts: list[str] = []
    weak, strong, moved = [], [], []
    for one in sets:
        rows = np.array([n for n, key in enumerate(one.keys) if key not in without], dtype=np.intp)
        rows = np.sort(rng.permutation(rows)[:MOST])
        prompts.extend(one.prompts[n] for n in rows)
        low, high = one.pair()
        weak.append(low[rows])
        strong.append(high[rows])
        moved.append((high - low)[rows] - (high - low).mean())
    middle = float(np.mean([(one.pair()[1] - one.pair()[0]).mean() for one in sets]))
    gains = np.concatenate(moved) + middle
    fitted = predictor.fit(prompts, np.zeros(len(gains)), gains, embedder, seed=seed, landmarks=LANDMARKS)
    return Lesson(fitted, np.concatenate(weak), np.concatenate(strong))


def made(sets: dict[str, Set], embedder: Embeds) -> Router:
    """The router that is shipped."""
    lesson = train(list(sets.values()), embedder)
    fitted, ones = lesson.fitted, np.ones(len(lesson.weak))
    known = setting.Outcome(
        fitted.held_out, ones == 0, None, lesson.weak, lesson.strong, lesson.weak, 0 * ones, ones, 0 * ones
    )
    nothing_known = setting.unproven(setting.choose(known))
    digest = hashlib.sha256()
    for one in sets.values():
        digest.update(msgspec.json.encode([one.prompts, one.scores.tolist()]))
    head = Head(
        weak="",
        strong="",
        second="",
        kind=nothing_known.kind,
        skip=None,
        accept=None,
        floor=setting.FLOOR,
        kept=nothing_known.kept,
        saved=nothing_known.saved,
        pays=nothing_known.pays,
        reason=nothing_known.reason,
        rows=fitted.predictor.rows,
        skill=round(fitted.predictor.skill, 6),
        trained_on=LABEL.format(sets=", ".join(SETS.values())),
        data_sha256=digest.hexdigest(),
        gains=quantiles(fitted.held_out),
    )
    return Router(router.FORMAT, head, stored.dumps(fitted.predictor))


def measured(sets: dict[str, Set], embedder: Embeds, seed: int) -> dict[str, dict[str, list[float]]]:
    """By left-out set: APGR of the router and of the prompt's length, mean over pairs of models, with 95% intervals."""
    found = {}
    for name, left in sets.items():
        others = [one for other, one in sets.items() if other != name]
        fitted = train(others, embedder, frozenset(left.keys), seed).fitted
        ours = fitted.predictor.estimates(left.prompts, embedder).gain
        length = np.array([float(len(one)) for one in left.prompts])
        routers = {"ours": ours, "length": length}
        found[name] = {router: apgr(score, pairs(left.scores)) for router, score in routers.items()}
    return found


def pairs(scores: Floats) -> list[tuple[Floats, Floats]]:
    """Weak and strong models of a set by rank, where the strong one has a lead; of two models, these."""
    count = scores.shape[1]
    places = sorted({(int(a * (count - 1)), round(b * (count - 1))) for a in WEAK for b in STRONG})
    found = [(scores[:, weak], scores[:, strong]) for weak, strong in places]
    return [pair for pair in found if pair[1].mean() - pair[0].mean() > LEAST_LEAD]


def apgr(score: Floats, of: Sequence[tuple[Floats, Floats]]) -> list[float]:
    """The area under the curve of an order of prompts, mean over pairs, and the interval over resampled prompts."""
    ones = np.ones(len(score))
    curves = [evaluate.Curve(score, evaluate.Truth(low, high, low, 0 * ones, ones, ones)) for low, high in of]

    def mean(counts: Floats) -> Floats:
        return np.mean([evaluate.area(curve.points(counts)) for curve in curves], axis=0)

    drawn = np.concatenate([mean(counts) for counts in evaluate.resamples(len(score), DRAWS, 0)])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [round(float(one), 3) for one in (mean(ones[None])[0], low, high)]


def main() -> int:
    """Write or measure it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--measure", action="store_true", help="write nothing, measure it on left-out sets")
    options = parser.parse_args()
    embedder = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder"))
    sets = {name: read(options.data / name) for name in SETS}
    if options.measure:
        for seed in range(4):
            sys.stdout.write(json.dumps({"seed": seed} | measured(sets, embedder, seed)) + "\n")
        return 0
    one = made(sets, embedder)
    router.write(router.DEFAULT, one)
    sys.stdout.write(f"{router.DEFAULT}: {router.DEFAULT.stat().st_size:,} bytes, {one.head.rows:,} prompts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
