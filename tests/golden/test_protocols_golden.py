"""Golden transcripts of both dialects: our readings are the official SDKs', and translations keep the meaning."""

import msgspec
import pytest
from transcripts import (
    ANTHROPIC_STREAMS,
    OPENAI_STREAMS,
    anthropic_body,
    anthropic_sdk_reads,
    data_of,
    golden,
    openai_body,
    openai_sdk_reads,
)

from trimtab.errors import UpstreamInvalid
from trimtab.protocols import CODECS, StreamTranslator, translate_error, translate_reply, translate_request
from trimtab.protocols.chat import Reasoning, Text, ToolCall
from trimtab.types import Dialect, Usage

OPENAI, ANTHROPIC = Dialect.OPENAI, Dialect.ANTHROPIC
OAI, ANT = CODECS[OPENAI], CODECS[ANTHROPIC]
OPENAI_WHOLE = [name for name in OPENAI_STREAMS if "error" not in name]
ANTHROPIC_WHOLE = [name for name in ANTHROPIC_STREAMS if "error" not in name]
TRANSLATED = [name for name in OPENAI_WHOLE if "choices" not in name]


def whole(scanner, sse):
    return scanner.feed(sse) + scanner.close() + scanner.tail


def read(scanner, sse):
    whole(scanner, sse)
    return scanner


