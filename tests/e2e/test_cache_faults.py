"""The answers' file breaks under a real gateway: everybody is answered rightly, the log has one line, metrics count."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from gateway_process import Gateway, MakeGateway, two_upstreams
from questions import Questions, lines, metric
from upstream import Upstream, wait_until

ROOM = 1_500_000  # for each file of a worker: enough for the journal, which is a megabyte


@pytest.fixture
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(two_upstreams(upstream.port))


def data_of(gateway: Gateway) -> Path:
    return gateway.data_dir / "cache" / "answers" / "data.mdb"


def test_a_folder_that_cannot_be_used(gateway: Gateway, upstream: Upstream) -> None:
    gateway.stop()
    for path in sorted((gateway.data_dir / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (gateway.data_dir / "cache").rmdir()
    (gateway.data_dir / "cache").write_text("a file where the folder should be")
    gateway.start()
    questions = Questions(gateway, upstream)
    assert [questions.ask(n) for n in range(12)] == ["miss"] * 12
    assert [questions.ask(n) for n in range(12)] == ["hit"] * 12  # from memory
    assert questions.problems == []
    assert len(lines(gateway)) == 1 and "kept in memory only" in lines(gateway)[0]
    assert metric(gateway, "trimtab_cache_errors_total") >= 12


def test_a_disk_that_runs_full(gateway: Gateway, upstream: Upstream) -> None:
    (worker,) = gateway.children("trimtab-worker0")
    early = Questions(gateway, upstream)
    assert [early.ask(n) for n in range(12)] == ["miss"] * 12
    wait_until(lambda: metric(gateway, "trimtab_cache_entries") == 12, 10, "the answers to be written")
    _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (ROOM, hard))
    with Questions(gateway, upstream, count=300, size=12_000) as questions:
        wait_until(lambda: metric(gateway, "trimtab_cache_errors_total") > 20, 30, "the disk to be full")
        questions.more(50)
    assert [early.ask(n) for n in range(12)] == ["hit"] * 12
    assert questions.problems == early.problems == []
    assert data_of(gateway).stat().st_size <= ROOM
    assert len(lines(gateway)) == 1 and "cannot be written" in lines(gateway)[0]
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
    fresh = Questions(gateway, upstream)
    assert [fresh.ask(n) for n in range(12)] == ["miss"] * 12
    wait_until(lambda: data_of(gateway).stat().st_size > ROOM or fresh.ask(0) == "hit", 10, "it to be written again")
    assert fresh.problems == []


@pytest.mark.parametrize("how", ["garbage", "flipped"])
def test_a_file_that_is_damaged(gateway: Gateway, upstream: Upstream, how: str) -> None:
    questions = Questions(gateway, upstream)
    assert [questions.ask(n) for n in range(12)] == ["miss"] * 12
    wait_until(lambda: metric(gateway, "trimtab_cache_entries") == 12, 10, "the answers to be written")
    gateway.stop()
    data = data_of(gateway).read_bytes()
    damaged = data.replace(b"the answer to question", b"an answer to question!") if how == "flipped" else data[::-1]
    assert damaged != data
    data_of(gateway).write_bytes(damaged)
    gateway.start()
    assert [questions.ask(n) for n in range(12)] == ["miss"] * 12
    wait_until(lambda: metric(gateway, "trimtab_cache_entries") >= 12, 10, "the answers to be written anew")
    assert [questions.ask(n) for n in range(12)] == ["hit"] * 12
    assert questions.problems == []
    assert len(lines(gateway)) == 1, lines(gateway)
    assert ("set aside" if how == "garbage" else "damaged entry") in lines(gateway)[0]
    assert how == "garbage" or metric(gateway, "trimtab_cache_errors_total") == 12


def test_killed_while_it_writes(gateway: Gateway, upstream: Upstream) -> None:
    with Questions(gateway, upstream, count=150, size=3000) as questions:
        questions.more(60, "miss")
        gateway.kill()
        gateway.start()
        # Clients whose gateway died saw that, and nothing wrong.
        assert [problem for problem in questions.problems if problem.startswith("200")] == []
        questions.problems.clear()
        questions.more(30)
    words = [questions.ask(n) for n in range(150)]
    assert questions.problems == [] and words.count("hit") > 30
    assert lines(gateway) == []
