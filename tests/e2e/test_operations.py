"""Running it: reload, shutdown, workers that share a cache, keys, what one request did, metrics and health."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from typing import Any

import pytest
from asking import SAME, Got, Pair, RawClient, name_of, post, send
from gateway_process import Gateway, MakeGateway, new_id, two_upstreams
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act

SAME_PAIRS = pytest.mark.parametrize("pair", SAME, ids=name_of)


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(two_upstreams(upstream.port))


def said(pair: Pair, got: Got) -> str:
    """The text of a buffered answer."""
    if pair.dialect == "openai":
        return str(got.json["choices"][0]["message"]["content"])
    return str(got.json["content"][0]["text"])


# Health, metrics, one request -----------------------------------------------------------------------------------------


def test_health(gateway: Gateway) -> None:
    assert gateway.get("/healthz")[0] == 200
    assert gateway.get("/readyz")[0] == 200


_SAMPLE = re.compile(
    r'^[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_][a-zA-Z0-9_]*="(\\.|[^"\\\n])*",?)*\})? (NaN|[+-]?Inf|[+-]?[0-9.eE+-]+)$'
)
_COMMENT = re.compile(r"^# (HELP [a-zA-Z_:][a-zA-Z0-9_:]* .*|TYPE [a-zA-Z_:][a-zA-Z0-9_:]* (counter|gauge|histogram))$")


def test_metrics_are_prometheus_text(gateway: Gateway, upstream: Upstream) -> None:
    pair = Pair("openai", "gpt")
    send(gateway, pair, pair.body(upstream.prompt()), {"x-trimtab-route": 'odd"name'})
    send(gateway, pair, pair.body(upstream.prompt(), stream=True))
    status, text = gateway.get("/metrics")
    assert status == 200
    lines = text.decode().splitlines()
    assert text.endswith(b"\n")
    typed: dict[str, str] = {}
    for line in lines:
        assert _SAMPLE.match(line) or _COMMENT.match(line), line
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name not in typed
            typed[name] = kind
    samples = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    assert any(s.startswith("trimtab_requests_total{") and 'end="ok"' in s for s in samples)
    for sample in samples:
        name = sample.split("{")[0]
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert typed.get(name) or typed.get(base) == "histogram", name


@SAME_PAIRS
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_one_request_in_full(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    stages = {"x-trimtab-stages": "retrieval;dur=120.5, rerank;dur=40"}
    got = send(gateway, pair, pair.body(upstream.prompt(), stream=stream), stages)
    key = {"authorization": "Bearer sk-client"}
    status, body = gateway.get(f"/v1/trimtab/requests/{got.request_id}", key)
    assert status == 200
    detail = json.loads(body)
    assert detail["detail"]["app_stages"] == {"retrieval": 0.1205, "rerank": 0.04}
    text = json.dumps(detail)
    assert detail["id"] == got.request_id
    assert detail["cost_nusd"] == 110_000
    decisions = detail["detail"]["decisions"]
    assert [(d["lever"], d["slot"], d["reason"]) for d in decisions] == [("exact_cache", "REUSE_EXACT", "miss")]
    assert {"auth", "parse", "exact_cache", "model_ttft", "model_stream"} <= set(detail["detail"]["stages"])
    attempts = detail["attempts"]
    assert [(a["engine"], a["end"], a["status"]) for a in attempts] == [
        ("oai" if pair.model == "gpt" else "ant", "ok", 200)
    ]
    assert (attempts[0]["upstream_id"] or "").startswith("req_")
    assert detail["price_source"]
    assert DEFAULT_TEXT not in text  # no answer is stored there


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@SAME_PAIRS
def test_a_trace_and_stages_after_the_answer(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    trace_id = new_id().encode().hex()[-32:]
    came = f"00-{trace_id}-00f067aa0ba902b7-01"
    prompt = upstream.prompt(Act(status=503), Act())
    got = send(gateway, pair, pair.body(prompt), {"traceparent": came, "tracestate": "app=1"})
    assert got.status == 200
    sent = [seen.headers for seen in upstream.requests(prompt)]
    assert [headers["tracestate"] for headers in sent] == ["app=1", "app=1"]
    parents = [headers["traceparent"] for headers in sent]
    assert len({came, *parents}) == 3  # each call is a span of its own
    assert {(p[:35], p[52:]) for p in parents} == {(f"00-{trace_id}", "-01")}
    said = {"stages": [{"name": "validation", "duration_ms": 2500}, {"name": "tool_call", "duration_ms": 8000}]}
    key = {"authorization": "Bearer sk-client"}
    url = f"{gateway.base_url}/v1/trimtab/requests/{got.request_id}/stages"
    assert post(url, json.dumps(said), key).status_code == 202
    assert post(url, json.dumps({"stages": [{"name": "forged", "duration_ms": 1}]}), {}).status_code == 202
    refused = post(url, json.dumps({"stages": [{"name": "a b", "duration_ms": 1}]}), key)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stages[0].name")
    assert gateway.row(id=got.request_id)["trace_id"] == trace_id
    wait_until(lambda: "tool call" in gateway.trimtab("ledger", "show", trace_id).stdout, 10, "the stages to arrive")
    shown = gateway.trimtab("ledger", "show", trace_id).stdout
    assert "Most of it: tool call, the application's" in shown
    assert "forged" not in shown


def test_a_trace_goes_along_with_a_call_that_is_passed_through(gateway: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt()
    body = json.dumps({"model": "gpt", "input": prompt})
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"}
    assert post(gateway.base_url + "/v1/embeddings", body, headers).status_code == 200
    (seen,) = upstream.requests(prompt)
    assert seen.headers["traceparent"][:36] == f"00-{TRACE}-"
    assert seen.headers["traceparent"] != headers["traceparent"]


def test_an_unknown_request_is_not_found(gateway: Gateway) -> None:
    status, body = gateway.get("/v1/trimtab/requests/tt-nonsense")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")


def test_export_and_summary(gateway: Gateway, upstream: Upstream) -> None:
    workflow = new_id()
    pair = Pair("openai", "gpt")
    for _ in range(3):
        send(gateway, pair, pair.body(upstream.prompt()), {"x-trimtab-workflow": workflow})
    gateway.ledger(workflow=workflow, count=3)
    done = gateway.trimtab("ledger", "export", "--format", "jsonl", "--output", "-")
    assert done.returncode == 0, done.stderr
    rows = [row for line in done.stdout.splitlines() if (row := json.loads(line))["workflow"] == workflow]
    assert [row["cost_nusd"] for row in rows] == [110_000] * 3
    done = gateway.trimtab("ledger", "summary", "--by", "workflow", "--json")
    assert done.returncode == 0, done.stderr
    assert workflow in done.stdout
    assert "330000" in done.stdout.replace(",", "").replace("_", "")


# Reload ---------------------------------------------------------------------------------------------------------------


class Load:
    """Clients that keep asking until told to stop, and remember what went wrong."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.problems: list[str] = []
        self.answered = 0
        self._markers = [upstream.prompt(), upstream.prompt(Act(gap_s=0.03)), upstream.prompt(Act(head_after_s=0.2))]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, n: int) -> None:
        with self.gateway.openai() as client:
            while not self._stop.is_set():
                messages: Any = [{"role": "user", "content": self._markers[n % len(self._markers)]}]
                try:
                    if n % 2:
                        reply = client.chat.completions.create(model="gpt", messages=messages)
                        text = reply.choices[0].message.content
                    else:
                        chunks = client.chat.completions.create(model="gpt", messages=messages, stream=True)
                        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                    if text != DEFAULT_TEXT:
                        self.problems.append(f"got {text!r}")
                    self.answered += 1
                except Exception as problem:  # whatever it is, it is the finding
                    self.problems.append(repr(problem))


