"""kill -9 under load, many times: what a client has whole, and what reached the upstream, is in the ledger once."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from gateway_process import Gateway, new_id, two_upstreams
from upstream import Upstream, wait_until
from upstream_shapes import Act

ROUNDS = 20
CLIENTS = 12
LOAD_S = 0.4
_TAG = re.compile(rb"kill-[0-9a-f]{16}")


@dataclass
class Call:
    """One request as its client saw it."""

    workflow: str
    request_id: str = ""
    whole: bool = False


async def client(http: httpx2.AsyncClient, markers: list[str], calls: list[Call]) -> None:
    """Ask one thing after the other until the gateway dies."""
    while True:
        call = Call(new_id("kill"))
        calls.append(call)
        stream = random.random() < 0.5
        body: dict[str, Any] = {"model": random.choice(["gpt", "claude"]), "stream": stream, "max_tokens": 50}
        body["messages"] = [{"role": "user", "content": f"{random.choice(markers)} {call.workflow}"}]
        received = b""
        try:
            async with http.stream(
                "POST", "/v1/chat/completions", json=body, headers={"x-trimtab-workflow": call.workflow}
            ) as reply:
                assert reply.status_code == 200, (reply.status_code, await reply.aread())
                call.request_id = reply.headers["x-trimtab-request-id"]
                async for piece in reply.aiter_raw():
                    received += piece
                    call.whole = stream and b"data: [DONE]" in received
                call.whole = call.whole or not stream
        except httpx2.HTTPError:
            return


async def load(gateway: Gateway, markers: list[str]) -> list[Call]:
    """Several clients for a while, then the kill."""
    calls: list[Call] = []
    async with httpx2.AsyncClient(base_url=gateway.base_url, verify=False, trust_env=False, timeout=20) as http:
        tasks = [asyncio.create_task(client(http, markers, calls)) for _ in range(CLIENTS)]
        await asyncio.sleep(LOAD_S * random.uniform(0.7, 1.3))
        gateway.kill()
        await asyncio.gather(*tasks)
    return calls


def reached(upstream: Upstream) -> Counter[str]:
    """How often each request reached the upstream."""
    return Counter(match.group().decode() for seen in upstream.seen if (match := _TAG.search(seen.body)))


async def test_nothing_is_lost_or_counted_twice(tmp_path: Path, upstream: Upstream) -> None:
    markers = [
        upstream.prompt(),
        upstream.prompt(),
        upstream.prompt(Act(gap_s=0.01)),
        upstream.prompt(Act(gap_s=0.05)),
        upstream.prompt(Act(head_after_s=0.2)),
    ]
    gateway = Gateway(tmp_path, two_upstreams(upstream.port, extra="[routes.default]\nretries = 0\n"))
    calls: list[Call] = []
    try:
        for _ in range(ROUNDS):
            gateway.start()
            calls += await load(gateway, markers)
        gateway.start()
        arrived = reached(upstream)
        expected = set(arrived) | {call.workflow for call in calls if call.whole}
        wait_until(
            lambda: expected <= {row["workflow"] for row in gateway.ledger(count=0)},
            15,
            "every call to be in the ledger",
        )
        rows = gateway.ledger()
    finally:
        gateway.stop()

    by_workflow = Counter(row["workflow"] for row in rows)
    assert [w for w, count in by_workflow.items() if count > 1] == []
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    for call in calls:
        if call.whole:
            row = by_id[call.request_id]
            assert (row["workflow"], row["end"], row["usage_source"]) == (call.workflow, "ok", "reported")
            assert (row["input_tokens"], row["output_tokens"], row["cost_nusd"]) == (20, 7, 110_000)
    assert max(arrived.values()) == 1
    interrupted = [row for row in rows if row["end"] == "interrupted"]
    for row in interrupted:
        assert row["usage_source"] == "estimated"
        assert row["input_tokens"] > 0
        assert row["cost_nusd"] > 0
        assert [c["end"] for c in row["calls"]] == ["interrupted"]
    # The test means something only if the kills struck in the middle of things.
    assert len(interrupted) >= ROUNDS
    assert sum(call.whole for call in calls) >= ROUNDS
