"""The ledger's watch over levers: verdicts on their answers, a monitor of each lever and route, and its switch.

All of it changes in the ingester's transaction, with the offset of the journal that was read: a verdict counts exactly
once, whatever is killed. A lever is as its last mark says; one without a mark is on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from trimtab.quality.marks import MONITOR, Mark
from trimtab.quality.monitor import Monitor, MonitorReport, MonitorTerms
from trimtab.types import Judged, Switched

if TYPE_CHECKING:
    import sqlite3

SCHEMA = """
CREATE TABLE verdicts (
  request_id TEXT NOT NULL, lever TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
  at REAL NOT NULL, loss REAL, judge TEXT NOT NULL, PRIMARY KEY (request_id, lever)
) WITHOUT ROWID;
CREATE TABLE lever_monitors (
  route TEXT NOT NULL, lever TEXT NOT NULL, model TEXT NOT NULL, margin REAL NOT NULL, since REAL NOT NULL,
  unknown INTEGER NOT NULL, state BLOB NOT NULL, PRIMARY KEY (route, lever)
) WITHOUT ROWID;
CREATE TABLE lever_marks (
  id INTEGER PRIMARY KEY, route TEXT NOT NULL, lever TEXT NOT NULL, is_on INTEGER NOT NULL, at REAL NOT NULL,
  by TEXT NOT NULL, reason TEXT NOT NULL, pairs INTEGER NOT NULL, loss REAL, lower REAL, upper REAL,
  told INTEGER NOT NULL DEFAULT 0
);
"""
_MARK_COLUMNS = "route, lever, is_on, at, by, reason, pairs, loss, lower, upper"
_LAST = "id IN (SELECT MAX(id) FROM lever_marks GROUP BY route, lever)"

_Key = tuple[str, str]  # route, lever


class Watched(NamedTuple):
    """One lever on one route: since when (unix seconds) it is watched, sending to which model, under which margin."""

    model: str
    margin: float
    since: float
    unknown: int  # pairs of which nobody could tell
    monitor: Monitor


def add(connection: sqlite3.Connection, said: Iterable[Judged | Switched], now: float) -> bool:
    """Take in verdicts and persons' switches, in their order, inside the caller's transaction; whether a mark was set.

    A verdict counts while the lever is on, if its request came after the monitor began. The monitor begins anew when
    the lever sends to another model, or the margin is another: what is known of the one is no evidence on the other.
    """
    known: dict[_Key, Watched] = {}
    marks = 0
    for word in said:
        key = (word.route, word.lever)
        if isinstance(word, Switched):
            if word.on:
                known[key] = _anew("", 0.0, word.at)
            _mark(connection, Mark(word.route, word.lever, word.on, word.at, word.by, word.reason))
            marks += 1
        elif _is_new(connection, word) and _is_on(connection, key):
            watched = known[key] if key in known else watch(connection, *key)
            if watched is None or (word.at >= watched.since and watched[:2] != (word.model, word.margin)):
                watched = _anew(word.model, word.margin, word.at if watched is None else max(word.at, watched.since))
            if word.at < watched.since:
                continue
            known[key] = watched = _counted(watched, word)
            if not watched.monitor.on:
                _mark(connection, _switched_off(key, watched.monitor.report(), now))
                marks += 1
    connection.executemany(
        "INSERT OR REPLACE INTO lever_monitors VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(*key, *watched[:4], watched.monitor.save()) for key, watched in known.items()],
    )
    return marks > 0


def watch(connection: sqlite3.Connection, route: str, lever: str) -> Watched | None:
    """What is known of a lever on a route. One that cannot be read is begun anew by the next verdict."""
    row = connection.execute(
        "SELECT model, margin, since, unknown, state FROM lever_monitors WHERE route = ? AND lever = ?", (route, lever)
    ).fetchone()
    if row is None:
        return None
    try:
        model, margin, since, unknown, state = row
        return Watched(model, margin, since, unknown, Monitor.load(state))
    except ValueError:
        return None


def watched(connection: sqlite3.Connection) -> dict[_Key, Watched]:
    """All monitors, by route and lever."""
    keys = connection.execute("SELECT route, lever FROM lever_monitors ORDER BY route, lever").fetchall()
    return {key: found for key in keys if (found := watch(connection, *key)) is not None}


def last_marks(connection: sqlite3.Connection) -> dict[_Key, Mark]:
    """How each lever that was ever switched stands now, by route and lever."""
    rows = connection.execute(f"SELECT {_MARK_COLUMNS} FROM lever_marks WHERE {_LAST} ORDER BY route, lever")
    return {(row[0], row[1]): _mark_of(row) for row in rows}


def untold(connection: sqlite3.Connection) -> list[tuple[int, Mark]]:
    """Marks of which nobody was told yet, oldest first, each with its number."""
    rows = connection.execute(f"SELECT id, {_MARK_COLUMNS} FROM lever_marks WHERE NOT told ORDER BY id")
    return [(row[0], _mark_of(row[1:])) for row in rows]


def _mark_of(row: tuple[object, ...]) -> Mark:
    route, lever, is_on, *rest = row
    return Mark(route, lever, bool(is_on), *rest)  # type: ignore[arg-type]


def told(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Remember, inside the caller's transaction, that these were told."""
    connection.executemany("UPDATE lever_marks SET told = 1 WHERE id = ?", [(number,) for number in numbers])


def _is_new(connection: sqlite3.Connection, word: Judged) -> bool:
    done = connection.execute(
        "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (word.id, word.lever, word.tenant, word.route, word.model, word.at, word.loss, word.judge),
    )
    return done.rowcount > 0


def _is_on(connection: sqlite3.Connection, key: _Key) -> bool:
    row = connection.execute(
        "SELECT is_on FROM lever_marks WHERE route = ? AND lever = ? ORDER BY id DESC LIMIT 1", key
    ).fetchone()
    return row is None or bool(row[0])


def _anew(model: str, margin: float, since: float) -> Watched:
    return Watched(model, margin, since, 0, Monitor(MonitorTerms(margin=margin) if margin else MonitorTerms()))


def _counted(watched: Watched, word: Judged) -> Watched:
    if word.loss is None or not -1.0 <= word.loss <= 1.0:
        return watched._replace(unknown=watched.unknown + 1)
    watched.monitor.add(word.loss)
    return watched


def _switched_off(key: _Key, report: MonitorReport, now: float) -> Mark:
    return Mark(*key, False, now, MONITOR, report.reason, report.pairs, report.loss, *report.interval)


def _mark(connection: sqlite3.Connection, mark: Mark) -> None:
    connection.execute(
        f"INSERT INTO lever_marks ({_MARK_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            mark.route, mark.lever, mark.on, mark.at, mark.by, mark.reason, mark.pairs, mark.loss, mark.lower,
            mark.upper,
        ),
    )  # fmt: skip