def listed(gateway: Gateway) -> set[str]:
    return {model["id"] for model in json.loads(gateway.get("/v1/models")[1])["data"]}


def test_reload_under_load_drops_nothing(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port), server="workers = 2")
    with Load(gateway, upstream) as load:
        for n in range(3):
            wait_until(lambda: load.answered > 10, 20, "the load to run")
            name = f"new-model-{n}"
            gateway.write_config(two_upstreams(upstream.port, models=f'[models.{name}]\nengine = "ant"\n'))
            gateway.signal(signal.SIGHUP)
            # Each worker reloads for itself: ask several times, each over a connection of its own.
            wait_until(lambda name=name: all(name in listed(gateway) for _ in range(6)), 15, f"{name} to be listed")
            load.answered = 0
        wait_until(lambda: load.answered > 10, 20, "the load to go on")
    assert load.problems == []
    pair = Pair("openai", "new-model-2")
    assert send(gateway, pair, pair.body(upstream.prompt())).status == 200


def test_a_broken_configuration_keeps_the_old_one(gateways: MakeGateway, upstream: Upstream) -> None:
    good = two_upstreams(upstream.port)
    gateway = gateways(good)
    before = listed(gateway)
    gateway.write_config(good + '\n[models.broken]\nengine = "no-such-engine"\n')
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: "models.broken" in gateway.log(), 10, "the mistake to be reported")
    assert "no-such-engine" in gateway.log()
    assert listed(gateway) == before
    pair = Pair("openai", "gpt")
    assert send(gateway, pair, pair.body(upstream.prompt())).status == 200
    gateway.write_config(good + '\n[models.mended]\nengine = "oai"\n')
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: "mended" in listed(gateway), 10, "the mended configuration")


