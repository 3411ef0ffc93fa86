"""The semantic cache's file on a full disk, damaged, or its process killed: misses, never another's answer."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from full_disk import full_disk
from trimtab.similar.messages import Found, Learn, Look
from trimtab.similar.server import _Hands
from trimtab.similar.service import Service
from trimtab.stores._purges import Purges
from trimtab.types import Asked, Dialect, ReuseTerms, Selector, Stored, Target, Usage

TERMS = ReuseTerms("static", 0.1, 0.0, False, 0.9, 1000, "accurate")
NUMBERS = count()


class Same:
    """All texts are alike: nothing but the context parts them."""

    dim = 8

    def embed(self, texts):
        return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(texts), 1))

    def tokens(self, texts):
        return len(texts)


class Clock:
    now = 1_800_000_000.0

    def wall(self):
        return self.now

    def mono(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    opened = []

    def begin():
        opened.append(Service(tmp_path, Same(), Same(), clock))
        return opened[-1]

    yield begin
    for service in opened:
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed by the test
            service.close()


def answer(clock, text, **more):
    body = (
        b'{"choices": [{"message": {"role": "assistant", "content": "%b"}, "finish_reason": "stop"}]}' % text.encode()
    )
    facts = {"model": "m", "target": Target("m", "e", "m"), "usage": Usage(), "request_id": "r1"} | more
    return Stored(Dialect.OPENAI, body, created=clock.now, expires=clock.now + 1000, **facts)


def look(service, of, text="what is it"):
    """`of` names tenant and context: the tenant's answers say whose they are."""
    return service.look(Look(next(NUMBERS), Asked(of, "faq", of.encode().ljust(32), text), TERMS))


def teach(service, clock, of, said="", **more):
    found = look(service, of)
    service.learn(Learn(found.similar.token, answer(clock, said or f"of {of} only", **more)))


def said(service, of):
    stored = look(service, of).similar.stored
    return None if stored is None else stored.body.split(b'"content": "')[1].split(b'"')[0].decode()


def wal_bytes(folder):
    return (folder / "similar.sqlite-wal").stat().st_size


def test_a_context_that_could_not_be_written_shares_nothing_with_the_next(make, clock, tmp_path):
    service = make()
    teach(service, clock, "first")
    service.save()
    with full_disk(wal_bytes(tmp_path)):
        for of in ("ann", "bob"):
            with pytest.raises(sqlite3.Error):
                look(service, of)
    for of in ("eve", "ann", "bob"):  # all open before any of them knows an answer
        assert look(service, of).similar.stored is None
    for of in ("eve", "ann", "bob"):
        teach(service, clock, of)
    for of in ("first", "eve", "ann", "bob"):
        assert said(service, of) == f"of {of} only"
    service.close()
    again = make()
    assert [said(again, of) for of in ("bob", "ann", "eve")] == ["of bob only", "of ann only", "of eve only"]


def test_what_a_full_disk_did_not_take_is_a_miss_and_the_rest_goes_on(make, clock, tmp_path):
    service = make()
    for of in ("ann", "bob"):
        teach(service, clock, of)
    service.save()
    with full_disk(wal_bytes(tmp_path)):
        teach(service, clock, "ann", "new words")
        with pytest.raises(sqlite3.Error):
            service.save()
        assert said(service, "bob") == "of bob only"
        assert said(service, "ann") in (None, "of ann only")
    teach(service, clock, "bob")
    service.save()
    assert said(service, "bob") == "of bob only"
    assert said(service, "ann") in (None, "of ann only")


@pytest.mark.parametrize("selected", [False, True])
def test_a_purge_on_a_full_disk_is_not_forgotten(make, clock, tmp_path, selected):
    service = make()
    teach(service, clock, "ann")
    service.save()
    clock.now += 1
    purges = Purges(tmp_path, clock.now)
    if selected:
        purges.select(Selector(request="r1"), clock.now)
    else:
        purges.everything(clock.now)
    with full_disk(wal_bytes(tmp_path)):
        with pytest.raises(sqlite3.Error):
            look(service, "ann")
        for _ in range(2):
            with contextlib.suppress(sqlite3.Error):
                assert said(service, "ann") is None
    assert said(service, "ann") is None
    teach(service, clock, "ann", "fresh")
    assert said(service, "ann") == "fresh"


@pytest.mark.parametrize("step", ["remove_before", "remove", "commit"])
def test_a_purge_that_fails_half_way_is_done_again(make, clock, tmp_path, monkeypatch, step):
    service = make()
    teach(service, clock, "ann")
    clock.now += 1
    Purges(tmp_path, clock.now).select(Selector(request="r1"), clock.now)
    with monkeypatch.context() as broken:
        broken.setattr(
            service._rows, step, lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error"))
        )
        with pytest.raises(sqlite3.Error):
            look(service, "ann")
    assert said(service, "ann") is None


