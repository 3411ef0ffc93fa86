"""What cannot be said in the other dialect is refused by name; what is harmless goes quietly."""

import msgspec
import pytest

from trimtab.errors import BadRequest, Unsupported
from trimtab.protocols import CODECS, translate_request
from trimtab.types import Dialect

OPENAI, ANTHROPIC = Dialect.OPENAI, Dialect.ANTHROPIC
USER = {"role": "user", "content": "hi"}


def to_anthropic(**fields):
    body = {"model": "m", "messages": [USER]} | fields
    parsed = CODECS[OPENAI].parse(msgspec.json.encode(body))
    out = translate_request(parsed.fields, OPENAI, ANTHROPIC, model="up", stream=False)
    return msgspec.json.decode(out)


def to_openai(*, stream=False, **fields):
    body = {"model": "m", "max_tokens": 9, "messages": [USER]} | fields
    parsed = CODECS[ANTHROPIC].parse(msgspec.json.encode(body))
    out = translate_request(parsed.fields, ANTHROPIC, OPENAI, model="up", stream=stream)
    return msgspec.json.decode(out)


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("top_logprobs", {"top_logprobs": 5}),
        ("logit_bias", {"logit_bias": {"1": 5}}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": -1}),
        ("seed", {"seed": 1}),
        ("temperature", {"temperature": 1.5}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("response_format.type", {"response_format": {"type": "grammar"}}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("function_call", {"function_call": {"name": "f"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "a", "format": "wav"}}),
        ("web_search_options", {"web_search_options": {}}),
        ("verbosity", {"verbosity": "high"}),
        ("moderation", {"moderation": {"model": "m"}}),
        ("min_p", {"min_p": 0.1}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        ("tool_choice.type", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
        ("messages[0].role", {"messages": [{"role": "function", "content": "x", "name": "f"}]}),
        ("messages[0].name", {"messages": [USER | {"name": "bob"}]}),
        ("messages[0].audio", {"messages": [{"role": "assistant", "audio": {"id": "x"}}]}),
        (
            "messages[0].content[0].type",
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        ),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}),
        (
            "messages[0].content[0].image_url.url",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        ),
    ],
)
def test_openai_fields_without_a_word_in_anthropic(param, fields):
    with pytest.raises(Unsupported) as caught:
        to_anthropic(**fields)
    assert caught.value.param == param and param in caught.value.message and "openai" in caught.value.message


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("container", {"container": "c_1"}),
        ("context_management", {"context_management": {"edits": [1]}}),
        ("mcp_servers", {"mcp_servers": [{"url": "x"}]}),
        ("inference_geo", {"inference_geo": "eu"}),
        ("speed", {"speed": "fast"}),
        ("thinking.type", {"thinking": {"type": "between_tools"}}),
        ("output_config.task_budget", {"output_config": {"task_budget": {"total": 5}}}),
        ("tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("tools[0].defer_loading", {"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}),
        ("tools[0].input_examples", {"tools": [{"name": "f", "input_schema": {}, "input_examples": [{}]}]}),
        ("messages[0].content[0]", user({"type": "document", "source": {}})),
        ("messages[0].content[0]", user({"type": "search_result", "source": "x"})),
        ("messages[0].content[0].source.type", user({"type": "image", "source": {"type": "file", "file_id": "f"}})),
        ("messages[0]", user({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]})),
        ("messages[1]", {"messages": [USER, {"role": "assistant", "content": "The answer is"}]}),
    ],
)
def test_anthropic_fields_without_a_word_in_openai(param, fields):
    with pytest.raises(Unsupported) as caught:
        to_openai(**fields)
    assert caught.value.param == param and param in caught.value.message and "anthropic" in caught.value.message


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("messages[0]", {"messages": ["hi"]}),
        ("messages[0].role", {"messages": [{"content": "hi"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "x"}]}),
        (
            "tool_calls",
            {"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "["}}]}]},
        ),
        ("temperature", {"temperature": "hot"}),
        ("max_tokens", {"max_tokens": "many"}),
        ("stop[1]", {"stop": ["a", 1]}),
        ("tools", {"tools": {}}),
    ],
)
def test_wrong_types_are_bad_requests(param, fields):
    with pytest.raises(BadRequest) as caught:
        to_anthropic(**fields)
    assert param in caught.value.param and not isinstance(caught.value, Unsupported)