def test_sigterm_lets_a_stream_finish(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port))
    prompt, workflow = upstream.prompt(Act(gap_s=0.1)), new_id()
    with gateway.openai() as client:
        stream = client.chat.completions.create(
            model="gpt",
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            extra_headers={"x-trimtab-workflow": workflow},
        )
        text = next(stream).choices[0].delta.content or ""
        gateway.signal(signal.SIGTERM)
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == DEFAULT_TEXT
    assert gateway.stop() == 0
    assert gateway.row(workflow=workflow)["end"] == "ok"
    with pytest.raises(OSError):
        gateway.get("/healthz")


# Workers --------------------------------------------------------------------------------------------------------------


def worker_of(got: Got) -> str:
    """Request ids begin with a part of their own for each worker process, and end in a counter of 8 digits."""
    return got.request_id[:-8]


def test_workers_share_the_cache_and_a_purge_reaches_all(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port), server="workers = 2")
    pair = Pair("openai", "gpt")
    prompt = upstream.prompt(Act(text="old"), Act(text="new"))
    body = pair.body(prompt)

    def ask_until_both(cache: str) -> list[Got]:
        answers = [send(gateway, pair, body)]
        time.sleep(0.5)  # what one worker stores reaches the others in batches
        deadline = time.monotonic() + 20
        while len({worker_of(got) for got in answers}) < 2 or len(answers) < 8:
            assert time.monotonic() < deadline, "only one worker ever answered"
            answers.append(send(gateway, pair, body))
        assert {got.headers["x-trimtab-cache"] for got in answers[1:]} == {"hit"}
        assert answers[0].headers["x-trimtab-cache"] == cache
        return answers

    first = ask_until_both("miss")
    assert {said(pair, got) for got in first} == {"old"}
    assert len(upstream.requests(prompt)) == 1
    done = gateway.trimtab("cache", "purge")
    assert done.returncode == 0, done.stderr
    after = ask_until_both("miss")
    assert {said(pair, got) for got in after} == {"new"}
    assert len(upstream.requests(prompt)) == 2


def test_the_cache_survives_a_restart(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port))
    pair = Pair("anthropic", "claude")
    body = pair.body(upstream.prompt())
    first = send(gateway, pair, body)
    gateway.stop()
    gateway.start()
    second = send(gateway, pair, body)
    assert [got.headers["x-trimtab-cache"] for got in (first, second)] == ["miss", "hit"]
    assert first.json == second.json


def test_a_worker_that_is_killed_is_replaced(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port))
    pair = Pair("openai", "gpt")
    client = RawClient(gateway, pair, pair.body(upstream.prompt(Act(endless=True, gap_s=0.01)), stream=True))
    client.send()
    client.read_until(b"Hello")
    for name in ("trimtab-worker0", "trimtab-ingest"):
        (pid,) = gateway.children(name)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda name=name, pid=pid: gateway.children(name) not in ([], [pid]), 10, f"a new {name}")
    wait_until(gateway.is_ready, 10, "the new worker to be ready")
    client.leave()
    row = gateway.row(workflow=client.workflow)
    assert (row["end"], row["usage_source"], len(row["calls"])) == ("interrupted", "estimated", 1)
    got = send(gateway, pair, pair.body(upstream.prompt()))
    assert got.status == 200
    assert gateway.row(id=got.request_id)["end"] == "ok"


@SAME_PAIRS
def test_the_client_rules_the_cache(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    answers = [Act(text=text) for text in ("first", "second", "third", "fourth")]
    body = pair.body(upstream.prompt(*answers))
    seen = []
    for word in ("off", "", "", "refresh", "", "off"):
        got = send(gateway, pair, body, {"x-trimtab-cache": word} if word else {})
        seen.append((got.headers["x-trimtab-cache"], said(pair, got)))
    assert seen == [
        ("off", "first"),
        ("miss", "second"),
        ("hit", "second"),
        ("refresh", "third"),
        ("hit", "third"),
        ("off", "fourth"),
    ]
