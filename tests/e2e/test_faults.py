"""The fault table: each row on real sockets, for both client dialects, over both kinds of upstream.

Every row checks the status and the error's shape, that there is exactly one ledger row which says what happened, that
nothing was cached which should not be, and that the upstream call was cancelled where it was still running.
"""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from asking import END_MARKS, PAIRS, PATHS, SAME, Got, Pair, RawClient, error_of, is_whole, name_of, send
from conftest import MakeGateway
from gateway_process import Gateway, new_id, two_upstreams
from upstream import ClosedPort, Seen, Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act

CANCEL_WITHIN_S = 0.5
MEGABYTE = 1_000_000
HASTY = {"x-trimtab-route": "hasty"}
RETRY = {"x-trimtab-route": "retry"}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
ALL_PAIRS = pytest.mark.parametrize("pair", PAIRS, ids=name_of)
SAME_PAIRS = pytest.mark.parametrize("pair", SAME, ids=name_of)


@pytest.fixture(scope="module")
def closed_port():
    with ClosedPort() as port:
        yield port


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream, closed_port: int) -> Gateway:
    models = f"""
[engines.oai_down]
kind = "openai_http"
base_url = "http://127.0.0.1:{closed_port}/v1"
[engines.ant_down]
kind = "anthropic_http"
base_url = "http://127.0.0.1:{closed_port}"
[models.gpt-down]
engine = "oai_down"
[models.claude-down]
engine = "ant_down"
[models.gpt-covered]
engine = "oai_down"
fallback = ["claude-down", "claude"]
[models.claude-covered]
engine = "ant_down"
fallback = ["gpt"]
[models.gpt-flaky]
engine = "oai"
fallback = ["claude"]
"""
    routes = """
[routes.default]
retries = 0
[routes.hasty]
retries = 0
timeouts = { connect_s = 5, first_token_s = 1.0, idle_s = 1.0, total_s = 20 }
[routes.retry]
retries = 1
backoff_s = 0.05
retry_after_max_s = 5.0
"""
    return gateways(two_upstreams(upstream.port, models=models, extra=routes))


class Asked:
    """One request of a fault row: what the client saw, the one ledger row that it left."""

    def __init__(self, gateway: Gateway, pair: Pair, body: Any, headers: dict[str, str] | None = None) -> None:
        self.workflow = new_id()
        self.got = send(gateway, pair, body, {"x-trimtab-workflow": self.workflow, **(headers or {})})
        self.ended_at = time.monotonic()
        rows = gateway.ledger(id=self.got.request_id)
        assert len(rows) == 1
        self.row = rows[0]
        self.calls = self.row["calls"]


def assert_never_cached(gateway: Gateway, pair: Pair, body: Any, headers: dict[str, str] | None = None) -> None:
    """The same request, now answered well, is a miss; once more, it is a hit: so it could have been cached."""
    fresh = Asked(gateway, pair, body, headers)
    assert (fresh.got.status, fresh.got.headers["x-trimtab-cache"], fresh.row["end"]) == (200, "miss", "ok")
    again = send(gateway, pair, body, headers)
    assert (again.status, again.headers["x-trimtab-cache"]) == (200, "hit")


def assert_cancelled(seen: Seen, since: float) -> None:
    """The upstream saw its connection close within the bound."""
    wait_until(lambda: seen.dropped_at, 5, "the upstream call to be cancelled")
    assert seen.dropped_at is not None
    assert seen.dropped_at - since < CANCEL_WITHIN_S


# The upstream fails before anything was sent to the client ------------------------------------------------------------

JSON_FAULTS = {
    "reset": (Act(reset=True), 502),
    "429": (Act(status=429, headers=(("retry-after", "7"),)), 429),
    "500": (Act(status=500), 500),
    "503": (Act(status=503), 503),
    "html": (Act(raw=b"<html>Bad gateway</html>", raw_type="text/html"), 502),
}
BUFFERED_FAULTS = {
    "invalid JSON": (Act(raw=b'{"id": "chatcmpl-1", "choices": ['), 502),
    "JSON of another kind": (Act(raw=b"[1, 2, 3]"), 502),
    "cut in the body": (Act(break_after=0), 502),
    "reset in the body": (Act(break_after=0, break_how="rst"), 502),
    "50 MB": (Act(raw=b'{"id": "' + b"x" * 50 * MEGABYTE + b'"}'), 502),
}
STREAM_FAULTS = {
    "cut before a token": (Act(break_after=0), 502),
    "reset before a token": (Act(break_after=0, break_how="rst"), 502),
    "ends before a token": (Act(break_after=0, break_how="clean"), 502),
    "invalid JSON": (Act(raw=b'event: x\ndata: {"id": 1, "cho\n\n', raw_type="text/event-stream"), 502),
}
BEFORE = [
    *(
        pytest.param(stream, *row, id=f"{name}-{stream}")
        for name, row in JSON_FAULTS.items()
        for stream in (False, True)
    ),
    *(pytest.param(False, *row, id=f"{name}-False") for name, row in BUFFERED_FAULTS.items()),
    *(pytest.param(True, *row, id=f"{name}-True") for name, row in STREAM_FAULTS.items()),
]


