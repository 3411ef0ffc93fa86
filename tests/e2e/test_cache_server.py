"""Gateways that share a Valkey server: what one has answered the other knows; no fault of the server is a client's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asking import Pair, send
from gateway_process import Gateway, MakeGateway, two_upstreams
from questions import Questions, lines, metric
from upstream import Upstream, wait_until
from upstream_shapes import Act

from valkey_server import ValkeyServer


@pytest.fixture
def server(valkey_binary: Path, tmp_path: Path) -> Iterator[ValkeyServer]:
    """One that the test may break."""
    with ValkeyServer(valkey_binary, tmp_path) as running:
        yield running


def config(upstream: Upstream, server: ValkeyServer, more: str = "", *, timeout_ms: int = 500) -> str:
    """The budget is a busy test machine's, where processes may have to wait for a turn for longer than 20 ms."""
    store = f'[levers.exact_cache]\nstore = "valkey"\nurl = "{server.url}"\ntimeout_ms = {timeout_ms}\n{more}\n'
    return two_upstreams(upstream.port, extra=store)


def test_gateways_share_answers_and_purges(gateways: MakeGateway, upstream: Upstream, server: ValkeyServer) -> None:
    one = gateways(config(upstream, server), server="workers = 2")
    two = gateways(config(upstream, server))
    pair = Pair("openai", "gpt")
    prompts = {tag: upstream.prompt(Act(text=f"old {tag}"), Act(text=f"new {tag}")) for tag in ("a", "b")}

    def ask(gateway: Gateway, tag: str) -> tuple[str, str]:
        got = send(gateway, pair, pair.body(prompts[tag]), {"x-trimtab-corpus-version": tag})
        return got.headers["x-trimtab-cache"], got.json["choices"][0]["message"]["content"]

    assert [ask(one, tag) for tag in "ab"] == [("miss", "old a"), ("miss", "old b")]
    wait_until(lambda: len(server.keys()) == 2, 10, "the answers to be written")
    for gateway in (two, one, one, one, one, two):
        assert [ask(gateway, tag) for tag in "ab"] == [("hit", "old a"), ("hit", "old b")]
    figures = one.trimtab("cache", "stats", "--json")
    assert figures.returncode == 0 and '"entries": 2' in figures.stdout, figures
    done = two.trimtab("cache", "purge", "--corpus-version", "a")
    assert done.returncode == 0 and done.stdout.startswith("Purged 1 answer from valkey://127.0.0.1:"), done
    assert ask(one, "a") == ("miss", "new a")
    wait_until(lambda: len(server.keys()) == 2, 10, "the new answer to be written")
    for gateway in (one, one, one, two):
        assert [ask(gateway, tag) for tag in "ab"] == [("hit", "new a"), ("hit", "old b")]
    assert "Purged 2 answers" in one.trimtab("cache", "purge").stdout
    assert ask(two, "b") == ("miss", "new b")
    assert lines(one) == lines(two) == []
    assert metric(one, "trimtab_cache_down") == 0


