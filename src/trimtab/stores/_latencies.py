"""The ledger's percentiles: a sketch for each UTC hour, group and metric, merged in the transaction of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.errors import BadRequest
from trimtab.ledger import per_token_s
from trimtab.sketch import QUANTILES, Sketch
from trimtab.types import CACHED, End, Record

if TYPE_CHECKING:
    import sqlite3

GROUPS = ("tenant", "route", "model", "prompt_version", "cached")
METRICS = ("ttft", "tpot", "total")  # seconds, of requests that ended ok; the first two of streams
_HOUR_S = 3600

SCHEMA = """
CREATE TABLE latencies (
  hour INTEGER NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL, prompt_version TEXT NOT NULL,
  cached INTEGER NOT NULL, metric TEXT NOT NULL, sketch BLOB NOT NULL,
  PRIMARY KEY (hour, tenant, route, model, prompt_version, cached, metric)
) WITHOUT ROWID;
"""


def add(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Merge the records' latencies into their hours' sketches."""
    fresh: dict[tuple[object, ...], Sketch] = {}
    for r in records:
        if r.end != End.OK or r.scope.purpose:
            continue
        s = r.scope
        cached = int(r.cache in CACHED)
        group = (int(r.at // _HOUR_S), s.tenant, s.route, r.model, s.prompt_version, cached)
        for metric, value in zip(METRICS, (r.ttft_s, per_token_s(r), r.total_s), strict=True):
            if value is not None:
                fresh.setdefault((*group, metric), Sketch()).add(value)
    where = " AND ".join(f"{name} = ?" for name in ("hour", *GROUPS, "metric"))
    rows = []
    for key, sketch in fresh.items():
        stored = connection.execute(f"SELECT sketch FROM latencies WHERE {where}", key).fetchone()
        if stored is not None:
            sketch.merge(Sketch.decode(stored[0]))
        rows.append((*key, sketch.encode()))
    connection.executemany("INSERT OR REPLACE INTO latencies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def query(
    by: Sequence[str], since: float | None, until: float | None, where: Mapping[str, str]
) -> tuple[str, list[object]]:
    """SQL and values for the sketches of the whole hours that touch [since, until). Raises BadRequest for a name."""
    for name in (*by, *where):
        if name not in GROUPS:
            raise BadRequest(f"latencies are not kept by {name!r}; choose from {', '.join(GROUPS)}", param="by")
    parts, values = ["1"], list[object]()
    if since is not None:
        parts.append("hour >= ?")
        values.append(int(since // _HOUR_S))
    if until is not None:
        parts.append("hour * 3600 < ?")
        values.append(until)
    for name, value in where.items():
        parts.append(f"{name} = ?")
        values.append(value)
    return f"SELECT {', '.join((*by, 'metric', 'sketch'))} FROM latencies WHERE {' AND '.join(parts)}", values


def merged(by: Sequence[str], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `query` found, one row for each group and metric, the busiest first."""
    sketches: dict[tuple[object, ...], Sketch] = {}
    for row in rows:
        *key, data = row.values()
        sketches.setdefault(tuple(key), Sketch()).merge(Sketch.decode(data))
    qs = tuple(QUANTILES.values())
    found = [
        dict(zip((*by, "metric", "count", *QUANTILES), (*key, sketch.count, *sketch.quantiles(qs)), strict=True))
        for key, sketch in sketches.items()
    ]
    return sorted(found, key=lambda row: (-row["count"], METRICS.index(row["metric"])))
