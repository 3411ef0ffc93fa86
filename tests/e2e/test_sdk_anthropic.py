"""The real `anthropic` SDK through the gateway, in front of an Anthropic and of an OpenAI upstream."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anthropic
import pytest
from asking import assert_cancelled, once_more
from gateway_process import Gateway, MakeGateway, new_id, two_upstreams
from pydantic import BaseModel
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act, Tokens, Tool

MODELS = ["claude", "gpt"]
WEATHER = Tool(name="get_weather", arguments={"city": "Zürich", "days": 3}, id="toolu_w")
TIME = Tool(name="get_time", arguments={"zone": "CET"}, id="toolu_t")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"name": name, "description": "Looks it up.", "input_schema": CITY} for name in ("get_weather", "get_time")
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


class Person(BaseModel):
    name: str
    age: int


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(model: str, prompt: str, workflow: str = "", **more: Any) -> dict[str, Any]:
    """Arguments of messages.create."""
    if workflow:
        more["extra_headers"] = {"x-trimtab-workflow": workflow}
    return {"model": model, "max_tokens": 99, "messages": user(prompt), **more}


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(two_upstreams(upstream.port, extra="[routes.default]\nretries = 0\n"))


@pytest.fixture(scope="module")
def client(gateway: Gateway):
    with gateway.anthropic() as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_chat(client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    asked = ask(model, prompt, workflow, system="Be brief.", stop_sequences=["END"])
    asked["messages"] = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        *asked["messages"],
    ]
    raw = client.messages.with_raw_response.create(**asked)
    reply = raw.parse()
    assert [(b.type, b.text) for b in reply.content] == [("text", DEFAULT_TEXT)]
    assert (reply.stop_reason, reply.role, reply.type) == ("end_turn", "assistant", "message")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (20, 7)
    assert raw.headers["x-trimtab-cache"] == "bypass"
    assert raw.headers["x-trimtab-decision"]
    assert "total;dur=" in raw.headers["server-timing"]
    assert raw.headers["x-trimtab-cost-usd"] == "0.000110000"
    seen = upstream.requests(prompt)[0].json
    if model == "gpt":
        assert [m["role"] for m in seen["messages"]] == ["system", "user", "assistant", "user"]
        assert "Be brief." in str(seen["messages"][0]["content"])
        assert seen["stop"] == ["END"]
        assert 99 in (seen.get("max_completion_tokens"), seen.get("max_tokens"))
    else:
        assert seen == {
            "model": "claude-sonnet-4-5",
            "max_tokens": 99,
            "system": "Be brief.",
            "stop_sequences": ["END"],
            "messages": asked["messages"],
        }
    row = gateway.row(id=raw.headers["x-trimtab-request-id"])
    assert (row["end"], row["status"], row["model"], row["workflow"]) == ("ok", 200, model, workflow)
    assert (row["cost_nusd"], row["dialect"]) == (110_000, "anthropic")


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_token_classes_come_through(
    client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str, streamed: bool
) -> None:
    tokens = Tokens(input=5, cache_read=10, output=6)
    if model == "claude":
        tokens = Tokens(input=5, cache_read=10, cache_write_5m=3, cache_write_1h=2, output=6)
    workflow = new_id()
    asked = ask(model, upstream.prompt(Act(tokens=tokens)), workflow)
    if streamed:
        with client.messages.stream(**asked) as stream:
            usage = stream.get_final_message().usage
    else:
        usage = client.messages.create(**asked).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 10, 6)
    assert (usage.cache_creation_input_tokens or 0) == tokens.cache_write_5m + tokens.cache_write_1h
    row = gateway.row(workflow=workflow)
    for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output"):
        assert row[f"{name}_tokens"] == getattr(tokens, name), name
    per_token = {"input": 2000, "cache_read": 500, "cache_write_5m": 2500, "cache_write_1h": 4000, "output": 10_000}
    assert row["cost_nusd"] == sum(getattr(tokens, name) * nusd for name, nusd in per_token.items())


@pytest.mark.parametrize("model", MODELS)
def test_stream(client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str) -> None:
    workflow = new_id()
    events = list(client.messages.create(**ask(model, upstream.prompt(), workflow), stream=True))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == DEFAULT_TEXT
    delta: Any = events[-2]
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("end_turn", 7)
    with client.messages.stream(**ask(model, upstream.prompt())) as stream:
        assert "".join(stream.text_stream) == DEFAULT_TEXT
        final = stream.get_final_message()
    assert final.usage.output_tokens == 7
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["stream"], row["usage_source"]) == ("ok", 1, "reported")
    assert (row["input_tokens"], row["output_tokens"], row["cost_nusd"]) == (20, 7, 110_000)


@pytest.mark.parametrize("tools", [(WEATHER,), (WEATHER, TIME)], ids=["single", "parallel"])
@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_tools_and_their_results(
    client: anthropic.Anthropic, upstream: Upstream, model: str, streamed: bool, tools: tuple[Tool, ...]
) -> None:
    prompt = upstream.prompt(Act(tools=tools), Act())
    asked = ask(model, prompt, tools=TOOLS, tool_choice={"type": "auto"})
    if streamed:
        with client.messages.stream(**asked) as stream:
            reply = stream.get_final_message()
    else:
        reply = client.messages.create(**asked)
    assert reply.stop_reason == "tool_use"
    uses: list[Any] = [b for b in reply.content if b.type == "tool_use"]
    assert [(b.id, b.name, b.input) for b in uses] == [(t.id, t.name, t.arguments) for t in tools]
    results = [{"type": "tool_result", "tool_use_id": b.id, "content": f"result of {b.name}"} for b in uses]
    turn = [{"type": "tool_use", "id": b.id, "name": b.name, "input": b.input} for b in uses]
    asked["messages"] = [
        *asked["messages"],
        {"role": "assistant", "content": turn},
        {"role": "user", "content": results},
    ]
    assert client.messages.create(**asked).content[0].text == DEFAULT_TEXT
    first, second = (seen.json for seen in upstream.requests(prompt))
    if model == "gpt":
        assert [t["function"]["name"] for t in first["tools"]] == ["get_weather", "get_time"]
        assert first["tools"][0]["function"]["parameters"]["required"] == ["city"]
        answers = [m for m in second["messages"] if m["role"] == "tool"]
        assert [m["tool_call_id"] for m in answers] == [t.id for t in tools]
        assert "result of get_weather" in str(answers[0]["content"])
    else:
        assert first["tools"] == TOOLS
        assert second["messages"] == asked["messages"]


@pytest.mark.parametrize("model", MODELS)
def test_json_schema(client: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    prompt = upstream.prompt()
    reply = client.messages.parse(**ask(model, prompt), output_format=Person)
    assert reply.parsed_output == Person(name="Ada", age=36)
    if model == "gpt":
        form = upstream.requests(prompt)[0].json["response_format"]
        assert form["json_schema"]["schema"]["required"] == ["name", "age"]


@pytest.mark.parametrize("model", MODELS)
def test_images_pass(client: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    prompt = upstream.prompt()
    blocks: Any = [
        {"type": "text", "text": prompt},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
    ]
    client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": blocks}])
    content = upstream.requests(prompt)[0].json["messages"][0]["content"]
    if model == "gpt":
        assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
        assert content[1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
        assert content[2]["image_url"]["url"] == "https://example.com/cat.png"
    else:
        assert content == blocks


@pytest.mark.parametrize("stop", [("length", "max_tokens"), ("filter", "refusal")], ids=["length", "filter"])
@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_stop_reasons(
    client: anthropic.Anthropic, upstream: Upstream, model: str, streamed: bool, stop: tuple[str, str]
) -> None:
    asked = ask(model, upstream.prompt(Act(stop=stop[0])))
    if streamed:
        with client.messages.stream(**asked) as stream:
            reason = stream.get_final_message().stop_reason
    else:
        reason = client.messages.create(**asked).stop_reason
    assert reason == stop[1]


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_upstream_errors_are_the_sdks_own(
    client: anthropic.Anthropic,
    upstream: Upstream,
    model: str,
    status: int,
    kind: type[anthropic.APIStatusError],
    word: str,
    streamed: bool,
) -> None:
    with pytest.raises(kind, match=f"scripted {status}") as failed:
        client.messages.create(**ask(model, upstream.prompt(Act(status=status))), stream=streamed)
    assert failed.value.status_code == status
    body: Any = failed.value.body
    assert (body["type"], body["error"]["type"]) == ("error", word)
    assert failed.value.response.headers["x-trimtab-request-id"]


@pytest.mark.parametrize("model", MODELS)
def test_the_clients_own_key_passes_and_its_refusal_too(gateway: Gateway, upstream: Upstream, model: str) -> None:
    with gateway.anthropic(key="sk-wrong") as client:
        prompt = upstream.prompt()
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**ask(model, prompt))
    headers = upstream.requests(prompt)[0].headers
    assert "sk-wrong" in (headers["x-api-key"] if model == "claude" else headers["authorization"])


def test_our_own_refusals(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as failed:
        client.messages.create(model="claude", max_tokens=9, messages="none")  # type: ignore[arg-type]
    body: Any = failed.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert "messages" in body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(**ask("no-such-model", "hi"))
    body = unknown.value.body
    assert body["error"]["type"] == "not_found_error"


def test_what_cannot_be_translated_is_refused_by_name(client: anthropic.Anthropic, upstream: Upstream) -> None:
    prompt = upstream.prompt()
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": prompt}, pdf]}]
    with pytest.raises(anthropic.BadRequestError, match="document"):
        client.messages.create(model="gpt", max_tokens=9, messages=messages)
    assert upstream.requests(prompt) == []
    client.messages.create(model="claude", max_tokens=9, messages=messages)
    assert upstream.requests(prompt)[0].json["messages"] == messages


@pytest.mark.parametrize("model", MODELS)
def test_client_side_timeout(client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(Act(head_after_s=30)), new_id()
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.5).messages.create(**ask(model, prompt, workflow))
    seen = upstream.requests(prompt)[0]
    wait_until(lambda: seen.dropped_at, 2, "the upstream call to be aborted")
    assert gateway.row(workflow=workflow)["end"] == "cancelled"


@pytest.mark.parametrize("model", MODELS)
@once_more
def test_early_close_reaches_the_upstream(
    client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str
) -> None:
    prompt, workflow = upstream.prompt(Act(endless=True, gap_s=0.01)), new_id()
    stream = client.messages.create(**ask(model, prompt, workflow), stream=True)
    for _ in range(6):
        next(stream)
    left_at = time.monotonic()
    stream.close()
    assert_cancelled(upstream.requests(prompt)[0], left_at)
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["usage_source"]) == ("cancelled", "estimated")
    assert row["output_tokens"] > 0


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    models = list(client.models.list())
    assert {"gpt", "claude"} <= {m.id for m in models}
    assert all(m.type == "model" and m.display_name for m in models)


def test_count_tokens_passes_through(client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    counted = client.messages.count_tokens(
        model="claude", messages=user(prompt), extra_headers={"x-trimtab-workflow": workflow}
    )
    assert counted.input_tokens == 2095
    seen = upstream.requests(prompt)[0]
    assert (seen.path, seen.json["model"]) == ("/v1/messages/count_tokens", "claude-sonnet-4-5")
    assert not [name for name in seen.headers if name.startswith("x-trimtab")]
    row = gateway.row(workflow=workflow)
    assert (row["path"], row["end"], row["output_tokens"], row["cost_nusd"] or 0) == (
        "/v1/messages/count_tokens",
        "ok",
        0,
        0,
    )


@pytest.mark.parametrize("model", MODELS)
def test_cache_hit(client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    asked = ask(model, prompt, workflow, extra_body={"temperature": 0})
    first = client.messages.with_raw_response.create(**asked)
    second = client.messages.with_raw_response.create(**asked)
    assert (first.headers["x-trimtab-cache"], second.headers["x-trimtab-cache"]) == ("miss", "hit")
    assert first.parse() == second.parse()
    assert float(second.headers["x-trimtab-cost-usd"]) == 0
    with client.messages.stream(**asked) as stream:
        assert stream.response.headers["x-trimtab-cache"] == "hit"
        final = stream.get_final_message()
    assert final.content[0].text == DEFAULT_TEXT
    assert (final.usage.input_tokens, final.usage.output_tokens) == (20, 7)
    assert len(upstream.requests(prompt)) == 1
    rows = gateway.ledger(workflow=workflow, count=3)
    assert [r["cache"] for r in rows] == ["miss", "hit", "hit"]
    assert [r["cost_nusd"] for r in rows] == [110_000, 0, 0]
    assert [r["baseline_nusd"] for r in rows] == [110_000] * 3


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_fills_the_cache(client: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    for act in (Act(), Act(tools=(WEATHER, TIME))):
        prompt = upstream.prompt(act)
        asked = ask(model, prompt, tools=TOOLS, extra_body={"temperature": 0})
        with client.messages.stream(**asked) as stream:
            made = stream.get_final_message()
        again = client.messages.with_raw_response.create(**asked)
        assert again.headers["x-trimtab-cache"] == "hit"
        message = again.parse()
        assert [b.to_dict() for b in message.content] == [b.to_dict() for b in made.content]
        assert message.stop_reason == made.stop_reason
        with client.messages.stream(**asked) as stream:
            replayed = stream.get_final_message()
        assert [b.to_dict() for b in replayed.content] == [b.to_dict() for b in made.content]
        assert len(upstream.requests(prompt)) == 1


@pytest.mark.parametrize("model", MODELS)
def test_our_metadata_is_stripped_and_kept(
    client: anthropic.Anthropic, gateway: Gateway, upstream: Upstream, model: str
) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    client.messages.create(
        **ask(model, prompt),
        extra_body={"metadata": {"user_id": "u-1", "trimtab": {"workflow": workflow, "session": "s1"}}},
        extra_headers={"x-trimtab-user": "ada", "x-trimtab-permission": "staff"},
    )
    seen = upstream.requests(prompt)[0]
    assert workflow not in seen.body.decode()
    if model == "claude":
        assert seen.json["metadata"] == {"user_id": "u-1"}
    assert not [name for name in seen.headers if name.startswith("x-trimtab")]
    row = gateway.row(workflow=workflow)
    assert [row[n] for n in ("session", "user", "permission")] == ["s1", "ada", "staff"]


@pytest.mark.parametrize("model", MODELS)
async def test_async_client_many_at_once(gateway: Gateway, upstream: Upstream, model: str) -> None:
    workflow = new_id()
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key="sk-client", max_retries=0) as client:

        async def one(n: int) -> str:
            text = f"Answer number {n} goes to its own asker."
            asked = ask(model, upstream.prompt(Act(text=text)), workflow)
            if n % 2:
                reply = await client.messages.create(**asked)
                return reply.content[0].text
            async with client.messages.stream(**asked) as stream:
                return "".join([part async for part in stream.text_stream])

        answers = await asyncio.gather(*(one(n) for n in range(30)))
    assert answers == [f"Answer number {n} goes to its own asker." for n in range(30)]
    assert len(gateway.ledger(workflow=workflow, count=30)) == 30
