"""The scripted upstream is itself held to the real SDKs, so that a failing test elsewhere accuses the gateway."""

from __future__ import annotations

import time

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act, Tokens, Tool

WEATHER = Tool(name="get_weather", arguments={"city": "Zürich", "days": 3}, id="call_w")
TIME = Tool(name="get_time", arguments={"zone": "CET"}, id="call_t")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def oai(upstream: Upstream):
    with openai.OpenAI(base_url=upstream.openai_url, api_key="sk-1", max_retries=0) as client:
        yield client


@pytest.fixture
def ant(upstream: Upstream):
    with anthropic.Anthropic(base_url=upstream.anthropic_url, api_key="sk-1", max_retries=0) as client:
        yield client


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_openai_sdk_reads_every_shape(upstream: Upstream, oai: openai.OpenAI) -> None:
    tokens = Tokens(input=5, cache_read=10, output=3, reasoning=2)
    prompt = upstream.prompt(Act(tokens=tokens))
    whole = oai.chat.completions.create(model="m", messages=user(prompt))
    assert whole.choices[0].message.content == DEFAULT_TEXT
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (15, 5)
    chunks = list(oai.chat.completions.create(model="m", messages=user(prompt), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == DEFAULT_TEXT
    with oai.chat.completions.stream(model="m", messages=user(upstream.prompt(Act(tools=(WEATHER, TIME))))) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [c.function.name for c in calls] == ["get_weather", "get_time"]
    parsed = oai.chat.completions.parse(model="m", messages=user("x"), response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
    with pytest.raises(openai.BadRequestError, match="Unrecognized"):
        oai.chat.completions.create(model="m", messages=user("x"), extra_body={"leak": 1})


def test_anthropic_sdk_reads_every_shape(upstream: Upstream, ant: anthropic.Anthropic) -> None:
    prompt = upstream.prompt(Act(tokens=Tokens(input=5, cache_read=10, cache_write_5m=3)))
    whole = ant.messages.create(model="m", max_tokens=50, messages=user(prompt))
    assert whole.content[0].text == DEFAULT_TEXT
    assert whole.usage.cache_creation_input_tokens == 3
    with ant.messages.stream(model="m", max_tokens=50, messages=user(prompt)) as stream:
        assert "".join(stream.text_stream) == DEFAULT_TEXT
        assert stream.get_final_message().usage.output_tokens == 7
    with ant.messages.stream(
        model="m", max_tokens=50, messages=user(upstream.prompt(Act(tools=(WEATHER, TIME))))
    ) as stream:
        blocks = stream.get_final_message().content
    assert [(b.name, b.input) for b in blocks] == [(t.name, t.arguments) for t in (WEATHER, TIME)]
    parsed = ant.messages.parse(model="m", max_tokens=50, messages=user("x"), output_format=Person)
    assert parsed.parsed_output == Person(name="Ada", age=36)
    assert ant.messages.count_tokens(model="m", messages=user("x")).input_tokens == 2095
    with pytest.raises(anthropic.BadRequestError, match="Extra inputs"):
        ant.messages.create(model="m", max_tokens=50, messages=user("x"), extra_body={"leak": 1})


def test_faults_are_what_they_say(upstream: Upstream, oai: openai.OpenAI) -> None:
    def ask(*acts: Act, stream: bool = False):
        return oai.chat.completions.create(model="m", messages=user(upstream.prompt(*acts)), stream=stream)

    with pytest.raises(openai.APIConnectionError):
        ask(Act(reset=True))
    with pytest.raises(openai.RateLimitError) as limited:
        ask(Act(status=429, headers=(("retry-after", "1"),)))
    assert limited.value.response.headers["retry-after"] == "1"
    for how in ("fin", "rst"):
        got = []
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            got.extend(ask(Act(break_after=2, break_how=how), stream=True))
        assert len(got) == 3
    assert len(list(ask(Act(break_after=2, break_how="clean"), stream=True))) == 3
    prompt = upstream.prompt(Act(endless=True, gap_s=0.01))
    stream = oai.chat.completions.create(model="m", messages=user(prompt), stream=True)
    for _ in range(5):
        next(stream)
    left_at = time.monotonic()
    stream.close()
    seen = upstream.requests(prompt)[0]
    wait_until(lambda: seen.dropped_at, 5, "the upstream to notice")
    assert seen.dropped_at and seen.dropped_at - left_at < 0.5