def test_a_server_that_is_down_at_the_start(gateways: MakeGateway, upstream: Upstream, server: ValkeyServer) -> None:
    server.kill()
    gateway = gateways(config(upstream, server))
    questions = Questions(gateway, upstream)
    assert [questions.ask(n) for n in range(24)] == ["miss"] * 24
    assert metric(gateway, "trimtab_cache_down") == 1
    assert metric(gateway, "trimtab_cache_skipped_total") >= 24
    assert len(lines(gateway)) == 1 and "requests go on without it" in lines(gateway)[0]
    failed = gateway.trimtab("cache", "purge", "--tenant", "x")
    assert failed.returncode == 1 and "not complete" in failed.stderr
    server.start()
    wait_until(lambda: metric(gateway, "trimtab_cache_down") == 0, 30, "the server to be found")
    [questions.ask(n) for n in range(12)]
    wait_until(lambda: len(server.keys()) == 12, 10, "the answers to be written")
    assert [questions.ask(n) for n in range(12)] == ["hit"] * 12
    assert len(lines(gateway)) == 2 and lines(gateway)[1].endswith("is back")
    assert questions.problems == []


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_server_that_fails_under_load(
    gateways: MakeGateway, upstream: Upstream, server: ValkeyServer, how: str
) -> None:
    gateway = gateways(config(upstream, server))
    with Questions(gateway, upstream) as questions:
        questions.more(30, "hit")
        server.kill() if how == "killed" else server.freeze()
        wait_until(lambda: metric(gateway, "trimtab_cache_down") == 1, 20, "the failure to be noticed")
        questions.more(60, "miss")
        assert len(lines(gateway)) == 1 and "requests go on without it" in lines(gateway)[0]
        server.start() if how == "killed" else server.thaw()
        wait_until(lambda: metric(gateway, "trimtab_cache_down") == 0, 30, "the server to be found")
        questions.more(30, "hit")
    assert questions.problems == []
    assert len(lines(gateway)) == 2 and lines(gateway)[1].endswith("is back")
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.log() and "never retrieved" not in gateway.log()


def test_a_server_that_hangs_is_asked_a_few_times_only(
    gateways: MakeGateway, upstream: Upstream, server: ValkeyServer
) -> None:
    gateway = gateways(config(upstream, server, timeout_ms=100))
    questions = Questions(gateway, upstream, count=40)
    server.freeze()
    assert [questions.ask(n) for n in range(40)] == ["miss"] * 40
    wait_until(lambda: metric(gateway, "trimtab_cache_skipped_total") >= 30, 10, "look-ups that did not wait for it")
    assert questions.problems == []
    server.thaw()


def test_a_hundred_ask_the_same_while_the_server_is_down(
    gateways: MakeGateway, upstream: Upstream, server: ValkeyServer
) -> None:
    gateway = gateways(config(upstream, server))
    server.kill()
    wait_until(lambda: metric(gateway, "trimtab_cache_down") == 1, 20, "the failure to be noticed")
    prompt = upstream.prompt(Act(text="the one answer", head_after_s=1.5))
    pair = Pair("openai", "gpt")
    with ThreadPoolExecutor(100) as pool:
        got = list(pool.map(lambda _: send(gateway, pair, pair.body(prompt)), range(100)))
    assert {g.json["choices"][0]["message"]["content"] for g in got} == {"the one answer"}
    # Those who came after the answer, as on a busy machine some may, found no cache to have it from.
    late = [g for g in got if g.headers["x-trimtab-cache"] == "miss"][1:]
    assert len(upstream.requests(prompt)) == 1 + len(late) and len(late) < 50
    assert len(lines(gateway)) == 1


def test_a_full_server(gateways: MakeGateway, upstream: Upstream, valkey_binary: Path, tmp_path: Path) -> None:
    with ValkeyServer(valkey_binary, tmp_path, "--maxmemory-policy", "noeviction") as server:
        gateway = gateways(config(upstream, server))
        used = int(re.findall(rb"used_memory:(\d+)", server.ask("INFO", "memory"))[0])
        server.ask("CONFIG", "SET", "maxmemory", used + 200_000)
        with Questions(gateway, upstream, count=200, size=2500) as questions:
            questions.more(250)
            wait_until(lambda: metric(gateway, "trimtab_cache_errors_total") > 0, 20, "the server to be full")
            questions.more(20, "hit")
            assert metric(gateway, "trimtab_cache_down") == 0
        assert questions.problems == []
        said = [line.rpartition("/0 ")[2] for line in lines(gateway)]
        assert said[0].startswith("refuses to write")
        assert said[1:] in ([], ["takes answers again"])  # a small one may still find room


