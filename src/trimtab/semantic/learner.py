"""The semantic cache's head: one question in, hit or miss out; verdicts on answers in, better rulings later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.classes import GroupModel
from trimtab.semantic.evidence import Candidate, Query, gather
from trimtab.semantic.fixed import Fixed
from trimtab.semantic.groups import Memory, Row
from trimtab.semantic.promise import Promise, Ruling, Terms

Matrix = NDArray[np.float32]

CAPACITY: Final = 100_000
_FIT_FROM: Final = 60  # questions
_FIT_GROWTH: Final = 1.1
_FIT_STEP: Final = 50
_FIT_EVERY: Final = 500  # questions at most between two fits of the group model
_FIT_ROWS: Final = 10_000  # of the youngest; a fit to these takes 0.2 s, and its 384 directions need no more


@dataclass(frozen=True, slots=True)
class Look:
    """What was found for a question. `entry` is whose answer to reuse, None if nothing is known.

    On a hit the caller serves that answer. If `audit` is set, or on a miss, it hands `learn` a verdict for each entry
    in `compare`: is the fresh answer equal to that entry's answer?
    """

    hit: bool
    audit: bool
    entry: int | None
    p_wrong: float
    compare: tuple[int, ...]
    query: Query
    candidate: Candidate | None
    ruling: Ruling


class Learner:
    """Memory, group model and promise in one. Not thread-safe: one lock around `look` and `learn` suffices.

    Time of `look`: 1 ms at 10,000 questions, 2 ms at 100,000; `learn` refits now and then (0.2 s) and belongs off the
    request's path. Memory: see `groups.Memory`.
    """

    def __init__(self, terms: Terms, *, accurate_dim: int = 384, fast_dim: int = 256, capacity: int = CAPACITY) -> None:
        self.memory = Memory(capacity, accurate_dim, fast_dim)
        self.promise: Promise | Fixed = Promise(terms)  # may be replaced: what several memories share
        self._model = GroupModel()
        self._fit_at = _FIT_FROM

    def restore(self, rows: Iterable[Row], next_id: int) -> None:
        """Go on with the questions that another learner's memory had. Raises ValueError as `Memory.restore`."""
        self.memory.restore(rows, next_id)
        if len(self.memory) >= _FIT_FROM:
            self._fit()

    def look(self, query: Query) -> Look:
        """Decide on a question. Side effects: counts it; keeps nothing of its text."""
        candidate = gather(query, self.memory, self._model)
        ruling = self.promise.rule(None if candidate is None else candidate.values)
        entry = None if candidate is None else candidate.entry
        near = () if candidate is None else candidate.near
        return Look(ruling.hit, ruling.audit, entry, ruling.p_wrong, near, query, candidate, ruling)

    def learn(self, look: Look, same: Mapping[int, bool]) -> int:
        """Learn from a miss or an audited hit, and keep its question. Returns the new entry's id.

        `same` holds a verdict for the entries in `look.compare`; those that are missing are unknown. Where members of
        the candidate's group disagree, the majority is believed.
        """
        candidate = look.candidate
        if candidate is not None and same:
            agreeing, _ = self.memory.vote(same)
            self._label(look, candidate, same, agreeing)
            if candidate.odds is not None:
                places = {group: n for n, group in enumerate(candidate.rivals)}
                truth = next((places[group] for group in agreeing if group in places), len(candidate.rivals))
                self._model.observe(candidate.odds, candidate.sizes, truth)
        entry = self.memory.add(look.query.profile, look.query.accurate, look.query.fast, same)
        if self.memory.next_id >= self._fit_at and len(self.memory) >= _FIT_FROM:
            self._fit()
        return entry

    def _fit(self) -> None:
        self._model.fit(*self.memory.recent(_FIT_ROWS))
        step = max(_FIT_STEP, min(self.memory.next_id * (_FIT_GROWTH - 1), _FIT_EVERY))
        self._fit_at = self.memory.next_id + int(step)

    def _label(self, look: Look, candidate: Candidate, same: Mapping[int, bool], agreeing: list[int]) -> None:
        if candidate.entry in self.memory and candidate.entry in same:
            right = same[candidate.entry]
            group = self.memory.group(candidate.entry)
            members = [entry for entry in same if entry in self.memory and self.memory.group(entry) == group]
            if len(members) > 2:
                right = group in agreeing
            self.promise.label(candidate.values, look.ruling, not right)
