"""`trimtab cache`: what it prints, and that it works beside a running gateway."""

import json
import os
import subprocess
import sys
import time

import msgspec
import pytest
from click.testing import CliRunner

from trimtab.cli.cache import cache
from trimtab.stores._purges import Purges
from trimtab.stores.lmdb import LmdbStore
from trimtab.stores.memory import MemoryStore
from trimtab.types import Dialect, Scope, Stored, Target, Usage


class SystemClock:
    wall = staticmethod(time.time)
    mono = staticmethod(time.monotonic)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_DATA_DIR", str(tmp_path))
    return tmp_path


def open_store(data_dir) -> LmdbStore:
    return LmdbStore(data_dir / "cache", 16 << 20, SystemClock(), MemoryStore(100, 1 << 20, SystemClock()))


def fill(store: LmdbStore | MemoryStore, count: int) -> None:
    now = time.time()
    target = Target("fast", "openai", "gpt", "openai")
    for n in range(count):
        stored = Stored(Dialect.OPENAI, b"{}", "gpt", target, Usage(), f"r{n}", now, now + 100)
        scope = Scope("odd" if n % 2 else "even", prompt_version=f"p{n % 3}")
        store.put(n.to_bytes(32, "big"), msgspec.structs.replace(stored, scope=scope, asked_model="m"))
    if isinstance(store, LmdbStore):
        store.flush()


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cache, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_without_a_cache_it_says_so_and_makes_nothing(data_dir):
    assert "No answers are kept yet" in invoke("stats")
    assert "Nothing to purge" in invoke("purge")
    assert json.loads(invoke("stats", "--json")) == {
        "folder": str(data_dir / "cache"),
        "entries": 0,
        "bytes": 0,
        "file_bytes": 0,
    }
    assert json.loads(invoke("purge", "--json"))["purged"] == 0
    assert list(data_dir.iterdir()) == []


def test_stats_and_purge(data_dir):
    store = open_store(data_dir)
    fill(store, 3)
    store.close()
    figures = json.loads(invoke("stats", "--json"))
    assert figures["entries"] == 3 and 0 < figures["bytes"] <= figures["file_bytes"]
    assert invoke("stats").startswith(f"3 answers in {data_dir / 'cache'}, ")
    assert invoke("purge").startswith("Purged 3 answers from ")
    assert json.loads(invoke("stats", "--json"))["entries"] == 0
    fill(store := open_store(data_dir), 1)
    store.close()
    assert "Purged 1 answer from" in invoke("purge")


def test_a_selective_purge_says_what_went(data_dir):
    store = open_store(data_dir)
    fill(store, 6)
    store.close()
    found = json.loads(invoke("purge", "--tenant", "odd", "--prompt-version", "p0", "--json"))
    assert (found["purged"], found["where"]) == (1, {"tenant": "odd", "prompt_version": "p0"})
    text = invoke("purge", "--tenant", "odd", "--model", "m")
    assert text.startswith("Purged 2 answers from ")
    assert "those with tenant odd, model m" in text
    assert "Purged 1 answer from" in invoke("purge", "--request", "r4")
    assert "Purged 0 answers" in invoke("purge", "--corpus-version", "c1")
    assert "Purged 2 answers" in invoke("purge", "--corpus-version", "")
    assert json.loads(invoke("stats", "--json"))["entries"] == 0


def test_a_store_in_memory_is_told_by_the_folder(data_dir, monkeypatch):
    (data_dir / "trimtab.toml").write_text('[levers.exact_cache]\nstore = "memory"\n')
    monkeypatch.setenv("TRIMTAB_CONFIG", str(data_dir / "trimtab.toml"))
    assert json.loads(invoke("purge", "--json"))["purged"] == 0
    (data_dir / "cache").mkdir()
    store = MemoryStore(100, 1 << 20, SystemClock(), Purges(data_dir / "cache", time.time()))
    fill(store, 5)
    assert json.loads(invoke("purge", "--tenant", "odd", "--json"))["purged"] is None
    assert [n for n in range(5) if store.find(n.to_bytes(32, "big")) is not None] == [0, 2, 4]
    assert "have dropped all answers" in invoke("purge")
    assert store.stats()["entries"] == 5 - 2  # not asked since
    assert [n for n in range(5) if store.find(n.to_bytes(32, "big")) is not None] == []
    result = CliRunner().invoke(cache, ["stats"])
    assert result.exit_code == 1 and "/metrics" in result.output
    store.close()


def test_a_purge_reaches_a_running_gateway(data_dir):
    store = open_store(data_dir)
    fill(store, 5)
    assert store.find((1).to_bytes(32, "big")) is not None
    code = "from trimtab.cli.cache import cache; cache()"
    for arguments, expected in [(("stats",), "entries"), (("purge",), "purged")]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, "TRIMTAB_DATA_DIR": str(data_dir)},
            timeout=60,
            check=True,
        )
        assert json.loads(done.stdout)[expected] == 5
    assert store.find((1).to_bytes(32, "big")) is None
    store.close()


def test_a_cache_that_cannot_be_opened_is_an_error_with_a_way_to_see_why(data_dir, caplog):
    store = open_store(data_dir)  # held by this very process, which LMDB does not share with itself
    fill(store, 1)
    for command in ("stats", "purge"):
        result = CliRunner().invoke(cache, [command])
        assert result.exit_code == 1
        assert str(data_dir / "cache") in result.output
    assert any("cannot be opened" in line for line in caplog.messages)
    store.close()


def test_it_looks_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    store = open_store(tmp_path / "one")
    fill(store, 2)
    store.close()
    assert json.loads(invoke("stats", "--data-dir", str(tmp_path / "one"), "--json"))["entries"] == 2
    (tmp_path / "trimtab.toml").write_text(
        '[server]\ndata_dir = "one"\n[engines.e]\nkind = "openai_http"\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    assert json.loads(invoke("stats", "--json"))["entries"] == 2
    (tmp_path / "other.toml").write_text('[server]\nport = "x"\n')
    result = CliRunner().invoke(cache, ["stats", "--config", "other.toml"])
    assert result.exit_code == 1 and "server.port" in result.output and "--data-dir" in result.output
