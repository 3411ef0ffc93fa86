"""A lever in production, watched by shadow verdicts: it is switched off soon after it turns bad, and seldom wrongly.

Bounds since the beginning are diluted by a long good time. So at every pair new bettors begin against "not worse than
`limit`", and what all bettors of all beginnings own is the evidence of a change (Shiryaev-Roberts). If the claim is
true, that sum grows by at most 1 a pair on average, whatever the losses look like and however they depend on the past.
The lever goes off when two such sums are large at once:

* against "not worse than equal": a lever as good as its reference, however noisy the verdicts, goes off within the
  first `horizon_pairs` with a chance of `false_alarm` at most;
* against "not worse than the margin": a lever within it stays on for `horizon_pairs` at least, on average.

Source: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New England
Journal of Statistics in Data Science (2024).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from trimtab.quality.sequential import ConfidenceSequence

_STAKES: Final = (0.98, 0.55)  # shares of the largest stake: verdicts with little noise, and with much
_CALM_START: Final = 30.0  # what bettors own after a good time, so that a lever that is bad at once goes off as soon


class MonitorTerms(msgspec.Struct, frozen=True):
    """What is promised: `margin` is the loss that is still allowed, `false_alarm` a chance, the horizon in pairs."""

    margin: float = 0.05
    false_alarm: float = 0.05
    horizon_pairs: int = 1000

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 1.0 or not 0.0 < self.false_alarm < 1.0 or self.horizon_pairs < 1:
            raise ValueError(f"margin and false_alarm have to lie between 0 and 1, horizon_pairs above 0: {self}")


STANDARD: Final = MonitorTerms()


class MonitorReport(msgspec.Struct, frozen=True):
    """Losses are mean differences of quality, reference minus lever; `interval` has the true one with 95% at any time.

    `recent_loss` is that of the last `recent_pairs`, since when the lever looks worse than the margin: chosen after the
    fact, so it exaggerates. `evidence` is 1 where the lever goes off.
    """

    on: bool
    pairs: int
    loss: float
    interval: tuple[float, float]
    recent_pairs: int
    recent_loss: float | None
    evidence: float
    reason: str


class _Saved(msgspec.Struct, array_like=True):
    terms: MonitorTerms
    on: bool
    owned: tuple[list[float], list[float]]
    recent: tuple[float, int, float]
    sequence: msgspec.Raw


class _Detector:
    """Evidence that the mean loss rose above `limit` at some time: sums of bets begun at each pair."""

    def __init__(self, limit: float, head_start: float, threshold: float) -> None:
        self.limit = limit
        self.threshold = threshold
        self.stakes = tuple(stake / (1 + limit) for stake in _STAKES)
        self.owned = [head_start] * len(self.stakes)

    def add(self, loss: float) -> None:
        gain = loss - self.limit
        pairs = zip(self.owned, self.stakes, strict=True)
        self.owned = [min((1 + own) * (1 + stake * gain), 1e300) for own, stake in pairs]

    @property
    def log_evidence(self) -> float:
        """The logarithm of the bettors' sum against the threshold; 0 and more is an alarm."""
        mean = sum(self.owned) / len(self.owned)
        return math.log(mean / self.threshold) if mean > 0 else -math.inf


class Monitor:
    """One lever's shadow verdicts in their order; `on` falls once and stays, with the evidence of that moment."""

    def __init__(self, terms: MonitorTerms = STANDARD) -> None:
        self.terms = terms
        self.on = True
        horizon = terms.horizon_pairs
        head = horizon / 2
        self._equal = _Detector(0.0, head, (horizon + head) / terms.false_alarm)
        self._margin = _Detector(terms.margin, _CALM_START, horizon + _CALM_START)
        self._recent_log, self._recent_pairs, self._recent_total = 0.0, 0, 0.0
        self.sequence = ConfidenceSequence()

    def add(self, loss: float) -> bool:
        """Count one pair's loss (1 wrong where the reference was right, 0 equal, -1 the reverse; or graded); `on`.

        It takes some microseconds. Raises ValueError if the loss is not from -1 to 1.
        """
        self.sequence.add(loss)
        if self.on:
            self._equal.add(loss)
            self._margin.add(loss)
            self._since(loss)
            self.on = self._log_evidence < 0
        return self.on

    def report(self) -> MonitorReport:
        """What is known now; it takes some milliseconds."""
        sequence, margin = self.sequence, self.terms.margin
        recent = self._recent_total / self._recent_pairs if self._recent_pairs else None
        interval = (sequence.lower(0.025), sequence.upper(0.025))
        if not self.on:
            seen = "" if recent is None else f": {recent:.3f} over the last {self._recent_pairs} pairs"
            reason = f"worse than the margin of {margin:g}{seen}"
        elif interval[1] <= margin:
            reason = f"within the margin of {margin:g}"
        else:
            reason = f"no evidence yet that it is worse than the margin of {margin:g}"
        evidence = math.exp(min(self._log_evidence, 0.0))
        return MonitorReport(
            self.on, sequence.count, sequence.mean, interval, self._recent_pairs, recent, evidence, reason
        )

    @property
    def _log_evidence(self) -> float:
        return min(self._equal.log_evidence, self._margin.log_evidence)

    def save(self) -> bytes:
        """All that it knows, as JSON."""
        owned = (self._equal.owned, self._margin.owned)
        recent = (self._recent_log, self._recent_pairs, self._recent_total)
        return msgspec.json.encode(_Saved(self.terms, self.on, owned, recent, msgspec.Raw(self.sequence.save())))

    @classmethod
    def load(cls, data: bytes) -> Monitor:
        """A monitor as it was saved, its terms included. Raises ValueError."""
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a saved monitor: {error}") from error
        if any(len(owned) != len(_STAKES) or not all(0 <= own < math.inf for own in owned) for owned in saved.owned):
            raise ValueError(f"not a saved monitor: it needs {len(_STAKES)} bettors of each kind, who own 0 or more")
        monitor = cls(saved.terms)
        monitor.on = saved.on
        monitor._equal.owned, monitor._margin.owned = saved.owned
        monitor._recent_log, monitor._recent_pairs, monitor._recent_total = saved.recent
        monitor.sequence = ConfidenceSequence.load(bytes(saved.sequence))
        return monitor

    def _since(self, loss: float) -> None:
        """Since when the lever looks worse than the margin: the cautious bettors' last time at their start (CUSUM)."""
        if self._recent_log <= 0:
            self._recent_log, self._recent_pairs, self._recent_total = 0.0, 0, 0.0
        self._recent_log += math.log1p(self._margin.stakes[-1] * (loss - self.terms.margin))
        self._recent_pairs += 1
        self._recent_total += loss
