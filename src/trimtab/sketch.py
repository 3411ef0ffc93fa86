"""Percentiles that can be merged: counts in buckets that grow by 2% each, so that every answer is within 1%.

Source: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees"
(2019). The published package keeps dense arrays and needs protobuf to store them; a dictionary of counts is a tenth of
the code, as exact, and goes into the ledger as msgpack.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

RELATIVE_ERROR: Final = 0.01
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}  # those that are shown
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
_SMALLEST: Final = 1e-9  # what is smaller counts as this

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[int, int]).decode


class Sketch:
    """Counts of positive values by the logarithm of their size."""

    __slots__ = ("_counts",)

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self._counts: dict[int, int] = {} if counts is None else counts

    @classmethod
    def decode(cls, data: bytes) -> Sketch:
        """What `encode` made. Raises msgspec.DecodeError."""
        return cls(_decode(data))

    def encode(self) -> bytes:
        """msgpack: bucket to count."""
        return _encode(self._counts)

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self._counts.values())

    def add(self, value: float) -> None:
        """Count one value; negative ones count as the smallest."""
        bucket = math.ceil(math.log(value if value > _SMALLEST else _SMALLEST) / _LOG_GAMMA)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Count what the other has counted."""
        mine = self._counts
        for bucket, count in other._counts.items():
            mine[bucket] = mine.get(bucket, 0) + count

    def quantiles(self, qs: tuple[float, ...]) -> list[float | None]:
        """The q-quantiles (0 to 1, ascending), each within `RELATIVE_ERROR` of that rank's value; None of nothing."""
        total = self.count
        if not total:
            return [None] * len(qs)
        found: list[float | None] = []
        buckets = iter(sorted(self._counts.items()))
        bucket, below = 0, 0
        for q in qs:
            rank = q * (total - 1)
            while below <= rank:
                bucket, count = next(buckets)
                below += count
            found.append(2 * _GAMMA**bucket / (_GAMMA + 1))
        return found
