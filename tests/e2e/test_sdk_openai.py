"""The real `openai` SDK through the gateway, in front of an OpenAI and of an Anthropic upstream."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from asking import assert_cancelled, once_more
from gateway_process import Gateway, MakeGateway, new_id, two_upstreams
from pydantic import BaseModel
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act, Tokens, Tool

MODELS = ["gpt", "claude"]
WEATHER = Tool(name="get_weather", arguments={"city": "Zürich", "days": 3}, id="call_w")
TIME = Tool(name="get_time", arguments={"zone": "CET"}, id="call_t")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "Looks it up.", "parameters": CITY}}
    for name in ("get_weather", "get_time")
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


class Person(BaseModel):
    name: str
    age: int


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    embed = '[models.embed]\nengine = "oai"\nname = "text-embedding-3-small"\n'
    return gateways(two_upstreams(upstream.port, models=embed, extra="[routes.default]\nretries = 0\n"))


@pytest.fixture(scope="module")
def client(gateway: Gateway):
    with gateway.openai() as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_chat(client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Hello."},
            *user(prompt),
        ],
        max_completion_tokens=99,
        stop=["END"],
        extra_headers={"x-trimtab-workflow": workflow},
    )
    reply = raw.parse()
    assert reply.choices[0].message.content == DEFAULT_TEXT
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion"
    assert reply.usage and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (20, 7)
    assert reply.usage.total_tokens == 27
    assert raw.headers["x-trimtab-cache"] == "bypass"  # no temperature was given, so it is not deterministic
    assert raw.headers["x-trimtab-decision"]
    assert "total;dur=" in raw.headers["server-timing"]
    assert raw.headers["x-trimtab-cost-usd"] == "0.000110000"
    seen = upstream.requests(prompt)[0].json
    if model == "claude":
        assert "Be brief." in json.dumps(seen["system"])
        assert [m["role"] for m in seen["messages"]] == ["user", "assistant", "user"]
        assert (seen["max_tokens"], seen["stop_sequences"]) == (99, ["END"])
        assert seen["model"] == "claude-sonnet-4-5"
    else:
        assert seen["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (seen["max_completion_tokens"], seen["stop"], seen["model"]) == (99, ["END"], "gpt-4o-mini")
    row = gateway.row(id=raw.headers["x-trimtab-request-id"])
    assert (row["end"], row["status"], row["model"], row["workflow"]) == ("ok", 200, model, workflow)
    assert (row["cost_nusd"], row["input_tokens"], row["output_tokens"]) == (110_000, 20, 7)
    assert [(c["purpose"], c["end"], c["status"]) for c in row["calls"]] == [("serve", "ok", 200)]


@pytest.mark.parametrize("model", MODELS)
def test_token_classes_come_through(client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str) -> None:
    tokens = Tokens(input=5, cache_read=10, output=6)
    if model == "claude":
        tokens = Tokens(input=5, cache_read=10, cache_write_5m=3, cache_write_1h=2, output=6)
    else:
        tokens = Tokens(input=5, cache_read=10, output=6, reasoning=4)
    workflow = new_id()
    reply = client.chat.completions.create(
        model=model, messages=user(upstream.prompt(Act(tokens=tokens))), extra_headers={"x-trimtab-workflow": workflow}
    )
    assert reply.usage and reply.usage.prompt_tokens_details
    assert reply.usage.prompt_tokens == tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
    assert reply.usage.completion_tokens == tokens.output + tokens.reasoning
    assert reply.usage.prompt_tokens_details.cached_tokens == 10
    row = gateway.row(workflow=workflow)
    for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"):
        assert row[f"{name}_tokens"] == getattr(tokens, name), name
    per_token = {"input": 2000, "cache_read": 500, "cache_write_5m": 2500, "cache_write_1h": 4000, "output": 10_000}
    money = sum(getattr(tokens, name) * nusd for name, nusd in per_token.items()) + tokens.reasoning * 10_000
    assert row["cost_nusd"] == money


@pytest.mark.parametrize("model", MODELS)
def test_stream(client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    stream = client.chat.completions.create(
        model=model, messages=user(prompt), stream=True, extra_headers={"x-trimtab-workflow": workflow}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == DEFAULT_TEXT
    assert all(c.choices for c in chunks)  # no usage chunk: it was not asked for
    assert all(c.usage is None for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    if model == "gpt":
        assert upstream.requests(prompt)[0].json["stream_options"]["include_usage"] is True
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["stream"], row["usage_source"]) == ("ok", 1, "reported")
    assert (row["input_tokens"], row["output_tokens"], row["cost_nusd"]) == (20, 7, 110_000)
    assert row["ttft_s"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_stream_with_usage(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model, messages=user(upstream.prompt()), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage and (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (20, 7)
    assert all(c.usage is None for c in chunks[:-1])
    with client.chat.completions.stream(
        model=model, messages=user(upstream.prompt()), stream_options={"include_usage": True}
    ) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == DEFAULT_TEXT
    assert final.usage and final.usage.total_tokens == 27


@pytest.mark.parametrize("tools", [(WEATHER,), (WEATHER, TIME)], ids=["single", "parallel"])
@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_tools_and_their_results(
    client: openai.OpenAI, upstream: Upstream, model: str, streamed: bool, tools: tuple[Tool, ...]
) -> None:
    prompt = upstream.prompt(Act(tools=tools), Act())
    asked: dict[str, Any] = {"model": model, "tools": TOOLS, "messages": user(prompt), "tool_choice": "auto"}
    if streamed:
        with client.chat.completions.stream(**asked) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        (t.id, t.name, t.arguments) for t in tools
    ]
    turns = [choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})]
    for call in turns[0]["tool_calls"]:
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    turns += [{"role": "tool", "tool_call_id": c.id, "content": f"result of {c.function.name}"} for c in calls]
    asked["messages"] = [*asked["messages"], *turns]
    final = client.chat.completions.create(**asked)
    assert final.choices[0].message.content == DEFAULT_TEXT
    first, second = (seen.json for seen in upstream.requests(prompt))
    if model == "claude":
        assert [t["name"] for t in first["tools"]] == ["get_weather", "get_time"]
        assert first["tools"][0]["input_schema"]["required"] == ["city"]
        results = [b for b in second["messages"][-1]["content"] if b["type"] == "tool_result"]
        assert [b["tool_use_id"] for b in results] == [t.id for t in tools]
        assert "result of get_weather" in json.dumps(results[0]["content"])
    else:
        assert first["tools"] == TOOLS
        assert [m["tool_call_id"] for m in second["messages"] if m["role"] == "tool"] == [t.id for t in tools]


@pytest.mark.parametrize("model", MODELS)
def test_json_schema(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    prompt = upstream.prompt()
    reply = client.chat.completions.parse(model=model, messages=user(prompt), response_format=Person)
    assert reply.choices[0].message.parsed == Person(name="Ada", age=36)
    assert '"age"' in upstream.requests(prompt)[0].body.decode()


@pytest.mark.parametrize("model", MODELS)
def test_images_pass(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    prompt = upstream.prompt()
    parts: Any = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    content = upstream.requests(prompt)[0].json["messages"][0]["content"]
    if model == "claude":
        assert [block["type"] for block in content] == ["text", "image", "image"]
        assert content[1]["source"] == {"type": "base64", "media_type": "image/png", "data": PIXEL}
        assert content[2]["source"] == {"type": "url", "url": "https://example.com/cat.png"}
    else:
        assert content == parts


@pytest.mark.parametrize("stop", [("length", "length"), ("filter", "content_filter")], ids=["length", "filter"])
@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_stop_reasons(
    client: openai.OpenAI, upstream: Upstream, model: str, streamed: bool, stop: tuple[str, str]
) -> None:
    messages = user(upstream.prompt(Act(stop=stop[0])))
    if streamed:
        chunks = list(client.chat.completions.create(model=model, messages=messages, stream=True))
        assert chunks[-1].choices[0].finish_reason == stop[1]
    else:
        reply = client.chat.completions.create(model=model, messages=messages)
        assert reply.choices[0].finish_reason == stop[1]


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_upstream_errors_are_the_sdks_own(
    client: openai.OpenAI,
    upstream: Upstream,
    model: str,
    status: int,
    kind: type[openai.APIStatusError],
    streamed: bool,
) -> None:
    with pytest.raises(kind, match=f"scripted {status}") as failed:
        client.chat.completions.create(model=model, messages=user(upstream.prompt(Act(status=status))), stream=streamed)
    assert failed.value.status_code == status
    assert isinstance(failed.value.body, dict)
    assert isinstance(failed.value.body["message"], str)
    assert isinstance(failed.value.type, str)
    assert failed.value.response.headers["x-trimtab-request-id"]


@pytest.mark.parametrize("model", MODELS)
def test_the_clients_own_key_passes_and_its_refusal_too(gateway: Gateway, upstream: Upstream, model: str) -> None:
    with gateway.openai(key="sk-wrong") as client:
        prompt = upstream.prompt()
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model=model, messages=user(prompt))
    headers = upstream.requests(prompt)[0].headers
    assert "sk-wrong" in (headers["x-api-key"] if model == "claude" else headers["authorization"])


def test_our_own_refusals(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        client.chat.completions.create(model="gpt", messages="none")  # type: ignore[arg-type]
    assert failed.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=user("hi"))
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize("field", [{"n": 2}, {"logprobs": True}, {"seed": 3}], ids=lambda field: next(iter(field)))
def test_what_cannot_be_translated_is_refused_by_name(
    client: openai.OpenAI, upstream: Upstream, field: dict[str, Any]
) -> None:
    prompt = upstream.prompt()
    with pytest.raises(openai.BadRequestError) as failed:
        client.chat.completions.create(model="claude", messages=user(prompt), **field)
    assert (failed.value.param, failed.value.code) == (next(iter(field)), "unsupported")
    assert upstream.requests(prompt) == []
    client.chat.completions.create(model="gpt", messages=user(prompt), **field)
    assert field.items() <= upstream.requests(prompt)[0].json.items()


@pytest.mark.parametrize("model", MODELS)
def test_client_side_timeout(client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(Act(head_after_s=30)), new_id()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(
            model=model, messages=user(prompt), extra_headers={"x-trimtab-workflow": workflow}
        )
    seen = upstream.requests(prompt)[0]
    wait_until(lambda: seen.dropped_at, 2, "the upstream call to be aborted")
    assert gateway.row(workflow=workflow)["end"] == "cancelled"


@pytest.mark.parametrize("model", MODELS)
@once_more
def test_early_close_reaches_the_upstream(
    client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str
) -> None:
    prompt, workflow = upstream.prompt(Act(endless=True, gap_s=0.01)), new_id()
    stream = client.chat.completions.create(
        model=model, messages=user(prompt), stream=True, extra_headers={"x-trimtab-workflow": workflow}
    )
    for _ in range(5):
        next(stream)
    left_at = time.monotonic()
    stream.close()
    assert_cancelled(upstream.requests(prompt)[0], left_at)
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["usage_source"]) == ("cancelled", "estimated")
    assert row["output_tokens"] > 0


def test_models_are_listed(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert {"gpt", "claude"} <= {m.id for m in models}
    assert all(m.object == "model" for m in models)


@pytest.mark.parametrize("model", MODELS)
def test_cache_hit(client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    asked: Any = {
        "model": model,
        "messages": user(prompt),
        "temperature": 0,
        "extra_headers": {"x-trimtab-workflow": workflow},
    }
    first = client.chat.completions.with_raw_response.create(**asked)
    second = client.chat.completions.with_raw_response.create(**asked)
    assert (first.headers["x-trimtab-cache"], second.headers["x-trimtab-cache"]) == ("miss", "hit")
    assert first.parse() == second.parse()
    assert float(second.headers["x-trimtab-cost-usd"]) == 0
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as third:
        assert third.headers["x-trimtab-cache"] == "hit"
        chunks = list(third.parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == DEFAULT_TEXT
    assert all(c.usage is None for c in chunks)
    with_usage = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert with_usage[-1].usage and with_usage[-1].usage.total_tokens == 27
    assert len(upstream.requests(prompt)) == 1
    rows = gateway.ledger(workflow=workflow, count=4)
    assert [r["cache"] for r in rows] == ["miss", "hit", "hit", "hit"]
    assert [r["cost_nusd"] for r in rows] == [110_000, 0, 0, 0]
    assert [r["baseline_nusd"] for r in rows] == [110_000] * 4


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_fills_the_cache(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    for act in (Act(), Act(tools=(WEATHER, TIME))):
        prompt = upstream.prompt(act)
        asked: Any = {"model": model, "messages": user(prompt), "temperature": 0, "tools": TOOLS}
        with client.chat.completions.stream(**asked) as stream:
            made = stream.get_final_completion().choices[0].message
        again = client.chat.completions.with_raw_response.create(**asked)
        assert again.headers["x-trimtab-cache"] == "hit"
        message = again.parse().choices[0].message
        assert (message.content or "") == (made.content or "")
        assert [c.function.name for c in message.tool_calls or ()] == [c.function.name for c in made.tool_calls or ()]
        with client.chat.completions.stream(**asked) as stream:
            replayed = stream.get_final_completion().choices[0]
        assert [c.to_dict() for c in replayed.message.tool_calls or ()] == [c.to_dict() for c in made.tool_calls or ()]
        assert len(upstream.requests(prompt)) == 1


@pytest.mark.parametrize("model", MODELS)
def test_our_metadata_is_stripped_and_kept(
    client: openai.OpenAI, gateway: Gateway, upstream: Upstream, model: str
) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    client.chat.completions.create(
        model=model,
        messages=user(prompt),
        extra_body={"metadata": {"trimtab": {"workflow": workflow, "session": "s1", "prompt_version": "v7"}}},
        extra_headers={"x-trimtab-user": "ada", "x-trimtab-policy-version": "p2"},
    )
    seen = upstream.requests(prompt)[0]
    assert not seen.json.get("metadata")
    assert workflow not in seen.body.decode()
    assert not [name for name in seen.headers if name.startswith("x-trimtab")]
    row = gateway.row(workflow=workflow)
    names = ("session", "prompt_version", "user", "policy_version", "route", "tenant")
    assert [row[n] for n in names[:5]] == ["s1", "v7", "ada", "p2", "default"]


def test_other_paths_pass_through(client: openai.OpenAI, gateway: Gateway, upstream: Upstream) -> None:
    prompt, workflow = upstream.prompt(), new_id()
    headers = {"x-trimtab-workflow": workflow}
    vectors = client.embeddings.create(model="embed", input=prompt, extra_headers=headers)
    assert vectors.data[0].embedding == [0.25, -0.5]
    assert upstream.requests(prompt)[0].json["model"] == "text-embedding-3-small"
    heard = client.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", b"RIFF" * 1000, "audio/wav"), extra_headers=headers
    )
    assert "bytes heard" in heard.text
    rows = gateway.ledger(workflow=workflow, count=2)
    assert [(r["path"], r["end"], r["status"]) for r in rows] == [
        ("/v1/embeddings", "ok", 200),
        ("/v1/audio/transcriptions", "ok", 200),
    ]


@pytest.mark.parametrize("model", MODELS)
async def test_async_client_many_at_once(gateway: Gateway, upstream: Upstream, model: str) -> None:
    workflow = new_id()
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="sk-client", max_retries=0) as client:

        async def one(n: int) -> str:
            text = f"Answer number {n} goes to its own asker."
            messages = user(upstream.prompt(Act(text=text)))
            headers = {"x-trimtab-workflow": workflow}
            if n % 2:
                reply = await client.chat.completions.create(model=model, messages=messages, extra_headers=headers)
                return reply.choices[0].message.content or ""
            parts = []
            async for chunk in await client.chat.completions.create(
                model=model, messages=messages, stream=True, extra_headers=headers
            ):
                parts += [c.delta.content or "" for c in chunk.choices]
            return "".join(parts)

        answers = await asyncio.gather(*(one(n) for n in range(30)))
    assert answers == [f"Answer number {n} goes to its own asker." for n in range(30)]
    assert len(gateway.ledger(workflow=workflow, count=30)) == 30
