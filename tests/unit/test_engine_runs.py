"""Who runs an engine: claims that end with their process, the record beside them, and the log."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trimtab.cli.engine_run import follow
from trimtab.errors import StoreError
from trimtab.stores import engine_runs
from trimtab.stores.engine_runs import Run

RUN = Run("big", "vllm", "start", 17, 8000, 1.0)
HOLDER = """
import sys, pathlib, time
from trimtab.stores import engine_runs
kept = engine_runs.claim(pathlib.Path(sys.argv[1]), "big")
print("claimed", flush=True)
time.sleep(600)
"""


def test_an_engine_has_one_owner_at_a_time(tmp_path):
    assert not engine_runs.is_claimed(tmp_path, "big")
    mine = engine_runs.claim(tmp_path, "big")
    assert mine is not None
    assert engine_runs.claim(tmp_path, "big") is None
    other = engine_runs.claim(tmp_path, "small")
    assert other is not None
    mine.say(RUN)
    assert engine_runs.running(tmp_path) == [RUN]
    mine.close()
    assert engine_runs.running(tmp_path) == []
    assert engine_runs.last(tmp_path, "big") == RUN  # its port is taken again
    again = engine_runs.claim(tmp_path, "big")
    assert again is not None
    again.close()
    other.close()


def test_a_claim_ends_with_its_process_whatever_ends_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"claimed\n"
    assert engine_runs.is_claimed(tmp_path, "big")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not engine_runs.is_claimed(tmp_path, "big")


def test_a_damaged_record_says_what_to_do(tmp_path):
    assert engine_runs.last(tmp_path, "big") is None
    path = engine_runs.log_path(tmp_path, "big").with_name("run.json")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(StoreError, match="next start writes it anew"):
        engine_runs.last(tmp_path, "big")


def test_a_log_that_has_grown_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_runs, "_KEPT_LOG_BYTES", 4)
    log = engine_runs.fresh_log(tmp_path, "big")
    log.write_text("four")
    assert engine_runs.fresh_log(tmp_path, "big").read_text() == "four"
    log.write_text("fives")
    assert not engine_runs.fresh_log(tmp_path, "big").exists()
    assert log.with_suffix(".log.1").read_text() == "fives"


def test_following_goes_on_with_the_file_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    log = tmp_path / "engine.log"
    log.write_text("old\nnew\n")
    looks = iter([False, False, True])
    pieces = follow(log, 4, lambda: next(looks))
    assert next(pieces) == b"new\n"
    log.rename(tmp_path / "engine.log.1")
    log.write_text("anew, and longer than before\n")
    assert b"".join(pieces) == b"anew, and longer than before\n"
