"""What is known so far: questions with their vectors, in groups whose answers were found to be equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.lexical import Profile

Matrix = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

_MERGE_VOTES: Final = 2  # one wrong verdict must not join two groups for good
_MOST_DOUBTS: Final = 4096
# Signs alone are cheaper from 1,500 rows on (0.12 ms instead of 0.33 at 4,096, 0.7 instead of 40 at 100,000), but where
# it costs little, the scan that misses nothing is taken.
_EXACT_ROWS: Final = 4096
# How many of those whose signs are nearest are compared by vector: 0.1 ms a thousand. Of the true 15 nearest, 99.9%
# are among 512 of 23,000 real questions (99.7% by the fast vectors), and 99.1% among 512 of 100,000 crowded ones made
# from a single bank's.
_SHORTLIST: Final = 1024
_SHORTLIST_SHARES: Final = (40, 200)  # one in so many rows, up to 41,000 rows and beyond 200,000
_SHORTLIST_PER_WANTED: Final = 32
_SAMPLED: Final = 16  # one row in so many tells how near the shortlist reaches
_BYTE_WORDS: Final = 3  # whose differing bits a byte can count: bytes add up twice as fast as anything wider


class Row(NamedTuple):
    """A question as `Memory` keeps it; the vectors have shapes (accurate_dim,) and (fast_dim,)."""

    entry: int
    group: int
    profile: Profile
    accurate: Matrix
    fast: Matrix


class _Vectors:
    """Vectors of one dimension by row, as int8 with a scale each.

    Why int8: a quarter of float32's memory, and to rescore 512 of them takes 0.03 ms (float16: 0.4, for numpy converts
    it one by one). A cosine is off by some .0003, which moves at most 9 in 1,000 of the 15 nearest: near ties.
    """

    def __init__(self, rows: int, dim: int) -> None:
        self._numbers = np.zeros((rows, dim), dtype=np.int8)
        self._scales = np.zeros(rows, dtype=np.float32)

    def put(self, row: int, vector: Matrix) -> None:
        """Keep a vector of shape (dim,). Its length is kept exactly, so that a text's cosine with itself is 1."""
        largest = float(np.abs(vector).max(initial=0.0))
        whole = np.rint(vector * (127.0 / largest)) if largest else np.zeros_like(vector)
        self._numbers[row] = whole
        self._scales[row] = np.sqrt(np.vecdot(vector, vector) / np.vecdot(whole, whole)) if largest else 0.0

    def at(self, rows: NDArray[np.int64] | int) -> Matrix:
        """The vectors of rows, shape (len(rows), dim), or the vector of one, shape (dim,)."""
        found: Matrix = self._numbers.take(rows, axis=0) * self._scales.take(rows)[..., None]
        return found

    def products(self, rows: NDArray[np.int64] | slice, vector: Matrix) -> Matrix:
        """Inner products of rows with a vector of shape (dim,), shape (rows,)."""
        # `take` gathers rows in half the time of an index.
        numbers = self._numbers[rows] if isinstance(rows, slice) else self._numbers.take(rows, axis=0)
        scales = self._scales[rows] if isinstance(rows, slice) else self._scales.take(rows)
        # vecdot stays on this thread. BLAS would spread a matrix product over all processors, and wait for the one
        # that another process holds: 16 ms for 4,096 rows on two busy processors instead of 0.25.
        found: Matrix = np.vecdot(numbers.astype(np.float32), vector) * scales
        return found

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        self._numbers = _longer(self._numbers, rows)
        self._scales = _longer(self._scales, rows)


