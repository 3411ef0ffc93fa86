"""The promise: of all reused answers, at most a share of `max_wrong` is wrong. So when may an answer be reused?

A logistic model turns evidence into the probability that a reuse would be wrong, learned from labels alone: verdicts on
misses, whose fresh answer shows what a hit would have been, and on the few hits that are audited. A limit on that
probability opens the cache. It is the highest one for which the wrong hits so far, as estimated, plus those to come
among requests like the recent ones, stay under the promise with a margin for chance and for the model's own error.
Without enough labels no limit holds, and the cache stays closed. `strict` also asks for an exact proof.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.semantic import saved
from trimtab.semantic.bounds import poisson_at_least, share_upper
from trimtab.semantic.logistic import Calibrated, fit_calibrated
from trimtab.semantic.proof import Proof
from trimtab.semantic.rows import Rows, Rows32

Floats = NDArray[np.float64]

CLOSED: Final = -1.0
_LEAST_LABELS: Final = 60
_LEAST_EACH: Final = 5  # right ones, and wrong ones
_MOST_LABELS: Final = 3000
_RECENT: Final = 1000  # requests whose evidence says what is to come
_CHOOSE_EVERY: Final = 25  # requests
_RIDGE: Final = 3.0
_MARGIN: Final = 1.28  # standard errors: about nine in ten
_MENDING: Final = 0.4  # of the promise: what hits may cost while the share so far leaves no room
# What is known of the cases that a model is surest of before labels tell: more of them are wrong than it believes, for
# they were picked by its errors, too. It is worth three wrong labels, no more.
_PRIOR_WRONG: Final = 3.0
_PRIOR_BELIEVED: Final = 2.0
_HORIZON: Final = 1000  # requests ahead that a limit must be good for
_HIGHEST: Final = 0.5
_AUDITS_WATCHED: Final = 40
_LABELS_WATCHED: Final = 80
_ALARM: Final = 0.003  # chance of a false alarm at one look
_SURPRISE: Final = 4.0  # standard errors
_KEPT_AFTER_DRIFT: Final = 120
_WRONG, _AT, _P_WRONG, _EVIDENCE = range(4)  # columns of a label
_SEEN: Final = 1  # columns of a recent request before its evidence
_NO_HIT: Final = np.array((CLOSED,))
_CHECKED: Final = 3  # columns of what a model was checked on


@dataclass(frozen=True, slots=True)
class Terms:
    """What the owner asks: `max_wrong` (0 to 1) of hits may be wrong, `audit` (0 to 1) of hits are checked.

    Raises ValueError for values outside.
    """

    max_wrong: float
    audit: float = 0.05
    strict: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_wrong < 1:
            raise ValueError("max_wrong must lie between 0 and 1")
        if not 0 <= self.audit <= 1:
            raise ValueError("audit must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Ruling:
    """Hit or miss, the estimated probability that a hit is wrong (1.0 while unknown), and whether to audit the hit."""

    hit: bool
    p_wrong: float
    audit: bool


class Promise:
    """Decides, and learns from verdicts. Deterministic given its terms and calls; not thread-safe.

    Memory: at most 3,000 labels and 1,000 recent requests of some tens of numbers. Time: a ruling is microseconds,
    each 25th a millisecond; a refit, every 25 labels or 5% more of them, is 10 to 30 ms and belongs off the request's
    path.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.requests = 0
        self.hits = 0
        self.audits = 0
        self.audited_wrong = 0
        self.alarms = 0
        self.limit = CLOSED
        self._random = np.random.PCG64(terms.seed)
        self._drawn = 0  # random numbers so far
        self._labels = Rows(_MOST_LABELS)  # wrong, at, p_wrong, then evidence
        self._recent = Rows(_RECENT)  # probability as a hit, or _NO_HIT; then evidence
        self._model: Calibrated | None = None
        self._checked: Rows32 = np.empty((0, _CHECKED), np.float32)  # held-out probability, wrong, weight; lowest first
        self._unfitted = 0
        self._expected_wrong = 0.0  # of all hits, by the model as it was
        self._audits_expected = 0.0  # the same of the audited ones
        self._hindsight = 1.0  # what today's model makes of recent hits, as a multiple of what was expected of them
        self._watched: deque[tuple[float, bool]] = deque(maxlen=_AUDITS_WATCHED)
        self._since_alarm: int | None = None
        self._proof = Proof(terms.max_wrong) if terms.strict else None

    @property
    def wrong_estimate(self) -> float:
        """Estimated wrong hits so far: the models' sum, raised by what audits found and by what labels say since."""
        return self._expected_wrong * self._past_ratio()

    def rule(self, values: Floats | None) -> Ruling:
        """Decide on a request by its evidence (None: there is no candidate), shape (d,), always the same d."""
        self.requests += 1
        if values is None:
            return Ruling(False, 1.0, False)
        if self._model is None:
            self._recent.append(_NO_HIT, values)
            return Ruling(False, 1.0, False)
        if self.requests % _CHOOSE_EVERY == 0:
            self._choose()
        p_wrong = float(self._model.probability(values[None, :])[0])
        hit = p_wrong <= self.limit
        self._recent.append(np.array((p_wrong,)) if hit else _NO_HIT, values)
        audit = self._draw() < self.terms.audit
        if hit:
            self.hits += 1
            self._expected_wrong += p_wrong
        return Ruling(hit, p_wrong, hit and audit)

    def label(self, values: Floats, ruling: Ruling, wrong: bool) -> None:
        """Learn whether reuse was, or would have been, wrong: of an audited hit, or of a miss that was compared."""
        known = self._model is not None
        about = (float(wrong), float(self.requests), ruling.p_wrong if known else CLOSED)
        self._labels.append(np.array(about), values)
        self._unfitted += 1
        if ruling.hit:
            self.audits += 1
            self.audited_wrong += wrong
            self._audits_expected += ruling.p_wrong
            self._watched.append((ruling.p_wrong, wrong))
        if self._since_alarm is not None:
            self._since_alarm += 1
        if self._proof is not None and known:
            self._proof.see(ruling.p_wrong, wrong)
        due = self._unfitted >= max(25, len(self._labels) // 20)
        if not due and self.limit < 0:
            return
        surprise = self._surprise() if known else 0.0
        if self.limit >= 0 and (surprise > _SURPRISE or self._audits_alarm()):
            self._close()
        elif due:
            if surprise < -_SURPRISE:  # far better than the model thinks: what it was fitted on is over
                self._forget()
            self._refit()

    def save(self) -> bytes:
        """All that it knows, for `load`: with evidence of 19 numbers 100 bytes a label, at most 0.4 MB, in 1 ms."""
        state = saved.Saved(
            max_wrong=self.terms.max_wrong,
            requests=self.requests,
            hits=self.hits,
            audits=self.audits,
            audited_wrong=self.audited_wrong,
            alarms=self.alarms,
            drawn=self._drawn,
            unfitted=self._unfitted,
            limit=self.limit,
            expected_wrong=self._expected_wrong,
            audits_expected=self._audits_expected,
            hindsight=self._hindsight,
            since_alarm=self._since_alarm,
            watched=list(self._watched),
            labels=saved.block(self._labels.all),
            recent=saved.block(self._recent.all),
            checked=saved.block(self._checked),
            model=None if self._model is None else saved.model(self._model),
            proof=None if self._proof is None else self._proof.save(),
        )
        return saved.encode(state)

    @classmethod
    def load(cls, terms: Terms, data: bytes, *, features: int | None = None) -> Promise:
        """A promise that goes on where another stood when it was saved: under the same terms it rules alike.

        The terms may be others than then. All counts stay, the limit is found anew, and a strict proof begins anew.
        Raises ValueError for bytes of another format, and for evidence of another width than `features`, if given.
        """
        state = saved.decode(data)
        labels, recent, checked = saved.rows(state.labels), saved.rows(state.recent), saved.rows(state.checked)
        width = _width(labels, recent, features)
        if checked.shape[1] != _CHECKED:
            raise ValueError(f"rows of {checked.shape[1]} numbers, not of {_CHECKED}")
        promise = cls(terms)
        promise.requests, promise.hits, promise.alarms = state.requests, state.hits, state.alarms
        promise.audits, promise.audited_wrong, promise.limit = state.audits, state.audited_wrong, state.limit
        promise._expected_wrong, promise._audits_expected = state.expected_wrong, state.audits_expected
        promise._unfitted, promise._since_alarm = state.unfitted, state.since_alarm
        promise._watched.extend(state.watched)
        promise._hindsight = state.hindsight
        promise._drawn = state.drawn
        promise._random.advance(state.drawn)
        promise._labels.replace(labels)
        promise._recent.replace(recent)
        promise._checked = checked
        promise._model = None if state.model is None else saved.calibrated(state.model, width)
        promise._resume_proof(state)
        return promise

    def _resume_proof(self, state: saved.Saved) -> None:
        """Go on with the proof if it was of this promise, and find the limit anew if the terms are others."""
        same = state.max_wrong == self.terms.max_wrong
        if self._proof is not None and state.proof is not None and same:
            self._proof = Proof.load(self.terms.max_wrong, state.proof)
        if not same or (self._proof is None) != (state.proof is None):
            self._choose()

    def _refit(self) -> None:
        self._unfitted = 0
        labels = self._labels.all.astype(np.float64)
        y = labels[:, _WRONG]
        wrong = int(y.sum())
        if len(y) < _LEAST_LABELS or len(y) - wrong < _LEAST_EACH:
            return
        if wrong < _LEAST_EACH and share_upper(wrong, len(y)) > self.terms.max_wrong:
            return  # too few wrong ones to learn what they look like, and not enough labels to say that they are rare
        if self._since_alarm is not None:
            if self._since_alarm < _LEAST_LABELS:
                return
            self._since_alarm = None
        # Early evidence came from a small memory, in which the same numbers meant less.
        weights = labels[:, _AT] / self.requests
        self._model, held_out = fit_calibrated(labels[:, _EVIDENCE:], y, ridge=_RIDGE, row_weights=weights)
        # Fewer labels lie below a limit: more of them have to count.
        checked = np.column_stack((held_out, y, np.sqrt(weights)))
        self._checked = checked[np.argsort(held_out, kind="stable")].astype(np.float32)
        self._choose()

    def _choose(self) -> None:
        """Set the limit: the highest that the margin allows, else closed."""
        self.limit = CLOSED
        if self._model is None or self._since_alarm is not None or not len(self._recent):
            return
        target = self.terms.max_wrong
        recent = self._recent.all.astype(np.float64)
        then, now = recent[:, 0], self._model.probability(recent[:, _SEEN:])
        p = np.sort(now)
        ahead = _HORIZON / len(p)
        held_out, was_wrong, weight = self._checked.astype(np.float64).T
        # A fold's model saw fewer labels and is less sure: a tenth of the promise makes up for it.
        below = np.searchsorted(held_out, p + 0.1 * target, side="right")
        found = np.append(0.0, np.cumsum(weight * was_wrong))[below]
        believed = np.append(0.0, np.cumsum(weight * held_out))[below]
        correction = (found + _PRIOR_WRONG) / (believed + _PRIOR_BELIEVED)
        was_hit = then >= 0
        if was_hit.any():
            anew = now * correction[np.searchsorted(p, now)]
            self._hindsight = float(anew[was_hit].sum() / then[was_hit].sum())
        hits = np.arange(1, len(p) + 1) * ahead
        coming = np.cumsum(p) * ahead * correction
        total = self.wrong_estimate + coming
        doubt = 1 / (found + _PRIOR_WRONG)
        safe = total + _MARGIN * np.sqrt(total + total**2 * doubt) <= target * (self.hits + hits)
        safe &= coming <= target * hits
        # More hits that are nearly all right mend a share that stands too high; to close would keep it there.
        safe |= coming * (1 + _MARGIN * np.sqrt(doubt)) <= _MENDING * target * hits
        safe &= below >= min(20.0, 0.7 / target)
        safe &= target * (self.hits + hits) >= 1  # with fewer hits than that, one wrong one breaks the promise
        safe &= p <= _HIGHEST
        if safe.any():
            self.limit = float(p[np.flatnonzero(safe)[-1]])
        if self._proof is not None:
            self.limit = min(self.limit, self._proof.limit)

    def _draw(self) -> float:
        """A random number from 0 to 1, made as NumPy makes it; how many there were says where the generator stands."""
        self._drawn += 1
        return float(self._random.random_raw() >> 11) * 2.0**-53

    def _past_ratio(self) -> float:
        """By how much more hits were wrong than models said. Few audits cannot say that they were too careful."""
        return max(1.0, self._hindsight, (self.audited_wrong + _PRIOR_WRONG) / (self._audits_expected + _PRIOR_WRONG))

    def _audits_alarm(self) -> bool:
        """Whether the last audits found far more wrong than the model said, and than was promised."""
        wrong = sum(was for _, was in self._watched)
        expected = max(sum(p for p, _ in self._watched), self.terms.max_wrong * len(self._watched))
        return wrong >= 3 and poisson_at_least(wrong, expected) < _ALARM

    def _surprise(self) -> float:
        """By how many standard errors the last labels were worse than the model had said of them."""
        last = self._labels.all[-_LABELS_WATCHED:, :_EVIDENCE].astype(np.float64)
        p = last[:, _P_WRONG]
        if len(last) < _LABELS_WATCHED or p.min() < 0:
            return 0.0
        more = float(last[:, _WRONG].sum() - p.sum())
        return more / math.sqrt(float((p * (1 - p)).sum()) + 1)

    def _close(self) -> None:
        """Close until there are enough labels from after the drift: misses, of which there are many then.

        The audits watched are forgotten too: kept, they would close the cache again whenever it opened.
        """
        self.alarms += 1
        self.limit = CLOSED
        self._since_alarm = 0
        self._watched.clear()
        self._forget()
        self._recent.keep_last(0)
        if self._proof is not None:
            self._proof = Proof(self.terms.max_wrong)

    def _forget(self) -> None:
        self._labels.keep_last(_KEPT_AFTER_DRIFT)


def _width(labels: Rows32, recent: Rows32, features: int | None) -> int:
    """How many numbers evidence has. Raises ValueError if labels, recent requests and `features` do not agree on it."""
    widths = {rows.shape[1] - more for rows, more in ((labels, _EVIDENCE), (recent, _SEEN)) if len(rows)}
    if features is not None:
        widths.add(features)
    if len(widths) > 1 or min(widths, default=1) < 1:
        raise ValueError(f"evidence cannot be of {' and '.join(map(str, sorted(widths)))} numbers")
    return next(iter(widths), 0)
