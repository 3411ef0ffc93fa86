"""What others are told: spans and metrics in a real OTLP receiver, log lines; and what happens when it is down."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import PAIRS, Got, Pair, RawClient, name_of, send
from gateway_process import Gateway, MakeGateway, two_upstreams
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.semconv.schemas import Schemas
from otlp_receiver import Receiver
from upstream import Upstream, wait_until
from upstream_shapes import Act, Tokens

from trimtab.telemetry.otel_names import SCHEMA_URL

SERVER, INTERNAL, CLIENT = 2, 1, 3
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GPT = Pair("openai", "gpt")


def names_in(*modules: Any) -> set[str]:
    """The names that the pinned conventions define."""
    return {value for module in modules for name, value in vars(module).items() if name.isupper() and "." in str(value)}


CONVENTIONS = names_in(gen_ai_attributes, http_attributes, url_attributes, error_attributes)


def config(port: int, endpoint: str, **more: Any) -> str:
    lines = {"otlp_endpoint": endpoint, "metrics_every_s": 1.0} | more
    return two_upstreams(port) + "\n[telemetry]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in lines.items())


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("otlp")).running() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream, receiver: Receiver) -> Gateway:
    return gateways(config(upstream.port, receiver.endpoint, sample=1.0), server="workers = 2")


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_spans_say_what_the_ledger_says(
    gateway: Gateway, upstream: Upstream, receiver: Receiver, pair: Pair, stream: bool
) -> None:
    headers = {
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "x-trimtab-stages": "retrieval;dur=120, rerank;dur=30",
        "x-trimtab-session": "talk-7",
    }
    prompt = upstream.prompt(Act(status=503), Act())
    got = send(gateway, pair, pair.body(prompt, stream=stream), headers)
    row = gateway.row(id=got.request_id)
    own, *children = receiver.spans_of(got.request_id, 5)
    assert (own["traceId"], own["parentSpanId"], own["kind"]) == (TRACE, PARENT, SERVER)
    assert own["name"] == {"openai": "POST /v1/chat/completions", "anthropic": "POST /v1/messages"}[pair.dialect]
    assert int(own["startTimeUnixNano"]) == pytest.approx(row["at"] * 1e9, rel=1e-12)
    took_s = (int(own["endTimeUnixNano"]) - int(own["startTimeUnixNano"])) / 1e9
    assert took_s == pytest.approx(row["total_s"], abs=1e-6)
    assert own["attributes"]["http.response.status_code"] == 200
    assert own["attributes"]["trimtab.cost"] == pytest.approx(row["cost_nusd"] / 1e9)
    assert own["attributes"]["gen_ai.conversation.id"] == "talk-7"
    assert "trimtab.stage.earlier_attempts" in own["attributes"]
    assert [c["kind"] for c in children] == [INTERNAL, INTERNAL, CLIENT, CLIENT]
    assert {c["traceId"] for c in children} == {TRACE}
    stages = children[:2]
    assert [s["name"] for s in stages] == ["retrieval", "rerank"]
    assert stages[0]["endTimeUnixNano"] == stages[1]["startTimeUnixNano"]
    for span, call, seen in zip(children[2:], row["calls"], upstream.requests(prompt), strict=True):
        said = span["attributes"]
        assert (
            seen.headers["traceparent"] == f"00-{TRACE}-{span['spanId']}-01"
        )  # an upstream that traces hangs below it
        assert span["name"] == f"chat {call['model']}"
        assert said["gen_ai.request.model"] == call["model"]
        assert said["trimtab.purpose"] == call["purpose"]
        assert said["trimtab.cost"] == pytest.approx((call["cost_nusd"] or 0) / 1e9)
        if call["end"] == "ok":
            assert said["gen_ai.usage.input_tokens"] == sum(
                call[f"{name}_tokens"]
                for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio")
            )
            assert said["gen_ai.usage.output_tokens"] == call["output_tokens"] + call["reasoning_tokens"]
            assert said["gen_ai.response.finish_reasons"] == [call["finish"]]
            assert ("gen_ai.response.time_to_first_chunk" in said) == stream
            assert span["status"]["code"] == 0
        else:
            assert said["error.type"] == "503"
            assert "gen_ai.usage.input_tokens" not in said
            assert span["status"]["code"] == 2
    for span in (own, *children):
        unknown = {name for name in span["attributes"] if not name.startswith("trimtab.")} - CONVENTIONS
        assert not unknown


def test_the_classes_of_tokens_and_a_cached_answer(gateway: Gateway, upstream: Upstream, receiver: Receiver) -> None:
    pair = Pair("anthropic", "claude")
    body = pair.body(upstream.prompt(Act(tokens=Tokens(cache_read=30, output=9))))
    paid = send(gateway, pair, body)
    again: list[Got] = []

    def answered_from_the_cache() -> bool:  # the other worker sees it a moment later
        again.append(send(gateway, pair, body))
        return bool(again[-1].headers["x-trimtab-cache"] == "hit")

    wait_until(answered_from_the_cache, 10, "a hit")
    row = gateway.row(id=paid.request_id)
    _, call = receiver.spans_of(paid.request_id, 2)
    assert call["attributes"]["gen_ai.usage.cache_read.input_tokens"] == row["cache_read_tokens"] == 30
    assert call["attributes"]["gen_ai.usage.input_tokens"] == row["input_tokens"] + 30
    (own,) = receiver.spans_of(again[-1].request_id, 1)
    assert own["attributes"]["trimtab.cache"] == "hit"
    assert not own["parentSpanId"]
    assert own["traceId"] != TRACE


def test_metrics_add_up_to_the_ledger(gateway: Gateway, upstream: Upstream, receiver: Receiver) -> None:
    for n in range(4):
        send(gateway, GPT, GPT.body(upstream.prompt(), stream=n % 2 == 0), {"x-trimtab-route": "adding-up"})
    send(gateway, GPT, GPT.body(upstream.prompt()) | {"model": "no-such"}, {"x-trimtab-route": "adding-up"})
    rows = gateway.ledger(route="adding-up", count=5)

    def points(name: str) -> list[dict[str, Any]]:
        found = receiver.metrics.get(name, {"points": []})["points"]
        return [point for point in found if point["attributes"].get("trimtab.route") == "adding-up"]

    def count(name: str, **where: str) -> int:
        return sum(
            int(point["count"])
            for point in points(name)
            if all(point["attributes"].get(key.replace("_", ".")) == value for key, value in where.items())
        )

    wait_until(lambda: count("gen_ai.server.request.duration") == 5, 15, "the metrics of all five")
    assert count("gen_ai.server.request.duration", error_type="404") == 1
    assert count("gen_ai.server.time_to_first_token") == 2
    assert count("gen_ai.client.operation.duration") == 4
    assert count("gen_ai.client.operation.time_to_first_chunk") == 2
    tokens = {point["attributes"]["gen_ai.token.type"]: point["sum"] for point in points("gen_ai.client.token.usage")}
    assert tokens == {name: sum(row[f"{name}_tokens"] for row in rows) for name in ("input", "output")}
    seconds = sum(point["sum"] for point in points("gen_ai.server.request.duration"))
    assert seconds == pytest.approx(sum(row["total_s"] for row in rows))
    cost = sum(point["asDouble"] for point in points("trimtab.cost"))
    assert cost == pytest.approx(sum(row["cost_nusd"] for row in rows) / 1e9)
    for name, metric in receiver.metrics.items():
        assert name.startswith("trimtab.") or name in names_in(gen_ai_metrics)
        for point in metric["points"]:
            assert {n for n in point["attributes"] if not n.startswith(("trimtab.", "otel."))} <= CONVENTIONS
            if "histogram" in metric:
                assert sum(map(int, point["bucketCounts"])) == int(point["count"])
    assert SCHEMA_URL in {schema.value for schema in Schemas}


def counted(receiver: Receiver) -> int:
    """Requests that the metrics know of."""
    points = receiver.metrics.get("gen_ai.server.request.duration", {"points": []})["points"]
    return sum(int(point["count"]) for point in points)


def test_only_a_share_is_kept_but_all_that_failed(gateways: MakeGateway, upstream: Upstream, tmp_path: Path) -> None:
    with Receiver(tmp_path).running() as receiver:
        gateway = gateways(config(upstream.port, receiver.endpoint, sample=0.0, slow_s=0.4))
        plain = send(gateway, GPT, GPT.body(upstream.prompt()))
        unwanted = send(gateway, GPT, GPT.body(upstream.prompt()), {"traceparent": f"00-{TRACE}-{PARENT}-00"})
        wanted = send(gateway, GPT, GPT.body(upstream.prompt()), {"traceparent": f"00-{TRACE}-{PARENT}-01"})
        failed = send(gateway, GPT, GPT.body(upstream.prompt(Act(status=400))))
        slow = send(gateway, GPT, GPT.body(upstream.prompt(Act(head_after_s=0.5))))
        for got in (wanted, failed, slow):
            receiver.spans_of(got.request_id, 2)
        sent = {span["attributes"].get("trimtab.request.id") for span in receiver.spans}
        assert not sent & {plain.request_id, unwanted.request_id}
        wait_until(lambda: counted(receiver) == 5, 15, "metrics of all, sampled or not")


def test_a_collector_that_is_down_stops_nothing(gateways: MakeGateway, upstream: Upstream, tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    gateway = gateways(config(upstream.port, receiver.endpoint, sample=1.0))
    for _ in range(20):
        assert send(gateway, GPT, GPT.body(upstream.prompt())).status == 200
    assert len(gateway.ledger(model="gpt", count=20)) == 20
    dropped = 'trimtab_telemetry_dropped_total{outlet="OpenTelemetry spans"}'
    wait_until(lambda: dropped in gateway.get("/metrics")[1].decode(), 30, "the dropped spans to be counted")
    assert gateway.log().count("cannot be sent") == 1
    with receiver.running():
        got = send(gateway, GPT, GPT.body(upstream.prompt()))
        receiver.spans_of(got.request_id, 2, 40)
        wait_until(lambda: counted(receiver) == 21, 40, "metrics, which lost nothing")
        wait_until(lambda: "can be sent again" in gateway.log(), 30, "the log to say so")


def test_a_log_line_for_each_request_and_a_reload(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(two_upstreams(upstream.port) + '\n[telemetry]\nrequest_log = "logs/requests.jsonl"\n')
    first = gateway.folder / "logs" / "requests.jsonl"
    got = send(gateway, GPT, GPT.body(upstream.prompt()), {"x-trimtab-workflow": "w7"})
    client = RawClient(gateway, GPT, GPT.body(upstream.prompt(Act(endless=True, gap_s=0.01)), stream=True))
    client.send()
    client.read_until(b"Hello")
    client.leave()

    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    wait_until(lambda: len(lines(first)) == 2, 10, "two lines")
    row = gateway.row(id=got.request_id)
    said = next(line for line in lines(first) if line["id"] == got.request_id)
    assert (said["end"], said["status"], said["cache"], said["workflow"]) == ("ok", 200, "miss", "w7")
    assert (said["input_tokens"], said["output_tokens"]) == (row["input_tokens"], row["output_tokens"])
    assert said["cost_usd"] == pytest.approx(row["cost_nusd"] / 1e9)
    assert re.fullmatch(r"[0-9a-f]{32}", said["trace_id"])
    assert {line["end"] for line in lines(first)} == {"ok", "cancelled"}
    second = gateway.folder / "second.jsonl"
    gateway.write_config(two_upstreams(upstream.port) + f'\n[telemetry]\nrequest_log = "{second}"\n')
    gateway.signal(signal.SIGHUP)
    wait_until(second.exists, 10, "the new log")
    again = send(gateway, GPT, GPT.body(upstream.prompt()))
    wait_until(lambda: [line["id"] for line in lines(second)] == [again.request_id], 10, "its line")
    assert len(lines(first)) == 2
