"""What the fault tests share: a gateway with routes for every kind of fault, and one request with its ledger row."""

from __future__ import annotations

import time
from typing import Any

import pytest
from asking import PAIRS, SAME, Pair, name_of, send
from gateway_process import Gateway, new_id, two_upstreams

HASTY = {"x-trimtab-route": "hasty"}
SHORT = {"x-trimtab-route": "short"}
RETRY = {"x-trimtab-route": "retry"}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
ALL_PAIRS = pytest.mark.parametrize("pair", PAIRS, ids=name_of)
SAME_PAIRS = pytest.mark.parametrize("pair", SAME, ids=name_of)


def fault_config(port: int, closed_port: int) -> str:
    """Engines that are up at `port` and down at `closed_port`, and routes named for their settings."""
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
timeouts = { connect_s = 1, first_token_s = 1.0, idle_s = 1.0, total_s = 2.5 }
[routes.short]
retries = 0
timeouts = { connect_s = 1, first_token_s = 1.5, idle_s = 1.5, total_s = 1.5 }
[routes.retry]
retries = 1
backoff_s = 0.05
retry_after_max_s = 5.0
"""
    return two_upstreams(port, models=models, extra=routes)


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


def assert_one_row_each(gateway: Gateway) -> None:
    """No request left two rows, and no call is still open."""
    rows = gateway.ledger()
    workflows = [row["workflow"] for row in rows if row["workflow"]]
    assert len(workflows) == len(set(workflows))
    assert not [row for row in rows if row["end"] == "interrupted"]
    assert all(row["attempts"] == len(row["calls"]) for row in rows)
