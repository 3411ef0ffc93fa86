"""Puts groups of features on scales that a distance can be taken over."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDEST: Final = 4.0  # standard deviations; what is stranger is as strange


class Scaling(msgspec.Struct, frozen=True):
    """Shifts, scales and clips features so that a row's squared length is about `block`, however many there are.

    Features that never varied count nothing, for nothing is known of what they mean when they do.
    """

    mean: Any  # float64, (d,)
    scale: Any  # float64, (d,); infinite for a feature that never varied
    width: float

    @classmethod
    def of(cls, x: Floats, block: float) -> Scaling:
        """Fitted to rows x, shape (n, d)."""
        spread = x.std(axis=0)
        varied = spread > 1e-9
        width = float(np.sqrt(block / max(int(varied.sum()), 1)))
        return cls(x.mean(axis=0), np.where(varied, spread, np.inf), width)

    def apply(self, x: Floats) -> Floats:
        """Rows x, shape (n, d), scaled."""
        scaled: Floats = np.clip((x - self.mean) / self.scale, -_WIDEST, _WIDEST) * self.width
        return scaled
