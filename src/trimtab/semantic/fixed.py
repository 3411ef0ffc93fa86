"""The usual rule, for comparison: reuse at a fixed cosine. It promises nothing; audits say how wrong it is."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.semantic.promise import Ruling, Terms

Floats = NDArray[np.float64]

_COSINE: Final = 0  # its place in `evidence.FEATURES`


class _State(msgspec.Struct, array_like=True):
    requests: int
    hits: int
    audits: int
    audited_wrong: int


class Fixed:
    """Stands in for `promise.Promise`: reuse where the candidate's cosine (-1 to 1) is at least `threshold`."""

    def __init__(self, terms: Terms, threshold: float) -> None:
        self.terms = terms
        self.threshold = threshold
        self.requests = self.hits = self.audits = self.audited_wrong = self.alarms = 0
        self.limit = 1.0
        self._asked = 0  # audits

    @property
    def wrong_estimate(self) -> float:
        """Wrong hits so far, as audits say."""
        return self.hits * self.audited_wrong / self.audits if self.audits else 0.0

    def rule(self, values: Floats | None) -> Ruling:
        """Decide on a request by its evidence."""
        self.requests += 1
        hit = values is not None and bool(values[_COSINE] >= self.threshold)
        self.hits += hit
        audit = hit and self._asked < self._due()
        self._asked += audit
        return Ruling(hit, 1.0, audit)

    def _due(self) -> int:
        """How many of the hits so far to audit: one of every 1 / `audit`, at a random place among them.

        A draw for each hit audited a quarter of the first twenty at 5%, and again after every restart.
        """
        stretch, part = divmod(self.hits * self.terms.audit, 1)
        place = np.random.default_rng((self.terms.seed, int(stretch))).random()
        return int(stretch) + bool(part > place)

    def label(self, values: Floats, ruling: Ruling, wrong: bool) -> None:
        """Count an audited hit."""
        if ruling.hit:
            self.audits += 1
            self.audited_wrong += wrong

    def save(self) -> bytes:
        """The counts."""
        return msgspec.msgpack.encode(_State(self.requests, self.hits, self.audits, self.audited_wrong))

    def restore(self, data: bytes) -> None:
        """Go on with saved counts. Raises ValueError."""
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error
        self.requests, self.hits, self.audits = state.requests, state.hits, state.audits
        self.audited_wrong = state.audited_wrong
        self._asked = self._due()