@pytest.mark.parametrize(("stream", "act", "status"), BEFORE)
@ALL_PAIRS
def test_upstream_fails_before_the_first_token(
    gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool, act: Act, status: int
) -> None:
    prompt = upstream.prompt(act, Act())
    body = pair.body(prompt, stream=stream)
    asked = Asked(gateway, pair, body)
    assert asked.got.status == status
    error_of(pair, asked.got)
    if act.headers:
        assert asked.got.headers["retry-after"] == "7"
    row = asked.row
    assert (row["status"], row["workflow"], row["stream"]) == (status, asked.workflow, stream)
    assert row["end"] in {"error", "cut"}
    assert row["error"]
    assert [(c["purpose"], c["end"]) for c in asked.calls] == [("serve", row["end"])]
    if act.status != 200:
        assert asked.calls[0]["status"] == act.status
        assert (row["cost_nusd"] or 0) == 0
    assert_never_cached(gateway, pair, body)


@BOTH
@ALL_PAIRS
def test_upstream_refuses(gateway: Gateway, pair: Pair, stream: bool) -> None:
    pair = Pair(pair.dialect, f"{pair.model}-down")
    for _ in range(2):
        asked = Asked(gateway, pair, pair.body(new_id("refused"), stream=stream))
        assert asked.got.status == 502
        error_of(pair, asked.got)
        assert (asked.row["end"], asked.row["status"], asked.row["cost_nusd"] or 0) == ("error", 502, 0)
        assert [(c["end"], c["status"]) for c in asked.calls] == [("error", 0)]