def test_a_start_on_a_full_disk_loses_nothing(make, clock, tmp_path):
    service = make()
    teach(service, clock, "ann")
    service.close()
    for _ in range(2):
        with full_disk(), pytest.raises(sqlite3.Error):
            make()
    assert not (tmp_path / "similar.corrupt").exists()
    assert said(make(), "ann") == "of ann only"


@pytest.mark.parametrize("what", ["the answer", "the vectors", "whose it is"])
def test_a_damaged_answer_is_a_miss_and_counted(make, clock, tmp_path, caplog, what):
    service = make()
    for of in ("ann", "bob"):
        teach(service, clock, of)
    service.close()
    file = tmp_path / "similar.sqlite"
    if what == "whose it is":
        with sqlite3.connect(file) as db:
            (ann,), (bob,) = db.execute("SELECT id FROM contexts WHERE tenant IN ('ann', 'bob') ORDER BY tenant")
            db.execute("DELETE FROM answers WHERE context = ?", [bob])
            db.execute("UPDATE answers SET context = ? WHERE context = ?", [bob, ann])
        db.close()
    else:
        mark = b"of ann only" if what == "the answer" else np.eye(1, 8, dtype=np.float16).tobytes()
        data = file.read_bytes()
        assert mark in data
        file.write_bytes(data.replace(mark, mark[:-1] + b"!"))
    service = make()
    for _ in range(3):
        assert said(service, "bob") == (None if what != "the answer" else "of bob only")
        assert said(service, "ann") is None
    assert look(service, "ann").errors == 1 + (what == "the vectors")
    assert len(caplog.messages) == 1 and "they count as absent" in caplog.text


def wait_for(condition, within_s=20.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.001)


def ask_through(hands, service, of):
    """What the process's thread says, None if it keeps silent because that failed."""
    found: list[Found] = []
    before = service.failures
    hands.ask(Look(next(NUMBERS), Asked(of, "faq", of.encode().ljust(32), "what is it"), TERMS), found.append)
    wait_for(lambda: found or service.failures != before)
    return found[0] if found else None


@pytest.mark.parametrize("found", ["at the start", "in use"])
def test_a_file_that_is_damaged_is_set_aside_with_one_line(make, clock, tmp_path, caplog, found):
    service = make()
    for n in range(40):
        teach(service, clock, f"t{n % 4}", f"answer {n} " + "x" * 500)
    service.close()
    file = tmp_path / "similar.sqlite"
    data = file.read_bytes()
    begin = 4096 * (2 if found == "at the start" else data.index(b"answer 39 ") // 4096)
    end = len(data) if found == "at the start" else begin + 4096
    file.write_bytes(data[:begin] + random.Random(1).randbytes(end - begin) + data[end:])
    service = make()
    hands = _Hands(service)
    try:
        said = [ask_through(hands, service, f"t{n % 4}") for n in range(12)]
        # What is sound may be served until the damage is met.
        assert all(one is None or one.similar.stored is None or b"answer" in one.similar.stored.body for one in said)
        assert said[-1] is not None and said[-1].similar.stored is None and said[-1].errors > 0
        hands.say(Learn(said[-1].similar.token, answer(clock, "fresh")), said.append)
        wait_for(lambda: (again := ask_through(hands, service, "t3")) and again.similar.stored is not None)
    finally:
        hands.close()
    assert (tmp_path / "similar.corrupt").exists()
    assert sum("set aside" in line for line in caplog.messages) == 1
    assert len(caplog.messages) <= 2  # that, and the call that failed


def test_a_full_disk_is_one_line_in_the_log_and_every_failure_counts(make, clock, tmp_path, caplog):
    service = make()
    teach(service, clock, "ann")
    service.save()
    hands = _Hands(service)
    try:
        with full_disk(wal_bytes(tmp_path)):
            assert [ask_through(hands, service, f"new{n}") for n in range(5)] == [None] * 5
            known = ask_through(hands, service, "ann")
        assert known is not None and known.similar.stored is not None
        assert known.errors >= 5
        assert len(caplog.messages) == 1 and "goes without" in caplog.text
        assert ask_through(hands, service, "new1") is not None
    finally:
        hands.close()


KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_similar_faults import *
clock = Clock()
service = Service(Path({folder!r}), Same(), Same(), clock)
for n in range(10**9):
    of = f"t{{n % 7}}"
    teach(service, clock, of, f"of {{of}} only " + "x" * (n % 5000))
    if n % 20 == 19:
        service.save()
        print(n, flush=True)
"""


def test_killed_in_the_middle_of_writing_it_says_nothing_wrong(tmp_path, clock):
    tests = Path(__file__).parent
    code = KILLED.format(paths=[str(tests), str(tests.parent)], folder=str(tmp_path))
    for turn in range(2):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(3 + turn):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        service = Service(tmp_path, Same(), Same(), clock)
        for n in range(7):
            found = said(service, f"t{n}")
            assert found is not None and found.startswith(f"of t{n} only")
        assert look(service, "t0").errors == 0
        service.close()
