"""One contract for every `AnswerStore`, then what only a store in a shared file can promise."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import msgspec
import pytest

from trimtab.ports import AnswerStore
from trimtab.stores import _purges, _valkey_epoch
from trimtab.stores.lmdb import LmdbStore
from trimtab.stores.memory import ENTRY_OVERHEAD_BYTES, MemoryStore
from trimtab.stores.valkey import ValkeyStore
from trimtab.types import Dialect, Scope, Selector, Stored, Target, Usage

TARGET = Target("fast", "openai", "gpt-4o-mini", "openai")
KINDS = ["memory", "lmdb", "lmdb-with-front", "valkey", "valkey-with-front"]
LEASE_S = 0.15


class FakeClock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def mono(self) -> float:
        return self.now


class TickingClock(FakeClock):
    """Its wall stands still, its monotonic time runs: leases are real."""

    def mono(self) -> float:
        return time.monotonic()


class SystemClock:
    wall = staticmethod(time.time)
    mono = staticmethod(time.monotonic)


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


def answer(clock, body: bytes = b'{"ok":true}', ttl_s: float = 100.0, request_id: str = "r1") -> Stored:
    now = clock.wall()
    return Stored(Dialect.OPENAI, body, "gpt-4o-mini-x", TARGET, Usage(10, output=5), request_id, now, now + ttl_s)


async def settle(store: AnswerStore) -> None:
    """Wait until what was put is where it belongs."""
    if isinstance(store, LmdbStore):
        store.flush()
    if isinstance(store, ValkeyStore):
        await store.flush()


async def purge(store: AnswerStore, **what: str) -> int:
    """As a command does it, beside the running store."""
    selector = Selector(**what)
    return await asyncio.to_thread(store.purge, selector) if isinstance(store, ValkeyStore) else store.purge(selector)


@pytest.fixture
def clock():
    return TickingClock()


@pytest.fixture(params=KINDS)
async def store(request, tmp_path, clock):
    made: AnswerStore
    if request.param == "memory":
        made = MemoryStore(1000, 16 << 20, clock)
    elif request.param.startswith("valkey"):
        server = request.getfixturevalue("valkey_server")
        server.empty()
        front = MemoryStore(100, 1 << 20, clock) if request.param == "valkey-with-front" else None
        made = ValkeyStore(server.url, clock, front, timeout_s=1.0, lease_s=LEASE_S)
    else:
        front = MemoryStore(100, 1 << 20, clock) if request.param == "lmdb-with-front" else None
        made = LmdbStore(tmp_path / "cache", 16 << 20, clock, front)
    await made.start()
    yield made
    await made.stop()


# The contract


async def test_an_unknown_key_is_a_miss(store):
    assert await store.get(key(1)) is None
    assert store.stats()["misses"] == 1


async def test_what_is_put_comes_back_at_once_and_whole(store, clock):
    stored = answer(clock, body=bytes(range(256)) * 300)
    store.put(key(1), stored)
    assert await store.get(key(1)) == stored
    await settle(store)
    assert await store.get(key(1)) == stored
    assert await store.get(key(2)) is None
    figures = store.stats()
    assert (figures["entries"], figures["hits"], figures["misses"], figures["errors"]) == (1, 2, 1, 0)
    assert figures["bytes"] >= len(stored.body)


async def test_a_later_answer_takes_the_place_of_an_earlier_one(store, clock):
    store.put(key(1), answer(clock, b"old"))
    await settle(store)
    clock.now += 5
    store.put(key(1), answer(clock, b"new"))
    await settle(store)
    found = await store.get(key(1))
    assert found is not None and found.body == b"new"
    assert store.stats()["entries"] == 1


async def test_an_expired_entry_is_a_miss(store, clock):
    store.put(key(1), answer(clock, ttl_s=10))
    await settle(store)
    clock.now += 9.9
    assert await store.get(key(1)) is not None
    clock.now += 0.1
    assert await store.get(key(1)) is None


async def test_purge_drops_everything_and_says_how_much(store, clock):
    for n in range(3):
        store.put(key(n), answer(clock))
    await settle(store)
    assert await purge(store) == 3
    await settle(store)
    assert [await store.get(key(n)) for n in range(3)] == [None] * 3
    assert store.stats()["entries"] == 0
    assert await purge(store) == 0


async def test_an_answer_that_was_being_made_during_a_purge_is_not_kept(store, clock):
    early = answer(clock)
    clock.now += 1
    await purge(store)
    store.put(key(1), early)
    await settle(store)
    assert await store.get(key(1)) is None
    store.put(key(1), answer(clock))
    assert await store.get(key(1)) is not None


def told(clock, n: int, **changes) -> Stored:
    """An answer that says whose it is; each of what a purge can name may be changed."""
    scope = {"tenant": "acme", "route": "faq", "prompt_version": "p1", "corpus_version": "c1", "policy_version": "s1"}
    scope |= {name: value for name, value in changes.items() if name in scope}
    rest = {name: value for name, value in changes.items() if name not in scope}
    made = msgspec.structs.replace(answer(clock, b"%d" % n, request_id=f"r{n}"), scope=Scope(**scope), asked_model="m")
    return msgspec.structs.replace(made, **rest)


SELECTIONS = {
    "tenant": ({"tenant": "acme"}, {"tenant": "other"}),
    "route": ({"route": "faq"}, {"route": "default"}),
    "model as asked": ({"model": "m"}, {"asked_model": "n"}),
    "model as exposed": ({"model": "fast"}, {"target": Target("slow", "openai", "x")}),
    "model upstream": ({"model": "gpt-4o-mini"}, {"target": Target("slow", "openai", "x")}),
    "model as replied": ({"model": "gpt-4o-mini-x"}, {"model": "y"}),
    "prompt": ({"prompt_version": "p1"}, {"prompt_version": "p2"}),
    "corpus": ({"corpus_version": "c1"}, {"corpus_version": "c2"}),
    "policy": ({"policy_version": "s1"}, {"policy_version": ""}),
    "no policy": ({"policy_version": ""}, {"policy_version": "s2"}),
    "two": ({"tenant": "acme", "route": "faq"}, {"route": "default"}),
}


@pytest.mark.parametrize("name", SELECTIONS)
async def test_a_selective_purge_drops_what_is_meant_and_nothing_else(store, clock, name):
    what, other = SELECTIONS[name]
    same = {"policy_version": ""} if name == "no policy" else {}
    for n in range(3):
        store.put(key(n), told(clock, n, **same))
        store.put(key(100 + n), told(clock, 100 + n, **other))
    await settle(store)
    assert await store.get(key(1)) is not None and await store.get(key(101)) is not None
    clock.now += 1
    assert await purge(store, **what) == 3
    assert [await store.get(key(n)) for n in range(3)] == [None] * 3
    assert [(await store.get(key(100 + n))).body for n in range(3)] == [b"100", b"101", b"102"]
    assert await purge(store, **what) == 0
    await settle(store)
    assert store.stats()["entries"] == 3


async def test_one_request_is_purged(store, clock):
    for n in range(5):
        store.put(key(n), told(clock, n))
    await settle(store)
    assert await purge(store, request="r3") == 1
    assert await purge(store, request="r3", tenant="acme") == 0
    assert [n for n in range(5) if await store.get(key(n)) is None] == [3]


async def test_all_conditions_must_hold(store, clock):
    store.put(key(1), told(clock, 1))
    assert await purge(store, tenant="acme", route="default") == 0
    assert await purge(store, tenant="acme", model="another") == 0
    assert await store.get(key(1)) is not None


async def test_an_answer_that_does_not_say_whose_it_is_goes_with_every_purge(store, clock):
    store.put(key(1), answer(clock))
    await settle(store)
    assert await purge(store, tenant="whoever") == 1
    assert await store.get(key(1)) is None


async def test_what_was_being_made_during_a_selective_purge_is_kept_only_if_it_is_not_meant(store, clock):
    meant, other = told(clock, 1), told(clock, 2, tenant="other")
    clock.now += 1
    assert await purge(store, tenant="acme") == 0
    store.put(key(1), meant)
    store.put(key(2), other)
    store.put(key(3), told(clock, 3))  # asked after the purge
    await settle(store)
    assert [n for n in (1, 2, 3) if await store.get(key(n)) is not None] == [2, 3]


async def test_very_many_selective_purges_revive_nothing(store, clock, monkeypatch):
    monkeypatch.setattr(_purges, "KEPT", 8)
    monkeypatch.setattr(_valkey_epoch, "KEPT", 8)
    early, late = told(clock, 1), told(clock, 2, tenant="other")
    clock.now += 1
    await purge(store, tenant="acme")
    for n in range(12):
        clock.now += 0.1
        await purge(store, tenant=f"t{n}")
    store.put(key(1), early)
    store.put(key(2), late)
    store.put(key(3), told(clock, 3))
    await settle(store)
    assert await store.get(key(1)) is None
    assert await store.get(key(3)) is not None


async def test_an_answer_too_big_for_the_store_is_left_out(store, clock):
    store.put(key(1), answer(clock, b"x" * (17 << 20)))
    await settle(store)
    assert await store.get(key(1)) is None
    assert store.stats()["evictions"] >= 1


async def test_close_is_quiet_and_ends_all(store, clock):
    store.put(key(1), answer(clock))
    await store.stop()
    await store.stop()


async def test_it_behaves_like_a_dictionary_under_random_use(store, clock):
    rng = random.Random(7)
    expected: dict[bytes, Stored] = {}
    for step in range(300):
        n = key(rng.randrange(20))
        clock.now += 1
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                stored = answer(clock, body=rng.randbytes(rng.randrange(5000)), ttl_s=rng.randrange(1, 200))
                store.put(n, stored)
                expected[n] = stored
            case 4:
                await settle(store)
            case 5 if step % 7 == 0:
                await purge(store)
                expected.clear()
            case _:
                want = expected.get(n)
                assert await store.get(n) == (want if want and want.expires > clock.now else None)


# Memory


def test_memory_forgets_the_least_recently_used(clock):
    store = MemoryStore(2, 1 << 20, clock)
    store.put(key(1), answer(clock))
    store.put(key(2), answer(clock))
    assert store.find(key(1)) is not None
    store.put(key(3), answer(clock))
    assert store.find(key(2)) is None
    assert store.find(key(1)) is not None and store.find(key(3)) is not None
    assert store.stats()["evictions"] == 1


def test_memory_counts_bytes_rightly(clock):
    store = MemoryStore(100, 10 * (1000 + ENTRY_OVERHEAD_BYTES), clock)
    for n in range(25):
        store.put(key(n % 15), answer(clock, b"x" * 1000))
    assert store.stats()["entries"] == 10
    assert store.stats()["bytes"] == 10 * (1000 + ENTRY_OVERHEAD_BYTES)
    store.put(key(100), answer(clock, b"x" * 5000))
    assert store.stats()["bytes"] <= 10 * (1000 + ENTRY_OVERHEAD_BYTES)
    clock.now += 1000
    for n in [*range(15), 100]:
        store.find(key(n))
    assert store.stats()["bytes"] == 0


# The shared file


def run(code: str, folder: Path, *, check: bool = True) -> str:
    """Run Python in another process, with `store` and `clock` at hand."""
    head = (
        "import sys, time, os; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_answer_store import *\n"
        "clock = SystemClock()\n"
        f"store = LmdbStore(Path({str(folder)!r}), 16 << 20, clock, MemoryStore(100, 1 << 20, clock))\n"
    )
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def shared(tmp_path):
    clock = SystemClock()
    store = LmdbStore(tmp_path / "cache", 16 << 20, clock, MemoryStore(100, 1 << 20, clock))
    yield store
    store.close()


def wait_for(condition, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


def test_the_writer_writes_without_being_asked(shared, tmp_path):
    shared.put(key(1), answer(SystemClock()))
    wait_for(lambda: run("print(store.find(key(1)) is not None)", tmp_path / "cache") == "True")


def test_another_process_sees_what_was_put_and_a_purge_there_is_seen_here(shared, tmp_path):
    for n in range(5):
        shared.put(key(n), answer(SystemClock(), b"body %d" % n))
    shared.flush()
    assert shared.find(key(1)) is not None  # in this process's memory too
    printed = run("print(store.find(key(3)).body.decode(), store.purge())", tmp_path / "cache")
    assert printed == "body 3 5"
    assert [shared.find(key(n)) for n in range(5)] == [None] * 5
    shared.put(key(1), answer(SystemClock(), b"fresh"))
    shared.flush()
    assert run("print(store.find(key(1)).body.decode())", tmp_path / "cache") == "fresh"


def test_a_put_that_waits_during_a_purge_elsewhere_stays_dead(shared, tmp_path):
    with shared._write_lock:  # as if the writer were slow
        shared.put(key(1), answer(SystemClock()))
        assert run("print(store.purge())", tmp_path / "cache") == "0"
    shared.flush()
    assert shared.find(key(1)) is None
    assert run("print(store.find(key(1)))", tmp_path / "cache") == "None"


def test_a_selective_purge_elsewhere_is_seen_here(shared, tmp_path):
    clock = SystemClock()
    for n in range(6):
        shared.put(key(n), told(clock, n, tenant="odd" if n % 2 else "even"))
    shared.flush()
    assert all(shared.find(key(n)) is not None for n in range(6))  # in this process's memory too
    early = told(clock, 7, tenant="odd")
    assert run("print(store.purge(Selector(tenant='odd')))", tmp_path / "cache") == "3"
    assert [n for n in range(6) if shared.find(key(n)) is not None] == [0, 2, 4]
    shared.put(key(7), early)
    shared.put(key(9), told(clock, 9, tenant="odd"))
    shared.flush()
    assert run("print(store.find(key(7)), store.find(key(9)) is not None)", tmp_path / "cache") == "None True"


def test_a_put_that_waits_during_a_selective_purge_elsewhere_stays_dead(shared, tmp_path):
    with shared._write_lock:  # as if the writer were slow
        shared.put(key(1), told(SystemClock(), 1))
        shared.put(key(2), told(SystemClock(), 2, tenant="other"))
        assert run("print(store.purge(Selector(tenant='acme')))", tmp_path / "cache") == "0"
        assert shared.find(key(1)) is None and shared.find(key(2)) is not None
    shared.flush()
    assert run("print(store.find(key(1)), store.find(key(2)) is not None)", tmp_path / "cache") == "None True"


def test_a_selective_purge_while_others_write_leaves_nothing_that_is_meant(shared, tmp_path):
    code = (
        "late = [told(clock, n, tenant='acme' if n % 2 else 'other') for n in range(4000)]\n"
        "print('ready', flush=True)\n"
        "for n, one in enumerate(late):\n    store.put(key(n), one)\n    if n % 100 == 99: store.flush()\n"
        "store.close()\n"
    )
    head = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_answer_store import *\n"
        f"clock = SystemClock()\nstore = LmdbStore(Path({str(tmp_path / 'cache')!r}), 16 << 20, clock)\n"
    )
    with subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(0.05)
        shared.purge(Selector(tenant="acme"))
        found = [n for n in range(4000) if (one := shared.find(key(n))) is not None and one.scope.tenant == "acme"]
        assert found == []
        assert writer.wait(60) == 0
    kept = {n % 2 for n in range(4000) if shared.find(key(n)) is not None}
    assert kept == {0}


def test_a_lost_list_of_purges_revives_nothing(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    early = told(clock, 1)
    clock.now += 1
    store.purge(Selector(tenant="acme"))
    store.close()
    (tmp_path / "purges.json").write_text("not what it was")
    again = LmdbStore(tmp_path, 16 << 20, clock)
    again.put(key(1), early)
    again.put(key(2), told(clock, 2))
    again.flush()
    assert again.find(key(1)) is None and again.find(key(2)) is not None
    again.close()


def test_a_file_that_cannot_be_searched_is_emptied(tmp_path, clock, caplog):
    store = LmdbStore(tmp_path / "cache", 16 << 20, clock)
    store.put(key(1), told(clock, 1))
    store.flush()
    other = LmdbStore(tmp_path / "cache", 16 << 20, clock)  # LMDB allows only one in a process
    assert other.purge(Selector(tenant="whoever")) == 0
    assert other.stats()["errors"] > 0
    assert store.find(key(1)) is None
    other.close()
    store.close()


def test_records_of_an_earlier_version_are_dropped_with_one_line(tmp_path, clock, caplog):
    fill(tmp_path, clock, 20)
    with lmdb.open(str(tmp_path / "answers"), max_dbs=8) as env:
        for name in (b"answers1", b"ages1"):
            with env.begin(write=True, db=env.open_db(name)) as txn:
                txn.put(b"k", b"v")
    (tmp_path / "generation").write_bytes((tmp_path / "generation").read_bytes()[:24])  # as that version left it
    for _ in range(2):
        store = LmdbStore(tmp_path, 16 << 20, clock)
        assert store.find(key(3)) is not None
        assert store.stats()["errors"] == 0
        store.close()
    assert len(caplog.messages) == 1 and "earlier version" in caplog.text


def test_a_refresh_in_one_process_replaces_the_answer_in_the_memory_of_another(shared, tmp_path):
    shared.put(key(1), answer(SystemClock(), b"old"))
    shared.flush()
    run("store.put(key(1), answer(clock, b'new')); store.close()", tmp_path / "cache")
    found = shared.find(key(1))
    assert found is not None and found.body == b"new"


def test_of_two_equal_calls_in_flight_one_answer_is_kept(shared, tmp_path):
    before = time.time() - 1  # both requests began before either answer was there
    first = msgspec.structs.replace(answer(SystemClock(), b"first"), created=before)
    shared.put(key(1), first)
    shared.flush()
    run(
        f"store.put(key(1), msgspec.structs.replace(answer(clock, b'second'), created={before!r})); store.close()",
        tmp_path / "cache",
    )
    assert run("print(store.find(key(1)).body.decode())", tmp_path / "cache") == "first"


def test_it_survives_a_restart(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    store.put(key(1), answer(clock))
    store.close()
    again = LmdbStore(tmp_path, 16 << 20, clock)
    assert again.find(key(1)) == answer(clock)
    again.close()


def test_a_deleted_generation_file_revives_nothing(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    store.put(key(1), answer(clock))
    store.close()
    (tmp_path / "generation").unlink()
    clock.now += 1
    again = LmdbStore(tmp_path, 16 << 20, clock)
    assert again.find(key(1)) is None
    again.close()


def test_a_full_map_evicts_the_oldest_and_goes_on(tmp_path, clock):
    store = LmdbStore(tmp_path, 1 << 20, clock)
    for n in range(400):
        clock.now += 0.01
        store.put(key(n), answer(clock, random.Random(n).randbytes(10_000)))
        if n % 3 == 0:
            store.flush()
    store.flush()
    figures = store.stats()
    assert figures["errors"] == 0
    assert figures["bytes"] <= 1 << 20
    assert figures["evictions"] > 250 and figures["entries"] > 30
    assert store.find(key(399)) is not None and store.find(key(0)) is None
    store.close()
    assert (tmp_path / "answers" / "data.mdb").stat().st_size <= 1 << 20


def test_a_limit_that_was_lowered_is_reached_by_evicting(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    for n in range(300):
        clock.now += 0.01
        store.put(key(n), answer(clock, random.Random(n).randbytes(10_000)))
        if n % 50 == 0:
            store.flush()
    store.close()
    store = LmdbStore(tmp_path, 1 << 20, clock)
    clock.now += 1
    store.put(key(1000), answer(clock, b"x" * 10_000))
    store.flush()
    assert store.stats()["bytes"] <= 1 << 20
    assert store.find(key(1000)) is not None
    store.close()


def test_an_answer_that_no_room_can_be_made_for_is_counted(tmp_path, clock, monkeypatch):
    store = LmdbStore(tmp_path, 1 << 20, clock)
    monkeypatch.setattr(store, "_write_records", lambda *_: (_ for _ in ()).throw(lmdb.MapFullError("full")))
    store.put(key(1), answer(clock))
    store.flush()
    assert store.stats()["errors"] == 1
    monkeypatch.undo()
    store.put(key(1), answer(clock))
    store.flush()
    assert store.find(key(1)) is not None
    store.close()


def test_expired_entries_leave_the_file_as_new_ones_come(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    for n in range(20):
        store.put(key(n), answer(clock, ttl_s=10))
    store.flush()
    clock.now += 20
    store.put(key(100), answer(clock))
    store.flush()
    assert store.stats()["entries"] == 1
    store.close()


def test_more_than_the_queue_holds_is_counted(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock, MemoryStore(10, 1 << 20, clock))
    with store._write_lock:
        for n in range(3000):
            store.put(key(n), answer(clock))
    assert store.stats()["errors"] > 0
    assert store.find(key(2999)) is not None  # from memory
    store.close()


def test_a_batch_that_cannot_be_encoded_does_not_end_the_writer(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    store.put(key(1), msgspec.structs.replace(answer(clock), model="\ud800"))
    wait_for(lambda: store.stats()["errors"] == 1)
    store.put(key(2), answer(clock))
    wait_for(lambda: store.stats()["entries"] == 1)
    store.close()


def fill(folder: Path, clock, count: int = 300) -> None:
    store = LmdbStore(folder, 16 << 20, clock)
    for n in range(count):
        store.put(key(n), answer(clock, random.Random(n).randbytes(3000)))
        if n % 50 == 0:
            store.flush()
    store.close()


async def test_answers_are_found_again_without_the_index_or_with_another_size(tmp_path, clock):
    folder = tmp_path / "cache"
    fill(folder, clock, 20)
    (folder / "answers" / "index").unlink()
    for megabytes in (16, 64):
        store = LmdbStore(folder, megabytes << 20, clock, MemoryStore(100, 1 << 20, clock))
        assert all([await store.get(key(n)) for n in range(20)])
        assert await store.get(key(99)) is None
        store.close()


def damage(data: Path, how: str) -> None:
    whole = data.read_bytes()
    if how == "garbage":
        data.write_bytes(b"this is no database" * 1000)
    elif how == "cut short":
        data.write_bytes(whole[: len(whole) // 2 // 4096 * 4096])
    elif how == "empty":
        data.write_bytes(b"")
    else:  # flipped bits in every answer
        data.write_bytes(whole[:8192] + whole[8192:].replace(b"gpt-4o-mini-x", b"gpt-4o-mini-y"))


@pytest.mark.parametrize("how", ["garbage", "cut short", "empty", "flipped"])
def test_a_damaged_file_means_misses_and_never_wrong_answers(tmp_path, clock, how):
    folder = tmp_path / "cache"
    fill(folder, clock)
    damage(folder / "answers" / "data.mdb", how)
    store = LmdbStore(folder, 16 << 20, clock)
    assert [store.find(key(n)) for n in range(300)] == [None] * 300
    store.put(key(1), answer(clock))
    store.flush()
    store.close()
    again = LmdbStore(folder, 16 << 20, clock)
    assert again.find(key(1)) == answer(clock)
    again.close()
    assert (folder / "answers.corrupt").exists() == (how in ("garbage", "cut short"))


def test_damage_found_in_use_makes_the_next_start_begin_anew(tmp_path, clock, caplog):
    folder = tmp_path / "cache"
    fill(folder, clock)
    store = LmdbStore(folder, 16 << 20, clock)
    store._failed("cannot be read", lmdb.CorruptedError("wrong page"))
    store.close()
    again = LmdbStore(folder, 16 << 20, clock)
    assert again.stats()["entries"] == 0
    assert (folder / "answers.corrupt").is_dir() and not (folder / "corrupt").exists()
    again.close()
    assert sum("set aside" in line for line in caplog.messages) == 1


def test_an_unusable_folder_leaves_the_memory(tmp_path, clock, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    store = LmdbStore(tmp_path / "cache", 16 << 20, clock, MemoryStore(100, 1 << 20, clock))
    store.put(key(1), answer(clock))
    assert store.find(key(1)) == answer(clock)
    assert store.stats()["entries"] == 1 and store.stats()["errors"] >= 1
    assert store.purge() == 1
    assert store.find(key(1)) is None
    store.close()
    assert len(caplog.messages) == 1


def test_a_second_opening_in_one_process_harms_nothing(tmp_path, clock):
    folder = tmp_path / "cache"
    fill(folder, clock, 10)
    first = LmdbStore(folder, 16 << 20, clock)
    second = LmdbStore(folder, 16 << 20, clock, MemoryStore(10, 1 << 20, clock))  # LMDB allows only one
    assert second.stats()["errors"] == 1
    assert first.find(key(1)) is not None
    assert second.purge() == 0  # ... but the other hears of it
    assert first.find(key(1)) is None
    second.close()
    first.close()
    assert not (folder / "answers.corrupt").exists()


def test_killed_in_the_middle_of_writing_it_loses_only_the_last_moments(tmp_path):
    folder = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_answer_store import *\n"
        "clock = SystemClock()\n"
        f"store = LmdbStore(Path({str(folder)!r}), 64 << 20, clock)\n"
        "for n in range(10**9):\n"
        "    store.put(key(n), answer(clock, random.Random(n).randbytes(5000)))\n"
        "    if n % 100 == 99: store.flush(); print(n, flush=True)\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(5):
            written = int(child.stdout.readline())
        time.sleep(random.random() / 50)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store = LmdbStore(folder, 64 << 20, SystemClock())
        for n in range(written - 300, written + 1):
            found = store.find(key(n))
            assert found is not None and found.body == random.Random(n).randbytes(5000)
        assert store.stats()["errors"] == 0
        store.put(key(1 << 40), answer(SystemClock()))
        store.flush()
        store.close()


def test_files_are_for_their_owner_only(tmp_path, clock):
    folder = tmp_path / "cache"
    fill(folder, clock, 1)
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o007 == 0, path
    assert folder.stat().st_mode & 0o077 == 0


def test_a_clean_end_leaves_nothing_unsynced(tmp_path, clock):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    store.put(key(1), answer(clock))
    store.flush()
    assert (tmp_path / "unsynced").exists()
    store.close()
    assert not (tmp_path / "unsynced").exists()


def test_a_machine_that_went_down_while_writing_starts_anew(tmp_path, clock, caplog):
    store = LmdbStore(tmp_path, 16 << 20, clock)
    store.put(key(1), answer(clock))
    store.close()
    (tmp_path / "unsynced").write_text("another boot")
    store = LmdbStore(tmp_path, 16 << 20, clock)
    assert store.find(key(1)) is None
    assert "went down" in caplog.text
    assert not (tmp_path / "unsynced").exists()
    store.close()
