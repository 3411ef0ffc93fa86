"""What only a store across the network can promise: several gateways, lost epochs, other people's bytes, faults."""

import asyncio
import time

import msgspec
import pytest
from test_answer_store import LEASE_S, SystemClock, answer, key, told

from trimtab.errors import StoreError
from trimtab.stores import _valkey_records
from trimtab.stores._valkey_epoch import EPOCH, PURGES
from trimtab.stores._valkey_records import PREFIX
from trimtab.stores.memory import MemoryStore
from trimtab.stores.valkey import ValkeyStore
from trimtab.types import Selector
from valkey_server import ValkeyServer


class SkewedClock(SystemClock):
    """A machine whose wall clock is wrong."""

    def __init__(self, by_s: float) -> None:
        self._by_s = by_s

    def wall(self) -> float:
        return time.time() + self._by_s


@pytest.fixture
def server(valkey_server):
    valkey_server.empty()
    return valkey_server


@pytest.fixture
def own_server(valkey_binary, tmp_path):
    """One that the test may stop."""
    with ValkeyServer(valkey_binary, tmp_path, save=True) as running:
        yield running


def gateway(server, by_s: float = 0.0, *, timeout_s: float = 1.0) -> ValkeyStore:
    clock = SkewedClock(by_s)
    front = MemoryStore(100, 1 << 20, clock)
    return ValkeyStore(server.url, clock, front, timeout_s=timeout_s, lease_s=LEASE_S)


async def started(*stores: ValkeyStore) -> None:
    for store in stores:
        await store.start()


async def stopped(*stores: ValkeyStore) -> None:
    for store in stores:
        await store.stop()


async def until(condition, within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.01)


async def purge(store: ValkeyStore, **what: str) -> int:
    return await asyncio.to_thread(store.purge, Selector(**what))


@pytest.mark.parametrize("by_s", [0.0, -5.0, 5.0])
async def test_a_purge_at_one_gateway_holds_at_another_whatever_its_clock_says(server, by_s):
    one, two = gateway(server), gateway(server, by_s)
    await started(one, two)
    clock = SkewedClock(by_s)
    for n in range(4):
        two.put(key(n), told(clock, n, tenant="acme" if n % 2 else "other"))
    await two.flush()
    for store in (one, two):
        assert all([await store.get(key(n)) is not None for n in range(4)])
    asked_before = told(clock, 9)
    assert await purge(one, tenant="acme") == 2
    assert [n for n in range(4) if await two.get(key(n)) is not None] == [0, 2]
    two.put(key(9), asked_before)
    two.put(key(10), told(clock, 10))
    await two.flush()
    assert await one.get(key(9)) is None and await one.get(key(10)) is not None
    assert await purge(one) == 3
    assert [await two.get(key(n)) for n in (0, 2, 10)] == [None] * 3
    await stopped(one, two)


async def test_a_purge_while_others_write_leaves_nothing_that_is_meant(server):
    stores = [gateway(server), gateway(server)]
    await started(*stores)
    late = [told(SystemClock(), n, tenant="acme" if n % 2 else "other") for n in range(1500)]

    async def write(store: ValkeyStore, part: int) -> None:
        for n in range(part, 1500, 2):
            store.put(key(n), late[n])
            if n % 50 < 2:
                await store.flush()
        await store.flush()

    writers = [asyncio.create_task(write(store, part)) for part, store in enumerate(stores)]
    writers += [asyncio.create_task(write(stores[0], part)) for part in (0, 1)]
    await asyncio.sleep(0.05)
    await purge(stores[1], tenant="acme")
    await asyncio.gather(*writers)
    found = [await stores[0].get(key(n)) for n in range(1500)]
    kept = {stored.scope.tenant for stored in found if stored is not None}
    assert kept == {"other"}
    await stopped(*stores)


async def test_a_refresh_at_one_gateway_reaches_the_memory_of_another(server):
    one, two = gateway(server), gateway(server)
    await started(one, two)
    one.put(key(1), answer(SystemClock(), b"old"))
    await one.flush()
    assert (await two.get(key(1))).body == b"old"
    await asyncio.sleep(0.01)
    one.put(key(1), answer(SystemClock(), b"new"))
    await one.flush()
    await two.flush()
    assert (await two.get(key(1))).body == b"new"
    await stopped(one, two)


async def test_of_two_equal_calls_in_flight_the_first_answer_is_kept(server):
    one, two = gateway(server), gateway(server)
    await started(one, two)
    first, second = answer(SystemClock(), b"first"), answer(SystemClock(), b"second")
    one.put(key(1), first)
    await one.flush()
    two.put(key(1), second)
    await two.flush()
    assert (await one.get(key(1))).body == (await two.get(key(1))).body == b"first"
    await stopped(one, two)


