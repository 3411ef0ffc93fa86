"""The fault table, client side: clients that leave, and clients that ask wrongly.

Every row checks the status and the error's shape, that there is exactly one ledger row which says what happened, that
nothing was cached which should not be, and that the upstream call was cancelled where it was still running.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from asking import (
    PATHS,
    Got,
    Pair,
    RawClient,
    assert_cancelled,
    error_of,
    once_more,
    post,
)
from faults import (
    ALL_PAIRS,
    BOTH,
    SAME_PAIRS,
    Asked,
    assert_never_cached,
    assert_one_row_each,
    fault_config,
)
from gateway_process import Gateway, MakeGateway
from upstream import Seen, Upstream
from upstream_shapes import Act

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream, closed_port: int) -> Gateway:
    return gateways(fault_config(upstream.port, closed_port))


# The client leaves ----------------------------------------------------------------------------------------------------


def leave_and_check(gateway: Gateway, upstream: Upstream, client: RawClient, seen: Seen, how: str) -> dict[str, Any]:
    """Leave, see the upstream cancelled in time, return the ledger's row."""
    left_at = time.monotonic()
    client.leave(how)
    assert_cancelled(seen, left_at)
    row = gateway.row(workflow=client.workflow)
    assert row["end"] == "cancelled"
    assert [(c["end"], c["usage_source"]) for c in row["calls"]] == [("cancelled", "estimated")]
    return row


@pytest.mark.parametrize("how", ["fin", "rst"])
@BOTH
@ALL_PAIRS
@once_more
def test_client_leaves_before_the_first_token(
    gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool, how: str
) -> None:
    prompt = upstream.prompt(Act(head_after_s=60), Act())
    body = pair.body(prompt, stream=stream)
    client = RawClient(gateway, pair, body)
    client.send()
    seen = upstream.wait(prompt)[0]
    row = leave_and_check(gateway, upstream, client, seen, how)
    assert row["status"] == 0
    assert_never_cached(gateway, pair, body)


@ALL_PAIRS
@once_more
def test_client_leaves_during_the_first_token(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(body_after_s=60), Act())
    body = pair.body(prompt, stream=True)
    client = RawClient(gateway, pair, body)
    client.send()
    seen = upstream.wait(prompt)[0]
    time.sleep(0.1)  # the head of the reply has reached the gateway by now, its body never will
    leave_and_check(gateway, upstream, client, seen, "fin")
    assert_never_cached(gateway, pair, body)


@pytest.mark.parametrize("how", ["fin", "rst"])
@ALL_PAIRS
@once_more
def test_client_leaves_after_the_first_token(gateway: Gateway, upstream: Upstream, pair: Pair, how: str) -> None:
    prompt = upstream.prompt(Act(endless=True, gap_s=0.01), Act())
    body = pair.body(prompt, stream=True)
    client = RawClient(gateway, pair, body)
    client.send()
    client.read_until(b"Hello", 3)
    row = leave_and_check(gateway, upstream, client, upstream.requests(prompt)[0], how)
    assert row["status"] == 200
    assert row["output_tokens"] >= 3
    assert_never_cached(gateway, pair, body)


@SAME_PAIRS
def test_client_leaves_in_the_middle_of_its_own_request(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt()
    client = RawClient(gateway, pair, pair.body(prompt))
    client.send(part=0.5)
    time.sleep(0.1)
    client.leave()
    assert_never_cached(gateway, pair, pair.body(prompt))
    assert len(upstream.requests(prompt)) == 1


# The client's own faults ----------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Any, int, str]] = {
    "malformed JSON": (b'{"model": "gpt", "messages": [', 400, "malformed_json"),
    "not an object": (b"[1, 2]", 400, "malformed_json"),
    "empty": (b"", 400, "malformed_json"),
    "unknown model": ({"model": "no-such"}, 404, "model_not_found"),
    "no model": ({"model": None}, 400, "invalid_request"),
    "no messages": ({"messages": None}, 400, "invalid_request"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@SAME_PAIRS
def test_bad_requests(gateway: Gateway, upstream: Upstream, pair: Pair, mistake: str) -> None:
    change, status, code = MISTAKES[mistake]
    body = change
    if isinstance(change, dict):
        merged = pair.body(upstream.prompt()) | change
        body = {name: value for name, value in merged.items() if value is not None}
    before = len(upstream.seen)
    asked = Asked(gateway, pair, body)
    assert asked.got.status == status
    error = error_of(pair, asked.got)
    if pair.dialect == "openai":
        assert error["code"] == code
        assert error["param"] == {"unknown model": "model", "no model": "model", "no messages": "messages"}.get(mistake)
    else:
        assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert (asked.row["end"], asked.row["status"], asked.calls) == ("refused", status, [])
    assert len(upstream.seen) == before


@SAME_PAIRS
def test_a_field_that_only_the_upstream_misses(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    body = pair.body(upstream.prompt())
    body["messages"] = [{"role": "wizard", "content": body["messages"][0]["content"]}]
    asked = Asked(gateway, pair, body)
    assert asked.got.status == 400
    assert "role" in error_of(pair, asked.got)["message"]


@pytest.mark.parametrize(("header", "value"), [("x-trimtab-cache", "sometimes"), ("x-trimtab-colour", "red")])
@SAME_PAIRS
def test_our_headers_are_checked(gateway: Gateway, upstream: Upstream, pair: Pair, header: str, value: str) -> None:
    prompt = upstream.prompt()
    asked = Asked(gateway, pair, pair.body(prompt), {header: value})
    assert asked.got.status == 400
    error_of(pair, asked.got)
    assert (asked.row["end"], upstream.requests(prompt)) == ("refused", [])


@SAME_PAIRS
def test_20_mb_passes(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt()
    body = pair.body(f"{prompt} {'long ' * (4 * MEGABYTE)}")
    asked = Asked(gateway, pair, body)
    assert asked.got.status == 200
    assert asked.row["request_bytes"] > 20 * MEGABYTE
    assert upstream.requests(prompt)[0].json["messages"] == body["messages"]
    upstream.seen.clear()


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@SAME_PAIRS
def test_30_mb_is_too_large(gateway: Gateway, upstream: Upstream, pair: Pair, chunked: bool) -> None:
    prompt = upstream.prompt()
    content = json.dumps(pair.body(f"{prompt} {'long ' * (6 * MEGABYTE)}")).encode()
    pieces = (content[at : at + MEGABYTE] for at in range(0, len(content), MEGABYTE))
    url = gateway.base_url + PATHS[pair.dialect]
    reply = post(url, pieces if chunked else content, {"content-type": "application/json"})
    got = Got(reply.status_code, reply.headers, reply.content, broken=False)
    assert got.status == 413
    assert "max_request_bytes" in error_of(pair, got)["message"]
    row = gateway.row(id=got.request_id)
    assert (row["end"], row["status"], row["calls"]) == ("refused", 413, [])
    assert upstream.requests(prompt) == []


def test_every_request_left_one_row(gateway: Gateway) -> None:
    assert_one_row_each(gateway)
