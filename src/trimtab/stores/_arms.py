"""The ledger's view of an A/B test: both arms of a route, of the setting that holds now."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

from trimtab.quality.split import MISMATCH_P, mean_score, sample_ratio_p
from trimtab.types import CACHED, End

REASON: Final = re.compile(r"arm ([AB]) (.*) against (.*), by (user|session|request)(?:, (gate advisory))?", re.DOTALL)
"""What the lever says of a request that is in the test."""

_FAILED: Final = (End.ERROR, End.TIMEOUT, End.CUT, End.INTERRUPTED)


def query(route: str, but: Sequence[str], since: float) -> tuple[str, list[object]]:
    """SQL for the requests of a route that are in a test, oldest first; of all routes but some, if any are named."""
    which = f"r.route NOT IN ({', '.join('?' * len(but))})" if but else "r.route = ?"
    sql = (
        "SELECT r.at, r.end, r.total_s, r.cost_nusd, r.cache, json_extract(d.value, '$.score') AS place,"
        " json_extract(d.value, '$.threshold') AS share, json_extract(d.value, '$.reason') AS reason, f.score AS score"
        " FROM requests r JOIN json_each(r.detail, '$.decisions') d"
        " LEFT JOIN feedback f ON f.request_id = r.id AND f.tenant = r.tenant"
        f" WHERE {which} AND r.at >= ? AND r.purpose = '' AND json_extract(d.value, '$.lever') = 'ab'"
        " AND json_extract(d.value, '$.score') IS NOT NULL ORDER BY r.at"
    )
    return sql, [*(but or [route]), since]


class _Arm:
    """What is counted of one arm."""

    def __init__(self) -> None:
        self.models: set[str] = set()
        self.places: set[float] = set()
        self.seconds = array("d")  # of requests that ended well
        self.scores = array("d")
        self.requests = self.hits = self.failed = self.unpriced = self.cost_nusd = 0

    def add(self, model: str, row: dict[str, Any]) -> None:
        """Count a request."""
        self.requests += 1
        self.models.add(model)
        self.places.add(row["place"])
        self.hits += row["cache"] in CACHED
        self.failed += row["end"] in _FAILED
        if row["end"] == End.OK:
            self.seconds.append(row["total_s"])
        if row["score"] is not None:
            self.scores.append(row["score"])
        if row["cost_nusd"] is None:
            self.unpriced += 1
        else:
            self.cost_nusd += row["cost_nusd"]

    def report(self, share: float, units: int) -> dict[str, Any]:
        """Its figures, given the share of all `units` that was asked."""
        priced = self.requests - self.unpriced
        seconds, score = sorted(self.seconds), mean_score(self.scores)
        return {
            "models": sorted(self.models),
            "requests": self.requests,
            "units": len(self.places),
            "share_asked": share,
            "share_realised": len(self.places) / units if units else None,
            "cache_hits": self.hits,
            "cost_nusd_per_request": self.cost_nusd / priced if priced else None,
            "unpriced": self.unpriced,
            "p50_s": _quantile(seconds, 0.5),
            "p95_s": _quantile(seconds, 0.95),
            "errors": self.failed,
            "error_share": self.failed / self.requests if self.requests else None,
            "feedback": None if score is None else dict(zip(("count", "mean", "lower", "upper"), score, strict=True)),
        }


def compared(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Both arms, of the rows since share and candidate are what they are; None of no rows.

    Units are counted by their place, which no two share. `sample_ratio_p` is None of too few units to tell.
    """
    setting: tuple[float, str] | None = None
    arms = {"A": _Arm(), "B": _Arm()}
    changed, ungated, since = False, False, 0.0
    for row in rows:
        match = REASON.fullmatch(row["reason"])
        if match is None:
            continue
        arm, own, other, _, advisory = match.groups()
        now = (row["share"], own if arm == "B" else other)
        if now != setting:
            changed, since = setting is not None, row["at"]
            setting, arms, ungated = now, {"A": _Arm(), "B": _Arm()}, False
        ungated |= advisory is not None
        arms[arm].add(own, row)
    if setting is None:
        return None
    share, candidate = setting
    in_a, in_b = len(arms["A"].places), len(arms["B"].places)
    p = sample_ratio_p(in_a, in_b, share)
    return {
        "candidate": candidate,
        "since": since,
        "setting_changed": changed,
        "gate_advisory": ungated,
        "arms": {"A": arms["A"].report(1 - share, in_a + in_b), "B": arms["B"].report(share, in_a + in_b)},
        "sample_ratio_p": p,
        "trusted": p is None or p >= MISMATCH_P,
    }


def _quantile(values: list[float], share: float) -> float | None:
    """The least value that as large a share of the sorted values does not exceed."""
    return values[max(0, -int(-share * len(values) // 1) - 1)] if values else None
