"""The fault table, upstream side: each row on real sockets, for both client dialects, over both kinds of upstream.

Every row checks the status and the error's shape, that there is exactly one ledger row which says what happened, that
nothing was cached which should not be, and that the upstream call was cancelled where it was still running.
"""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import openai
import pytest
from asking import (
    END_MARKS,
    PATHS,
    Pair,
    assert_cancelled,
    error_of,
    is_whole,
    once_more,
)
from faults import (
    ALL_PAIRS,
    BOTH,
    HASTY,
    RETRY,
    SAME_PAIRS,
    SHORT,
    Asked,
    assert_never_cached,
    assert_one_row_each,
    fault_config,
)
from gateway_process import Gateway, MakeGateway, new_id
from upstream import Upstream
from upstream_shapes import DEFAULT_TEXT, Act


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream, closed_port: int) -> Gateway:
    return gateways(fault_config(upstream.port, closed_port))


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
    "50 MB": (Act(raw=b'{"id": "' + b"x" * 50_000_000 + b'"}'), 502),
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
@once_more
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
@once_more
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
@once_more
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


@SAME_PAIRS
def test_a_stream_without_end_meets_the_total_deadline(gateway: Gateway, upstream: Upstream, pair: Pair) -> None:
    prompt = upstream.prompt(Act(endless=True, gap_s=0.01), Act())
    body = pair.body(prompt, stream=True)
    asked = Asked(gateway, pair, body, SHORT)
    assert asked.got.status == 200
    assert not is_whole(pair, asked.got)
    assert (asked.row["end"], [c["end"] for c in asked.calls]) == ("timeout", ["timeout"])
    assert_cancelled(upstream.requests(prompt)[0], asked.ended_at)
    assert_never_cached(gateway, pair, body, SHORT)


@BOTH
@ALL_PAIRS
def test_a_filtered_answer_is_not_cached(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    body = pair.body(upstream.prompt(Act(stop="filter"), Act()), stream=stream)
    asked = Asked(gateway, pair, body)
    assert (asked.got.status, asked.row["end"]) == (200, "ok")
    assert_never_cached(gateway, pair, body)


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
        assert second.at - first.at > 0.99  # it waited as long as it was told to; timers fire a hair early


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


def test_every_request_left_one_row(gateway: Gateway) -> None:
    assert_one_row_each(gateway)
