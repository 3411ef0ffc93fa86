"""Journal to SQLite: exactly once, whatever is killed and whenever."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
from test_journal import intent, row

import trimtab
from trimtab.errors import BadRequest
from trimtab.prices import PriceOverride, Prices
from trimtab.stores import ingest, ledger_db, ledger_reader
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.types import NO_USAGE, AttemptRecord, DecisionRecord, Scope, Stages, Usage

PRICES = Prices({"m": PriceOverride(input_per_mtok=1.0, output_per_mtok=1.0)})
WITHOUT_VERSION_7 = "ALTER TABLE requests DROP COLUMN priority;" + "".join(
    f"ALTER TABLE attempts DROP COLUMN {name};" for name in ledger_reader.WORK_COLUMNS
)
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(trimtab.__file__).parents[1]), str(Path(__file__).parent)])}


def paid(request_id, tokens=7, n=0, **changes):
    attempt = AttemptRecord(
        n, "serve", "e", "m", "p", "ok", 0.0, 0.1, usage=Usage(input=tokens), usage_source="reported"
    )
    fields = {"attempts": (attempt,), "baseline_usage": attempt.usage, "baseline_model": "m", "baseline_provider": "p"}
    return row(request_id, **(fields | changes))


def query(data_dir, sql):
    with closing(sqlite3.connect(data_dir / ledger_db.FILE_NAME)) as connection:
        return connection.execute(sql).fetchall()


def ends(data_dir):
    return dict(query(data_dir, "SELECT id, end FROM requests"))


def consistent(data_dir):
    """Whether every request's columns are the sums of its attempts'."""
    sums = query(
        data_dir,
        "SELECT r.id FROM requests r LEFT JOIN (SELECT request_id, COUNT(*) n, SUM(input_tokens) i, SUM(cost_nusd) c"
        " FROM attempts GROUP BY request_id) a ON a.request_id = r.id"
        " WHERE r.attempts <> COALESCE(a.n, 0) OR r.input_tokens <> COALESCE(a.i, 0)"
        " OR r.cost_nusd <> COALESCE(a.c, 0)",
    )
    strays = query(data_dir, "SELECT request_id FROM attempts WHERE request_id NOT IN (SELECT id FROM requests)")
    return not sums and not strays


@pytest.fixture
def journal(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w0")
    yield journal
    journal.close()


@pytest.fixture
def ingester(tmp_path):
    ingester = Ingester(tmp_path, PRICES)
    yield ingester
    ingester.close()


def test_rows_arrive_priced_and_once(tmp_path, journal, ingester):
    assert ingester.run_once() == 0
    scope = Scope("acme", route="support", session="s", workflow="w", prompt_version="v3", user="u")
    journal.intent(intent("a"))
    journal.row(paid("a", 1000, scope=scope, at=1795219200.0, ttft_s=0.2, cache="miss", stages={"parse": 0.001}))
    assert ingester.run_once() == 1
    assert ingester.run_once() == 0
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        shown = reader.show("a")
    assert shown["cost_nusd"] == shown["baseline_nusd"] == 1_000_000
    assert shown["saved_nusd"] == 0
    assert (shown["tenant"], shown["route"], shown["session"], shown["workflow"]) == ("acme", "support", "s", "w")
    assert (shown["day"], shown["ttft_s"], shown["cache"]) == ("2026-11-21", 0.2, "miss")
    assert shown["detail"]["stages"] == {"parse": 0.001}
    assert [a["input_tokens"] for a in shown["attempts"]] == [1000]
    assert consistent(tmp_path)


def test_what_the_application_says_after_the_answer_meets_its_row(tmp_path, journal, ingester):
    journal.note(Stages("a", "t", 5.0, {"validation": 0.2, "act": 0.1}))  # before its row is there
    ingester.run_once()
    journal.row(paid("a", 1000, scope=Scope("t"), trace="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"))
    journal.note(Stages("a", "t", 6.0, {"validation": 0.3}))  # said again
    journal.note(Stages("a", "other", 6.0, {"forged": 9.0, "act": 9.0}))  # by another tenant
    ingester.run_once()
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        assert reader.show("a")["detail"]["later_stages"] == {"act": 0.1, "validation": 0.3}
        assert reader.of_trace("ab" * 16) == ["a"]


def test_stages_of_an_earlier_ledger_are_kept_and_become_their_tenants_own(tmp_path, journal, ingester):
    journal.row(paid("a", 1000, scope=Scope("t")))
    ingester.run_once()
    ingester.close()
    database = tmp_path / ledger_db.FILE_NAME
    with sqlite3.connect(database) as connection:
        connection.executescript(
            f"{WITHOUT_VERSION_7} DROP TABLE later_stages; PRAGMA user_version = 5;"
            " CREATE TABLE later_stages (request_id TEXT NOT NULL,"
            " name TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL, duration_s REAL NOT NULL,"
            " UNIQUE (request_id, name)); INSERT INTO later_stages VALUES ('a', 'act', 't', 5.0, 0.1)"
        )
    journal.note(Stages("a", "other", 6.0, {"act": 9.0}))
    ingester.run_once()
    with ledger_reader.Reader(database) as reader:
        assert reader.show("a")["detail"]["later_stages"] == {"act": 0.1}
    assert query(tmp_path, "SELECT tenant FROM later_stages ORDER BY rowid") == [("t",), ("other",)]


def test_an_intent_without_its_row_waits_while_the_writer_lives(tmp_path, journal, ingester):
    journal.intent(intent("a"))
    journal.intent(intent("b"))
    journal.intent(intent("b", 1))
    journal.row(paid("c"))
    assert ingester.run_once() == 1
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        assert [i["n"] for i in reader.in_flight("b")] == [0, 1]
    journal.row(paid("a"))
    assert ingester.run_once() == 1
    journal.close()
    assert ingester.run_once() == 1
    assert ends(tmp_path) == {"a": "ok", "b": "interrupted", "c": "ok"}
    assert query(tmp_path, "SELECT n, usage_source, input_tokens, end FROM attempts WHERE request_id = 'b'") == [
        (0, "estimated", 5, "interrupted"),
        (1, "estimated", 5, "interrupted"),
    ]
    assert consistent(tmp_path)
    assert list((tmp_path / "journal").iterdir()) == []
    ingester.run_once()
    assert query(tmp_path, "SELECT COUNT(*) FROM journal_offsets") == [(0,)]
    assert query(tmp_path, "SELECT COUNT(*) FROM open_intents") == [(0,)]


def test_a_half_line_of_a_live_writer_waits_and_one_of_a_dead_writer_is_counted(tmp_path, journal, ingester, caplog):
    line = msgspec.json.encode(paid("b")) + b"\n"
    journal.row(paid("a"))
    journal._put(line[:50])
    assert ingester.run_once() == 1
    journal._put(line[50:])
    assert ingester.run_once() == 1
    journal._put(line[:50])
    journal.close()
    assert ingester.run_once() == 0
    assert ingester.bad_lines == 1
    assert "at byte" in caplog.text
    assert ends(tmp_path) == {"a": "ok", "b": "ok"}


def test_zeros_in_the_middle_end_a_live_file_and_part_a_dead_one(tmp_path, journal, ingester):
    journal.row(paid("a"))
    journal._put(bytes(5000) + b"\n")  # as a power cut leaves it
    journal.row(paid("b"))
    assert ingester.run_once() == 1
    journal.close()
    assert ingester.run_once() == 1
    assert ingester.bad_lines == 0
    assert ends(tmp_path) == {"a": "ok", "b": "ok"}


def test_a_file_that_is_cut_to_its_lines_while_it_is_read(tmp_path, journal, ingester, monkeypatch):
    for number in range(100):
        journal.row(paid(f"r{number}"))
    fstat = os.fstat

    def fstat_then_close(fd):
        seen = fstat(fd)
        monkeypatch.setattr(ingest.os, "fstat", fstat)
        journal.close()
        return seen

    monkeypatch.setattr(ingest.os, "fstat", fstat_then_close)
    monkeypatch.setattr(ingest, "_FIRST_BYTES", 1000)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 1000)
    assert ingester.run_once() + ingester.run_once() == 100
    assert consistent(tmp_path)


def test_unreadable_lines_are_skipped_counted_and_logged_once(tmp_path, journal, ingester, caplog):
    junk = [b'{"k":"row","id":"to', b"\xff\xfe", b"[]", b'{"k":"row","id":5}', b'{"k":"other"}', b"NaN", b" "]
    for number, line in enumerate(junk):
        journal._put(line + b"\n" + msgspec.json.encode(paid(f"r{number}")) + b"\n")
    assert ingester.run_once() == len(junk)
    assert ingester.bad_lines == len(junk)
    assert caplog.text.count("unreadable line") == 1
    assert query(tmp_path, "SELECT bad_lines FROM journal_offsets") == [(len(junk),)]


def test_a_repeated_row_counts_once_and_a_real_one_replaces_an_interrupted_one(tmp_path, ingester):
    first = FileJournal(tmp_path / "journal", "w0")
    first.intent(intent("a"))
    first.intent(intent("a", 1))
    first.row(paid("b", 1))
    first.row(paid("b", 2, n=1))
    first.close()
    ingester.run_once()
    assert ends(tmp_path) == {"a": "interrupted", "b": "ok"}
    second = FileJournal(tmp_path / "journal", "w0")
    second.row(paid("a", 9))
    second.row(paid("b", 3))
    second.intent(intent("b"))
    second.close()
    ingester.run_once()
    assert ends(tmp_path) == {"a": "ok", "b": "ok"}
    assert query(tmp_path, "SELECT id, input_tokens FROM requests ORDER BY id") == [("a", 9), ("b", 1)]
    assert query(tmp_path, "SELECT request_id, n FROM attempts ORDER BY 1") == [("a", 0), ("b", 0)]
    assert consistent(tmp_path)


def test_a_row_in_a_younger_file_settles_an_intent_of_a_released_one(tmp_path, ingester):
    journal = FileJournal(tmp_path / "journal", "w0", rotate_bytes=1000)
    journal.intent(intent("slow"))
    for number in range(20):
        journal.row(paid(f"r{number}"))
    ingester.run_once()
    journal.row(paid("slow"))
    ingester.run_once()
    assert len(list((tmp_path / "journal").iterdir())) == 1
    assert set(ends(tmp_path).values()) == {"ok"}
    journal.close()


def test_only_one_ingests(tmp_path, journal, ingester):
    journal.row(paid("a"))
    other = Ingester(tmp_path, PRICES)
    assert other.run_once() == 1
    assert ingester.run_once() == 0
    assert not ingester.active
    journal.row(paid("b"))
    other.close()
    assert ingester.run_once() == 1


def test_lines_larger_than_a_chunk(tmp_path, journal, ingester, monkeypatch):
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 64)
    for number in range(20):
        journal.row(paid(f"r{number}", error="x" * 50 * number))
    assert ingester.run_once() == 20
    assert consistent(tmp_path)


def test_counts_that_cannot_be_true_are_kept_as_unpriced(tmp_path, journal, ingester):
    journal.row(paid("a", 2**62))
    journal.row(paid("b", 10**25))
    journal.row(paid("c", -5))
    assert ingester.run_once() == 3
    assert query(tmp_path, "SELECT price_source, cost_nusd FROM requests") == [("unpriced", None)] * 3
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        assert reader.summary()[0]["unpriced"] == 3


def test_a_locked_or_full_database_delays_and_loses_nothing(tmp_path, journal, ingester, monkeypatch, caplog):
    journal.row(paid("a"))
    ingester.run_once()
    real = ledger_db.insert_entries
    failures = iter([sqlite3.OperationalError("database is locked"), OSError(errno.ENOSPC, "full"), None])

    def insert(connection, entries):
        new = real(connection, entries)
        if error := next(failures, None):
            raise error
        return new

    monkeypatch.setattr(ledger_db, "insert_entries", insert)
    journal.row(paid("b"))
    stop = threading.Event()
    thread = threading.Thread(target=ingester.run, args=(stop, 0.01))
    thread.start()
    for _ in range(500):
        if len(ends(tmp_path)) == 2:
            break
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert ends(tmp_path) == {"a": "ok", "b": "ok"}
    assert caplog.text.count("cannot be ingested") == 1
    assert not ingester.active


def test_run_ingests_once_more_when_it_is_stopped(tmp_path, journal, ingester):
    journal.row(paid("a"))
    stop = threading.Event()
    stop.set()
    ingester.run(stop)
    assert ends(tmp_path) == {"a": "ok"}


class Killed(BaseException):
    """Stands for the end of the process at this point."""


@pytest.mark.parametrize(
    "point", ["insert_entries", "_store_progress", "_remember", "_finish", "_forget", "_take", "unlink", "_read"]
)
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_and_started_again(tmp_path, monkeypatch, point, nth, after):
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 3000)
    for name in ("w0", "w1"):
        journal = FileJournal(tmp_path / "journal", name)
        for number in range(30):
            journal.intent(intent(f"{name}-{number}"))
            if number % 10:
                journal.row(paid(f"{name}-{number}", number))
        journal.close()
    owner = {"insert_entries": ledger_db, "unlink": Path}.get(point, Ingester)
    real = getattr(owner, point)
    calls = 0

    def stop_there(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        result = real(*args, **kwargs)
        if calls == nth:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, point, stop_there)
        first = Ingester(tmp_path, PRICES)
        with suppress(Killed):
            first.run_once()
        first.close()
    again = Ingester(tmp_path, PRICES)
    again.run_once()
    again.run_once()
    again.close()
    wanted = {f"{name}-{n}": "ok" if n % 10 else "interrupted" for name in ("w0", "w1") for n in range(30)}
    assert ends(tmp_path) == wanted
    assert query(tmp_path, "SELECT COUNT(*) FROM attempts") == [(60,)]
    assert consistent(tmp_path)
    assert list((tmp_path / "journal").iterdir()) == []


WRITER = """
import os, sys
from pathlib import Path
from test_ingest import FileJournal, intent, paid
journal = FileJournal(Path(sys.argv[1]) / "journal", sys.argv[2], rotate_bytes=40_000)
for number in range(10**9):
    journal.intent(intent(f"{sys.argv[2]}-{number}"))
    os.write(1, b"begun %d\\n" % number)
    journal.row(paid(f"{sys.argv[2]}-{number}", number))
    os.write(1, b"done %d\\n" % number)
