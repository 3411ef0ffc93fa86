"""Reading the ledger: one request, totals, percentiles, exports. Never writes; sees only what was committed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trimtab.errors import BadRequest
from trimtab.quality.marks import Mark
from trimtab.slo import RULES, WINDOWS_S, burn_rate
from trimtab.stores import _arms, _latencies, _monitors, _slos
from trimtab.stores.ledger_db import SCHEMA_VERSION, TOKEN_COLUMNS

if TYPE_CHECKING:
    import sqlite3

# What `summary` may group by: of a request, and of an attempt (then money and tokens are those of the attempts).
REQUEST_GROUPS = (
    "tenant", "route", "model", "workflow", "session", "user", "permission", "prompt_version", "corpus_version",
    "policy_version", "day", "dialect", "path", "stream", "end", "status", "cache", "usage_source", "price_source",
    "priority",
)  # fmt: skip
ATTEMPT_GROUPS = {
    "purpose": "a.purpose",
    "engine": "a.engine",
    "provider": "a.provider",
    "upstream_model": "a.model",
    "attempt_end": "a.end",
}
WORK_COLUMNS = ("queue_s", "prefill_s", "decode_s", "drafted_tokens", "accepted_tokens")
_WORK_SINCE = 7  # the ledger's version that brought them, and `priority`
_PART_ROWS = 100_000  # below as many a second connection costs more than it brings
_MOST_PARTS = 8
FILTERS = ("tenant", "route", "model", "workflow", "session", "user", "prompt_version", "end", "cache")


class Reader:
    """Reads a ledger without ever writing to it. Raises BadRequest for names that do not exist.

    Rows are dicts of column names. A ledger that does not exist yet is empty.
    """

    def __init__(self, path: Path) -> None:
        import sqlite3

        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._version = 0
        if path.exists():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0, check_same_thread=False
            )
            try:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise
                version = 0  # killed while it was created, before it was in WAL mode; the next writer starts it anew
            self._version = version
            if version > SCHEMA_VERSION:
                self._connection.close()
                raise BadRequest(f"{path} has ledger version {version}, newer than this Trimtab; upgrade Trimtab")
            if version == 0:  # just being created
                self._connection.close()
                self._connection = None

    def close(self) -> None:
        """Release the file."""
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tail(self, limit: int, after: int | None = None) -> list[dict[str, Any]]:
        """The last `limit` requests in order of arrival in the ledger, each with its `seq`; or those after a `seq`."""
        if after is None:
            rows = self._all(f"SELECT rowid AS seq, * FROM requests ORDER BY rowid DESC LIMIT {int(limit)}")
            return rows[::-1]
        return self._all(
            f"SELECT rowid AS seq, * FROM requests WHERE rowid > ? ORDER BY rowid LIMIT {int(limit)}", [after]
        )

    def show(self, request_id: str) -> dict[str, Any] | None:
        """One request with its `attempts` (a list) and `detail` (decoded); a unique prefix of the id will do.

        With its user's `feedback` and the `verdicts` on it, where there are any.
        """
        rows = self._all("SELECT * FROM requests WHERE id = ?", [request_id])
        if not rows and request_id:
            # One character past every id that begins so; a range, because LIKE would not use the index.
            rows = self._all(
                "SELECT * FROM requests WHERE id >= ? AND id < ? LIMIT 2", [request_id, request_id + "\U0010ffff"]
            )
        if len(rows) != 1:
            return None
        row = rows[0]
        row["detail"] = msgspec.json.decode(row["detail"])
        if later := self._later_stages(row["id"], row["tenant"]):
            row["detail"]["later_stages"] = later
        if feedback := self._feedback(row["id"], row["tenant"]):
            row["feedback"] = feedback
        if verdicts := self._verdicts(row["id"]):
            row["verdicts"] = verdicts
        row["attempts"] = self._all("SELECT * FROM attempts WHERE request_id = ? ORDER BY n", [row["id"]])
        row["saved_nusd"] = _difference(row["baseline_nusd"], row["cost_nusd"])
        return row

    def _later_stages(self, request_id: str, tenant: str) -> dict[str, float]:
        if self._version < 3:
            return {}
        found = self._all(
            "SELECT name, duration_s FROM later_stages WHERE request_id = ? AND tenant = ? ORDER BY at, rowid",
            [request_id, tenant],
        )
        return {row["name"]: row["duration_s"] for row in found}

    def _feedback(self, request_id: str, tenant: str) -> dict[str, Any] | None:
        if self._version < 5:
            return None
        sql = "SELECT at, score, comment FROM feedback WHERE request_id = ? AND tenant = ?"
        return next(iter(self._all(sql, [request_id, tenant])), None)

    def _verdicts(self, request_id: str) -> list[dict[str, Any]]:
        if self._version < 5:
            return []
        return self._all("SELECT lever, model, loss, judge FROM verdicts WHERE request_id = ?", [request_id])

    def of_trace(self, trace_id: str) -> list[str]:
        """The ids of the requests of a W3C trace (32 hex digits), oldest first."""
        if self._version < 3:
            return []
        return [row["id"] for row in self._all("SELECT id FROM requests WHERE trace_id = ? ORDER BY at", [trace_id])]

    def in_flight(self, request_id: str) -> list[dict[str, Any]]:
        """The intents of a request whose row has not come yet."""
        rows = self._all("SELECT intent FROM open_intents WHERE request_id = ? ORDER BY n", [request_id])
        return [msgspec.json.decode(row["intent"]) for row in rows]

    def summary(
        self,
        by: Sequence[str] = (),
        *,
        since: float | None = None,
        until: float | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Totals over [since, until) (unix seconds), grouped, the dearest group first.

        Grouped by a property of attempts (`ATTEMPT_GROUPS`), tokens and cost are theirs and baseline is None; with the
        sums of `WORK_COLUMNS` (None where no engine says), and of the drafted tokens the `acceptance` (0 to 1).
        Requests on nobody's bill (audits, evals) count only where "cache" or "purpose" is grouped or filtered by.
        `cost_nusd` sums what is priced; `unpriced` counts what is not, `estimated` what was estimated.
        """
        for name in by:
            if name not in REQUEST_GROUPS and name not in ATTEMPT_GROUPS:
                known = ", ".join((*REQUEST_GROUPS, *ATTEMPT_GROUPS))
                raise BadRequest(f"cannot group by {name!r}; choose from {known}", param="by")
        split = any(name in ATTEMPT_GROUPS for name in by)
        keys = [(self._group(name), name) for name in by]
        condition, values = _condition(since, until, where or {})
        if not {"cache", "purpose"} & {*by, *(where or ())}:
            condition += " AND r.purpose = ''" if self._version >= 4 else " AND r.cache <> 'audit'"
        select = [f"{column} AS {name}" for column, name in keys] + (self._attempt_sums() if split else _REQUEST_SUMS)
        source = "attempts a JOIN requests r ON r.id = a.request_id" if split else "requests r"
        group = f"GROUP BY {', '.join(column for column, _ in keys)}" if keys else ""
        sql = f"SELECT {', '.join(select)} FROM {source} WHERE {condition} AND r.rowid > ? AND r.rowid <= ? {group}"
        totals: dict[tuple[object, ...], dict[str, Any]] = {}
        for row in self._in_parts(sql, values):
            key = tuple(row[name] for name in by)
            totals[key] = row if key not in totals else _added(totals[key], row, len(by))
        rows = [_with_means(row) for row in totals.values() if row["requests"]]
        return sorted(rows, key=lambda row: (row["cost_nusd"] is None, -(row["cost_nusd"] or 0), -row["requests"]))

    def _group(self, name: str) -> str:
        if name == "priority" and self._version < _WORK_SINCE:
            return "''"
        return ATTEMPT_GROUPS.get(name) or f"r.{name}"

    def _attempt_sums(self) -> list[str]:
        known = self._version >= _WORK_SINCE
        return _ATTEMPT_SUMS + [f"SUM(a.{name}) AS {name}" if known else f"NULL AS {name}" for name in WORK_COLUMNS]

    def latency(
        self,
        by: Sequence[str] = (),
        *,
        since: float | None = None,
        until: float | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Percentiles over the whole hours that touch [since, until) (unix seconds), the busiest group first.

        Each row has the groups' names, `metric`, `count` and `sketch.QUANTILES` in seconds, within its RELATIVE_ERROR.
        """
        sql, values = _latencies.query(by, since, until, where or {})
        return _latencies.merged(by, self._all(sql, values)) if self._version >= 2 else []

    def service_levels(self, objectives: _slos.Objectives, now: float) -> list[dict[str, Any]]:
        """For each route with an objective: requests of the last 30 days, budget, burn rates by window, alarms."""
        levels = []
        on = _slos.alarms(self._connection) if self._connection is not None and self._version >= 3 else {}
        for route, objective in objectives.items():
            if objective is None:
                continue
            counts = dict.fromkeys(WINDOWS_S, (0, 0))
            if self._connection is not None and self._version >= 3:
                counts = _slos.counts(self._connection, route, now)
            good, bad = counts["30d"]
            rates = {window: burn_rate(*seen, objective.share) for window, seen in counts.items()}
            known = good + bad > 0
            levels.append({
                "route": route, "targets": objective.slo.name, "objective": objective.share, "good": good, "bad": bad,
                "good_share": good / (good + bad) if known else None,
                "budget_left": 1 - rates["30d"] if known else None,
                "burn_rates": rates,
                "alarms": [
                    {"severity": rule.severity, "long": rule.long, "short": rule.short, "since": on[route, rule.long]}
                    for rule in RULES
                    if (route, rule.long) in on
                ],
            })  # fmt: skip
        return levels

    def arms(self, route: str, but: Sequence[str] = (), since: float = 0.0) -> dict[str, Any] | None:
        """Both arms of a route's A/B test since then (unix seconds), as `_arms.compared` says; None if there is none.

        With `but`, the requests of all other routes than those in place of the route's.
        """
        if self._connection is None or self._version < 5:
            return None
        return _arms.compared(self._each(*_arms.query(route, but, since)))

    def spent_aside(self, since: float) -> dict[str, int]:
        """Nano-USD since then (unix seconds) on calls that no client waited for (shadow, judge), by route."""
        if self._version < 4:
            return {}
        rows = self._all(
            "SELECT route, SUM(cost_nusd) AS nusd FROM requests WHERE at >= ? AND purpose IN ('shadow', 'judge')"
            " GROUP BY route",
            [since],
        )
        return {row["route"]: row["nusd"] or 0 for row in rows}

    def labels(self, levers: Sequence[str], where: Mapping[str, str]) -> list[dict[str, Any]]:
        """Verdicts on the answers of models that these levers sent requests to, where there is a loss, oldest first.

        With the request's `tenant`, `route` and `asked`: the model that its client named. `where` filters by columns of
        the request.
        """
        if self._version < 5:
            return []
        condition, values = _condition(None, None, where)
        places = ", ".join("?" * len(levers))
        return self._all(
            "SELECT v.request_id, v.model, v.loss, r.tenant, r.route, r.model AS asked FROM verdicts v"
            f" JOIN requests r ON r.id = v.request_id WHERE v.loss IS NOT NULL AND v.model <> ''"
            f" AND v.lever IN ({places}) AND {condition} ORDER BY v.at, v.request_id",
            [*levers, *values],
        )

    def levers(self) -> list[dict[str, Any]]:
        """Each lever that was judged or switched, by route: is it on, since when, why, and what is known of its loss.

        `since` is when it was last switched, or when its monitor began; bounds hold at any time with 95%.
        """
        if self._connection is None or self._version < 5:
            return []
        marks, monitors = _monitors.last_marks(self._connection), _monitors.watched(self._connection)
        return [_lever_row(*key, marks.get(key), monitors.get(key)) for key in sorted({*marks, *monitors})]

    def export(
        self, *, attempts: bool = False, since: float | None = None, until: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every request (`detail` as JSON text), or every attempt with its request's time and scope, one by one."""
        if self._connection is None:
            return
        condition, values = _condition(since, until, {})
        columns = "r.*"
        source = "requests r"
        if attempts:
            columns = "r.at, r.day, r.tenant, r.route, r.session, r.workflow, r.prompt_version, a.*"
            source = "requests r JOIN attempts a ON a.request_id = r.id"
        order = "r.rowid, a.n" if attempts else "r.rowid"
        yield from self._each(f"SELECT {columns} FROM {source} WHERE {condition} ORDER BY {order}", values)

    def _in_parts(self, sql: str, values: Sequence[object]) -> list[dict[str, Any]]:
        """A query over ranges of row numbers (its last two values), large ledgers on several processors at once."""
        if self._connection is None:
            return []
        last = self._connection.execute("SELECT MAX(rowid) FROM requests").fetchone()[0] or 0
        parts = min(os.cpu_count() or 1, _MOST_PARTS, last // _PART_ROWS + 1)
        bounds = [last * n // parts for n in range(parts + 1)]
        ranges = list(pairwise(bounds))
        if len(ranges) == 1:
            return self._all(sql, [*values, *ranges[0]])

        def one(part: tuple[int, int]) -> list[dict[str, Any]]:
            with Reader(self._path) as reader:
                return reader._all(sql, [*values, *part])

        with ThreadPoolExecutor(parts) as pool:  # SQLite lets the GIL go while it works
            return [row for rows in pool.map(one, ranges) for row in rows]

    def _each(self, sql: str, values: Sequence[object]) -> Iterator[dict[str, Any]]:
        if self._connection is None:
            return
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        return list(self._each(sql, values))


def _lever_row(route: str, lever: str, mark: Mark | None, watched: _monitors.Watched | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "route": route, "lever": lever, "on": mark is None or mark.on, "since": None, "by": "", "why": "", "model": "",
        "margin": None, "pairs": 0, "unknown": 0, "loss": None, "lower": None, "upper": None,
    }  # fmt: skip
    if watched is not None:
        report = watched.monitor.report()
        row |= {"since": watched.since, "unknown": watched.unknown, "pairs": report.pairs}
        row |= {"model": watched.model, "margin": watched.margin or None, "why": report.reason if report.pairs else ""}
        if report.pairs:
            row |= {"loss": report.loss, "lower": report.interval[0], "upper": report.interval[1]}
    if mark is not None:
        row |= {"since": mark.at, "by": mark.by}
        row["why"] = (mark.reason or row["why"]) if not mark.on else row["why"] or mark.reason
    return row


def _sums(table: str) -> list[str]:
    return [f"SUM({table}.{name}) AS {name}" for name in TOKEN_COLUMNS] + [
        f"SUM({table}.cost_nusd) AS cost_nusd",
        f"SUM({table}.cost_nusd IS NULL) AS unpriced",
        f"SUM({table}.usage_source = 'estimated') AS estimated",
    ]


def _mean_of(name: str, value: str) -> list[str]:
    """Sum and count, which parts of a ledger can add up; `_with_means` divides them."""
    return [f"SUM({value}) AS {name}_sum", f"COUNT({value}) AS {name}_count"]


def _with_means(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("ttft", "total"):
        count, total = row.pop(f"{name}_count"), row.pop(f"{name}_sum")
        row[f"mean_{name}_s"] = total / count if count else None
    drafted = row["drafted_tokens"]
    row["acceptance"] = row["accepted_tokens"] / drafted if drafted else None
    return row


def _added(a: dict[str, Any], b: dict[str, Any], keys: int) -> dict[str, Any]:
    """Two partial totals of one group, whose first `keys` columns name it; None (nothing known) adds nothing."""
    sums = {
        name: b[name] if value is None else value if b[name] is None else value + b[name]
        for name, value in list(a.items())[keys:]
    }
    return a | sums


# Saved money counts only requests where both figures are known; the baseline beside it is over the same requests.
_REQUEST_SUMS = [
    "COUNT(*) AS requests",
    "SUM(r.attempts) AS attempts",
    "SUM(r.end <> 'ok') AS failed",
    "SUM(r.cache = 'hit') AS cache_hits",
    "SUM(r.cache = 'semantic') AS semantic_hits",
    "SUM(r.cache = 'coalesced') AS coalesced",
    *_sums("r"),
    "SUM(CASE WHEN r.cost_nusd IS NOT NULL THEN r.baseline_nusd END) AS baseline_nusd",
    "SUM(r.baseline_nusd - r.cost_nusd) AS saved_nusd",
    *_mean_of("ttft", "CASE WHEN r.end = 'ok' THEN r.ttft_s END"),
    *_mean_of("total", "CASE WHEN r.end = 'ok' THEN r.total_s END"),
    *[f"NULL AS {name}" for name in WORK_COLUMNS],
]
_ATTEMPT_SUMS = [
    "COUNT(DISTINCT a.request_id) AS requests",
    "COUNT(*) AS attempts",
    "SUM(a.end <> 'ok') AS failed",
    "NULL AS cache_hits",
    "NULL AS semantic_hits",
    "NULL AS coalesced",
    *_sums("a"),
    "NULL AS baseline_nusd",
    "NULL AS saved_nusd",
    *_mean_of("ttft", "CASE WHEN a.end = 'ok' THEN a.first_token_s - a.start_s END"),
    *_mean_of("total", "CASE WHEN a.end = 'ok' THEN a.end_s - a.start_s END"),
]


def _condition(since: float | None, until: float | None, where: Mapping[str, str]) -> tuple[str, list[object]]:
    parts, values = ["1"], list[object]()
    if since is not None:
        parts.append("r.at >= ?")
        values.append(since)
    if until is not None:
        parts.append("r.at < ?")
        values.append(until)
    for name, value in where.items():
        if name not in FILTERS:
            raise BadRequest(f"cannot filter by {name!r}; choose from {', '.join(FILTERS)}", param=name)
        parts.append(f"r.{name} = ?")
        values.append(value)
    return " AND ".join(parts), values


def _difference(baseline: int | None, cost: int | None) -> int | None:
    return None if baseline is None or cost is None else baseline - cost
