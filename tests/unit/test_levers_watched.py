"""Verdicts on levers: counted exactly once, and what follows from them survives whatever is killed."""

from __future__ import annotations

import hashlib
import json
import random

import msgspec
import pytest
from click.testing import CliRunner
from test_config import OPENAI
from test_eval_runs import run_of
from test_ingest import PRICES, WITHOUT_VERSION_7, query

from trimtab.cli import main
from trimtab.evals import verdicts
from trimtab.quality.marks import MONITOR, Mark
from trimtab.quality.monitor import Monitor, MonitorTerms
from trimtab.quality.verdict import GateTerms
from trimtab.stores import _monitors, ledger_db, ledger_reader, switches
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.telemetry.webhook import payload
from trimtab.types import Judged, Switched


def judged(number, loss, *, at=None, **changes):
    fields = {"route": "default", "lever": "ab", "model": "fast", "margin": 0.05, "judge": "texts"} | changes
    return Judged(f"tt-{number:020x}", "acme", loss=loss, at=float(number if at is None else at), **fields)


def stream(seed, wrong, pairs):
    draw = random.Random(seed)
    return [float(draw.random() < wrong) for _ in range(pairs)]


@pytest.fixture
def journal(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w0")
    yield journal
    journal.close()


def ingest(tmp_path, **more):
    ingester = Ingester(tmp_path, PRICES, **more)
    ingester.run_once()
    return ingester


def levers(tmp_path):
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        return {(row["route"], row["lever"]): row for row in reader.levers()}


def off(tmp_path):
    return switches.Switches(switches.path_in(tmp_path))


def test_a_lever_that_turns_bad_is_switched_off_once_and_stays_off(tmp_path, journal, caplog):
    told = []
    ingester = ingest(tmp_path, on_alarm=told.append)
    for number, loss in enumerate(stream(1, 0.0, 50) + stream(2, 0.3, 200)):
        journal.note(judged(number, loss))
        if number % 40 == 0:
            ingester.run_once()
    ingester.run_once()
    ingester.tell_marks()
    ingester.tell_marks()
    row = levers(tmp_path)["default", "ab"]
    assert (row["on"], row["by"], row["model"], row["margin"]) == (False, MONITOR, "fast", 0.05)
    assert 50 < row["pairs"] < 250
    assert row["lower"] < row["loss"] < row["upper"]
    assert "worse than the margin of 0.05" in row["why"]
    assert off(tmp_path).why("ab", "default").startswith("switched off: quality (since ")
    assert off(tmp_path).why("ab", "other") == off(tmp_path).why("semantic_cache", "default") == ""
    (mark,) = told
    assert (mark.on, mark.pairs) == (False, row["pairs"])
    assert payload(mark)["state"] == "off" and payload(mark)["interval"] == [row["lower"], row["upper"]]
    assert caplog.text.count("switched itself off") == 1
    assert query(tmp_path, "SELECT COUNT(*) FROM verdicts") == [(250,)]
    ingester.close()


def test_routes_and_levers_are_watched_apart(tmp_path, journal):
    for number, loss in enumerate(stream(3, 0.4, 150)):
        journal.note(judged(number, loss))
        journal.note(judged(number, loss, lever="semantic_cache"))
        journal.note(judged(number + 1000, 0.0, route="faq"))
    ingest(tmp_path).close()
    found = levers(tmp_path)
    assert {key: row["on"] for key, row in found.items()} == {
        ("default", "ab"): False,
        ("default", "semantic_cache"): False,
        ("faq", "ab"): True,
    }
    assert found["faq", "ab"]["pairs"] == 150


def test_a_verdict_counts_once_whatever_is_killed(tmp_path, journal, monkeypatch):
    """The state after any number of failures in mid-transaction is that of one monitor that saw all of them once."""
    losses = stream(5, 0.03, 300)
    draw = random.Random(7)
    saves = 0

    def fails_now_and_then(self):
        nonlocal saves
        saves += 1
        if draw.random() < 0.4:
            raise OSError("killed")
        return save(self)

    save = Monitor.save
    ingester = Ingester(tmp_path, PRICES)
    for number, loss in enumerate(losses):
        journal.note(judged(number, loss))
        journal.note(judged(number, 1.0))  # of one request and lever the first counts
        if number % 10 == 9:
            with monkeypatch.context() as patched:
                patched.setattr(Monitor, "save", fails_now_and_then)
                try:
                    ingester.run_once()
                except OSError:
                    ingester.close()
                    ingester = Ingester(tmp_path, PRICES)
    ingester.run_once()
    ingester.close()
    alone = Monitor(MonitorTerms(margin=0.05))
    for loss in losses:
        alone.add(loss)
    (state,) = query(tmp_path, "SELECT state FROM lever_monitors")
    assert saves > 20
    assert msgspec.json.decode(state[0]) == msgspec.json.decode(alone.save())


def test_nobody_could_tell_is_no_evidence(tmp_path, journal):
    for number in range(400):
        journal.note(judged(number, None, judge=""))
    journal.note(judged(500, 0.0))
    journal.note(judged(501, 7.0))  # no loss at all
    ingest(tmp_path).close()
    row = levers(tmp_path)["default", "ab"]
    assert (row["on"], row["pairs"], row["unknown"]) == (True, 1, 401)


@pytest.mark.parametrize("change", [{"model": "faster"}, {"margin": 0.1}])
def test_another_setting_is_watched_anew(tmp_path, journal, change):
    for number in range(100):
        journal.note(judged(number, 0.0))
    journal.note(judged(100, 0.0, **change))
    journal.note(judged(101, 0.0, at=50, **change))  # of a request before
    ingest(tmp_path).close()
    row = levers(tmp_path)["default", "ab"]
    assert (row["pairs"], row["since"]) == (1, 100.0)


def test_a_person_switches_it_on_and_it_starts_anew(tmp_path, journal):
    for number in range(60):
        journal.note(judged(number, 1.0))
    ingester = ingest(tmp_path)
    assert off(tmp_path).why("ab", "default")
    watching = off(tmp_path)
    journal.note(judged(70, 1.0))  # still on its way
    journal.note(Switched("default", "ab", True, "ann", "new prompt", 100.0))
    journal.note(judged(80, 1.0))  # served before it was switched on
    journal.note(judged(110, 0.0))
    ingester.run_once()
    ingester.close()
    row = levers(tmp_path)["default", "ab"]
    assert (row["on"], row["by"], row["pairs"], row["loss"]) == (True, "ann", 1, 0.0)
    watching.look()
    assert watching.why("ab", "default") == ""
    assert query(tmp_path, "SELECT is_on, by, reason FROM lever_marks ORDER BY id")[1] == (1, "ann", "new prompt")


def test_a_person_switches_it_off_without_evidence(tmp_path, journal):
    journal.note(Switched("default", "ab", False, "ann", "a hunch", 0.0))
    journal.note(judged(5, 0.0))
    ingest(tmp_path).close()
    assert off(tmp_path).why("ab", "default") == "switched off by ann (since 1970-01-01 00:00 UTC: a hunch)"
    row = levers(tmp_path)["default", "ab"]
    assert (row["on"], row["pairs"], row["why"]) == (False, 0, "a hunch")


def test_what_was_switched_off_is_so_after_a_restart_without_the_file(tmp_path, journal):
    for number in range(60):
        journal.note(judged(number, 1.0))
    ingest(tmp_path).close()
    switches.path_in(tmp_path).unlink()
    told = []
    ingester = ingest(tmp_path, on_alarm=told.append)  # the one before was killed before it told
    ingester.tell_marks()
    ingester.close()
    assert off(tmp_path).why("ab", "default")
    assert len(told) == 1
    ingester = ingest(tmp_path, on_alarm=told.append)
    ingester.tell_marks()
    ingester.close()
    assert len(told) == 1


def test_a_damaged_switch_file_changes_nothing(tmp_path, caplog):
    path = switches.path_in(tmp_path)
    mark = Mark("default", "ab", False, 0.0, "ann", "")
    switches.write(path, [mark, msgspec.structs.replace(mark, route="faq", on=True)])
    watching = switches.Switches(path)
    for damage in (b"", b"[{", b'{"a": 1}'):
        path.write_bytes(damage)
        watching.look()
        assert watching.why("ab", "default") and not watching.why("ab", "faq")
    path.unlink()
    watching.look()
    assert watching.why("ab", "default")
    switches.write(path, [])
    watching.look()
    assert not watching.why("ab", "default")
    assert "all stay as they are" in caplog.text


def test_a_ledger_of_an_earlier_version_gets_the_tables(tmp_path):
    ledger_db.open_writer(tmp_path / ledger_db.FILE_NAME).close()
    for statement in ("verdicts", "lever_monitors", "lever_marks", "feedback"):
        execute(tmp_path, f"DROP TABLE {statement}")
    for statement in WITHOUT_VERSION_7.rstrip(";").split(";"):
        execute(tmp_path, statement)
    execute(tmp_path, "PRAGMA user_version = 4")
    assert levers(tmp_path) == {}
    connection = ledger_db.open_writer(tmp_path / ledger_db.FILE_NAME)
    assert _monitors.last_marks(connection) == {}
    connection.close()


def execute(data_dir, sql):
    import sqlite3

    connection = sqlite3.connect(data_dir / ledger_db.FILE_NAME, isolation_level=None)
    connection.execute(sql)
    connection.close()


def trimtab(tmp_path, *arguments):
    done = CliRunner().invoke(main, [*arguments, "--data-dir", str(tmp_path)])
    return done.exit_code, done.output


def test_the_commands(tmp_path, journal, monkeypatch):
    monkeypatch.delenv("TRIMTAB_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        journal.note(judged(number, 1.0))
    code, said = trimtab(tmp_path, "levers", "status")
    assert code == 0 and "OFF" in said and "worse than the margin" in said
    code, said = trimtab(tmp_path, "levers", "on", "ab", "--route", "default", "--reason", "mended")
    assert code == 0 and "ab is on for route default" in said, said
    code, said = trimtab(tmp_path, "levers", "status", "--json")
    (row,) = [json.loads(line) for line in said.splitlines()]
    assert (row["on"], row["pairs"], row["lever"]) == (True, 0, "ab")
    ((by,),) = query(tmp_path, "SELECT by FROM lever_marks WHERE is_on")
    assert by
    code, said = trimtab(tmp_path, "levers", "off", "ab", "--route", "default")
    assert code == 0 and off(tmp_path).why("ab", "default")
    code, said = trimtab(tmp_path, "levers", "off", "exact_cache", "--route", "default")
    assert code == 2 and "ab" in said and "semantic_cache" in said
    code, said = trimtab(tmp_path, "levers", "off", "ab", "--route", "no such route")
    assert code == 2 and "--route" in said


def test_a_fresh_pass_switches_it_on(tmp_path, journal, monkeypatch):
    monkeypatch.delenv("TRIMTAB_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    split = f'{OPENAI}\n[models.small]\nengine = "openai"\n[levers.ab]\nmodel = "small"\n'
    (tmp_path / "trimtab.toml").write_text(split)
    for number in range(60):
        journal.note(judged(number, 1.0))
    ingest(tmp_path).close()
    since = levers(tmp_path)["default", "ab"]["since"]
    on = ("levers", "on", "ab", "--route", "default", "--verdict", "verdict.json")
    passing = [1.0] * 60 + [0.0] * 60
    for at, scores, why in ((since - 1, passing, "before the lever"), (since + 1, [0.0] * 120, "says fail")):
        verdict_file(tmp_path / "verdict.json", split, scores, at)
        code, said = trimtab(tmp_path, *on)
        assert code == 1 and why in said, said
        assert off(tmp_path).why("ab", "default")
    verdict_file(tmp_path / "verdict.json", split, passing, since + 1)
    code, said = trimtab(tmp_path, *on, "--reason", "mended")
    assert code == 0, said
    ((reason,),) = query(tmp_path, "SELECT reason FROM lever_marks WHERE is_on")
    sha256 = hashlib.sha256((tmp_path / "verdict.json").read_bytes()).hexdigest()
    assert reason.startswith(f"mended; verdict.json (sha256 {sha256[:16]}) passed with m: within the margin of 0.05")
    assert not off(tmp_path).why("ab", "default")
    code, said = trimtab(tmp_path, *on)
    assert code == 1 and "is on for route default" in said


def verdict_file(path, settings, scores, at):
    reference = run_of([1.0] * 60 + [0.0] * 60, settings=OPENAI)
    candidate = run_of(scores, "small", settings=settings, route="default", at=at)
    path.write_bytes(verdicts.as_json(verdicts.of_runs(reference, candidate, GateTerms(), at + 60)))


def test_the_status_says_what_needs_no_verdict(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    split = f'{OPENAI}\n[models.small]\nengine = "openai"\n[levers.ab]\nmodel = "small"\n'
    for more, gate in (("", "required"), ('gate = "advisory"\n', "advisory")):
        (tmp_path / "trimtab.toml").write_text(split + more)
        code, said = trimtab(tmp_path, "levers", "status", "--json")
        assert (code, json.loads(said)["gate"]) == (0, gate)
        assert ("it needs no verdict" in trimtab(tmp_path, "levers", "status")[1]) == (gate == "advisory")
