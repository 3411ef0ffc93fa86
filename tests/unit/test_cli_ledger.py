"""The ledger's commands, on real files: what is printed, and what an operator may pipe."""

from __future__ import annotations

import csv
import io
import json
import time

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_ingest import paid
from test_journal import intent, row

from trimtab.cli import ledger_view
from trimtab.cli.ledger import ledger
from trimtab.stores.journal import FileJournal
from trimtab.types import AttemptRecord, DecisionRecord, Scope, Stages, Usage

CONFIG = """
[engines.e]
kind = "openai_http"
base_url = "http://127.0.0.1:9/v1"

[models.small]
engine = "e"
name = "m"
price = { input_per_mtok = 1.0, output_per_mtok = 2.0 }

[prices."p/m"]
input_per_mtok = 1.0
output_per_mtok = 2.0
"""


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    config = tmp_path / "trimtab.toml"
    config.write_text(CONFIG)
    folder = tmp_path / "data"
    monkeypatch.setenv("TRIMTAB_CONFIG", str(config))
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(folder))
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.fixture
def filled(data_dir):
    journal = FileJournal(data_dir / "journal", "w0")
    now = time.time()
    scope = Scope("acme", route="support", session="s1", workflow="refund", prompt_version="v2")
    lever = DecisionRecord("exact_cache", "1", "REUSE_EXACT", "continue", "not stored", score=0.5, threshold=0.9)
    failed = AttemptRecord(0, "serve", "e", "m", "p", "error", 0.0, 0.2, status=429, error="slow down")
    again = AttemptRecord(
        1, "retry", "e", "m", "p", "ok", 0.5, 1.0, first_token_s=0.7, status=200, response_model="m-2026",
        usage=Usage(input=1000, cache_read=200, output=30, reasoning=5), usage_source="reported",
    )  # fmt: skip
    journal.row(
        paid(
            "tt-aa01", scope=scope, at=now - 60, model="small", attempts=(failed, again), decisions=(lever,),
            cache="miss", ttft_s=0.7, total_s=1.0,
            stages={"parse": 0.00002, "earlier_attempts": 0.5, "model_ttft": 0.2},
        )
    )  # fmt: skip
    journal.row(paid("tt-aa02", 1000, scope=scope, at=now - 50, model="small", attempts=(), cache="hit"))
    strange = AttemptRecord(0, "serve", "e", "odd", "p", "ok", 0, 1, usage=Usage(input=9), usage_source="reported")
    journal.row(paid("tt-bb03", scope=Scope("b"), at=now - 7200, model="od\x1b[31md", attempts=(strange,)))
    journal.row(row("tt-bb04", at=now, end="refused", status=404, model="[red]x[/]", error="no such model"))
    journal.intent(intent("tt-cc05"))
    journal.close()
    return data_dir


def run(*args, code=0):
    result = CliRunner().invoke(ledger, args)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def rows_of(output):
    return [json.loads(line) for line in output.splitlines()]


def test_an_empty_ledger_says_what_to_do(data_dir):
    for command in ("tail", "summary"):
        assert "trimtab serve" in run(command)
        assert run(command, "--json") == ""
    assert "no single request" in run("show", "x", code=1)
    assert run("export") == ""
    assert "nothing to export" in run("export", "--format", "parquet", "-o", str(data_dir.parent / "x"), code=1)


def test_tail(filled):
    lines = run("tail").splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "tt-aa01" in text
    assert "$0.001270" in text  # (1000 + 200) x 1 + (30 + 5) x 2 dollars per million
    assert "cached" in text
    assert "unpriced" in text
    assert "interrupted" in text
    assert "~5" in text
    assert "\x1b" not in text
    assert "[red]x[/]" in text
    assert [r["id"] for r in rows_of(run("tail", "-n", "2", "--json"))] == ["tt-bb04", "tt-cc05"]


