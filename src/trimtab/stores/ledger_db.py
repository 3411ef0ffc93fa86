"""The ledger as SQLite: one writer (the ingester) and any number of readers, in WAL mode.

`requests` has one row per request, `attempts` one per upstream call; token columns of a request are the sums over its
attempts. `open_intents` are calls in flight, `journal_offsets` how far each journal file was read; all four change in
one transaction, so that nothing is lost or counted twice. Money is integer nano-USD, NULL where it is unpriced.
`later_stages` are what the application did with an answer, joined by request and tenant when a request is shown.
`slo_minutes` count good and bad requests, `slo_alarms` are on (`_slos.py`).
`verdicts` are on answers that levers changed, `lever_monitors` what is known of each lever by them, `lever_marks` who
switched a lever when and why (`_monitors.py`). `feedback` is what users thought of answers, joined by request and
tenant.
`latencies` has a sketch for each hour, metric and group (`_latencies.py`): percentiles of any window are a merge.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trimtab import trace_context
from trimtab.errors import BadRequest
from trimtab.ledger import LedgerEntry
from trimtab.stores import _latencies, _monitors, _slos
from trimtab.types import DecisionRecord, Feedback, Stages, Usage

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "ledger.sqlite"
SCHEMA_VERSION = 7

TOKEN_COLUMNS = tuple(f"{name}_tokens" for name in Usage.__struct_fields__)
_TOKENS_SQL = ", ".join(f"{name} INTEGER NOT NULL" for name in TOKEN_COLUMNS)

REQUEST_COLUMNS = (
    "id", "at", "day", "tenant", "route", "user", "permission", "session", "workflow",
    "prompt_version", "corpus_version", "policy_version", "dialect", "path", "model", "stream", "end", "status",
    "ttft_s", "total_s", "chunks", *TOKEN_COLUMNS, "usage_source", "cost_nusd", "price_source",
    "baseline_nusd", "baseline_source", "cache", "error", "request_bytes", "response_bytes", "attempts", "detail",
    "trace_id", "purpose", "priority",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "request_id", "n", "purpose", "engine", "provider", "model", "response_model", "end", "status", "error", "finish",
    "upstream_id", "start_s", "first_token_s", "end_s", "machine_s", *TOKEN_COLUMNS, "usage_source", "cost_nusd",
    "price_source", "price_reason", "queue_s", "prefill_s", "decode_s", "drafted_tokens", "accepted_tokens",
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
"""
# What each version added, so that a ledger of any version becomes the newest by the same steps.
_LATER = {
    2: _latencies.SCHEMA,  # its earlier rows are not in the sketches: percentiles begin with the upgrade
    3: f"""
ALTER TABLE requests ADD COLUMN trace_id TEXT NOT NULL DEFAULT '';
CREATE INDEX requests_trace ON requests (trace_id) WHERE trace_id <> '';
CREATE TABLE later_stages (
  request_id TEXT NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL, duration_s REAL NOT NULL,
  UNIQUE (request_id, name)
);
{_slos.SCHEMA}""",
    4: """
ALTER TABLE requests ADD COLUMN purpose TEXT NOT NULL DEFAULT '';
UPDATE requests SET purpose = 'shadow' WHERE cache = 'audit';
""",
    5: f"""{_monitors.SCHEMA}
CREATE TABLE feedback (
  request_id TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL, score REAL NOT NULL, comment TEXT NOT NULL,
  PRIMARY KEY (request_id, tenant)
) WITHOUT ROWID;
""",
    # Before, whoever knew a request's id could put a stage of their own in the place of its tenant's.
    6: """
ALTER TABLE later_stages RENAME TO earlier_stages;
CREATE TABLE later_stages (
  request_id TEXT NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL, duration_s REAL NOT NULL,
  UNIQUE (request_id, tenant, name)
);
INSERT INTO later_stages SELECT * FROM earlier_stages ORDER BY rowid;
DROP TABLE earlier_stages;
""",
    7: """
ALTER TABLE requests ADD COLUMN priority TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN queue_s REAL;
ALTER TABLE attempts ADD COLUMN prefill_s REAL;
ALTER TABLE attempts ADD COLUMN decode_s REAL;
ALTER TABLE attempts ADD COLUMN drafted_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN accepted_tokens INTEGER;
""",
}


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
        if version > SCHEMA_VERSION:
            raise BadRequest(
                f"{path} has ledger version {version}, this Trimtab writes {SCHEMA_VERSION}; upgrade Trimtab"
            )
        if version < SCHEMA_VERSION:
            steps = ("" if version else _SCHEMA) + "".join(sql for step, sql in _LATER.items() if step > version)
            connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
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
        r.trace and trace_context.trace_id(r.trace, r.id), s.purpose, s.priority,
    )  # fmt: skip


def attempt_rows(entry: LedgerEntry) -> list[tuple[Any, ...]]:
    """The values of `ATTEMPT_COLUMNS`, one tuple per attempt; numbered by position where numbers repeat."""
    rows = []
    seen: set[int] = set()
    for attempt, cost in zip(entry.record.attempts, entry.attempts, strict=True):
        u, work = attempt.usage, attempt.work
        n = attempt.n if attempt.n not in seen else max(seen) + 1
        seen.add(n)
        rows.append((
            entry.record.id, n, attempt.purpose, attempt.engine, attempt.provider, attempt.model,
            attempt.response_model, attempt.end, attempt.status, attempt.error, attempt.finish, attempt.upstream_id,
            attempt.start_s, attempt.first_token_s, attempt.end_s, attempt.machine_s, u.input, u.cache_read,
            u.cache_write_5m, u.cache_write_1h, u.input_audio, u.output, u.reasoning, u.output_audio,
            attempt.usage_source, cost.nusd, cost.source, cost.reason, attempt.queue_s, work.prefill_s, work.decode_s,
            work.drafted_tokens, work.accepted_tokens,
        ))  # fmt: skip
    return rows


def insert_entries(connection: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """Insert rows inside the caller's transaction; returns those that were new.

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
    return list(chosen.values())


def insert_stages(connection: sqlite3.Connection, said: Iterable[Stages]) -> None:
    """Keep what applications said, inside the caller's transaction; what is said again replaces what was."""
    connection.executemany(
        "INSERT OR REPLACE INTO later_stages VALUES (?, ?, ?, ?, ?)",
        [(s.id, name, s.tenant, s.at, duration_s) for s in said for name, duration_s in s.stages.items()],
    )


def insert_feedback(connection: sqlite3.Connection, said: Iterable[Feedback]) -> None:
    """Keep what users said, inside the caller's transaction; of two on one request the later counts."""
    connection.executemany(
        "INSERT INTO feedback VALUES (?, ?, ?, ?, ?) ON CONFLICT (request_id, tenant) DO UPDATE"
        " SET at = excluded.at, score = excluded.score, comment = excluded.comment WHERE excluded.at >= feedback.at",
        [(one.id, one.tenant, one.at, one.score, one.comment) for one in said],
    )


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
