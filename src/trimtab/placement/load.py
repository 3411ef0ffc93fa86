"""The work that replicas were given of late: tokens, forgotten with a half-life, but not before they are finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

HALF_LIFE_S: Final = 60.0
_UNFINISHED_HALF_LIFE_S: Final = 600.0  # whoever was to report the end may have died


class Load:
    """Work by replica. Time is any clock that does not go back; a moment before the last one counts as that."""

    def __init__(self) -> None:
        self._recent: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        self._at = 0.0

    def add_replica(self, replica: str) -> None:
        """A newcomer counts as loaded as the others are on average: else all new work would go there at once."""
        mean = sum(self._recent.values()) / len(self._recent) if self._recent else 0.0
        self._recent[replica], self._pending[replica] = mean, 0.0

    def remove_replica(self, replica: str) -> None:
        """It gets no more work."""
        del self._recent[replica], self._pending[replica]

    def given(self, replica: str, work: float, now: float) -> None:
        """The replica was given so much work."""
        self._forget(now)
        self._recent[replica] += work
        self._pending[replica] += work

    def finished(self, replica: str, work: float, given_at: float) -> None:
        """The replica is through with work that it was given at that time."""
        if replica in self._pending:
            left = work * _kept(max(0.0, self._at - given_at), _UNFINISHED_HALF_LIFE_S)
            self._pending[replica] = max(0.0, self._pending[replica] - left)

    def lost(self, replica: str) -> None:
        """What the replica had not finished is gone."""
        self._pending[replica] = 0.0

    def at(self, now: float, in_flight: Mapping[str, float] | None = None) -> dict[str, float]:
        """Tokens by replica: recent work, but no less than is unfinished, as `in_flight` says or as was told here."""
        self._forget(now)
        pending = self._pending if in_flight is None else in_flight
        return {replica: max(recent, pending.get(replica, 0.0)) for replica, recent in self._recent.items()}

    def _forget(self, now: float) -> None:
        if now > self._at:
            passed_s, self._at = now - self._at, now
            for work, half_life_s in ((self._recent, HALF_LIFE_S), (self._pending, _UNFINISHED_HALF_LIFE_S)):
                kept = _kept(passed_s, half_life_s)
                for replica in work:
                    work[replica] *= kept


def _kept(passed_s: float, half_life_s: float) -> float:
    return float(0.5 ** (passed_s / half_life_s))