def test_tail_follows_until_interrupted(filled, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt
        journal = FileJournal(filled / "journal", "w1")
        journal.row(paid(f"tt-new{len(naps)}"))
        journal.close()

    monkeypatch.setattr(time, "sleep", nap)
    assert [r["id"] for r in rows_of(run("tail", "-f", "-n", "1", "--json"))] == ["tt-cc05", "tt-new1", "tt-new2"]


def test_summary(filled):
    text = run("summary", "--by", "tenant,workflow")
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].split() == [
        "tenant", "workflow", "requests", "failed", "hits", "input", "cached", "output", "cost", "baseline", "saved",
    ]  # fmt: skip
    acme = next(line for line in text.splitlines() if line.startswith("acme")).split()
    assert acme[2:] == ["2", "0", "1", "1,200", "200", "35", "$0.001270", "$0.001007", "-$0.000263"]
    assert "total" in text
    assert "≥" in text
    assert "unpriced" in text
    by_attempt = rows_of(run("summary", "--by", "purpose", "--json", "--tenant", "acme"))
    assert {r["purpose"]: r["cost_nusd"] for r in by_attempt} == {"serve": 0, "retry": 1_270_000}


def test_summary_filters(filled):
    assert (
        rows_of(run("summary", "--since", "10m", "--json", "--by", "tenant", "--workflow", "refund"))[0]["requests"]
        == 2
    )
    assert rows_of(run("summary", "--session", "s1", "--json"))[0]["cost_nusd"] == 1_270_000
    assert rows_of(run("summary", "--until", "1h", "--json", "--by", "tenant", "--since", "1d"))[0]["tenant"] == "b"
    assert "No request matches" in run("summary", "--tenant", "nobody")
    assert "choose from" in run("summary", "--by", "colour", code=2)
    assert "24h" in run("summary", "--since", "yesterday", code=2)
    assert rows_of(run("summary", "--json", "--since", "2020-01-01", "--until", "2020-01-02T10:00+02:00")) == []


def test_show(filled):
    assert "no single request" in run("show", "tt-aa", code=1)
    text = run("show", "tt-aa01")
    for part in (
        "tt-aa01 ok (status 200)", "acme", "refund", "v2", "$0.001270000", "by override", "cache read", "reasoning",
        "parse", "earlier attempts", "█", "exact_cache 1", "not stored", "0.500 / 0.900", "error 429", "m as m-2026",
        "slow down", "without the levers",
    ):  # fmt: skip
        assert part in text, part
    shown = rows_of(run("show", "tt-aa01", "--json"))[0]
    assert (shown["cost_nusd"], len(shown["attempts"])) == (1_270_000, 2)


def test_show_names_the_longest_stage_and_whose_it_is(data_dir):
    journal = FileJournal(data_dir / "journal", "w0")
    stages = {"parse": 0.001, "model_ttft": 0.3, "model_stream": 0.2}
    journal.row(paid("tt-st1", total_s=0.501, stages=stages, app_stages={"retrieval": 1.2, "rerank": 0.1}))
    journal.row(paid("tt-st2", total_s=0.501, stages=stages))
    journal.close()
    text = run("show", "tt-st1")
    assert "before it 1.30 s in the application" in text
    assert text.index("retrieval") < text.index("parse")
    assert "Most of it: retrieval, the application's, 67% of 1.80 s" in text
    assert "Most of it: model ttft, the model's, 60% of 501 ms" in run("show", "tt-st2")


def test_show_joins_the_trace_and_what_came_after_the_answer(data_dir):
    journal = FileJournal(data_dir / "journal", "w0")
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    journal.row(paid("tt-tr1", total_s=0.5, stages={"model_ttft": 0.1, "model_stream": 0.35}, trace=trace))
    journal.note(Stages("tt-tr1", "t", 9.0, {"tool_call": 2.5}))
    text = run("show", "ab" * 16)
    assert "after it 2.50 s in the application" in text
    assert text.index("model stream") < text.index("tool call") < text.index("not in a stage")
    assert "50.0 ms" in text
    assert "Most of it: tool call, the application's, 83% of 3.00 s" in text
    assert "ab" * 16 in text
    journal.row(paid("tt-tr2", trace=trace))
    journal.close()
    assert "tt-tr1, tt-tr2" in run("show", "ab" * 16, code=1)
    assert "no single request" in run("show", "0b" * 16, code=1)


