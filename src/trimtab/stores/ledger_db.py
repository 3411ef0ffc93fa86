"""The ledger as SQLite: one writer (the ingester) and any number of readers, in WAL mode.

`requests` has one row per request, `attempts` one per upstream call; token columns of a request are the sums over its
attempts. `open_intents` are calls in flight, `journal_offsets` how far each journal file was read; all four change in
one transaction, so that nothing is lost or counted twice. Money is integer nano-USD, NULL where it is unpriced.
`latencies` has a sketch for each hour, metric and group (`_latencies.py`): percentiles of any window are a merge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trimtab.errors import BadRequest
from trimtab.ledger import LedgerEntry
from trimtab.stores import _latencies
from trimtab.types import DecisionRecord, Usage

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "ledger.sqlite"
SCHEMA_VERSION = 2

TOKEN_COLUMNS = tuple(f"{name}_tokens" for name in Usage.__struct_fields__)
_TOKENS_SQL = ", ".join(f"{name} INTEGER NOT NULL" for name in TOKEN_COLUMNS)

REQUEST_COLUMNS = (
    "id", "at", "day", "tenant", "route", "user", "permission", "session", "workflow",
    "prompt_version", "corpus_version", "policy_version", "dialect", "path", "model", "stream", "end", "status",
    "ttft_s", "total_s", "chunks", *TOKEN_COLUMNS, "usage_source", "cost_nusd", "price_source",
    "baseline_nusd", "baseline_source", "cache", "error", "request_bytes", "response_bytes", "attempts", "detail",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "request_id", "n", "purpose", "engine", "provider", "model", "response_model", "end", "status", "error", "finish",
    "upstream_id", "start_s", "first_token_s", "end_s", "machine_s", *TOKEN_COLUMNS, "usage_source", "cost_nusd",
    "price_source", "price_reason",
)  # fmt: skip

_SCHEMA = f"""
CREATE TABLE requests (
  id TEXT NOT NULL UNIQUE, at REAL NOT NULL, day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL,
  user TEXT NOT NULL, permission TEXT NOT NULL, session TEXT NOT NULL, workflow TEXT NOT NULL,
  prompt_version TEXT NOT NULL, corpus_version TEXT NOT NULL, policy_version TEXT NOT NULL, dialect TEXT NOT NULL,
  path TEXT NOT NULL, model TEXT NOT NULL, stream INTEGER NOT NULL, end TEXT NOT NULL, status INTEGER NOT NULL,
  ttft_s REAL, total_s REAL NOT NULL, chunks INTEGER NOT NULL, {_TOKENS_SQL}, usage_source TEXT NOT NULL,
  cost_nusd INTEGER, price_source TEXT NOT NULL, baseline_nusd INTEGER, baseline_source TEXT NOT NULL,
  cache TEXT NOT NULL, error TEXT NOT NULL, request_bytes INTEGER NOT NULL, response_bytes INTEGER NOT NULL,
  attempts INTEGER NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX requests_at ON requests (at);
CREATE INDEX requests_session ON requests (session) WHERE session <> '';
CREATE INDEX requests_workflow ON requests (workflow) WHERE workflow <> '';
CREATE TABLE attempts (
  request_id TEXT NOT NULL, n INTEGER NOT NULL, purpose TEXT NOT NULL, engine TEXT NOT NULL, provider TEXT NOT NULL,
  model TEXT NOT NULL, response_model TEXT NOT NULL, end TEXT NOT NULL, status INTEGER NOT NULL, error TEXT NOT NULL,
  finish TEXT NOT NULL, upstream_id TEXT NOT NULL, start_s REAL NOT NULL, first_token_s REAL, end_s REAL NOT NULL,
  machine_s REAL NOT NULL, {_TOKENS_SQL}, usage_source TEXT NOT NULL, cost_nusd INTEGER, price_source TEXT NOT NULL,
  price_reason TEXT NOT NULL, PRIMARY KEY (request_id, n)
) WITHOUT ROWID;
CREATE TABLE open_intents (
  request_id TEXT NOT NULL, n INTEGER NOT NULL, file TEXT NOT NULL, intent BLOB NOT NULL, PRIMARY KEY (request_id, n)
) WITHOUT ROWID;
CREATE TABLE journal_offsets (
  file TEXT PRIMARY KEY, bytes INTEGER NOT NULL, bad_lines INTEGER NOT NULL
) WITHOUT ROWID;
{_latencies.SCHEMA}"""


class _Detail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `requests.detail` holds as JSON: parts that are shown but not grouped by."""

    stages: dict[str, float] = {}
    app_stages: dict[str, float] = {}
    decisions: tuple[DecisionRecord, ...] = ()
    baseline_model: str = ""
    baseline_provider: str = ""
    baseline_usage: Usage = Usage()
    price_reason: str = ""


_encode_detail = msgspec.json.Encoder().encode
_days: dict[int, str] = {}


def open_writer(path: Path) -> sqlite3.Connection:
    """Open for writing, created if absent. Raises BadRequest for a ledger of a newer version, sqlite3.Error."""
    import sqlite3

    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version == 1:  # its rows are not in the sketches: percentiles begin with the upgrade
            connection.executescript(
                f"BEGIN IMMEDIATE; {_latencies.SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise BadRequest(
                f"{path} has ledger version {version}, this Trimtab writes {SCHEMA_VERSION}; upgrade Trimtab"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def request_row(entry: LedgerEntry) -> tuple[Any, ...]:
    """The values of `REQUEST_COLUMNS`."""
    r = entry.record
    s = r.scope
    u = entry.usage
    detail = _encode_detail(
        _Detail(
            r.stages,
            r.app_stages,
            r.decisions,
            r.baseline_model,
            r.baseline_provider,
            r.baseline_usage,
            entry.price_reason,
        )
    ).decode()
    return (
        r.id, r.at, _day(r.at), s.tenant, s.route, s.user, s.permission, s.session, s.workflow, s.prompt_version,
        s.corpus_version, s.policy_version, r.dialect, r.path, r.model, r.stream, r.end, r.status, r.ttft_s, r.total_s,
        r.chunks, u.input, u.cache_read, u.cache_write_5m, u.cache_write_1h, u.input_audio, u.output, u.reasoning,
        u.output_audio, entry.usage_source, entry.cost_nusd, entry.price_source, entry.baseline_nusd,
        entry.baseline_source, r.cache, r.error, r.request_bytes, r.response_bytes, len(r.attempts), detail,
    )  # fmt: skip


def attempt_rows(entry: LedgerEntry) -> list[tuple[Any, ...]]:
    """The values of `ATTEMPT_COLUMNS`, one tuple per attempt; numbered by position where numbers repeat."""
    rows = []
    seen: set[int] = set()
    for attempt, cost in zip(entry.record.attempts, entry.attempts, strict=True):
        u = attempt.usage
        n = attempt.n if attempt.n not in seen else max(seen) + 1
        seen.add(n)
        rows.append((
            entry.record.id, n, attempt.purpose, attempt.engine, attempt.provider, attempt.model,
            attempt.response_model, attempt.end, attempt.status, attempt.error, attempt.finish, attempt.upstream_id,
            attempt.start_s, attempt.first_token_s, attempt.end_s, attempt.machine_s, u.input, u.cache_read,
            u.cache_write_5m, u.cache_write_1h, u.input_audio, u.output, u.reasoning, u.output_audio,
            attempt.usage_source, cost.nusd, cost.source, cost.reason,
        ))  # fmt: skip
    return rows


def insert_entries(connection: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> int:
    """Insert rows inside the caller's transaction; returns how many were new.

    Idempotent by request id: the first row wins, but a real one replaces an `interrupted` one.
    """
    known: dict[str, str] = {}
    ids = [entry.record.id for entry in entries]
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        marks = ",".join("?" * len(part))
        known.update(connection.execute(f"SELECT id, end FROM requests WHERE id IN ({marks})", part))
    chosen: dict[str, LedgerEntry] = {}
    replaced = []
    for entry in entries:
        request_id, end = entry.record.id, entry.record.end
        if (earlier := chosen.get(request_id)) is not None:
            if earlier.record.end == "interrupted" and end != "interrupted":
                chosen[request_id] = entry
        elif (stored := known.get(request_id)) is None:
            chosen[request_id] = entry
        elif stored == "interrupted" and end != "interrupted":
            chosen[request_id] = entry
            replaced.append((request_id,))
    if replaced:
        connection.executemany("DELETE FROM requests WHERE id = ?", replaced)
        connection.executemany("DELETE FROM attempts WHERE request_id = ?", replaced)
    connection.executemany(_insert("requests", REQUEST_COLUMNS), [request_row(entry) for entry in chosen.values()])
    connection.executemany(
        _insert("attempts", ATTEMPT_COLUMNS), [row for entry in chosen.values() for row in attempt_rows(entry)]
    )
    _latencies.add(connection, [entry.record for entry in chosen.values()])
    return len(chosen)


def _insert(table: str, columns: Iterable[str]) -> str:
    names = list(columns)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


def _day(at: float) -> str:
    number = int(at // 86400)
    day = _days.get(number)
    if day is None:
        if len(_days) > 1000:
            _days.clear()
        day = _days[number] = time.strftime("%Y-%m-%d", time.gmtime(number * 86400))
    return day


# What `summary` may group by: of a request, and of an attempt (then money and tokens are those of the attempts).
REQUEST_GROUPS = (
    "tenant", "route", "model", "workflow", "session", "user", "permission", "prompt_version", "corpus_version",
    "policy_version", "day", "dialect", "path", "stream", "end", "status", "cache", "usage_source", "price_source",
)  # fmt: skip
ATTEMPT_GROUPS = {
    "purpose": "a.purpose",
    "engine": "a.engine",
    "provider": "a.provider",
    "upstream_model": "a.model",
    "attempt_end": "a.end",
}
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
        """One request with its `attempts` (a list) and `detail` (decoded); a unique prefix of the id will do."""
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
        row["attempts"] = self._all("SELECT * FROM attempts WHERE request_id = ? ORDER BY n", [row["id"]])
        row["saved_nusd"] = _difference(row["baseline_nusd"], row["cost_nusd"])
        return row

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

        Grouped by a property of attempts (`ATTEMPT_GROUPS`), tokens and cost are theirs and baseline is None.
        `cost_nusd` sums what is priced; `unpriced` counts what is not, `estimated` what was estimated.
        """
        for name in by:
            if name not in REQUEST_GROUPS and name not in ATTEMPT_GROUPS:
                known = ", ".join((*REQUEST_GROUPS, *ATTEMPT_GROUPS))
                raise BadRequest(f"cannot group by {name!r}; choose from {known}", param="by")
        split = any(name in ATTEMPT_GROUPS for name in by)
        keys = [(ATTEMPT_GROUPS.get(name) or f"r.{name}", name) for name in by]
        condition, values = _condition(since, until, where or {})
        select = [f"{column} AS {name}" for column, name in keys] + (_ATTEMPT_SUMS if split else _REQUEST_SUMS)
        source = "attempts a JOIN requests r ON r.id = a.request_id" if split else "requests r"
        group = f"GROUP BY {', '.join(column for column, _ in keys)}" if keys else ""
        sql = f"SELECT {', '.join(select)} FROM {source} WHERE {condition} AND r.rowid > ? AND r.rowid <= ? {group}"
        totals: dict[tuple[object, ...], dict[str, Any]] = {}
        for row in self._in_parts(sql, values):
            key = tuple(row[name] for name in by)
            totals[key] = row if key not in totals else _added(totals[key], row, len(by))
        rows = [_with_means(row) for row in totals.values() if row["requests"]]
        return sorted(rows, key=lambda row: (row["cost_nusd"] is None, -(row["cost_nusd"] or 0), -row["requests"]))

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
        cursor = self._connection.execute(f"SELECT {columns} FROM {source} WHERE {condition} ORDER BY {order}", values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

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

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        if self._connection is None:
            return []
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


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
    *_sums("r"),
    "SUM(CASE WHEN r.cost_nusd IS NOT NULL THEN r.baseline_nusd END) AS baseline_nusd",
    "SUM(r.baseline_nusd - r.cost_nusd) AS saved_nusd",
    *_mean_of("ttft", "CASE WHEN r.end = 'ok' THEN r.ttft_s END"),
    *_mean_of("total", "CASE WHEN r.end = 'ok' THEN r.total_s END"),
]
_ATTEMPT_SUMS = [
    "COUNT(DISTINCT a.request_id) AS requests",
    "COUNT(*) AS attempts",
    "SUM(a.end <> 'ok') AS failed",
    "NULL AS cache_hits",
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
