"""API keys: who is let in, as which tenant, with whose secret upstream."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from asking import SAME, Pair, error_of, name_of, send
from gateway_process import TRIMTAB, Gateway, MakeGateway, hashed, new_id, two_upstreams
from upstream import Upstream
from upstream_shapes import Act

from ports import free_port

SAME_PAIRS = pytest.mark.parametrize("pair", SAME, ids=name_of)


ACME, GLOBEX, EVALS = "tt-acme-0123456789abcdef", "tt-globex-0123456789abcdef", "tt-evals-0123456789abcdef"


@pytest.fixture(scope="module")
def keyed(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    keys = f"""
[keys.acme]
hash = "{hashed(ACME)}"
tenant = "acme"
[keys.globex]
hash = "{hashed(GLOBEX)}"
tenant = "globex"
routes = ["chat"]
[keys.evals]
hash = "{hashed(EVALS)}"
tenant = "acme"
evals = true
"""
    config = two_upstreams(upstream.port, extra=keys)
    for engine, variable in (("oai", "E2E_OPENAI"), ("ant", "E2E_ANTHROPIC")):
        config = config.replace(f"[engines.{engine}]\n", f'[engines.{engine}]\napi_key_env = "{variable}"\n')
    return gateways(config, {"E2E_OPENAI": "sk-secret-openai", "E2E_ANTHROPIC": "sk-secret-anthropic"})


@pytest.mark.parametrize("key", ["sk-unknown", ACME + "x"])
def test_a_wrong_key_is_refused_in_both_shapes(keyed: Gateway, upstream: Upstream, key: str) -> None:
    prompt = upstream.prompt()
    messages: Any = [{"role": "user", "content": prompt}]
    with keyed.openai(key=key) as client, pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model="gpt", messages=messages)
    assert refused.value.code == "invalid_api_key"
    with keyed.openai(key=key) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with keyed.anthropic(key=key) as client, pytest.raises(anthropic.AuthenticationError) as refused_too:
        client.messages.create(model="claude", max_tokens=9, messages=messages)
    body: Any = refused_too.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    with keyed.anthropic(key=key) as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.count_tokens(model="claude", messages=messages)
    assert upstream.requests(prompt) == []
    assert key not in keyed.log()


def test_the_key_names_the_tenant_and_the_secret_stays_here(keyed: Gateway, upstream: Upstream) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    headers = {"x-trimtab-workflow": workflow}
    messages: Any = [{"role": "user", "content": prompt}]
    with keyed.openai(key=ACME) as client:
        client.chat.completions.create(model="gpt", messages=messages, extra_headers=headers)
    with keyed.anthropic(key=ACME) as client:
        client.messages.create(model="claude", max_tokens=9, messages=messages, extra_headers=headers)
    rows = keyed.ledger(workflow=workflow, count=2)
    assert [row["tenant"] for row in rows] == ["acme", "acme"]
    first, second = upstream.requests(prompt)
    assert first.headers["authorization"] == "Bearer sk-secret-openai"
    assert second.headers["x-api-key"] == "sk-secret-anthropic"
    assert ACME not in str(first.headers) + str(second.headers)


@SAME_PAIRS
def test_evals_are_on_nobodys_bill_and_need_a_key_that_may(keyed: Gateway, upstream: Upstream, pair: Pair) -> None:
    workflow = new_id()
    headers = {"x-trimtab-workflow": workflow, "x-trimtab-purpose": "eval"}
    name = "x-api-key" if pair.dialect == "anthropic" else "authorization"
    body = {"model": pair.model, "messages": [{"role": "user", "content": upstream.prompt()}], "max_tokens": 9}
    refused = send(keyed, pair, body, headers | {name: ACME if name == "x-api-key" else f"Bearer {ACME}"})
    assert refused.status == 403
    assert "evals = true" in error_of(pair, refused)["message"]
    got = send(keyed, pair, body, headers | {name: EVALS if name == "x-api-key" else f"Bearer {EVALS}"})
    assert got.status == 200
    row = next(row for row in keyed.ledger(workflow=workflow, count=2) if row["status"] == 200)
    assert (row["tenant"], row["purpose"]) == ("acme", "eval")
    assert [call["purpose"] for call in row["calls"]] == ["eval"]

    def summary(*options: str) -> list[dict[str, Any]]:
        done = keyed.trimtab("ledger", "summary", "--json", "--workflow", workflow, *options)
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert summary() == []
    (only,) = summary("--by", "purpose")
    assert (only["purpose"], only["requests"]) == ("eval", 1)


def test_tenants_share_nothing(keyed: Gateway, upstream: Upstream) -> None:
    prompt = upstream.prompt(Act(text="for the first"), Act(text="for the second"))
    messages: Any = [{"role": "user", "content": prompt}]
    texts = []
    for key in (ACME, GLOBEX):
        with keyed.openai(key=key) as client:
            reply = client.chat.completions.with_raw_response.create(
                model="gpt", messages=messages, temperature=0, extra_headers={"x-trimtab-route": "chat"}
            )
            texts.append(reply.parse().choices[0].message.content)
            assert reply.headers["x-trimtab-cache"] == "miss"
            request_id = reply.headers["x-trimtab-request-id"]
    assert texts == ["for the first", "for the second"]
    path = f"/v1/trimtab/requests/{request_id}"
    assert keyed.get(path, {"authorization": f"Bearer {GLOBEX}"})[0] == 200
    assert keyed.get(path, {"authorization": f"Bearer {ACME}"})[0] == 404
    assert keyed.get(path)[0] == 401


def test_a_key_is_kept_to_its_routes(keyed: Gateway, upstream: Upstream) -> None:
    messages: Any = [{"role": "user", "content": upstream.prompt()}]
    with keyed.openai(key=GLOBEX) as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="gpt", messages=messages)


@SAME_PAIRS
def test_the_upstreams_refusal_of_our_secret_is_not_the_clients_fault(
    keyed: Gateway, upstream: Upstream, pair: Pair
) -> None:
    body = pair.body(upstream.prompt(Act(status=401)))
    key = {"x-api-key": ACME} if pair.dialect == "anthropic" else {"authorization": f"Bearer {ACME}"}
    got = send(keyed, pair, body, key)
    assert got.status == 502
    assert "api_key_env" in error_of(pair, got)["message"]


def test_without_keys_it_binds_to_loopback_only(tmp_path: Path, upstream: Upstream) -> None:
    config = tmp_path / "trimtab.toml"
    server = f'[server]\nhost = "0.0.0.0"\nport = {free_port()}\ndata_dir = "{tmp_path / "data"}"\n'
    config.write_text(server + two_upstreams(upstream.port))
    done = subprocess.run(
        [str(TRIMTAB), "serve", "--config", str(config)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode not in (0, None)
    assert "keys" in done.stderr
    assert "Traceback" not in done.stderr
