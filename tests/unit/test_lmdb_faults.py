"""The answers' file on a full disk and on one that hangs: what is there is served, the rest are misses, one line."""

from __future__ import annotations

import random

import msgspec
import pytest
from test_exact_cache import TARGET, FakeClock

from full_disk import full_disk
from trimtab.stores.lmdb import LmdbStore
from trimtab.stores.memory import MemoryStore
from trimtab.types import Dialect, Selector, Stored, Usage


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path, clock):
    made = LmdbStore(tmp_path / "cache", 16 << 20, clock)
    yield made
    made.close()


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


def answer(clock, n: int, version: int = 0) -> Stored:
    body = b"%d of %d " % (version, n) + random.Random(n).randbytes(9000)
    return Stored(Dialect.OPENAI, body, "m", TARGET, Usage(), f"r{n}", clock.wall(), clock.wall() + 1000)


def keep(store, clock, numbers, version: int = 0) -> None:
    for n in numbers:
        clock.now += 0.01
        store.put(key(n), answer(clock, n, version))
        store.flush()


def is_right(store, clock, n: int, *versions: int) -> bool:
    stored = store.find(key(n))
    return stored is not None and stored.body in [answer(clock, n, version).body for version in versions]


def data_bytes(tmp_path) -> int:
    return (tmp_path / "cache" / "answers" / "data.mdb").stat().st_size


@pytest.mark.parametrize("room", ["none", "no more"])
def test_a_full_disk(store, tmp_path, clock, caplog, room):
    keep(store, clock, range(20))
    with full_disk(0 if room == "none" else data_bytes(tmp_path)):
        keep(store, clock, range(20, 60))
        keep(store, clock, range(5), version=1)
        assert store.stats()["errors"] > 20
        for n in range(60):
            assert store.find(key(n)) is None or is_right(store, clock, n, 0, 1)
        assert all(is_right(store, clock, n, 0) for n in range(5, 20))
    assert len(caplog.messages) == 1 and "cannot be written" in caplog.text
    keep(store, clock, range(20, 60))
    keep(store, clock, range(5), version=2)
    assert all(is_right(store, clock, n, 0) for n in range(5, 60))
    assert all(is_right(store, clock, n, 2) for n in range(5))
    store.close()
    again = LmdbStore(tmp_path / "cache", 16 << 20, clock)
    assert all(is_right(again, clock, n, 0) for n in range(5, 60))
    assert all(is_right(again, clock, n, 2) for n in range(5))
    again.close()
    assert not (tmp_path / "cache" / "answers.corrupt").exists()


@pytest.mark.parametrize("what", [Selector(), Selector(request="r3"), Selector(tenant="whoever")])
def test_a_purge_on_a_full_disk_holds(store, tmp_path, clock, what):
    keep(store, clock, range(20))
    clock.now += 1
    with full_disk(data_bytes(tmp_path)):
        store.purge(what)
        assert store.find(key(3)) is None
    assert store.find(key(3)) is None
    store.close()
    again = LmdbStore(tmp_path / "cache", 16 << 20, clock)
    assert again.find(key(3)) is None
    again.close()


def test_a_start_without_room_serves_from_memory(tmp_path, clock, caplog):
    with full_disk():
        store = LmdbStore(tmp_path / "cache", 16 << 20, clock, MemoryStore(100, 1 << 20, clock))
        for n in range(10):
            store.put(key(n), answer(clock, n))
        assert all(is_right(store, clock, n, 0) for n in range(10))
        assert store.stats()["errors"] >= 10
    assert len(caplog.messages) == 1 and "kept in memory only" in caplog.text
    store.close()


def test_a_disk_that_hangs_holds_up_no_look_up(store, clock, monkeypatch):
    keep(store, clock, range(5))
    with store._write_lock:  # the writer waits for the disk, and has the lock
        for n in range(3000):
            store.put(key(n), msgspec.structs.replace(answer(clock, n % 20), created=clock.wall()))
        assert store.stats()["errors"] > 0  # what the queue could not take
        for n in range(3000):
            assert store.find(key(n)) is None or is_right_body(store, clock, n)
    store.flush()
    assert all(store.find(key(n)) is None or is_right_body(store, clock, n) for n in range(3000))


def is_right_body(store, clock, n: int) -> bool:
    stored = store.find(key(n))
    return stored is not None and stored.body == answer(clock, n % 20).body