"""

INGESTER = """
import sys, threading
from pathlib import Path
from test_ingest import PRICES, Ingester, ingest
ingest._CHUNK_BYTES = 20_000
ingester = Ingester(Path(sys.argv[1]), PRICES)
print("up", flush=True)
ingester.run(threading.Event(), 0.001)
"""


def start(code, *args):
    return subprocess.Popen([sys.executable, "-c", code, *args], env=ENV, stdout=subprocess.PIPE)


def test_writers_and_ingesters_killed_at_random(tmp_path):
    """Every row whose write returned is there once, every intent is there, nothing twice."""
    rng = random.Random(3)
    told = {}
    writers = {}
    for life in range(4):
        ingesting = start(INGESTER, str(tmp_path))
        if life < 3:
            writers[f"w{life}"] = start(WRITER, str(tmp_path), f"w{life}")
        ingesting.stdout.readline()
        for name, writer in writers.items():
            told.setdefault(name, b"")
            until = len(told[name]) + rng.randint(5_000, 30_000)
            while len(told[name]) < until:
                told[name] += os.read(writer.stdout.fileno(), 4096)
        ingesting.kill()
        ingesting.communicate()
    for name, writer in writers.items():
        writer.kill()
        told[name] += writer.communicate()[0]
    last = Ingester(tmp_path, PRICES)
    last.run_once()
    assert last.bad_lines <= len(writers)
    last.close()
    found = ends(tmp_path)
    for name, text in told.items():
        done = [int(line[5:]) for line in text.split(b"\n")[:-1] if line.startswith(b"done")]
        begun = [int(line[6:]) for line in text.split(b"\n")[:-1] if line.startswith(b"begun")]
        assert all(found[f"{name}-{number}"] == "ok" for number in done)
        assert all(f"{name}-{number}" in found for number in begun)
        assert sum(id_.startswith(name) for id_ in found) <= len(begun) + 1
    assert len(found) == query(tmp_path, "SELECT COUNT(*) FROM attempts")[0][0]
    wrong = "SELECT COUNT(*) FROM requests WHERE end = 'ok' AND input_tokens <> CAST(substr(id, 4) AS INT)"
    assert query(tmp_path, wrong) == [(0,)]
    assert consistent(tmp_path)
    assert list((tmp_path / "journal").glob("*.jsonl")) == []


def test_a_newer_ledger_is_left_alone(tmp_path, journal, ingester):
    with closing(sqlite3.connect(tmp_path / ledger_db.FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(BadRequest, match="upgrade"):
        ingester.run_once()
    stop = threading.Event()
    stop.set()
    ingester.run(stop)  # says so in the log; rows stay in the journal
    with pytest.raises(BadRequest, match="upgrade"):
        ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME)


class TestReader:
    @pytest.fixture
    def reader(self, tmp_path, journal, ingester):
        lever = DecisionRecord("exact_cache", "1", "REUSE_EXACT", "answer", "hit")
        retried = AttemptRecord(0, "serve", "e", "m", "p", "error", 0.0, 0.1, status=429)
        again = AttemptRecord(
            1, "retry", "f", "m", "p", "ok", 0.2, 0.5, usage=Usage(input=50), usage_source="estimated"
        )
        journal.row(paid("r1", 100, scope=Scope("a", session="s1"), at=86400.0 * 10))
        journal.row(
            paid(
                "r2", 100, scope=Scope("b", session="s1"), at=86400.0 * 11, attempts=(), cache="hit", decisions=(lever,)
            )
        )
        journal.row(paid("r3", 50, scope=Scope("b"), at=86400.0 * 11 + 5, attempts=(retried, again)))
        journal.row(row("r4", scope=Scope("c"), at=86400.0 * 12, end="refused", status=400, baseline_usage=NO_USAGE))
        unknown = AttemptRecord(
            0, "serve", "e", "none-such", "p", "ok", 0.0, 0.1, usage=Usage(input=5), usage_source="reported"
        )
        journal.row(paid("r50", scope=Scope("c"), at=86400.0 * 12, attempts=(unknown,), baseline_model="none-such"))
        ingester.run_once()
        with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
            yield reader

    def test_tail(self, reader):
        rows = reader.tail(2)
        assert [r["id"] for r in rows] == ["r4", "r50"]
        assert reader.tail(10, after=rows[-1]["seq"]) == []
        assert [r["id"] for r in reader.tail(2, after=1)] == ["r2", "r3"]

    def test_show_takes_a_unique_beginning(self, reader):
        assert reader.show("r5")["id"] == "r50"
        assert reader.show("r2")["detail"]["decisions"][0]["step"] == "answer"
        assert reader.show("r") is None
        assert reader.show("") is None
        assert reader.show("zzz") is None

    def test_summary_by_request(self, reader):
        rows = {r["tenant"]: r for r in reader.summary(["tenant"])}
        assert {t: (r["requests"], r["attempts"], r["failed"], r["cache_hits"]) for t, r in rows.items()} == {
            "a": (1, 1, 0, 0),
            "b": (2, 2, 0, 1),
            "c": (2, 1, 1, 0),
        }
        assert (rows["b"]["cost_nusd"], rows["b"]["baseline_nusd"], rows["b"]["saved_nusd"]) == (
            50_000,
            150_000,
            100_000,
        )
        assert (rows["b"]["estimated"], rows["b"]["unpriced"], rows["c"]["unpriced"]) == (1, 0, 1)
        (total,) = reader.summary()
        assert (total["requests"], total["input_tokens"], total["cost_nusd"]) == (5, 155, 150_000)

    def test_summary_by_attempt(self, reader):
        rows = {r["purpose"]: r for r in reader.summary(["purpose"])}
        assert (rows["retry"]["attempts"], rows["retry"]["cost_nusd"], rows["retry"]["saved_nusd"]) == (1, 50_000, None)
        assert (rows["serve"]["requests"], rows["serve"]["failed"]) == (3, 1)

    def test_filters(self, reader):
        assert [r["day"] for r in reader.summary(["day"], since=86400.0 * 11, until=86400.0 * 12)] == ["1970-01-12"]
        assert reader.summary(where={"session": "s1"})[0]["requests"] == 2
        assert reader.summary(["model"], where={"tenant": "nobody"}) == []
        with pytest.raises(BadRequest, match="choose from"):
            reader.summary(["detail; DROP TABLE requests"])
        with pytest.raises(BadRequest, match="choose from"):
            reader.summary(where={"1=1 --": "x"})

    def test_every_group_works(self, reader):
        for name in (*ledger_reader.REQUEST_GROUPS, *ledger_reader.ATTEMPT_GROUPS):
            rows = reader.summary([name, "tenant"])
            assert sum(r["cost_nusd"] or 0 for r in rows) == 150_000

    def test_export(self, reader):
        assert [r["id"] for r in reader.export()] == ["r1", "r2", "r3", "r4", "r50"]
        assert [(r["request_id"], r["n"]) for r in reader.export(attempts=True)] == [
            ("r1", 0), ("r3", 0), ("r3", 1), ("r50", 0),
        ]  # fmt: skip

    def test_it_never_writes(self, reader):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._connection.execute("DELETE FROM requests")

    def test_no_ledger_yet(self, tmp_path):
        with ledger_reader.Reader(tmp_path / "nowhere" / "ledger.sqlite") as reader:
            assert (reader.tail(5), reader.show("a"), reader.summary(), list(reader.export())) == ([], None, [], [])

    def test_a_writer_killed_while_it_created_the_ledger(self, tmp_path):
        made, left = tmp_path / "made.sqlite", tmp_path / ledger_db.FILE_NAME
        with closing(sqlite3.connect(made, isolation_level=None)) as connection:
            connection.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
            connection.execute("CREATE TABLE t (x)")
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
            for suffix in ("", "-journal"):
                shutil.copy(f"{made}{suffix}", f"{left}{suffix}")
        with ledger_reader.Reader(left) as reader:
            assert reader.tail(5) == []