@BOTH
@ALL_PAIRS
def test_slow_head(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    prompt = upstream.prompt(Act(head_after_s=60), Act())
    body = pair.body(prompt, stream=stream)
    asked = Asked(gateway, pair, body, HASTY)
    assert asked.got.status == 504
    error_of(pair, asked.got)
    assert (asked.row["end"], asked.row["status"]) == ("timeout", 504)
    assert [(c["end"], c["usage_source"]) for c in asked.calls] == [("timeout", "estimated")]
    assert_cancelled(upstream.requests(prompt)[0], asked.ended_at)
    assert_never_cached(gateway, pair, body, HASTY)


@ALL_PAIRS
def test_slow_first_token_after_a_quick_head(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(body_after_s=60), Act())
    body = pair.body(prompt, stream=True)
    asked = Asked(gateway, pair, body, HASTY)
    assert asked.got.status == 504
    error_of(pair, asked.got)
    assert (asked.row["end"], asked.row["status"]) == ("timeout", 504)
    assert_cancelled(upstream.requests(prompt)[0], asked.ended_at)
    assert_never_cached(gateway, pair, body, HASTY)


# The upstream fails in mid-stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "end"), [("fin", "cut"), ("rst", "cut"), ("clean", "cut"), ("stall", "timeout")])
@ALL_PAIRS
def test_upstream_breaks_in_mid_stream(gateway: Gateway, upstream: Upstream, pair: Pair, how: str, end: str) -> None:
    prompt = upstream.prompt(Act(break_after=3, break_how=how), Act())
    body = pair.body(prompt, stream=True)
    asked = Asked(gateway, pair, body, HASTY)
    assert asked.got.status == 200
    assert b"Hello" in asked.got.body
    assert END_MARKS[pair.dialect] not in asked.got.body
    assert not is_whole(pair, asked.got)
    row = asked.row
    assert (row["end"], row["status"], row["usage_source"]) == (end, 200, "estimated")
    assert row["output_tokens"] >= 1
    assert [c["end"] for c in asked.calls] == [end]
    if how == "stall":
        assert_cancelled(upstream.requests(prompt)[0], asked.ended_at)
    assert_never_cached(gateway, pair, body, HASTY)


@pytest.mark.parametrize("how", ["fin", "rst", "clean", "stall"])
@ALL_PAIRS
def test_sdks_raise_when_a_stream_breaks(gateway: Gateway, upstream: Upstream, pair: Pair, how: str) -> None:
    prompt = upstream.prompt(Act(break_after=3, break_how=how))
    messages: Any = [{"role": "user", "content": prompt}]
    text = ""
    if pair.dialect == "openai":
        with gateway.openai() as client, pytest.raises(openai.APIError):
            chunks = client.chat.completions.create(
                model=pair.model, messages=messages, stream=True, extra_headers=HASTY
            )
            for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
    else:
        with gateway.anthropic() as client, pytest.raises((anthropic.APIError, httpx2.HTTPError)):
            events = client.messages.create(
                model=pair.model, max_tokens=9, messages=messages, stream=True, extra_headers=HASTY
            )
            for event in events:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    text += event.delta.text
    assert text
    assert DEFAULT_TEXT.startswith(text)


# Retry and fallback ---------------------------------------------------------------------------------------------------

MENDABLE = {
    "429": Act(status=429, headers=(("retry-after", "1"),)),
    "500": Act(status=500),
    "reset": Act(reset=True),
    "invalid JSON": Act(raw=b"{"),
}


@pytest.mark.parametrize("fault", MENDABLE)
@BOTH
@SAME_PAIRS
def test_retry_mends(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool, fault: str) -> None:
    prompt = upstream.prompt(MENDABLE[fault], Act())
    asked = Asked(gateway, pair, pair.body(prompt, stream=stream), RETRY)
    assert asked.got.status == 200
    assert (asked.row["end"], asked.row["attempts"]) == ("ok", 2)
    assert [(c["purpose"], c["end"]) for c in asked.calls] == [("serve", "error"), ("retry", "ok")]
    first, second = upstream.requests(prompt)
    if fault == "429":
        assert second.at - first.at >= 1.0  # it waited as long as it was told to


@SAME_PAIRS
def test_429_to_the_end(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(status=429, headers=(("retry-after", "1"),)))
    asked = Asked(gateway, pair, pair.body(prompt), RETRY)
    assert (asked.got.status, asked.got.headers["retry-after"]) == (429, "1")
    error_of(pair, asked.got)
    assert (asked.row["end"], asked.row["status"]) == ("error", 429)
    assert [(c["purpose"], c["status"]) for c in asked.calls] == [("serve", 429), ("retry", 429)]


@SAME_PAIRS
def test_a_long_retry_after_is_passed_on_at_once(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(status=429, headers=(("retry-after", "60"),)))
    asked = Asked(gateway, pair, pair.body(prompt), RETRY)
    assert (asked.got.status, asked.got.headers["retry-after"]) == (429, "60")
    assert len(asked.calls) == len(upstream.requests(prompt)) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@SAME_PAIRS
def test_the_clients_mistakes_are_not_retried(gateway: Gateway, upstream: Upstream, pair: Pair, status: int) -> None:
    prompt = upstream.prompt(Act(status=status))
    asked = Asked(gateway, pair, pair.body(prompt), RETRY)
    assert asked.got.status == status
    error_of(pair, asked.got)
    assert len(asked.calls) == len(upstream.requests(prompt)) == 1


@BOTH
@pytest.mark.parametrize("dialect", PATHS)
def test_fallback_serves_when_the_first_is_down(
    gateway: Gateway, upstream: Upstream, dialect: str, stream: bool
) -> None:
    pair = Pair(dialect, "gpt-covered")
    prompt = upstream.prompt()
    asked = Asked(gateway, pair, pair.body(prompt, stream=stream))
    assert asked.got.status == 200
    assert not asked.got.broken
    assert (asked.row["end"], asked.row["model"], asked.row["attempts"]) == ("ok", "gpt-covered", 3)
    assert [(c["purpose"], c["engine"], c["end"]) for c in asked.calls] == [
        ("serve", "oai_down", "error"),
        ("fallback", "ant_down", "error"),
        ("fallback", "ant", "ok"),
    ]
    assert len(upstream.requests(prompt)) == 1


@BOTH
@pytest.mark.parametrize("dialect", PATHS)
def test_fallback_to_the_other_dialect_after_an_error(
    gateway: Gateway, upstream: Upstream, dialect: str, stream: bool
) -> None:
    pair = Pair(dialect, "gpt-flaky")
    prompt = upstream.prompt(Act(status=500), Act())
    asked = Asked(gateway, pair, pair.body(prompt, stream=stream))
    assert asked.got.status == 200
    assert [(c["engine"], c["end"], c["status"]) for c in asked.calls] == [("oai", "error", 500), ("ant", "ok", 200)]
    assert [seen.path for seen in upstream.requests(prompt)] == ["/v1/chat/completions", "/v1/messages"]


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
    reply = httpx2.post(url, content=pieces if chunked else content, headers={"content-type": "application/json"})
    got = Got(reply.status_code, reply.headers, reply.content, broken=False)
    assert got.status == 413
    assert "max_request_bytes" in error_of(pair, got)["message"]
    row = gateway.row(id=got.request_id)
    assert (row["end"], row["status"], row["calls"]) == ("refused", 413, [])
    assert upstream.requests(prompt) == []


# Over the whole module ------------------------------------------------------------------------------------------------


def test_no_request_left_two_rows_and_no_call_is_open(gateway: Gateway) -> None:
    rows = gateway.ledger()
    workflows = [row["workflow"] for row in rows if row["workflow"]]
    assert len(workflows) == len(set(workflows))
    assert not [row for row in rows if row["end"] == "interrupted"]
    assert all(row["attempts"] == len(row["calls"]) for row in rows)
