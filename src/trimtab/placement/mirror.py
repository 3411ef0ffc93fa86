"""What one replica's prefix cache holds, as far as the requests sent there and its own reports tell.

Engines evict blocks by least recent use and, of one prompt, the last block first, so a block is never there without
those before it. A mirror does the same. How many blocks the engine really keeps is learned: the configured capacity is
often wrong (memory is shared with running requests, block sizes differ).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

_GROWTH: Final = 1.02  # of the capacity, for a report of more than was expected
_SHRINKING: Final = 0.995  # for less: too large a mirror costs little, too small a one much
_OLD: Final = 0.5  # of the capacity: a younger block that is gone was not evicted for want of room
_RANGE: Final = 4.0  # the capacity is believed within a quarter and four times what was configured
_EMPTY_REPORTS: Final = 3  # in a row, where something was expected: the replica has begun anew


class Mirror:
    """The believed cache of one replica; blocks are the numbers of `prefix_blocks`, or a trace's hash ids."""

    def __init__(self, capacity_blocks: int) -> None:
        self._configured = capacity_blocks
        self._capacity = float(capacity_blocks)
        self._blocks: OrderedDict[int, int] = OrderedDict()  # to the clock when it was last used; oldest first
        self._clock = 0  # blocks that were ever added
        self._empty_reports = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def capacity_blocks(self) -> int:
        """How many blocks the replica is believed to keep."""
        return int(self._capacity)

    def match(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks are there: a binary search, for no block is there without those before it."""
        low, high = 0, len(blocks)
        held = self._blocks
        while low < high:
            middle = (low + high) // 2
            if blocks[middle] in held:
                low = middle + 1
            else:
                high = middle
        return low

    def age(self, blocks: Sequence[int], count: int) -> int:
        """How many blocks were added since the last of the first `count` was used; 0 for none."""
        return self._clock - self._blocks[blocks[count - 1]] if count else 0

    def use(self, blocks: Sequence[int]) -> None:
        """A prompt goes to the replica: all its blocks are there now, and the oldest others are not."""
        held = self._blocks
        before = len(held)
        clock = self._clock
        for block in reversed(blocks):  # so that the last is the oldest
            held[block] = clock
            held.move_to_end(block)
        self._clock += len(held) - before
        self._trim()

    def heard(self, expected: int, reported: int, age: int) -> None:
        """The replica had `reported` of a prompt's first blocks; `expected` were, the last of them of this `age`.

        The prompt itself needs no correction: now that it was served, all of it is there.
        """
        if reported >= expected:
            self._empty_reports = 0
            if reported > expected:
                self._believe(self._capacity * _GROWTH)
            return
        if age > _OLD * self._capacity:
            self._believe(self._capacity * _SHRINKING)
        self._empty_reports = 0 if reported else self._empty_reports + 1
        if self._empty_reports == _EMPTY_REPORTS:
            self.clear()

    def clear(self) -> None:
        """The cache is gone; what was learned of its size stays."""
        self._blocks.clear()
        self._empty_reports = 0

    def _believe(self, capacity: float) -> None:
        self._capacity = min(max(capacity, self._configured / _RANGE), self._configured * _RANGE)
        self._trim()

    def _trim(self) -> None:
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