@pytest.mark.parametrize("name", OPENAI_WHOLE)
def test_openai_streams_assemble_to_what_the_sdk_reads(name):
    ours = openai_body(OAI.assemble(golden(name)))
    theirs = openai_sdk_reads(golden(name))
    assert len(ours.choices) == len(theirs.choices)
    for mine, sdks in zip(ours.choices, theirs.choices, strict=True):
        assert mine.finish_reason == sdks.finish_reason
        assert (mine.message.content or "") == (sdks.message.content or "")
        assert (mine.message.refusal or "") == (sdks.message.refusal or "")
        assert mine.logprobs == sdks.logprobs
        calls = [
            [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
            for choice in (mine, sdks)
        ]
        assert calls[0] == calls[1]
    assert ours.usage == theirs.usage


@pytest.mark.parametrize("name", ANTHROPIC_WHOLE)
def test_anthropic_streams_assemble_to_what_the_sdk_reads(name):
    ours = anthropic_body(ANT.assemble(golden(name)))
    theirs = anthropic_sdk_reads(golden(name))
    assert ours.model_dump(mode="json") == theirs.model_dump(mode="json", include=set(ours.model_dump()))


@pytest.mark.parametrize("name", OPENAI_WHOLE)
@pytest.mark.parametrize("include_usage", [False, True])
def test_openai_replay_assembles_back(name, include_usage):
    body = msgspec.json.decode(OAI.assemble(golden(name)))
    stream = OAI.replay(msgspec.json.encode(body), include_usage=include_usage)
    assert stream.endswith(b"data: [DONE]\n\n")
    openai_sdk_reads(stream)
    back = msgspec.json.decode(OAI.assemble(stream))
    if not include_usage:
        body.pop("usage", None)
        assert b'"usage"' not in stream
    assert back == body


@pytest.mark.parametrize("name", ANTHROPIC_WHOLE)
def test_anthropic_replay_assembles_back(name):
    body = ANT.assemble(golden(name))
    stream = ANT.replay(body, include_usage=True)
    anthropic_sdk_reads(stream)
    assert msgspec.json.decode(ANT.assemble(stream)) == msgspec.json.decode(body)


@pytest.mark.parametrize(
    ("name", "finish", "tokens", "usage"),
    [
        ("openai_text.sse", "stop", 5, Usage(input=93, cache_read=1024, output=46)),
        ("openai_tools.sse", "tool_calls", 7, Usage(input=1117, output=46)),
        ("openai_choices_logprobs.sse", "length", 3, None),
        ("openai_reasoning.sse", "stop", 5, Usage(input=6, cache_read=8, output=20, reasoning=70)),
        ("openai_llama_cpp.sse", "length", 4, Usage(input=11, cache_read=20, output=4)),
        ("openai_refusal.sse", "stop", 2, None),
        ("openai_spaced_crlf.sse", "stop", 3, Usage(input=5, output=3)),
        (
            "anthropic_text.sse",
            "end_turn",
            3,
            Usage(input=25, cache_read=1500, cache_write_5m=100, cache_write_1h=200, output=15),
        ),
        ("anthropic_tools.sse", "tool_use", 9, Usage(input=472, output=89)),
        ("anthropic_thinking.sse", "stop_sequence", 3, Usage(input=472, output=19, reasoning=41)),
    ],
)
def test_scanners_read_the_facts_and_pass_the_bytes(name, finish, tokens, usage):
    codec = CODECS[Dialect(name.split("_")[0])]
    scanner = codec.scanner(strip_usage=False)
    body = scanner.feed(golden(name))
    assert scanner.close() == b""
    assert body + scanner.tail == golden(name)
    assert scanner.tail and scanner.tail not in body
    assert (scanner.ended, scanner.error, scanner.finish) == (True, "", finish)
    assert (scanner.tokens_seen, scanner.first_token, scanner.usage) == (tokens, True, usage)
    assert scanner.model == data_of(golden(name))[0].get("model", scanner.model) != ""


@pytest.mark.parametrize("name", OPENAI_WHOLE)
def test_stripped_streams_lose_their_usage_and_nothing_else(name):
    scanner = OAI.scanner(strip_usage=True)
    stripped = whole(scanner, golden(name))
    expected = []
    for chunk in data_of(golden(name)):
        if chunk["choices"] == [] and chunk.get("usage"):
            continue
        if chunk.get("usage", ...) is None:
            del chunk["usage"]
        expected.append(chunk)
    assert data_of(stripped) == expected
    assert scanner.usage == read(OAI.scanner(strip_usage=False), golden(name)).usage
    if scanner.usage is not None:
        body = msgspec.json.decode(OAI.assemble(stripped, usage=scanner.usage))
        assert OAI.usage(body["usage"]) == scanner.usage


@pytest.mark.parametrize(("name", "message"), [("openai_error.sse", "had an error"), ("anthropic_error.sse", "Over")])
def test_error_events_are_forwarded_and_named(name, message):
    source = Dialect(name.split("_")[0])
    scanner = CODECS[source].scanner(strip_usage=True)
    assert b'"error"' in scanner.feed(golden(name)) + scanner.close()
    assert message in scanner.error and not scanner.ended
    with pytest.raises(UpstreamInvalid, match=message):
        CODECS[source].assemble(golden(name))
    target = ANTHROPIC if source is OPENAI else OPENAI
    translator = StreamTranslator(source, target, include_usage=True)
    out = translator.feed(golden(name)) + translator.close()
    last = data_of(out)[-1]
    assert message in last["error"]["message"] and message in translator.error and not translator.ended
    assert last.get("type") == ("error" if target is ANTHROPIC else None)


@pytest.mark.parametrize("name", TRANSLATED)
def test_openai_streams_translate_for_the_anthropic_sdk(name):
    translator = StreamTranslator(OPENAI, ANTHROPIC, include_usage=False)
    seen = anthropic_sdk_reads(whole(translator, golden(name)))
    direct = anthropic_body(translate_reply(OAI.assemble(golden(name)), OPENAI, ANTHROPIC))
    blocks = [[block.model_dump(exclude={"parsed_output"}) for block in m.content] for m in (seen, direct)]
    assert blocks[0] == blocks[1]
    assert seen.stop_reason == direct.stop_reason
    assert ANT.usage(seen.usage.model_dump()) == (translator.usage or Usage())
    if "refusal" not in name:
        assert translator.finish == seen.stop_reason


@pytest.mark.parametrize("name", ANTHROPIC_WHOLE)
@pytest.mark.parametrize("include_usage", [False, True])
def test_anthropic_streams_translate_for_the_openai_sdk(name, include_usage):
    translator = StreamTranslator(ANTHROPIC, OPENAI, include_usage=include_usage, created=7)
    stream = whole(translator, golden(name))
    seen = openai_sdk_reads(stream)
    direct = openai_body(translate_reply(ANT.assemble(golden(name)), ANTHROPIC, OPENAI, created=7))
    ours = openai_body(OAI.assemble(stream))
    assert (seen.created, seen.model) == (direct.created, direct.model)
    for choice in (seen.choices[0], ours.choices[0]):
        assert choice.message.content == direct.choices[0].message.content
        assert choice.finish_reason == direct.choices[0].finish_reason == translator.finish
    mine, theirs = (b.choices[0].message.model_dump(exclude={"tool_calls"}) for b in (ours, direct))
    assert mine == theirs
    calls = [
        [(call.id, call.function.name, msgspec.json.decode(call.function.arguments or "{}")) for call in tool_calls]
        for tool_calls in (ours.choices[0].message.tool_calls or (), direct.choices[0].message.tool_calls or ())
    ]
    assert calls[0] == calls[1]
    assert (seen.usage is not None) is include_usage
    assert not include_usage or seen.usage == direct.usage


def test_interleaved_tool_calls_become_ordered_blocks():
    translator = StreamTranslator(OPENAI, ANTHROPIC, include_usage=False)
    seen = anthropic_sdk_reads(whole(translator, golden("openai_tools.sse")))
    assert [(block.id, block.name, block.input) for block in seen.content] == [
        ("call_1aZ", "get_weather", {"city": "Paris", "unit": "c"}),
        ("call_2bY", "get_time", {"zone": "Europe/Paris"}),
    ]


def test_thinking_survives_a_round_trip_through_an_openai_client():
    reply = OAI.decode_reply(translate_reply(ANT.assemble(golden("anthropic_thinking.sse")), ANTHROPIC, OPENAI))
    assert reply.parts == (
        Reasoning("17 + 25: 42.", "EqQBCgIYAhIM1gbcDa9GJwZA2b3h=="),
        Reasoning(redacted="EmwKAhgBEgy3va3pzix"),
        Text("It is 42."),
    )
    message = msgspec.json.decode(OAI.encode_reply(reply, model=""))["choices"][0]["message"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "so?"}]}
    sent = translate_request(OAI.parse(msgspec.json.encode(body)).fields, OPENAI, ANTHROPIC, model="m", stream=False)
    assert [block["type"] for block in msgspec.json.decode(sent)["messages"][1]["content"]] == [
        "thinking",
        "redacted_thinking",
        "text",
    ]