def test_garbage_under_our_keys(gateways: MakeGateway, upstream: Upstream, server: ValkeyServer) -> None:
    gateway = gateways(config(upstream, server, "max_entries = 0"))
    questions = Questions(gateway, upstream)
    [questions.ask(n) for n in range(12)]
    wait_until(lambda: len(server.keys()) == 12, 10, "the answers to be written")
    assert [questions.ask(n) for n in range(12)] == ["hit"] * 12
    for n, name in enumerate(server.keys()):
        value = server.ask("GET", name)
        server.ask("SET", name, [b"garbage", value[:100], value[:-1] + b"\x00", b""][n % 4])
    assert [questions.ask(n) for n in range(12)] == ["miss"] * 12
    wait_until(lambda: metric(gateway, "trimtab_cache_errors_total") == 12, 10, "the count")
    time.sleep(0.2)  # the new answers are on their way
    assert [questions.ask(n) for n in range(12)] == ["hit"] * 12
    assert questions.problems == []
    assert len(lines(gateway)) == 1 and "no answer of ours" in lines(gateway)[0]


def test_a_server_that_is_killed_while_it_is_written_to(
    gateways: MakeGateway, upstream: Upstream, valkey_binary: Path, tmp_path: Path
) -> None:
    with ValkeyServer(valkey_binary, tmp_path, "--appendonly", "yes") as server:
        gateway = gateways(config(upstream, server))
        with Questions(gateway, upstream, count=400, size=3000) as questions:
            for _ in range(3):
                questions.more(40, "miss")
                server.kill()
                questions.more(10)
                server.start()
                wait_until(lambda: metric(gateway, "trimtab_cache_down") == 0, 30, "the server to be found")
        assert questions.problems == []
        assert len(lines(gateway)) == 6


def test_a_password_comes_from_the_environment_and_is_never_shown(
    gateways: MakeGateway, upstream: Upstream, valkey_binary: Path, tmp_path: Path
) -> None:
    with ValkeyServer(valkey_binary, tmp_path) as server:
        server.ask("CONFIG", "SET", "requirepass", "hunter2hunter2")
        text = two_upstreams(upstream.port, extra='[levers.exact_cache]\nstore = "valkey"\nurl_env = "CACHE_URL"\n')
        url = f"redis://:hunter2hunter2@127.0.0.1:{server.port}/0"
        gateway = gateways(text, {"CACHE_URL": url})
        questions = Questions(gateway, upstream, count=2)
        questions.ask(0)
        wait_until(lambda: questions.ask(0) == "hit", 10, "a hit")
        purged = gateway.trimtab("cache", "purge", "--json")
        assert purged.returncode == 0, purged
        wrong = gateways(text, {"CACHE_URL": url.replace("hunter2", "hunter3")})
        assert Questions(wrong, upstream, count=1).ask(0) == "miss"
        assert len(lines(wrong)) == 1
        for shown in (gateway.log(), wrong.log(), purged.stdout, gateway.trimtab("config", "show").stdout):
            assert "hunter" not in shown


def test_a_store_in_memory(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port, extra='[levers.exact_cache]\nstore = "memory"\n'))
    pair = Pair("openai", "gpt")
    body = pair.body(upstream.prompt(Act(text="old"), Act(text="new")))
    words = [send(gateway, pair, body).headers["x-trimtab-cache"] for _ in range(2)]
    other = pair.body(upstream.prompt())
    words += [send(gateway, pair, other, {"x-trimtab-route": "faq"}).headers["x-trimtab-cache"] for _ in range(2)]
    assert words == ["miss", "hit", "miss", "hit"]
    assert gateway.trimtab("cache", "purge", "--route", "default").returncode == 0
    assert send(gateway, pair, body).headers["x-trimtab-cache"] == "miss"
    assert send(gateway, pair, other, {"x-trimtab-route": "faq"}).headers["x-trimtab-cache"] == "hit"
    assert not (gateway.data_dir / "cache" / "answers").exists()
