"""All that speaks for and against answering a question with the answer of an earlier one, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.semantic import lexical, pairs
from trimtab.semantic.classes import GroupModel
from trimtab.semantic.groups import Memory
from trimtab.semantic.lexical import Profile

Matrix = NDArray[np.float32]

NEIGHBOURS: Final = 15
_WIDTH: Final = 0.06  # of a vote's weight in cosine: a neighbour .06 further away weighs e times less
_CLIP: Final = 10.0

FEATURES: Final = (
    "accurate_cosine",
    "fast_cosine",
    "margin",
    "vote",
    "fast_vote",
    "neighbours_in_group",
    "posterior",
    "fit",
    "winners_agree",
    "group_size",
    "pair_logit",
    "number_mismatch",
    "negation_mismatch",
    "antonyms",
    "name_mismatch",
    "rare_jaccard",
    "rarest_difference",
    "length_gap",
    "known",
)


@dataclass(frozen=True, slots=True)
class Query:
    """A question as the learner sees it: its words and its two unit vectors."""

    profile: Profile
    accurate: Matrix
    fast: Matrix


@dataclass(frozen=True, slots=True)
class Candidate:
    """The entry whose answer may be reused, what speaks for it, and the neighbours to compare a fresh answer with.

    `values` has the shape of `FEATURES`. `odds`, `sizes` and `rivals` describe the groups among the neighbours.
    """

    entry: int
    values: NDArray[np.float64]
    near: tuple[int, ...]
    rivals: tuple[int, ...]
    odds: NDArray[np.float64] | None
    sizes: NDArray[np.int64]


def gather(query: Query, memory: Memory, model: GroupModel) -> Candidate | None:
    """The best candidate for a question, None while nothing is known. Reads only."""
    near, cosines = memory.nearest(query.accurate, NEIGHBOURS)
    if not len(near):
        return None
    groups = memory.groups_of(near).tolist()
    rivals = sorted(set(groups))  # of a handful: plain lists are faster than arrays
    places = [rivals.index(group) for group in groups]
    vote = _votes(cosines, places, len(rivals))
    fast_cosines, fast_vote = cosines, vote
    if query.fast is not query.accurate:
        fast_cosines = memory.fast_cosines(query.fast, near)
        fast_vote = _votes(fast_cosines, places, len(rivals))
    sums, sizes = memory.stats(rivals)
    odds = None
    if model.ready:
        odds, posterior = model.score(query.accurate, sums, sizes)
        winner = int(np.argmax(posterior[:-1] + np.log(vote + 0.01)))
        others = np.exp(posterior)
        others[winner] = 0.0
        log_odds = float(posterior[winner]) - math.log(max(float(others.sum()), math.exp(-2 * _CLIP)))
        fit, agree = float(odds[winner]) / model.temperature, float(winner == int(np.argmax(vote)))
    else:
        winner = int(np.argmax(vote))
        log_odds, fit, agree = _logit(float(vote[winner])), 0.0, 1.0
    best = places.index(winner)  # the nearest of the winning group
    rest = next((n for n, place in enumerate(places) if place != winner), None)
    entry = int(near[best])
    theirs = memory.profile(entry)
    ours = query.profile
    cosine, fast_cosine = float(cosines[best]), float(fast_cosines[best])
    pair = pairs.features(ours, theirs, cosine, fast_cosine)
    values = np.array(
        (
            cosine,
            fast_cosine,
            0.3 if rest is None else cosine - float(cosines[rest]),
            _logit(float(vote[winner])),
            _logit(float(fast_vote[winner])),
            places.count(winner) / len(near),
            min(max(log_odds, -_CLIP), _CLIP),
            min(max(fit, -_CLIP), _CLIP),
            agree,
            math.log1p(float(sizes[winner])),
            pairs.logit(pair),
            *pair[5:9],
            *_rare(ours, theirs, memory),
            pair[4],
            math.log1p(len(memory)),
        )
    )
    return Candidate(entry, values, tuple(near.tolist()), tuple(rivals), odds, sizes)


def _votes(cosines: NDArray[np.float32], places: list[int], groups: int) -> NDArray[np.float64]:
    """Shares of groups among neighbours, weighted by nearness; they add up to 1."""
    weights = np.exp((cosines - cosines.max()) / _WIDTH).astype(np.float64)
    votes: NDArray[np.float64] = np.bincount(places, weights, groups) / weights.sum()
    return votes


def _rare(ours: Profile, theirs: Profile, memory: Memory) -> tuple[float, float]:
    """Jaccard of the meaning words, weighted by rarity, and the rarity of the rarest word that only one text has."""
    shared = sum(memory.rarity(word) for word in ours.content & theirs.content)
    differing = [memory.rarity(word) for word in ours.content ^ theirs.content]
    everything = shared + sum(differing)
    return (shared / everything if everything else lexical.jaccard(ours.content, theirs.content)), max(
        differing, default=0.0
    )


def _logit(share: float) -> float:
    share = min(max(share, 0.01), 0.99)
    return math.log(share / (1 - share))
