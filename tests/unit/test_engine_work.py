"""What an engine says of its own work: read from its replies, kept with each call, and shown."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_admission_dispatch import Queued
from test_cli_ledger import CONFIG
from test_ingest import PRICES, WITHOUT_VERSION_7, paid, query
from test_latency import fill
from test_pipeline import ANSWER, CHUNK, DONE, LAST, A, Engine, Reply, World, buffered, stream
from test_protocols_replies import OAI, chunk, event, reply

from trimtab.cli.ledger import ledger
from trimtab.errors import UpstreamUnreachable
from trimtab.flight import Flight, Message
from trimtab.ledger import settle
from trimtab.protocols import StreamTranslator
from trimtab.protocols.timings import ABSENT, read_timings
from trimtab.stores import ledger_db, ledger_reader
from trimtab.stores.journal import FileJournal
from trimtab.types import NO_WORK, Attempt, AttemptRecord, Dialect, EngineWork, Request, Scope, Usage

SAID = {
    "cache_n": 90, "prompt_n": 14, "prompt_ms": 120.5, "prompt_per_token_ms": 8.6, "prompt_per_second": 116.2,
    "predicted_n": 40, "predicted_ms": 800.0, "predicted_per_token_ms": 20.0, "predicted_per_second": 50.0,
    "draft_n": 64, "draft_n_accepted": 30,
}  # fmt: skip
WORK = EngineWork(0.1205, 0.8, 64, 30)
USAGE = {"prompt_tokens": 104, "completion_tokens": 40, "total_tokens": 144}


def read(said):
    return read_timings(msgspec.Raw(msgspec.json.encode(said)))


@pytest.mark.parametrize(
    ("said", "work"),
    [
        (SAID, WORK),
        ({"prompt_ms": 2, "predicted_ms": 0}, EngineWork(0.002, 0.0)),  # nothing was drafted
        ({"prompt_ms": -1.0, "predicted_ms": 5.0}, EngineWork(None, 0.005)),
        ({"prompt_ms": 5.0, "draft_n": 3, "draft_n_accepted": 4}, EngineWork(0.005)),
        ({"prompt_ms": 5.0, "draft_n": 3}, EngineWork(0.005)),
        ({"prompt_ms": "fast"}, NO_WORK),
        ({}, NO_WORK),
        ([1], NO_WORK),
        (None, NO_WORK),
    ],
)
def test_what_is_believed(said, work):
    assert read(said) == work


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(SAID)), inner),
)  # fmt: skip


@given(JSON)
def test_nothing_that_an_engine_says_breaks_a_reply(said):
    work = read(said)
    assert work.prefill_s is None or 0 <= work.prefill_s < 1e10
    assert (work.drafted_tokens is None) == (work.accepted_tokens is None)
    assert work.drafted_tokens is None or 0 <= work.accepted_tokens <= work.drafted_tokens < 2**63
    assert OAI.read_reply(reply("stop", timings=said)).ok


def test_a_reply_without_timings_says_nothing_and_one_with_them_all():
    assert read_timings(ABSENT) is NO_WORK
    assert OAI.read_reply(reply("stop", usage=USAGE)).work is NO_WORK
    assert OAI.read_reply(reply("stop", usage=USAGE, timings=SAID)).work == WORK


@pytest.mark.parametrize("translated", [False, True])
@pytest.mark.parametrize("strip", [False, True])
def test_a_stream_says_it_in_its_last_event(translated, strip):
    scanner = (
        StreamTranslator(Dialect.OPENAI, Dialect.ANTHROPIC, include_usage=True)
        if translated
        else OAI.scanner(strip_usage=strip)
    )
    scanner.feed(chunk({"role": "assistant", "content": "a"}) + chunk({"content": "b"}, timings={"prompt_ms": 9.0}))
    assert scanner.work is NO_WORK  # an event of the common kind is not decoded for it
    scanner.feed(chunk({}, "stop") + event({"model": "m", "choices": [], "usage": USAGE, "timings": SAID}))
    scanner.feed(b"data: [DONE]\n\n")
    assert (scanner.work, scanner.ended) == (WORK, True)


# -- on the straight line


async def test_each_call_has_its_own_figures_and_its_wait():
    last = event({"model": "m", "choices": [], "usage": USAGE, "timings": SAID})
    world = Queued(Engine("one", stream(CHUNK, LAST + last, DONE)))
    other = await world.taken()
    task = asyncio.create_task(world.run(Attempt(A), stream=True))
    await asyncio.sleep(0.01)
    other.leave()
    (call,) = (await task).attempts
    assert (call.work, call.usage) == (WORK, Usage(input=104, output=40))
    assert 0 < call.queue_s <= call.start_s


async def test_an_answer_at_once_says_it_too():
    world = World(Engine("one", Reply([json.dumps(ANSWER | {"timings": SAID}).encode()])))
    assert [call.work for call in (await world.run(Attempt(A))).attempts] == [WORK]


@pytest.mark.parametrize(("more", "work"), [({"timings": SAID}, WORK), ({}, NO_WORK)])
async def test_what_passes_through_says_it_too(more, work):
    world = World(Engine("one", Reply([json.dumps({"model": "m", "usage": USAGE} | more).encode()])))
    request = Request("id1", Dialect.OPENAI, "/v1/completions", Scope("t"), "a", {}, False, False, 4, 100.0, 100.0)
    await world.pipeline.relay(Flight(request), Attempt(A), Message("POST", "/v1/completions", [], b"{}"), world.sink)
    (row,) = world.journal.rows
    assert [(call.work, call.usage.input) for call in row.attempts] == [(work, 104)]


async def test_without_a_queue_and_without_a_word_there_is_nothing():
    world = World(Engine("one", UpstreamUnreachable("reset"), buffered()))
    failed, answered = (await world.run(Attempt(A), Attempt(A))).attempts
    for call in (failed, answered):
        assert (call.work, call.queue_s) == (NO_WORK, None)


# -- in the ledger


def entries(count=3):
    silent = AttemptRecord(0, "serve", "cloud", "m", "p", "ok", 0.0, 1.0, usage=Usage(input=5), usage_source="reported")
    for n in range(count):
        said = AttemptRecord(
            1, "retry", "local", "m", "p", "ok", 1.0, 2.0, usage=Usage(input=5), usage_source="reported", queue_s=0.25,
            work=WORK if n else EngineWork(0.1, 0.2),
        )  # fmt: skip
        record = paid(f"tt-{n}", attempts=(silent, said), scope=Scope("t", priority="batch" if n else ""))
        yield record, settle(record, PRICES)


def test_the_ledger_keeps_sums_and_groups_them(tmp_path):
    database = tmp_path / ledger_db.FILE_NAME
    fill(database, [entry for _, entry in entries()])
    with ledger_reader.Reader(database) as reader:
        rows = {row["engine"]: row for row in reader.summary(["engine"])}
        whole = reader.summary()[0]
        assert {row["priority"]: row["requests"] for row in reader.summary(["priority"])} == {"": 1, "batch": 2}
        assert [row["priority"] for row in reader.export()] == ["", "batch", "batch"]
        kept = [row for row in reader.export(attempts=True) if row["engine"] == "local"]
    local, cloud = rows["local"], rows["cloud"]
    assert local["prefill_s"] == pytest.approx(0.1 + 2 * 0.1205)
    assert local["decode_s"] == pytest.approx(0.2 + 2 * 0.8)
    assert (local["queue_s"], local["drafted_tokens"], local["accepted_tokens"]) == (0.75, 128, 60)
    assert local["acceptance"] == 60 / 128
    for name in (*ledger_reader.WORK_COLUMNS, "acceptance"):
        assert cloud[name] is None and whole[name] is None
    assert [row["drafted_tokens"] for row in kept] == [None, 64, 64]
    assert [row["prefill_s"] for row in kept] == [0.1, 0.1205, 0.1205]


def test_a_ledger_of_version_6_is_read_as_it_is_and_taken_over(tmp_path):
    database = tmp_path / ledger_db.FILE_NAME
    first, second, _ = (entry for _, entry in entries())
    fill(database, [first])
    connection = ledger_db.open_writer(database)
    connection.executescript(f"{WITHOUT_VERSION_7} PRAGMA user_version = 6;")
    connection.close()
    with ledger_reader.Reader(database) as reader:
        (local,) = (row for row in reader.summary(["engine"]) if row["engine"] == "local")
        assert (local["requests"], local["prefill_s"], local["acceptance"]) == (1, None, None)
        assert [row["priority"] for row in reader.summary(["priority"])] == [""]
        assert reader.show("tt-0")["attempts"][1]["engine"] == "local"
    fill(database, [second])
    assert query(tmp_path, "SELECT request_id, queue_s, accepted_tokens FROM attempts WHERE engine = 'local'") == [
        ("tt-0", None, None),
        ("tt-1", 0.25, 30),
    ]


def test_the_commands_show_it(tmp_path, monkeypatch):
    (tmp_path / "trimtab.toml").write_text(CONFIG)
    monkeypatch.setenv("TRIMTAB_CONFIG", str(tmp_path / "trimtab.toml"))
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "160")
    journal = FileJournal(tmp_path / "data" / "journal", "w0")
    for record, _ in entries():
        journal.row(record)
    journal.close()

    def run(*args):
        result = CliRunner().invoke(ledger, args)
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = run("show", "tt-1")
    assert "waited 250 ms for a place" in shown
    assert "the engine took 120 ms to read and 800 ms to write" in shown
    assert "30 of 64 drafted tokens were right" in shown
    assert "batch" in shown
    table = run("summary", "--by", "engine")
    assert all(word in table for word in ("queue", "prefill", "decode", "acceptance", "47%", "750 ms"))
    assert "prefill" not in run("summary", "--by", "tenant")
