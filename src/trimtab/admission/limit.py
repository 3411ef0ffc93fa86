"""How many requests may run at once: a fixed number, or as many as keep the time to the first token in its target.

The rule is AIMD (additive increase, multiplicative decrease; Chiu and Jain 1989) on a latency target, as Clipper uses
it for batch sizes (Crankshaw et al., NSDI 2017) and Netflix' concurrency-limits for calls (`AIMDLimit`): a tenth less
when more than a tenth of a window's first tokens come too late, one more when they come in time and somebody waits.
Until they come too late for the first time it doubles instead (slow start; Jacobson 1988).
"""

from __future__ import annotations

from typing import Final

_START: Final = 8.0
_MOST: Final = 1024.0
_SLOW_START: Final = 2.0
_LESS: Final = 0.9
_LATE_SHARE: Final = 0.1
_LEAST_WINDOW: Final = 10  # calls


class Limit:
    """A fixed one."""

    def __init__(self, most: float) -> None:
        self.value = most

    @property
    def slots(self) -> int:
        """Requests that may run now, at least one."""
        return max(1, int(self.value))

    def hear(self, began: float, now: float, *, late: bool, felt: bool) -> None:
        """A call that began at `began` is over; `late`: its first token was, `felt`: others wait for its place."""


class AdaptiveLimit(Limit):
    """Follows the target. Only calls that began after a decrease say whether it was enough."""

    def __init__(self, start: float = _START) -> None:
        super().__init__(start)
        self._since = float("-inf")
        self._heard = self._late = 0
        self._felt = False

    def hear(self, began: float, now: float, *, late: bool, felt: bool) -> None:
        """See `Limit.hear`."""
        if began < self._since:
            return
        self._heard += 1
        self._late += late
        self._felt = self._felt or felt
        window = max(_LEAST_WINDOW, self.slots)
        if self._late > window * _LATE_SHARE:
            self.value, self._since = max(1.0, self.value * _LESS), now
            self._begin_window()
        elif self._heard >= window:
            if self._felt:
                unknown = self._since < 0  # slow start: nothing came too late yet
                self.value = min(_MOST, self.value * _SLOW_START if unknown else self.value + 1)
            self._begin_window()

    def _begin_window(self) -> None:
        self._heard = self._late = 0
        self._felt = False