class Memory:
    """A ring of the last `capacity` questions. Ids grow by one and are never used twice; not thread-safe.

    Memory: 1.4 KB a question, of which 640 bytes are vectors of 384 and 256 numbers; the rest is signs, words and sums
    of groups. Time: to find 15 takes 0.3 ms at 4,000 questions, 0.7 ms at 100,000, and grows with their number.
    """

    def __init__(self, capacity: int, accurate_dim: int, fast_dim: int) -> None:
        self.capacity = capacity
        self.next_id = 0
        self._rows = min(capacity, 32)  # a context of few questions takes little
        self._count = 0
        self._dim = accurate_dim
        self._accurate = _Vectors(self._rows, accurate_dim)
        self._fast = _Vectors(self._rows, fast_dim)
        self._signs = [np.zeros(self._rows, dtype=np.uint64) for _ in range(0, accurate_dim, 64)]  # each is one sweep
        self._groups = np.zeros(self._rows, dtype=np.int64)
        self._live = np.zeros(self._rows, dtype=np.bool_)
        # Packed, for a Profile's objects take 2 KB and are asked for once a look-up.
        self._profiles: list[bytes] = [b""] * self._rows
        self._lone: dict[int, int] = {}  # group of one question: its row, instead of a copy of its vector
        self._sums: dict[int, Matrix] = {}  # of the other groups
        self._sizes: Counter[int] = Counter()
        self._next_group = 0
        self._words: Counter[str] = Counter()  # in how many questions
        self._doubts: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, entry: int) -> bool:
        return max(self.next_id - self.capacity, 0) <= entry < self.next_id and bool(self._live[entry % self.capacity])

    @property
    def doubts(self) -> dict[tuple[int, int], int]:
        """Pairs of groups that may be one, with the balance of votes for it; `restore` takes them."""
        return dict(self._doubts)

    def recent(self, count: int) -> tuple[Matrix, NDArray[np.int64]]:
        """The youngest `count` questions, oldest first: accurate vectors, shape (n, accurate_dim), and their groups."""
        rows = self._ring()[-count:]
        return self._accurate.at(rows), self._groups[rows]

    def rows(self) -> Iterator[Row]:
        """The questions in the order of their ids. What is added or removed meanwhile may be missed."""
        for entry in range(max(self.next_id - self.capacity, 0), self.next_id):
            if entry in self:
                row = entry % self.capacity
                yield Row(entry, self.group(entry), self.profile(entry), self._accurate.at(row), self._fast.at(row))

    def restore(self, rows: Iterable[Row], next_id: int, doubts: Mapping[tuple[int, int], int] | None = None) -> None:
        """Fill a memory that never held a question with what `rows`, `next_id` and `doubts` of another one were.

        Of a larger memory the youngest are kept. Raises ValueError if this memory is not new, or ids do not grow up to
        `next_id`.
        """
        if self.next_id:
            raise ValueError("only a new memory can be restored")
        self._reserve(min(next_id, self.capacity))
        self.next_id = next_id
        last = -1
        for entry, group, profile, accurate, fast in rows:
            if not last < entry < next_id:
                raise ValueError(f"entry {entry} is not between {last} and {next_id}")
            last = entry
            if entry >= next_id - self.capacity:
                self._keep(entry % self.capacity, group, profile, accurate, fast)
                self._next_group = max(self._next_group, group + 1)
        self._doubts = {pair: votes for pair, votes in (doubts or {}).items() if all(map(self._known, pair))}

    def nearest(self, accurate: Matrix, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and cosines of the `count` nearest questions by the accurate vector, nearest first, or of all.

        Exact up to 4,096 rows. Beyond, only those whose signs agree best with this question's are compared by vector,
        and a few in a thousand of the nearest are missed.
        """
        used = min(self.next_id, self.capacity)
        if used <= _EXACT_ROWS:
            rows = np.flatnonzero(self._live[:used])
            cosines = self._accurate.products(slice(used), accurate)[rows]
        else:
            rows = self._shortlist(accurate, used, count)
            cosines = self._accurate.products(rows, accurate)
        if len(cosines) > count:
            best = np.argpartition(-cosines, count - 1)[:count]
            rows, cosines = rows[best], cosines[best]
        order = np.argsort(-cosines, kind="stable")
        return self._ids(rows[order]), cosines[order]

    def fast_cosines(self, fast: Matrix, entries: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines by the fast vector with the entries, shape (len(entries),)."""
        return self._fast.products(entries % self.capacity, fast)

    def group(self, entry: int) -> int:
        """The group of an entry that is still there."""
        return int(self._groups[entry % self.capacity])

    def groups_of(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """The groups of entries that are still there."""
        groups: NDArray[np.int64] = self._groups[entries % self.capacity]
        return groups

    def profile(self, entry: int) -> Profile:
        """The words of an entry that is still there."""
        return msgspec.msgpack.decode(self._profiles[entry % self.capacity], type=Profile)

    def stats(self, groups: Sequence[int]) -> tuple[Matrix, list[int]]:
        """Sums of the vectors, shape (len(groups), accurate_dim), and sizes of groups."""
        sums = self._accurate.at(np.array([self._lone.get(group, 0) for group in groups]))
        for n, group in enumerate(groups):
            if group not in self._lone:
                sums[n] = self._sums[group]
        return sums, [self._size(group) for group in groups]

    def rarity(self, word: str) -> float:
        """How rare a word is: ln((1 + questions) / (1 + those with it)), 0 or more."""
        return math.log((1 + len(self)) / (1 + self._words.get(word, 0)))

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
        self._reserve(row + 1)
        if self._live[row]:
            self._forget(row)
        self.next_id += 1
        self._keep(row, group, profile, accurate, fast)
        for other in agreeing[1:]:
            votes = self._doubts.get((min(group, other), max(group, other)), 0)
            if votes >= _MERGE_VOTES and self._known(other):
                self._merge(other, group)
        return entry

    def remove(self, entry: int) -> None:
        """Forget a question at once, with all that hangs on it; nothing happens if it is not there (any more)."""
        if entry in self:
            self._forget(entry % self.capacity)

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

    def _ring(self) -> NDArray[np.int64]:
        """The rows with a question, oldest first."""
        rows = np.arange(max(self.next_id - self.capacity, 0), self.next_id) % self.capacity
        return rows[self._live[rows]]

    def _shortlist(self, accurate: Matrix, used: int, count: int) -> NDArray[np.int64]:
        """Some `wanted` of the first `used` rows whose signs differ least from the vector's; more than `count`."""
        few, many = (used // share for share in _SHORTLIST_SHARES)
        wanted = min(max(min(few, _SHORTLIST), many, count * _SHORTLIST_PER_WANTED), self._count)
        differing = np.zeros(used, dtype=np.uint16)
        ours = _signs(accurate)
        for first in range(0, len(ours), _BYTE_WORDS):
            some = slice(first, first + _BYTE_WORDS)
            differing += sum(
                np.bitwise_count(theirs[:used] ^ word)
                for theirs, word in zip(self._signs[some], ours[some], strict=True)
            )
        if self._count < used:
            differing[~self._live[:used]] = self._dim + 1  # no living row's
        in_sample = wanted // _SAMPLED
        near = np.flatnonzero(differing <= np.partition(differing[::_SAMPLED], in_sample)[in_sample])
        if wanted // 2 <= len(near) <= 2 * wanted:
            return near
        upto = np.cumsum(np.bincount(differing, minlength=self._dim + 1))
        limit = int(np.searchsorted(upto, wanted))
        near = np.flatnonzero(differing < limit)
        return np.append(near, np.flatnonzero(differing == limit)[: wanted - len(near)])  # a text may be there often

    def _known(self, group: int) -> bool:
        return group in self._lone or group in self._sums

    def _sum(self, group: int) -> Matrix:
        if group in self._lone:
            return self._accurate.at(self._lone[group])
        return self._sums[group]

    def _size(self, group: int) -> int:
        return 1 if group in self._lone else self._sizes[group]

    def _doubt(self, one: int, other: int, votes: int) -> None:
        pair = (min(one, other), max(one, other))
        if pair in self._doubts or votes > 0:
            self._doubts[pair] = self._doubts.get(pair, 0) + votes
        if len(self._doubts) > _MOST_DOUBTS:
            del self._doubts[next(iter(self._doubts))]

    def _merge(self, gone: int, into: int) -> None:
        sum_, size = self._sum(into) + self._sum(gone), self._size(into) + self._size(gone)
        for group in (gone, into):
            self._drop(group)
        self._sums[into], self._sizes[into] = sum_, size
        self._groups[self._groups == gone] = into
        self._doubts = {pair: votes for pair, votes in self._doubts.items() if gone not in pair}

    def _drop(self, group: int) -> None:
        self._lone.pop(group, None)
        self._sums.pop(group, None)
        self._sizes.pop(group, None)

    def _keep(self, row: int, group: int, profile: Profile, accurate: Matrix, fast: Matrix) -> None:
        """Put a question into a free row."""
        self._accurate.put(row, accurate)
        self._fast.put(row, fast)
        kept = self._accurate.at(row)
        for words, word in zip(self._signs, _signs(kept), strict=True):
            words[row] = word
        if self._known(group):
            self._sums[group] = self._sum(group) + kept
            self._sizes[group] = self._size(group) + 1
            self._lone.pop(group, None)
        else:
            self._lone[group] = row
        self._groups[row] = group
        self._live[row] = True
        self._count += 1
        self._profiles[row] = msgspec.msgpack.encode(profile)
        self._words.update(profile.content)

    def _forget(self, row: int) -> None:
        group = int(self._groups[row])
        if self._size(group) == 1:
            self._drop(group)
        else:
            self._sums[group] = self._sums[group] - self._accurate.at(row)
            self._sizes[group] -= 1
        content = self.profile(row).content
        self._words.subtract(content)
        for word in content:
            if not self._words[word]:
                del self._words[word]
        self._profiles[row] = b""
        self._live[row] = False
        self._count -= 1

    def _reserve(self, rows: int) -> None:
        if rows <= self._rows:
            return
        self._rows = min(max(2 * self._rows, rows), self.capacity)
        self._accurate.grow(self._rows)
        self._fast.grow(self._rows)
        self._signs = [_longer(words, self._rows) for words in self._signs]
        self._groups = _longer(self._groups, self._rows)
        self._live = _longer(self._live, self._rows)
        self._profiles.extend([b""] * (self._rows - len(self._profiles)))


def _signs(vector: Matrix) -> NDArray[np.uint64]:
    """Which numbers of a vector of shape (dim,) are positive: a bit each, shape (ceil(dim / 64),)."""
    bits = np.packbits(vector > 0)
    return np.append(bits, np.zeros(-len(bits) % 8, dtype=np.uint8)).view(np.uint64)


def _longer(old: NDArray[Number], rows: int) -> NDArray[Number]:
    """A copy with so many rows, the new ones zero. The system hands out their memory when they are first written."""
    new = np.zeros((rows, *old.shape[1:]), dtype=old.dtype)
    new[: len(old)] = old
    return new
