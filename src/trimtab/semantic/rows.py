"""The last so many rows of numbers, kept in one block so that they are read without a copy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows32 = NDArray[np.float32]


class Rows:
    """At most `most` rows of float32, the oldest forgotten first. All rows have the width of the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._block: Rows32 = np.empty((0, 0), np.float32)
        self._first = self._end = 0

    def __len__(self) -> int:
        return self._end - self._first

    @property
    def all(self) -> Rows32:
        """The rows, shape (n, width), oldest first: a view that the next `append` may overwrite."""
        return self._block[self._first : self._end]

    def append(self, *parts: NDArray[np.float64]) -> None:
        """Keep one more row, made of `parts` end to end. Raises ValueError if it is not as wide as the others."""
        width = sum(len(part) for part in parts)
        if self._block.shape[1] != width:
            if len(self):
                raise ValueError(f"a row of {width} numbers among rows of {self._block.shape[1]}")
            self._block = np.empty((64, width), np.float32)
            self._first = self._end = 0
        if self._end == len(self._block):
            self._make_room()
        np.concatenate(parts, out=self._block[self._end], casting="same_kind")
        self._end += 1
        self._first = max(self._first, self._end - self._most)

    def replace(self, rows: Rows32) -> None:
        """Forget all, and keep the last of `rows`, shape (n, width), instead."""
        self._block = rows[-self._most :].copy()
        self._first, self._end = 0, len(self._block)

    def keep_last(self, count: int) -> None:
        """Forget all but the last `count`."""
        self._first = max(self._first, self._end - count)

    def _make_room(self) -> None:
        """Move the rows to the front of a block with as much room again, so that moving stays rare."""
        kept = self.all
        block = np.empty((max(64, min(2 * len(kept), self._most + self._most // 4)), kept.shape[1]), np.float32)
        block[: len(kept)] = kept
        self._block, self._first, self._end = block, 0, len(kept)
