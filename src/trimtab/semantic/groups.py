"""What is known so far: questions with their vectors, in groups whose answers were found to be equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.lexical import Profile

Matrix = NDArray[np.float32]

_MERGE_VOTES: Final = 2  # one wrong verdict must not join two groups for good
_MOST_DOUBTS: Final = 4096


class Memory:
    """A ring of the last `capacity` questions. Ids grow by one and are never used twice; not thread-safe.

    Memory: capacity x (4 x (accurate_dim + fast_dim) bytes + the words), some 4 KB a question.
    """

    def __init__(self, capacity: int, accurate_dim: int, fast_dim: int) -> None:
        self.capacity = capacity
        self.next_id = 0
        self._rows = min(capacity, 256)
        self._accurate = np.zeros((self._rows, accurate_dim), dtype=np.float32)
        self._fast = np.zeros((self._rows, fast_dim), dtype=np.float32)
        self._groups = np.zeros(self._rows, dtype=np.int64)
        self._profiles: list[Profile | None] = [None] * self._rows
        self._sums: dict[int, Matrix] = {}
        self._sizes: Counter[int] = Counter()
        self._next_group = 0
        self._words: Counter[str] = Counter()  # in how many questions
        self._doubts: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return min(self.next_id, self.capacity)

    def __contains__(self, entry: int) -> bool:
        return max(self.next_id - self.capacity, 0) <= entry < self.next_id

    @property
    def vectors(self) -> Matrix:
        """The accurate vectors of all questions, shape (len, accurate_dim), in no order of use."""
        return self._accurate[: len(self)]

    @property
    def groups(self) -> NDArray[np.int64]:
        """The group of each row of `vectors`."""
        return self._groups[: len(self)]

    def nearest(self, accurate: Matrix, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and cosines of the `count` nearest questions by the accurate vector, nearest first."""
        cosines = self.vectors @ accurate
        rows = np.argpartition(-cosines, count - 1)[:count] if len(cosines) > count else np.arange(len(cosines))
        rows = rows[np.argsort(-cosines[rows], kind="stable")]
        return self._ids(rows), cosines[rows]

    def fast_cosines(self, fast: Matrix, entries: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines by the fast vector with the entries, shape (len(entries),)."""
        cosines: NDArray[np.float32] = self._fast[entries % self.capacity] @ fast
        return cosines

    def group(self, entry: int) -> int:
        """The group of an entry that is still there."""
        return int(self._groups[entry % self.capacity])

    def groups_of(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """The groups of entries that are still there."""
        groups: NDArray[np.int64] = self._groups[entries % self.capacity]
        return groups

    def profile(self, entry: int) -> Profile:
        """The words of an entry that is still there."""
        found = self._profiles[entry % self.capacity]
        assert found is not None
        return found

    def stats(self, groups: NDArray[np.int64]) -> tuple[Matrix, NDArray[np.int64]]:
        """Sums of the vectors, shape (len(groups), accurate_dim), and sizes of groups."""
        return np.stack([self._sums[int(group)] for group in groups]), np.array([self._sizes[int(g)] for g in groups])

    def rarity(self, word: str) -> float:
        """How rare a word is: ln((1 + questions) / (1 + those with it)), 0 or more."""
        return float(np.log((1 + len(self)) / (1 + self._words[word])))

    def add(self, profile: Profile, accurate: Matrix, fast: Matrix, same: Mapping[int, bool]) -> int:
        """Keep a question; it joins the group whose members' answers were found equal to its own, or begins one.

        `same` holds verdicts on entries: is their answer equal to this one's. Within a group the majority counts, so
        a wrong verdict is outvoted where there are others. Two groups that both agree with a question become one once
        that has happened twice more often than its opposite. Returns the new id.
        """
        agreeing, opposing = self.vote(same)
        group = agreeing[0] if agreeing else self._next_group
        self._next_group += not agreeing
        for other in agreeing[1:]:
            self._doubt(group, other, 1)
        for other in opposing if agreeing else ():
            self._doubt(group, other, -1)
        entry = self.next_id
        row = entry % self.capacity
        if entry >= self.capacity:
            self._forget(row)
        elif row >= self._rows:
            self._grow()
        self.next_id += 1
        self._accurate[row], self._fast[row], self._groups[row] = accurate, fast, group
        self._profiles[row] = profile
        self._sizes[group] += 1
        self._sums[group] = self._sums.get(group, 0.0) + accurate
        self._words.update(profile.content)
        for other in agreeing[1:]:
            votes = self._doubts.get((min(group, other), max(group, other)), 0)
            if votes >= _MERGE_VOTES and other in self._sums:
                self._merge(other, group)
        return entry

    def vote(self, same: Mapping[int, bool]) -> tuple[list[int], list[int]]:
        """Groups whose members mostly agree, the most agreeing first, and groups whose members mostly do not."""
        balance: Counter[int] = Counter()
        for entry, equal in same.items():
            if entry in self:
                balance[self.group(entry)] += 1 if equal else -1
        agreeing = sorted((group for group, votes in balance.items() if votes > 0), key=lambda g: (-balance[g], g))
        return agreeing, [group for group, votes in balance.items() if votes < 0]

    def _ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The youngest id that each row can hold."""
        ids: NDArray[np.int64] = self.next_id - 1 - (self.next_id - 1 - rows) % self.capacity
        return ids

    def _doubt(self, one: int, other: int, votes: int) -> None:
        pair = (min(one, other), max(one, other))
        if pair in self._doubts or votes > 0:
            self._doubts[pair] = self._doubts.get(pair, 0) + votes
        if len(self._doubts) > _MOST_DOUBTS:
            del self._doubts[next(iter(self._doubts))]

    def _merge(self, gone: int, into: int) -> None:
        live = self._groups[: len(self)]
        live[live == gone] = into
        self._sizes[into] += self._sizes.pop(gone)
        self._sums[into] = self._sums[into] + self._sums.pop(gone)
        self._doubts = {pair: votes for pair, votes in self._doubts.items() if gone not in pair}

    def _forget(self, row: int) -> None:
        group = int(self._groups[row])
        self._sizes[group] -= 1
        self._sums[group] = self._sums[group] - self._accurate[row]
        if not self._sizes[group]:
            del self._sizes[group], self._sums[group]
        old = self._profiles[row]
        assert old is not None
        self._words.subtract(old.content)
        for word in old.content:
            if not self._words[word]:
                del self._words[word]

    def _grow(self) -> None:
        more = min(self._rows, self.capacity - self._rows)
        self._accurate = np.vstack((self._accurate, np.zeros((more, self._accurate.shape[1]), dtype=np.float32)))
        self._fast = np.vstack((self._fast, np.zeros((more, self._fast.shape[1]), dtype=np.float32)))
        self._groups = np.append(self._groups, np.zeros(more, dtype=np.int64))
        self._profiles.extend([None] * more)
        self._rows += more
