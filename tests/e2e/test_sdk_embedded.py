"""The real SDKs against the embedded model: no configuration, no upstream, no key."""

from __future__ import annotations

import json
from typing import Any, Literal

import anthropic
import openai
import pytest
from click.testing import CliRunner
from gateway_process import Gateway, MakeGateway, new_id
from pydantic import BaseModel

from trimtab.cli import main

MODEL = "smollm2-135m-instruct"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway) -> Gateway:
    return gateways("", ready_s=300.0)  # the first run on a machine downloads the weights


@pytest.fixture(scope="module")
def oai(gateway: Gateway):
    with gateway.openai(key="unused") as client:
        yield client


@pytest.fixture(scope="module")
def ant(gateway: Gateway):
    with gateway.anthropic(key="unused") as client:
        yield client


def test_openai_chat_and_its_row(oai: openai.OpenAI, gateway: Gateway) -> None:
    workflow = new_id()
    reply = oai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "You are brief."}, *user("Say hello.")],
        max_tokens=8,
        extra_headers={"x-trimtab-workflow": workflow},
    )
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in {"stop", "length"}
    assert reply.usage
    assert reply.usage.prompt_tokens > 10
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["input_tokens"] + row["cache_read_tokens"]) == ("ok", reply.usage.prompt_tokens)
    assert row["output_tokens"] == reply.usage.completion_tokens


@pytest.mark.parametrize("usage", [False, True], ids=["plain", "with usage"])
def test_openai_stream(oai: openai.OpenAI, gateway: Gateway, usage: bool) -> None:
    workflow = new_id()
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(
        oai.chat.completions.create(
            model=MODEL,
            messages=user("Count to five."),
            max_tokens=8,
            stream=True,
            extra_headers={"x-trimtab-workflow": workflow},
            **options,
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert any(c.choices and c.choices[0].finish_reason for c in chunks)
    assert [c.usage is not None for c in chunks].count(True) == usage
    row = gateway.row(workflow=workflow)
    assert (row["end"], row["usage_source"]) == ("ok", "reported")
    assert row["output_tokens"] > 0
    (call,) = row["calls"]
    assert call["prefill_s"] > 0 and call["decode_s"] > 0 and call["queue_s"] >= 0  # the engine says so, and our queue
    assert call["prefill_s"] + call["decode_s"] < call["end_s"] - call["start_s"]
    assert (call["drafted_tokens"], call["accepted_tokens"]) == (None, None)  # it does not speculate


def test_openai_json_schema(oai: openai.OpenAI) -> None:
    reply = oai.chat.completions.parse(
        model=MODEL,
        messages=user("I love this. Judge it."),
        response_format=Verdict,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(reply.choices[0].message.parsed, Verdict)


def test_anthropic_chat_and_stream(ant: anthropic.Anthropic) -> None:
    reply = ant.messages.create(model=MODEL, max_tokens=8, system="You are brief.", messages=user("Say hello."))
    assert reply.content[0].type == "text"
    assert reply.content[0].text
    assert reply.stop_reason in {"end_turn", "max_tokens"}
    assert reply.usage.output_tokens > 0
    with ant.messages.stream(model=MODEL, max_tokens=8, messages=user("Count to five.")) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens > 0


def test_anthropic_json_schema(ant: anthropic.Anthropic) -> None:
    reply = ant.messages.parse(
        model=MODEL, max_tokens=200, messages=user("I love this. Judge it."), output_format=Verdict
    )
    assert isinstance(reply.parsed_output, Verdict)


def test_tools_are_refused_by_name(oai: openai.OpenAI, ant: anthropic.Anthropic) -> None:
    function: Any = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
    with pytest.raises(openai.BadRequestError, match="tools") as refused:
        oai.chat.completions.create(model=MODEL, messages=user("Weather?"), tools=[function])
    assert refused.value.param == "tools"
    tool: Any = {"name": "get_weather", "input_schema": WEATHER}
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        ant.messages.create(model=MODEL, max_tokens=9, messages=user("Weather?"), tools=[tool])


def test_cache_hit(oai: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": user(new_id("Repeat")), "max_tokens": 4, "temperature": 0}
    replies = [oai.chat.completions.with_raw_response.create(**asked) for _ in range(2)]
    assert [r.headers["x-trimtab-cache"] for r in replies] == ["miss", "hit"]
    assert replies[0].parse() == replies[1].parse()


def test_the_model_is_listed(oai: openai.OpenAI) -> None:
    assert MODEL in {m.id for m in oai.models.list()}


def test_engine_status_finds_the_engine(gateway: Gateway) -> None:
    done = CliRunner().invoke(
        main, ["engine", "status", "--data-dir", str(gateway.data_dir), "--window", "0.5", "--json"]
    )
    (said,) = [json.loads(line) for line in done.output.splitlines()]
    assert done.exit_code == 0
    assert (said["state"], said["rates"]["kind"], said["rates"]["slots"]) == ("idle", "llama_cpp", 8)
