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
    odds: list[float] | None
    sizes: list[int]


def gather(query: Query, memory: Memory, model: GroupModel) -> Candidate | None:
    """The best candidate for a question, None while nothing is known. Reads only."""
    entries, nearness = memory.nearest(query.accurate, NEIGHBOURS)
    if not len(entries):
        return None
    # From here on plain numbers: of a handful they are faster than arrays.
    near, cosines, groups = entries.tolist(), nearness.tolist(), memory.groups_of(entries).tolist()
    rivals = sorted(set(groups))
    places = [rivals.index(group) for group in groups]
    vote = _votes(cosines, places, len(rivals))
    fast_cosines, fast_vote = cosines, vote  # with one embedder for both, nothing is counted twice
    if query.fast is not query.accurate:
        fast_cosines = memory.fast_cosines(query.fast, entries).tolist()
        fast_vote = _votes(fast_cosines, places, len(rivals))
    sums, sizes = memory.stats(rivals)
    odds = None
    if model.ready:
        odds, posterior = model.score(query.accurate, sums, sizes)
        winner = _first_best([log + math.log(share + 0.01) for log, share in zip(posterior, vote, strict=False)])
        others = sum(math.exp(log) for n, log in enumerate(posterior) if n != winner)
        log_odds = posterior[winner] - math.log(max(others, math.exp(-2 * _CLIP)))
        fit, agree = odds[winner] / model.temperature, float(winner == _first_best(vote))
    else:
        winner = _first_best(vote)
        log_odds, fit, agree = _logit(vote[winner]), 0.0, 1.0
    best = places.index(winner)  # the nearest of the winning group
    rest = next((n for n, place in enumerate(places) if place != winner), None)
    ours, theirs = query.profile, memory.profile(near[best])
    cosine, fast_cosine = cosines[best], fast_cosines[best]
    pair = pairs.features(ours, theirs, cosine, fast_cosine)
    values = np.array(
        (
            cosine,
            fast_cosine,
            0.3 if rest is None else cosine - cosines[rest],
            _logit(vote[winner]),
            _logit(fast_vote[winner]),
            places.count(winner) / len(near),
            min(max(log_odds, -_CLIP), _CLIP),
            min(max(fit, -_CLIP), _CLIP),
            agree,
            math.log1p(sizes[winner]),
            pairs.logit(pair),
            *pair[5:9],
            *_rare(ours, theirs, memory),
            pair[4],
            math.log1p(len(memory)),
        )
    )
    return Candidate(near[best], values, tuple(near), tuple(rivals), odds, sizes)


def _votes(cosines: list[float], places: list[int], groups: int) -> list[float]:
    """Shares of groups among neighbours, weighted by nearness; they add up to 1."""
    votes, nearest = [0.0] * groups, max(cosines)
    for cosine, place in zip(cosines, places, strict=True):
        votes[place] += math.exp((cosine - nearest) / _WIDTH)
    whole = sum(votes)
    return [vote / whole for vote in votes]


def _first_best(scores: list[float]) -> int:
    return scores.index(max(scores))


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
