"""Replicas: a conversation stays where its prefix is, workers know of each other's choices, engines are believed."""

import asyncio
import json
import os
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
from test_config import ENV, OPENAI
from test_conversation import ask
from test_pipeline import ANSWER, Clock, Engine, Reply, World

from trimtab.config import load, replicas
from trimtab.errors import ConfigError, StoreError, UpstreamUnreachable
from trimtab.flight import Flight
from trimtab.levers import exact_cache, place
from trimtab.protocols import CODECS
from trimtab.sockets import socket_folder
from trimtab.stores.memory import MemoryStore
from trimtab.types import Attempt, Plan, Purpose, Target
from trimtab.wire.neighbours import Neighbours

ONE = Target("m", "one", "m-up", "openai")
PLAN = Plan((Attempt(ONE), Attempt(ONE, Purpose.RETRY)))
TEXT = "A long policy that everybody reads first. " * 100


def said(cached=0):
    usage = {"prompt_tokens": 1000, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": cached}}
    return Reply([json.dumps(ANSWER | {"usage": usage}).encode()])


class Replicated(World):
    def __init__(self, tell=lambda message: None, replies=None):
        super().__init__(
            *[Engine(name, *(replies or {}).get(name, [said() for _ in range(50)])) for name in ("one", "two")]
        )
        self.lever = place.build(place.Config(), {"m": ("one", "two")}, Clock(), tell)

    async def ask(self, text, levers=()):
        request = ask([{"role": "user", "content": text}], model="m", temperature=0)
        request = msgspec.structs.replace(request, model="m", body_bytes=len(text))
        await self.pipeline.run(Flight(request), PLAN, [*levers, self.lever], self.sink)
        self.row = self.journal.rows[-1]
        return self.row.attempts[-1].engine if self.row.attempts else ""


async def test_a_prompt_comes_back_to_where_its_beginning_is():
    world = Replicated()
    first = await world.ask(TEXT + "one")
    others = [await world.ask(f"{n} " + TEXT) for n in range(4)]
    assert await world.ask(TEXT + "two") == first
    assert set(others) == {"one", "two"}  # the load is even
    decision = world.row.decisions[-1]
    assert decision.reason == f"{first}: holds the prefix"
    assert decision.score > 0.5
    assert world.row.baseline_engine == first


async def test_a_replica_that_is_down_is_tried_no_second_time():
    down = {"one": [UpstreamUnreachable("down")] * 9, "two": [said() for _ in range(9)]}
    world = Replicated(replies=down)
    engines = {await world.ask(f"{n}" + TEXT) for n in range(4)}
    assert engines == {"two"}
    assert world.row.end == "ok"


async def test_workers_tell_each_other():
    told = []
    one, two = Replicated(told.append), Replicated()
    first = await one.ask(TEXT + "one")
    for message in told:
        two.lever.hear(message)
    assert await two.ask(TEXT + "two") == first
    assert two.row.decisions[-1].score > 0.5
    with pytest.raises(msgspec.MsgspecError):
        two.lever.hear(b"nonsense")


async def test_an_engine_that_has_forgotten_is_believed():
    world = Replicated()  # its engines report no cached tokens
    for n in range(5):
        await world.ask(TEXT + str(n))
    assert world.row.decisions[-1].score == 0.0  # three such reports: it has begun anew


async def test_an_answer_of_any_replica_is_kept():
    store = MemoryStore(100, 1 << 20, Clock())
    cache = exact_cache.build(
        lambda route: exact_cache.Config(),
        store,
        Clock(),
        lambda d, finish, fields: CODECS[d].finish_is_whole(finish, fields),
    )
    world = Replicated()
    while await world.ask(f"{len(world.journal.rows)}" + TEXT, [cache]) == "one":
        pass
    last = len(world.journal.rows) - 1
    await world.ask(f"{last}" + TEXT, [cache])
    assert (world.row.cache, world.row.attempts) == ("hit", ())


def test_sockets_are_in_the_run_folder_unless_its_path_is_too_long_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    short, long = Path("/d/run"), tmp_path / ("x" * 80) / "run"
    assert socket_folder(short) == short
    found = socket_folder(long)
    assert found.parent == tmp_path
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert socket_folder(long) == found != socket_folder(long.parent)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(StoreError, match="belongs to somebody else"):
        socket_folder(long)


async def test_neighbours_hear_each_other_and_not_themselves(tmp_path):
    heard = {"a": [], "b": []}
    ends = {name: Neighbours(tmp_path, name) for name in heard}
    for name, end in ends.items():
        end.hear = heard[name].append
        end.start()
    try:
        ends["a"].tell(b"hello")
        for _ in range(100):
            await asyncio.sleep(0.01)
            if heard["b"]:
                break
        assert heard == {"a": [], "b": [b"hello"]}
        ends["b"].stop()
        ends["a"].tell(b"to nobody")
    finally:
        for end in ends.values():
            end.stop()


def test_replicas_in_the_configuration(tmp_path):
    text = f'{OPENAI}\n[engines.second]\nkind = "openai_http"\nbase_url = "https://b.example.com/v1"\n'
    path = tmp_path / "trimtab.toml"
    path.write_text(text + '[models.m]\nengine = "openai"\nreplicas = ["second"]\n')
    assert replicas(load(path, ENV)) == {"m": ("openai", "second")}
    for wrong, said_ in (('["third"]', "unknown engine"), ('["openai"]', "is there twice")):
        path.write_text(text + f'[models.m]\nengine = "openai"\nreplicas = {wrong}\n')
        with pytest.raises(ConfigError, match=r"models\.m\.replicas") as caught:
            load(path, ENV)
        assert said_ in str(caught.value)
