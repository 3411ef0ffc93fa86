"""The ledger's service levels: good and bad requests of each minute and route, and which alarms are on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from trimtab.slo import PERIOD_S, RULES, WINDOWS_S, Alarm, Objective, burn_rate, fires, judge
from trimtab.types import Record

if TYPE_CHECKING:
    import sqlite3

SCHEMA = """
CREATE TABLE slo_minutes (
  route TEXT NOT NULL, minute INTEGER NOT NULL, good INTEGER NOT NULL, bad INTEGER NOT NULL,
  PRIMARY KEY (route, minute)
) WITHOUT ROWID;
CREATE TABLE slo_alarms (
  route TEXT NOT NULL, rule TEXT NOT NULL, since REAL NOT NULL, PRIMARY KEY (route, rule)
) WITHOUT ROWID;
"""

_RULED = sorted({window for rule in RULES for window in (rule.long, rule.short)})

Objectives = Mapping[str, Objective | None]
"""By route; one that is not there has that of `default`."""


def add(connection: sqlite3.Connection, records: Iterable[Record], objectives: Objectives) -> None:
    """Count the records, inside the caller's transaction."""
    counts: Counter[tuple[str, int, bool]] = Counter()
    for record in records:
        if record.scope.purpose or record.scope.priority:  # no user waits
            continue
        route = record.scope.route if record.scope.route in objectives else "default"
        objective = objectives.get(route)
        if objective is not None and (good := judge(record, objective.slo)) is not None:
            counts[route, int(record.at // 60), good] += 1
    connection.executemany(
        "INSERT INTO slo_minutes VALUES (?, ?, ?, ?) ON CONFLICT (route, minute) DO UPDATE"
        " SET good = good + excluded.good, bad = bad + excluded.bad",
        [(route, minute, count * good, count * (not good)) for (route, minute, good), count in counts.items()],
    )


def counts(
    connection: sqlite3.Connection, route: str, now: float, windows: Iterable[str] = WINDOWS_S
) -> dict[str, tuple[int, int]]:
    """(good, bad) of a route over each window, by its name in `WINDOWS_S`."""
    found = {}
    for window in windows:
        good, bad = connection.execute(
            "SELECT TOTAL(good), TOTAL(bad) FROM slo_minutes WHERE route = ? AND minute > ? AND minute <= ?",
            (route, int((now - WINDOWS_S[window]) // 60), int(now // 60)),
        ).fetchone()
        found[window] = (int(good), int(bad))
    return found


def alarms(connection: sqlite3.Connection) -> dict[tuple[str, str], float]:
    """Since when (unix seconds) which alarms are on, by route and rule (its long window)."""
    return {(route, rule): since for route, rule, since in connection.execute("SELECT * FROM slo_alarms")}


def check(connection: sqlite3.Connection, objectives: Objectives, now: float) -> list[Alarm]:
    """Alarms that begin or end now; the caller's transaction remembers them. Forgets what is older than the period."""
    on = alarms(connection)
    changes = []
    for route, objective in objectives.items():
        if objective is None:
            continue
        connection.execute(
            "DELETE FROM slo_minutes WHERE route = ? AND minute < ?", (route, int((now - PERIOD_S) // 60))
        )
        seen = counts(connection, route, now, _RULED)
        rates = {window: burn_rate(*seen[window], objective.share) for window in seen}
        for rule in RULES:
            key = (route, rule.long)
            was_on = key in on
            if fires(rule, objective.share, seen, firing=was_on) != was_on:
                changes.append(Alarm(route, rule, not was_on, now, objective, rates))
            elif was_on:
                on.pop(key)
    kept = {(alarm.route, alarm.rule.long) for alarm in changes if alarm.firing}
    connection.executemany("DELETE FROM slo_alarms WHERE route = ? AND rule = ?", list(on))
    connection.executemany("INSERT INTO slo_alarms VALUES (?, ?, ?)", [(*key, now) for key in kept])
    return changes
