"""A lever's switch as the ledger marks it: who switched it, when, and on which evidence."""

from __future__ import annotations

import time
from typing import Final

import msgspec

MONITOR: Final = "monitor"
"""Who switched, where it was nobody: the monitor of the lever's quality."""


class Mark(msgspec.Struct, frozen=True):
    """A lever on a route was switched on or off at `at` (unix seconds).

    Where the monitor did it: after how many pairs, their mean loss, and between which bounds the true one is.
    """

    route: str
    lever: str
    on: bool
    at: float
    by: str
    reason: str
    pairs: int = 0
    loss: float | None = None
    lower: float | None = None
    upper: float | None = None

    @property
    def why(self) -> str:
        """What a decision says while the lever is off."""
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))
        if self.by != MONITOR:
            return f"switched off by {self.by} (since {since}{f': {self.reason}' if self.reason else ''})"
        return (
            f"switched off: quality (since {since}, {self.pairs} pairs, "
            f"loss between {self.lower or 0:.3f} and {self.upper or 0:.3f})"
        )

    @property
    def text(self) -> str:
        """One line for a person."""
        what = f"lever {self.lever} on route {self.route}"
        if self.on:
            return f"{what} is on again, by {self.by}{f': {self.reason}' if self.reason else ''}"
        if self.by != MONITOR:
            return f"{what} is off, by {self.by}{f': {self.reason}' if self.reason else ''}"
        return (
            f"{what} switched itself off: {self.reason}; loss {self.loss or 0:.3f} over {self.pairs} pairs, the true "
            f"one between {self.lower or 0:.3f} and {self.upper or 0:.3f}. Look at it, then: "
            f"trimtab levers on {self.lever} --route {self.route}"
        )
