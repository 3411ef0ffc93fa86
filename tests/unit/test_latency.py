"""Percentiles that merge: the sketch, the ledger's table of sketches, and `trimtab latency`."""

from __future__ import annotations

import json
import math
import random
import sqlite3

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import WITHOUT_VERSION_7
from test_journal import row

from trimtab.cli import main
from trimtab.errors import BadRequest
from trimtab.ledger import settle
from trimtab.prices import Prices
from trimtab.sketch import QUANTILES, RELATIVE_ERROR, Sketch
from trimtab.stores import ledger_db, ledger_reader
from trimtab.types import AttemptRecord, Scope, Usage

HOUR = 1795219200  # a full hour, unix seconds
PRICES = Prices.of_tables({}, {})


def sketch_of(values):
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error(values, q):
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    (found,) = sketch_of(values).quantiles((q,))
    assert abs(found - exact) <= exact * (RELATIVE_ERROR + 1e-9)


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
def test_merging_is_the_same_as_counting_together(a, b):
    merged = sketch_of(a)
    merged.merge(Sketch.decode(sketch_of(b).encode()))
    assert merged._counts == sketch_of(a + b)._counts
    assert merged.count == len(a) + len(b)


def test_nothing_and_nothing_positive():
    assert Sketch().quantiles((0.5, 0.99)) == [None, None]
    assert sketch_of([0.0, -1.0]).quantiles((0.5,))[0] < 1e-8


def entry(n, *, route="default", model="m", cache="miss", at=HOUR, end="ok", ttft_s=0.2, **more):
    usage = Usage(input=10, output=11)
    attempt = AttemptRecord(0, "serve", "e", "m", "p", "ok", 0.0, 1.2, first_token_s=ttft_s, usage=usage,
                            usage_source="reported")  # fmt: skip
    record = row(
        f"{route}-{model}-{cache}-{n}-{at}", scope=Scope("t", route=route), model=model, cache=cache, at=at, end=end,
        ttft_s=ttft_s, total_s=1.2, stream=True, attempts=() if cache == "hit" else (attempt,), **more,
    )  # fmt: skip
    return settle(record, PRICES)


@pytest.fixture
def database(tmp_path):
    return tmp_path / ledger_db.FILE_NAME


def fill(database, *batches):
    connection = ledger_db.open_writer(database)
    for batch in batches:
        connection.execute("BEGIN")
        ledger_db.insert_entries(connection, batch)
        connection.execute("COMMIT")
    connection.close()


def near(value):
    return pytest.approx(value, rel=RELATIVE_ERROR + 1e-6)


def test_batches_workers_and_hours_add_up(database):
    rng = random.Random(1)
    values = [rng.lognormvariate(-1, 1) for _ in range(900)]
    entries = [entry(n, ttft_s=value, at=HOUR + 3600 * (n % 3)) for n, value in enumerate(values)]
    fill(database, entries[:300], entries[300:500], entries[500:], entries[:100])  # the last ones are there already
    with ledger_reader.Reader(database) as reader:
        found = {row["metric"]: row for row in reader.latency()}
        assert found["ttft"]["count"] == found["tpot"]["count"] == found["total"]["count"] == 900
        for name, q in QUANTILES.items():
            assert found["ttft"][name] == near(sorted(values)[math.floor(q * 899)])
        one_hour = reader.latency(since=HOUR + 3600, until=HOUR + 7200)
        assert {row["count"] for row in one_hour} == {300}


def test_groups_and_filters(database):
    entries = [entry(n, route="fast", ttft_s=0.1) for n in range(20)]
    entries += [entry(n, route="slow", ttft_s=0.5) for n in range(10)]
    entries += [entry(n, route="fast", cache="hit", ttft_s=0.001) for n in range(5)]
    entries += [entry(n, route="fast", end="timeout", ttft_s=9.0) for n in range(5)]
    fill(database, entries)
    with ledger_reader.Reader(database) as reader:
        rows = {(r["route"], r["metric"]): r for r in reader.latency(["route"])}
        assert rows["fast", "ttft"]["count"] == 25
        assert rows["slow", "ttft"]["p50"] == near(0.5)
        assert ("fast", "tpot") in rows
        hits = reader.latency(["cached"], where={"route": "fast"})
        assert {(r["cached"], r["metric"]): r["count"] for r in hits} == {
            (0, "ttft"): 20, (0, "tpot"): 20, (0, "total"): 20, (1, "ttft"): 5, (1, "total"): 5,
        }  # fmt: skip
        with pytest.raises(BadRequest, match="not kept by 'day'"):
            reader.latency(["day"])


def test_an_interrupted_row_counts_once_its_real_one_comes(database):
    fill(database, [entry(1, end="interrupted")], [entry(1)])
    with ledger_reader.Reader(database) as reader:
        assert {row["count"] for row in reader.latency()} == {1}


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_ledger_of_an_earlier_version_is_taken_over(database, version):
    fill(database, [entry(1)])
    with sqlite3.connect(database) as connection:
        later = [
            WITHOUT_VERSION_7,
            "DROP TABLE verdicts; DROP TABLE lever_monitors; DROP TABLE lever_marks; DROP TABLE feedback;",
            "UPDATE requests SET cache = 'audit'; ALTER TABLE requests DROP COLUMN purpose;",
            "DROP TABLE later_stages; DROP TABLE slo_minutes; DROP TABLE slo_alarms; DROP INDEX requests_trace;"
            "ALTER TABLE requests DROP COLUMN trace_id;",
            "DROP TABLE latencies;",
        ]
        connection.executescript(f"{''.join(later[: 6 - version])} PRAGMA user_version = {version};")
    with ledger_reader.Reader(database) as reader:
        assert len(reader.summary()) == (version == 4)  # what was an audit before is on nobody's bill
        assert bool(reader.latency()) == (version >= 2)
        assert "later_stages" not in reader.show(reader.tail(1)[0]["id"])["detail"]
        assert reader.of_trace("0" * 32) == []
    fill(database, [entry(2)])
    with ledger_reader.Reader(database) as reader:
        assert {row["count"] for row in reader.latency()} == {min(version, 2)}
        assert sum(row["requests"] for row in reader.summary()) == 1 + (version == 4)
        assert {row["purpose"] for row in reader.tail(10)} == ({""} if version == 4 else {"shadow", ""})
        assert [row["trace_id"] for row in reader.tail(10)] == ["", ""]


def test_the_command(tmp_path, database):
    empty = CliRunner().invoke(main, ["latency", "--data-dir", str(tmp_path)])
    assert "is empty" in empty.output
    fill(database, [entry(n, route="chat", ttft_s=0.3) for n in range(30)])
    options = ["--data-dir", str(tmp_path), "--by", "route"]
    shown = CliRunner().invoke(main, ["latency", *options])
    assert shown.exit_code == 0, shown.output
    assert "First token" in shown.output
    assert "chat" in shown.output
    lines = [json.loads(line) for line in CliRunner().invoke(main, ["latency", *options, "--json"]).output.splitlines()]
    assert {line["metric"] for line in lines} == {"ttft", "tpot", "total"}
    assert lines[0]["p99"] == near(0.3) or lines[0]["metric"] != "ttft"
    bad = CliRunner().invoke(main, ["latency", "--data-dir", str(tmp_path), "--by", "day"])
    assert bad.exit_code == 1
    assert "choose from" in bad.output