def test_harmless_fields_go_quietly():
    hints = {"store": True, "metadata": {"a": "b"}, "service_tier": "flex", "prompt_cache_key": "k"}
    hints |= {"prediction": {"type": "content"}, "stream_options": {"include_usage": True}}
    defaults = {"n": 1, "logprobs": None, "top_logprobs": 0, "logit_bias": {}, "frequency_penalty": 0.0}
    defaults |= {"modalities": ["text"], "verbosity": "medium", "functions": None, "seed": None}
    out = to_anthropic(**hints, **defaults, parallel_tool_calls=None)
    assert out == {"model": "up", "max_tokens": 8192, "messages": [USER]}
    cached = {"cache_control": {"type": "ephemeral"}}
    hints = {"service_tier": "auto", "diagnostics": {}, "container": None, **cached}
    defaults = {"speed": "standard", "thinking": {"type": "disabled"}, "mcp_servers": []}
    out = to_openai(**hints, **defaults, **user({"type": "text", "text": "hi", **cached}))
    assert out == {"model": "up", "messages": [USER], "max_completion_tokens": 9}


def test_streams_ask_for_usage():
    assert to_openai(stream=True)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("effort", "thinking", "config"),
    [
        ("none", {"type": "disabled"}, None),
        ("minimal", {"type": "adaptive"}, {"effort": "low"}),
        ("high", {"type": "adaptive"}, {"effort": "high"}),
        ("xhigh", {"type": "adaptive"}, {"effort": "xhigh"}),
    ],
)
def test_reasoning_effort_to_thinking(effort, thinking, config):
    out = to_anthropic(reasoning_effort=effort)
    assert (out["thinking"], out.get("output_config")) == (thinking, config)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, None),
        ({"output_config": {"effort": "low"}}, "low"),
    ],
)
def test_thinking_to_reasoning_effort(fields, effort):
    assert to_openai(**fields).get("reasoning_effort") == effort


@pytest.mark.parametrize(
    ("openai", "anthropic"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
def test_tool_choices(openai, anthropic):
    assert to_anthropic(tools=[TOOL], tool_choice=openai)["tool_choice"] == anthropic
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    assert to_openai(tools=tools, tool_choice=anthropic)["tool_choice"] == openai
    single = to_anthropic(tools=[TOOL], parallel_tool_calls=False)["tool_choice"]
    assert single == {"type": "auto", "disable_parallel_tool_use": True}


def test_system_messages_keep_their_place():
    messages = [{"role": "system", "content": "a"}, USER, {"role": "developer", "content": "b"}, USER]
    out = to_anthropic(messages=messages)
    assert out["system"] == "a"
    assert [message["role"] for message in out["messages"]] == ["user", "system", "user"]
    assert [m["role"] for m in to_openai(**{k: out[k] for k in ("system", "messages")})["messages"]] == [
        "system",
        "user",
        "system",
        "user",
    ]


def test_empty_texts_beside_tool_calls_are_left_out():
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    messages.append({"role": "tool", "tool_call_id": "c", "content": ""})
    out = to_anthropic(messages=messages)["messages"]
    assert [block["type"] for block in out[1]["content"]] == ["tool_use"]
    assert out[2]["content"] == [{"type": "tool_result", "tool_use_id": "c", "content": ""}]


def test_unsigned_reasoning_of_the_past_is_not_sent():
    messages = [USER, {"role": "assistant", "content": "x", "reasoning_content": "hm"}, USER]
    assert to_anthropic(messages=messages)["messages"][1] == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC])
def test_a_dialect_writes_its_own_extras_back(dialect):
    body = {"model": "m", "max_tokens": 9, "messages": [USER], "x_extra": {"a": 1}, "temperature": 1.5, "seed": 3}
    if dialect is ANTHROPIC:
        del body["seed"]
    fields = CODECS[dialect].parse(msgspec.json.encode(body)).fields
    out = msgspec.json.decode(translate_request(fields, dialect, dialect, model="m", stream=False))
    if dialect is OPENAI:
        body["max_completion_tokens"] = body.pop("max_tokens")
    assert out == body
