"""A gateway with a queue in front of its engine: who waits, who is refused, and a reload meanwhile."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator

import pytest
from asking import Got, Pair, RawClient, send
from gateway_process import Gateway, MakeGateway, two_upstreams
from upstream import Upstream, wait_until
from upstream_shapes import Act

GPT = Pair("openai", "gpt")
QUEUE = "[engines.oai.admission]\nmax_concurrency = 1\nmax_wait_s = {wait}\n"
OFF = {"x-trimtab-cache": "off"}


def gauge(gateway: Gateway, name: str) -> float:
    lines = gateway.get("/metrics")[1].decode().splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name}{{")), "nan"))


@pytest.fixture
def busy(gateways: MakeGateway, upstream: Upstream) -> Iterator[tuple[Gateway, RawClient]]:
    """Its one slot is taken by a stream that does not end."""
    gateway = gateways(two_upstreams(upstream.port, extra=QUEUE.format(wait=60)))
    client = RawClient(gateway, GPT, GPT.body(upstream.prompt(Act(endless=True, gap_s=0.01)), stream=True))
    client.send()
    client.read_until(b"Hello")
    yield gateway, client
    client.leave()


def test_who_waits_is_served_when_the_other_leaves(busy: tuple[Gateway, RawClient], upstream: Upstream) -> None:
    gateway, client = busy
    prompt, got = upstream.prompt(), list[Got]()
    asking = threading.Thread(target=lambda: got.append(send(gateway, GPT, GPT.body(prompt), OFF)))
    asking.start()
    wait_until(lambda: gauge(gateway, "trimtab_queue_waiting") == 1, 10, "the request to wait")
    assert (gauge(gateway, "trimtab_queue_running"), gauge(gateway, "trimtab_queue_limit")) == (1, 1)
    assert upstream.requests(prompt) == []
    client.leave()
    asking.join(20)
    (answer,) = got
    assert answer.status == 200
    assert "queue;dur=" in answer.headers["server-timing"]
    assert json.loads(gateway.row(id=answer.request_id)["detail"])["stages"]["queue"] > 0


def test_a_client_that_leaves_the_line_was_never_at_the_engine(
    busy: tuple[Gateway, RawClient], upstream: Upstream
) -> None:
    gateway, _ = busy
    prompt = upstream.prompt()
    gone = RawClient(gateway, GPT, GPT.body(prompt))
    gone.send()
    wait_until(lambda: gauge(gateway, "trimtab_queue_waiting") == 1, 10, "the request to wait")
    gone.leave("rst")
    wait_until(lambda: gauge(gateway, "trimtab_queue_waiting") == 0, 10, "its place to be free")
    row = gateway.row(workflow=gone.workflow)
    assert (row["end"], row["attempts"]) == ("cancelled", 0)
    assert upstream.requests(prompt) == []


def test_a_reload_keeps_who_runs_and_refuses_by_the_new_terms(
    busy: tuple[Gateway, RawClient], upstream: Upstream
) -> None:
    gateway, _ = busy
    gateway.write_config(two_upstreams(upstream.port, extra=QUEUE.format(wait=0.05)))
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: "configuration reloaded" in gateway.log(), 10, "the reload")
    got = send(gateway, GPT, GPT.body(upstream.prompt()), OFF)
    assert (got.status, got.json["error"]["code"]) == (503, "overloaded")
    assert got.headers["retry-after"] == "1"
    row = gateway.row(id=got.request_id)
    assert (row["end"], row["attempts"]) == ("refused", 0)
    assert gauge(gateway, "trimtab_queue_refused_total") == 1
    gateway.write_config(two_upstreams(upstream.port))
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: gateway.log().count("configuration reloaded") == 2, 10, "the reload")
    assert send(gateway, GPT, GPT.body(upstream.prompt()), OFF).status == 200
    assert gauge(gateway, "trimtab_queue_limit") == 0