async def test_it_survives_the_gateway_and_expires_by_the_server(server):
    one = gateway(server)
    await started(one)
    one.put(key(1), answer(SystemClock(), ttl_s=50))
    await stopped(one)
    assert 40_000 < server.ask("PTTL", PREFIX + key(1)) <= 50_000
    two = gateway(server)
    await started(two)
    assert await two.get(key(1)) is not None
    await stopped(two)


async def test_large_answers_are_compressed(server):
    store = gateway(server)
    await started(store)
    small, large = answer(SystemClock(), b"s" * 1000), answer(SystemClock(), b"a large answer " * 20_000)
    store.put(key(1), small)
    store.put(key(2), large)
    await store.flush()
    assert server.ask("STRLEN", PREFIX + key(1)) > 1000
    assert server.ask("STRLEN", PREFIX + key(2)) < 30_000
    store._front.clear()
    assert await store.get(key(1)) == small and await store.get(key(2)) == large
    await stopped(store)


@pytest.mark.parametrize("garbage", ["text", "cut", "flipped", "another key's", "other type", "bomb", "former format"])
async def test_other_peoples_bytes_are_misses(server, garbage):
    store = gateway(server)
    await started(store)
    stored = answer(SystemClock(), b"an answer " * 1000)
    store.put(key(1), stored)
    store.put(key(2), answer(SystemClock(), b"another"))
    await store.flush()
    place = PREFIX + key(1)
    record = server.ask("GET", place)
    match garbage:
        case "text":
            server.ask("SET", place, "not ours")
        case "cut":
            server.ask("SET", place, record[: len(record) // 2])
        case "flipped":
            server.ask("SETRANGE", place, len(record) - 20, b"\x00\x01")
        case "another key's":
            server.ask("SET", place, server.ask("GET", PREFIX + key(2)))
        case "other type":
            server.ask("DEL", place)
            server.ask("RPUSH", place, "x")
        case "bomb":
            bomb = msgspec.structs.replace(stored, body=b"\x00" * (12 << 20))
            server.ask("SET", place, _valkey_records.pack(key(1), record[4:20], bomb, time.time()))
        case "former format":
            server.ask("SET", place, b"TTA0" + record[4:])
    assert await store.get(key(1)) is None
    assert await store.get(key(2)) is not None
    await asyncio.sleep(0.01)
    store.put(key(1), fresh := answer(SystemClock(), b"fresh"))  # and it is mended by the next answer
    await store.flush()
    assert await store.get(key(1)) == fresh
    await stopped(store)


@pytest.mark.parametrize("how", ["deleted", "garbage", "other type", "list lost"])
async def test_a_lost_epoch_revives_nothing(server, how):
    store = gateway(server)
    await started(store)
    for n in range(3):
        store.put(key(n), told(SystemClock(), n))
    await store.flush()
    early = told(SystemClock(), 5)
    await purge(store, tenant="acme")
    match how:
        case "deleted":
            server.ask("DEL", EPOCH)
        case "garbage":
            server.ask("SET", EPOCH, "1 2 3")
        case "other type":
            server.ask("DEL", EPOCH)
            server.ask("RPUSH", EPOCH, "x")
        case "list lost":
            server.ask("DEL", PURGES)
    await store.flush()
    late = gateway(server)
    await started(late)
    late.put(key(5), early)
    store.put(key(5), early)
    store.put(key(6), told(SystemClock(), 6))
    await store.flush()
    await late.flush()
    assert [n for n in range(7) if await store.get(key(n)) is not None] == [6]
    await stopped(store, late)


async def test_an_epoch_that_goes_back_revives_nothing(server):
    store = gateway(server)
    await started(store)
    store.put(key(1), told(SystemClock(), 1))
    await store.flush()
    before = {name: server.ask("DUMP", name) for name in server.keys("trimtab:*")}
    assert await purge(store, tenant="acme") == 1
    for name, value in before.items():
        server.ask("RESTORE", name, 0, value, "REPLACE")
    await store.flush()
    assert await store.get(key(1)) is None
    await stopped(store)


async def test_a_replica_is_not_used(own_server, valkey_binary, tmp_path, caplog):
    (tmp_path / "replica").mkdir()
    settings = ("--replicaof", f"127.0.0.1 {own_server.port}")
    with ValkeyServer(valkey_binary, tmp_path / "replica", *settings) as replica:
        store = gateway(replica)
        await started(store)
        assert store.stats()["down"] == 1 and "is a replica" in caplog.text
        await stopped(store)


async def test_a_restart_from_an_older_snapshot_revives_nothing(own_server, caplog):
    store = gateway(own_server)
    await started(store)
    store.put(key(1), told(SystemClock(), 1))
    await store.flush()
    own_server.ask("SAVE")
    early = told(SystemClock(), 2)
    assert await purge(store, tenant="acme") == 1
    own_server.kill()
    await until(lambda: store.stats()["down"])
    assert await store.get(key(1)) is None
    own_server.start()
    assert len(own_server.keys()) == 1  # the server has it again
    await until(lambda: not store.stats()["down"])
    assert await store.get(key(1)) is None
    store.put(key(2), early)
    store.put(key(3), answer(SystemClock()))
    await store.flush()
    assert await store.get(key(2)) is None and await store.get(key(3)) is not None
    assert len(caplog.messages) == 2 and caplog.messages[1].endswith("is back")
    await stopped(store)


async def test_a_server_that_is_not_there_costs_nothing_and_is_found_later(own_server, caplog):
    own_server.kill()
    store = gateway(own_server)
    await started(store)
    assert store.stats()["down"] == 1
    store.put(key(1), answer(SystemClock()))
    assert await store.get(key(1)) is None
    assert store.stats()["skipped"] == 2
    own_server.start()
    await until(lambda: not store.stats()["down"])
    store.put(key(1), answer(SystemClock()))
    await store.flush()
    assert await store.get(key(1)) is not None
    assert len(caplog.messages) == 2 and "requests go on without it" in caplog.messages[0]
    await stopped(store)


async def test_a_frozen_server_is_given_up_and_found_again(own_server, caplog):
    store = gateway(own_server, timeout_s=0.05)
    await started(store)
    store.put(key(1), answer(SystemClock()))
    await store.flush()
    own_server.freeze()
    try:
        found = await asyncio.gather(*(store.get(key(n)) for n in range(2, 200)))
        assert found == [None] * 198
        await until(lambda: store.stats()["down"])
        assert await store.get(key(1)) is None  # nobody knows what was purged meanwhile
    finally:
        own_server.thaw()
    await until(lambda: not store.stats()["down"])
    assert await store.get(key(1)) is not None
    assert len(caplog.messages) == 2
    await stopped(store)


async def test_a_full_server_serves_what_it_has_and_can_be_purged(valkey_binary, tmp_path, caplog):
    settings = ("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with ValkeyServer(valkey_binary, tmp_path, *settings) as server:
        store = gateway(server)
        await started(store)
        bodies = [_random(n, 50_000) for n in range(200)]
        for n, body in enumerate(bodies):
            store.put(key(n), msgspec.structs.replace(told(SystemClock(), n), body=body))
            await store.flush()
        figures = store.stats()
        assert figures["errors"] > 0 and figures["down"] == 0 and figures["skipped"] > 0
        kept = [n for n in range(200) if await store.get(key(n)) is not None]
        assert kept and all([(await store.get(key(n))).body == bodies[n] for n in kept])
        assert len(caplog.messages) == 1 and "what is there is still served" in caplog.messages[0]
        assert await purge(store, tenant="acme") == len(kept)
        await until(lambda: _put_and_count(store, server) and len(caplog.messages) > 1)
        assert caplog.messages[1:] == [f"answer cache {store.where} takes answers again"]
        await stopped(store)


def _put_and_count(store: ValkeyStore, server: ValkeyServer) -> bool:
    store.put(key(1), told(SystemClock(), 1))
    return bool(server.keys())


def _random(seed: int, size: int) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


async def test_a_purge_that_cannot_be_done_says_so(own_server):
    store = gateway(own_server)
    own_server.kill()
    with pytest.raises(StoreError, match="the purge is not complete"):
        await purge(store)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
        await asyncio.to_thread(store.survey)


async def test_a_client_that_leaves_harms_nobody(server):
    store = gateway(server)
    await started(store)
    for n in range(50):
        store.put(key(n), answer(SystemClock(), b"%d" % n))
    await store.flush()
    for _ in range(20):
        asking = [asyncio.create_task(store.get(key(n))) for n in range(50)]
        await asyncio.sleep(0)
        for task in asking[::2]:
            task.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [one.body for one in found[1::2]] == [b"%d" % n for n in range(1, 50, 2)]
        store._front.clear()
    assert store.stats()["errors"] == 0
    await stopped(store)
