"""Identical requests in flight share an upstream call: whoever leaves, whoever is slow, whatever breaks."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asking import SAME, Got, Pair, RawClient, assert_cancelled, is_whole, name_of, once_more, post, send
from gateway_process import Gateway, MakeGateway, new_id, two_upstreams
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act

SAME_PAIRS = pytest.mark.parametrize("pair", SAME, ids=name_of)
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
SLOW = Act(head_after_s=1.5, gap_s=0.02)
GPT = Pair("openai", "gpt")


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(two_upstreams(upstream.port))


def together(gateway: Gateway, pair: Pair, body: dict[str, Any], count: int, **headers: str) -> list[Got]:
    """The same request `count` times at once."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: send(gateway, pair, body, said), range(count)))


def text_of(pair: Pair, got: Got, stream: bool) -> str:
    if not stream:
        said = (
            got.json["choices"][0]["message"]["content"] if pair.dialect == "openai" else got.json["content"][0]["text"]
        )
        return str(said)
    text = ""
    for line in got.body.decode().splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            delta = event["choices"][0]["delta"] if event.get("choices") else event.get("delta", {})
            text += delta.get("content") or delta.get("text") or ""
    return text


@STREAMED
@SAME_PAIRS
def test_a_hundred_ask_and_one_pays(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    workflow = new_id()
    prompt = upstream.prompt(SLOW)
    got = together(gateway, pair, pair.body(prompt, stream=stream), 100, x_trimtab_workflow=workflow)
    assert len(upstream.requests(prompt)) == 1
    assert {g.status for g in got} == {200}
    assert {text_of(pair, g, stream) for g in got} == {DEFAULT_TEXT}
    if stream:
        assert all(is_whole(pair, g) for g in got)
        assert len({g.body for g in got}) == 1
    rows = gateway.ledger(workflow=workflow, count=100)
    assert {row["end"] for row in rows} == {"ok"}
    (payer,) = [row for row in rows if row["calls"]]
    assert (payer["cost_nusd"], payer["cache"]) == (110_000, "miss")
    others = [row for row in rows if row is not payer]
    assert {row["cost_nusd"] for row in others} == {0}
    assert {row["baseline_nusd"] for row in others} == {payer["cost_nusd"]}  # what each would have cost
    coalesced = [row for row in others if row["cache"] == "coalesced"]
    assert len(coalesced) > 50  # the rest came when the answer was there, as on a busy machine they may
    for row in coalesced[:3]:
        (decision,) = json.loads(row["detail"])["decisions"]
        assert (decision["step"], decision["reason"]) == ("join", f"coalesced with {payer['id']}")
    assert {g.headers["x-trimtab-cache"] for g in got} <= {"miss", "coalesced", "hit"}
    assert len({g.request_id for g in got}) == 100


@once_more
def test_the_one_who_pays_leaves_and_the_others_get_it_all(gateway: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt(Act(text="Hello from far away", gap_s=0.7))
    body = GPT.body(prompt, stream=True)
    leader, *others = [RawClient(gateway, GPT, body) for _ in range(4)]
    for client in (leader, *others):
        client.send()
        client.read_until(b"Hello")
    leader.leave()
    for other in others:
        assert b"away" in other.read_until(b"[DONE]")
        other.leave()
    assert len(upstream.requests(prompt)) == 1
    row = gateway.row(workflow=leader.workflow)
    (call,) = row["calls"]
    assert (row["end"], call["end"], call["usage_source"]) == ("cancelled", "ok", "reported")
    assert row["cost_nusd"] == 110_000  # the call was made for it, and it was made once
    again = send(gateway, GPT, body)
    assert again.headers["x-trimtab-cache"] == "hit"  # and what came is kept


def test_the_others_leave_and_the_one_who_pays_does_not_notice(gateway: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt(Act(gap_s=0.1))
    body = GPT.body(prompt, stream=True)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(send, gateway, GPT, body)
        upstream.wait(prompt)
        other = RawClient(gateway, GPT, body)
        other.send()
        other.read_until(b"Hello")
        other.leave("rst")
        got = leader.result()
    assert is_whole(GPT, got)
    row = gateway.row(workflow=other.workflow)
    assert (row["end"], row["calls"], row["cost_nusd"]) == ("cancelled", [], 0)


@once_more
def test_when_all_have_left_the_call_is_cancelled(gateway: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt(Act(endless=True, gap_s=0.02))
    clients = [RawClient(gateway, GPT, GPT.body(prompt, stream=True)) for _ in range(3)]
    for client in clients:
        client.send()
        client.read_until(b"Hello")
    (seen,) = upstream.requests(prompt)
    for client in clients[:2]:
        client.leave()
    time.sleep(0.3)
    assert seen.dropped_at is None
    since = time.monotonic()
    clients[2].leave()
    assert_cancelled(seen, since)
    ends = {row["end"] for client in clients for row in gateway.ledger(workflow=client.workflow)}
    assert ends == {"cancelled"}


def test_a_client_that_does_not_read_holds_up_nobody(gateway: Gateway, upstream: Upstream) -> None:
    text = " ".join(["much"] * 60_000)  # beyond what sockets hold
    prompt = upstream.prompt(Act(text=text, head_after_s=0.3))
    body = GPT.body(prompt, stream=True)
    leader = RawClient(gateway, GPT, body)
    leader.send()
    upstream.wait(prompt)
    got = together(gateway, GPT, body, 2)
    assert len(upstream.requests(prompt)) == 1
    assert {text_of(GPT, g, True) for g in got} == {text}
    leader.read_until(b"[DONE]")
    leader.leave()


def test_one_who_joins_while_the_first_does_not_read(gateway: Gateway, upstream: Upstream) -> None:
    text = " ".join(["much"] * 60_000)
    prompt = upstream.prompt(Act(text=text))
    body = GPT.body(prompt, stream=True)
    leader = RawClient(gateway, GPT, body)
    leader.send()
    (seen,) = upstream.wait(prompt)
    sent = -1
    while seen.sent_pieces != sent:  # until everything between here and there is full
        sent = seen.sent_pieces
        time.sleep(0.5)
    assert not seen.answered
    (got,) = together(gateway, GPT, body, 1)
    assert len(upstream.requests(prompt)) == 1
    assert text_of(GPT, got, True) == text
    leader.leave()


@SAME_PAIRS
def test_all_get_the_error(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    workflow = new_id()
    prompt = upstream.prompt(Act(status=400, head_after_s=0.5))
    got = together(gateway, pair, pair.body(prompt), 5, x_trimtab_workflow=workflow)
    assert len(upstream.requests(prompt)) == 1
    assert {g.status for g in got} == {400}
    assert all("scripted 400" in json.dumps(g.json) for g in got)
    rows = gateway.ledger(workflow=workflow, count=5)
    assert [row["end"] for row in rows] == ["error"] * 5
    assert sum(len(row["calls"]) for row in rows) == 1


@SAME_PAIRS
def test_a_cut_stream_looks_finished_to_nobody(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(head_after_s=0.5, gap_s=0.02, break_after=3, break_how="rst"))
    got = together(gateway, pair, pair.body(prompt, stream=True), 5)
    assert len(upstream.requests(prompt)) == 1
    assert not any(is_whole(pair, g) for g in got)
    assert all(g.broken for g in got)


def test_forms_tenants_and_sampled_requests_do_not_share(gateway: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt(*[SLOW] * 4)
    bodies = [GPT.body(prompt), GPT.body(prompt, stream=True)]
    with ThreadPoolExecutor(4) as pool:
        for body in bodies:
            for key in ("one", "two"):
                pool.submit(send, gateway, GPT, body, {"authorization": f"Bearer sk-{key}"})
    assert len(upstream.requests(prompt)) == 4
    prompt = upstream.prompt(*[SLOW] * 3)
    together(gateway, GPT, GPT.body(prompt, temperature=0.9), 3)
    assert len(upstream.requests(prompt)) == 3


@STREAMED
@SAME_PAIRS
def test_an_idempotency_key_makes_a_retry_free(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    prompt = upstream.prompt(SLOW, Act(text="other"), Act(text="third"))
    body = pair.body(prompt, temperature=0.9, stream=stream)
    key = new_id("idem")
    first = together(gateway, pair, body, 3, Idempotency_Key=key)
    wait_until(
        lambda: send(gateway, pair, body, {"Idempotency-Key": key}).headers["x-trimtab-cache"] == "hit", 10, "a hit"
    )
    assert {text_of(pair, g, stream) for g in first} == {DEFAULT_TEXT}
    assert len(upstream.requests(prompt)) == 1
    assert text_of(pair, send(gateway, pair, body, {"Idempotency-Key": new_id("idem")}), stream) == "other"
    assert text_of(pair, send(gateway, pair, body | {"top_p": 0.5}, {"Idempotency-Key": key}), stream) == "third"
    assert upstream.requests(prompt)[0].headers["idempotency-key"] == key


def test_an_odd_idempotency_key_is_refused(gateway: Gateway, upstream: Upstream) -> None:
    headers = {"content-type": "application/json", "idempotency-key": "x" * 257}
    got = post(gateway.base_url + "/v1/chat/completions", json.dumps(GPT.body(upstream.prompt())), headers)
    assert (got.status_code, got.json()["error"]["param"]) == (400, "idempotency-key")