@pytest.mark.parametrize("source", [OPENAI, ANTHROPIC])
def test_buffered_replies_keep_their_meaning_both_ways(source):
    target = ANTHROPIC if source is OPENAI else OPENAI
    body = golden(f"{source}_reply_tools.json")
    before = CODECS[source].decode_reply(body)
    there = translate_reply(body, source, target, created=5)
    (anthropic_body if target is ANTHROPIC else openai_body)(there)
    back = CODECS[source].decode_reply(translate_reply(there, target, source))
    assert (back.model, back.finish, back.id) == (before.model, before.finish, before.id)
    assert [type(part) for part in back.parts] == [type(part) for part in before.parts]
    for old, new in zip(before.parts, back.parts, strict=True):
        if isinstance(old, ToolCall):
            assert (old.id, old.name) == (new.id, new.name)
            assert msgspec.json.decode(old.arguments) == msgspec.json.decode(new.arguments)
        else:
            assert old == new
    assert back.usage.total == before.usage.total == CODECS[target].read_reply(there).usage.total
    assert (back.usage.cache_read, back.usage.reasoning) == (before.usage.cache_read, before.usage.reasoning)


@pytest.mark.parametrize("source", [OPENAI, ANTHROPIC])
def test_requests_translate_and_come_back_with_their_meaning(source):
    target = ANTHROPIC if source is OPENAI else OPENAI
    parsed = CODECS[source].parse(golden(f"{source}_request.json"))
    sent = translate_request(parsed.fields, source, target, model="up", stream=parsed.stream)
    assert msgspec.json.decode(sent) == msgspec.json.decode(golden(f"{source}_request.to_{target}.json"))
    there = CODECS[target].parse(sent)
    assert (there.model, there.stream, there.wants_usage) == ("up", parsed.stream, there.wants_usage)
    first = CODECS[source].decode_request(parsed.fields)
    again = translate_request(there.fields, target, source, model="m", stream=False)
    second = CODECS[source].decode_request(CODECS[source].parse(again).fields)
    for field in ("tool_choice", "max_tokens", "temperature", "top_p", "top_k", "stop", "user"):
        assert getattr(second, field) == getattr(first, field), field
    assert second.response_format.schema == first.response_format.schema
    assert [tool.name for tool in second.tools] == [tool.name for tool in first.tools]
    assert "\n\n".join(t.text for t in second.system) == "\n\n".join(t.text for t in first.system)
    assert [message.role for message in second.messages if message.role != "tool"] == [
        message.role for message in first.messages if message.role != "tool"
    ]


@pytest.mark.parametrize("source", [OPENAI, ANTHROPIC])
def test_error_bodies_translate(source):
    target = ANTHROPIC if source is OPENAI else OPENAI
    body = CODECS[source].error(429, "rate_limited", "slow down", "", "req_1")
    out = translate_error(body, source, target, 429, "req_1")
    assert CODECS[target].is_error_body(out)
    assert CODECS[target].read_error(out)[:2] == ("slow down", "rate_limited")
    plain = translate_error(b"<html>Bad Gateway</html>", source, target, 502, "req_1")
    assert "502" in CODECS[target].read_error(plain)[0]