def test_show_explains_what_is_unpriced_estimated_or_free(filled):
    assert "does not know" in " ".join(run("show", "tt-bb03").split())
    assert "estimated" in run("show", "tt-cc05")
    assert "nothing was sent upstream" in run("show", "tt-aa02")
    assert "no such model" in run("show", "tt-bb04")


def test_show_of_a_call_in_flight(data_dir):
    journal = FileJournal(data_dir / "journal", "w0")
    journal.intent(intent("tt-fly"))
    assert "still in flight" in run("show", "tt-fly", code=1)
    journal.close()


def test_export(filled, tmp_path):
    rows = list(csv.DictReader(io.StringIO(run("export"))))
    assert [r["id"] for r in rows] == ["tt-aa01", "tt-aa02", "tt-bb03", "tt-bb04", "tt-cc05"]
    assert rows[0]["cost_nusd"] == "1270000"
    assert rows[2]["cost_nusd"] == ""
    assert [r["n"] for r in rows_of(run("export", "--attempts", "--format", "jsonl"))] == [0, 1, 0, 0]
    assert len(rows_of(run("export", "--json", "--since", "30m"))) == 3
    for attempts in ([], ["--attempts"]):
        target = tmp_path / "rows.parquet"
        run("export", "--format", "parquet", "--output", str(target), *attempts)
        table = pq.read_table(target)
        assert table.num_rows == (4 if attempts else 5)
        assert str(table.schema.field("cost_nusd").type) == "int64"
        assert str(table.schema.field("at").type) == "double"
        assert sum(value or 0 for value in table["cost_nusd"].to_pylist()) == 1_275_000
    assert "name a file" in run("export", "--format", "parquet", code=2)


def test_a_broken_configuration_still_shows_what_is_there(filled, monkeypatch):
    run("tail")
    journal = FileJournal(filled / "journal", "w1")
    journal.row(paid("tt-later"))
    journal.close()
    bad = filled.parent / "bad.toml"
    bad.write_text("[server]\nport = 'x'\n")
    result = CliRunner().invoke(ledger, ["tail", "--config", str(bad)])
    assert result.exit_code == 0
    assert "tt-aa01" in result.stdout
    assert "tt-later" not in result.stdout
    assert "not shown" in result.stderr
    monkeypatch.delenv("TRIMTAB_DATA_DIR")
    assert "--data-dir" in run("tail", "--config", str(bad), code=1)
    assert "tt-later" in run("tail", "--data-dir", str(filled))


def test_the_configured_folder_is_used(filled, monkeypatch):
    monkeypatch.delenv("TRIMTAB_DATA_DIR")
    config = filled.parent / "placed.toml"
    config.write_text(f"[server]\ndata_dir = '{filled}'\n{CONFIG}")
    assert "tt-aa01" in run("tail", "--config", str(config))


@pytest.mark.parametrize(
    ("nusd", "text"),
    [
        (None, "unpriced"), (0, "$0"), (1, "$0.000000001"), (213_000, "$0.000213"), (-308_000, "-$0.000308"),
        (1_234_567_890, "$1.2346"), (123_456_000_000_000, "$123,456.00"), (999, "$0.000000999"), (1000, "$0.000001"),
    ],
)  # fmt: skip
def test_money(nusd, text):
    assert ledger_view.usd(nusd) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0 us"), (0.00087, "870 us"), (0.0123, "12.3 ms"), (0.321, "321 ms"), (1.234, "1.23 s"),
        (95.5, "95.5 s"),
    ],
)  # fmt: skip
def test_durations(value, text):
    assert ledger_view.seconds(value) == text
