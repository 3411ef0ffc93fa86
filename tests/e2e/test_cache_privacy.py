"""An answer that identifies somebody is never another user's, whatever the client or the route asks for."""

from __future__ import annotations

import json
import time

from asking import Got, Pair, send
from faults import SAME_PAIRS
from gateway_process import MakeGateway, two_upstreams
from upstream import Upstream
from upstream_shapes import Act

MAIL = "Write to ann.lee@example.org"
NAME = "The order of Maria Lopez has left"


@SAME_PAIRS
def test_only_what_identifies_nobody_is_shared(gateways: MakeGateway, upstream: Upstream, pair: Pair) -> None:
    gateway = gateways(two_upstreams(upstream.port, extra="[routes.faq.levers.exact_cache]\nshare_users = true\n"))

    def ask(prompt: str, user: str, how: str) -> Got:
        headers = {"x-trimtab-user": user}
        headers |= {"x-trimtab-cache": "public"} if how == "public" else {"x-trimtab-route": "faq"}
        return send(gateway, pair, pair.body(prompt), headers)

    for how, policy, text, label in (
        ("public", "client asked public", MAIL, "EMAIL"),
        ("route", "share_users", NAME, "NAME"),
    ):
        private = upstream.prompt(Act(text=text), Act(text="They open at nine"))
        assert ask(private, "ann", how).headers["x-trimtab-cache"] == "miss"
        time.sleep(0.5)  # the first search loads its patterns
        assert ask(private, "ann", how).headers["x-trimtab-cache"] == "hit"
        bob = ask(private, "bob", how)
        assert bob.headers["x-trimtab-cache"] == "miss" and text not in bob.body.decode()
        assert f"(miss; not shared: {label} in an answer)" in bob.headers["x-trimtab-decision"]
        time.sleep(0.1)
        open_to_all = ask(private, "eve", how)  # the second answer says nothing of anybody
        assert open_to_all.headers["x-trimtab-cache"] == "hit" and text not in open_to_all.body.decode()
        row = gateway.row(id=open_to_all.request_id)
        (decision,) = json.loads(row["detail"])["decisions"]
        assert decision["reason"].endswith(f"s; shared unless PII: {policy}")
