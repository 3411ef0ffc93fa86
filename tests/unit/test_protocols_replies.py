"""Buffered replies, errors, model lists, and the corners of streams."""

import anthropic.types
import anthropic.types.shared
import msgspec
import openai.types
import pytest
from openai.types.shared import ErrorObject
from pydantic import TypeAdapter

from trimtab.errors import UpstreamInvalid
from trimtab.protocols import CODECS, StreamTranslator, sse
from trimtab.types import Dialect, Usage

OAI, ANT = CODECS[Dialect.OPENAI], CODECS[Dialect.ANTHROPIC]


def encode(obj):
    return msgspec.json.encode(obj)


def event(obj):
    return b"data: " + encode(obj) + b"\n\n"


def chunk(delta, finish=None, index=0, **more):
    return event({"model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]} | more)


def reply(*finishes, **more):
    choices = [{"message": {"role": "assistant", "content": "héllo"}, "finish_reason": f} for f in finishes]
    return encode({"id": "x", "model": "m", "choices": choices} | more)


def test_openai_reply_facts():
    facts = OAI.read_reply(reply("stop", usage={"prompt_tokens": 3, "completion_tokens": 2}))
    assert facts == type(facts)("m", "stop", Usage(input=3, output=2), True, 0)
    unknown = OAI.read_reply(reply("stop", usage=None))
    assert unknown.usage is None and unknown.text_chars == 5
    assert OAI.read_reply(reply("stop", "length")).finish == "length"
    assert OAI.read_reply(reply("length", "content_filter")).finish == "content_filter"
    assert not OAI.read_reply(reply("stop", None)).ok and OAI.read_reply(reply(None)).finish == ""
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert OAI.read_reply(encode(body)).text_chars == 7


def test_anthropic_reply_facts():
    content = [{"type": "thinking", "thinking": "ab"}, {"type": "text", "text": "c"}]
    content.append({"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}})
    body = {"type": "message", "model": "m", "content": content, "stop_reason": "tool_use"}
    facts = ANT.read_reply(encode(body | {"usage": {"input_tokens": 1, "output_tokens": 2}}))
    assert facts == type(facts)("m", "tool_use", Usage(input=1, output=2), True, 10)
    assert not ANT.read_reply(encode(body | {"stop_reason": None})).ok


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"error": {"message": "no"}}',
        b'{"choices": [{"finish_reason": "stop"}], "type": "message"}',
        b'{"type": "error", "error": {"type": "api_error", "message": "no"}}',
        b'{"choices": {}, "type": "message", "content": {}}',
    ],
)
def test_what_is_no_reply_is_invalid(body):
    for codec in (OAI, ANT):
        for read in (codec.read_reply, codec.decode_reply, lambda b, c=codec: c.replay(b, include_usage=True)):
            with pytest.raises(UpstreamInvalid):
                read(body)


@pytest.mark.parametrize(
    ("status", "theirs", "ours"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "invalid_request_error"),
        (403, "permission_error", "invalid_request_error"),
        (404, "not_found_error", "invalid_request_error"),
        (405, "invalid_request_error", "invalid_request_error"),
        (413, "request_too_large", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "server_error"),
        (502, "api_error", "server_error"),
        (503, "overloaded_error", "server_error"),
        (504, "timeout_error", "server_error"),
        (529, "overloaded_error", "server_error"),
    ],
)
def test_errors_in_each_shape(status, theirs, ours):
    error = msgspec.json.decode(OAI.error(status, "code", "message", "field", "req"))["error"]
    assert ErrorObject.model_validate(error).type == ours
    assert (error["param"], error["code"]) == ("field", "code")
    body = ANT.error(status, "code", "message", "", "req_1")
    obj = msgspec.json.decode(body)
    if theirs != "request_too_large":  # the SDK's types know it by its status only
        TypeAdapter(anthropic.types.shared.ErrorResponse).validate_python(obj)
    assert (obj["error"]["type"], obj["error"]["message"], obj["request_id"]) == (theirs, "message", "req_1")
    assert ANT.is_error_body(body) and ANT.read_error(body) == ("message", "code", "")
    assert OAI.is_error_body(OAI.error(status, "", "m", "", "")) and OAI.read_error(body)[0] == "message"
    name, data = sse.parse_event(ANT.error_event(status, "code", "message", "", "req_1"))
    assert (name, data) == (b"error", body)
    assert sse.parse_event(OAI.error_event(status, "", "m", "", "")) == (b"", OAI.error(status, "", "m", "", ""))


@pytest.mark.parametrize("body", [b"", b"oops", b"[]", b"{}", b'{"error": "text"}', b'{"detail": "x"}', reply("stop")])
def test_what_is_no_error_body(body):
    assert not OAI.is_error_body(body) and not ANT.is_error_body(body)


def test_model_lists():
    page = msgspec.json.decode(OAI.models(["a", "b"], 1700000000))
    assert [openai.types.Model.model_validate(item).id for item in page["data"]] == ["a", "b"]
    page = msgspec.json.decode(ANT.models(["a", "b"], 1700000000))
    models = [anthropic.types.ModelInfo.model_validate(item) for item in page["data"]]
    assert models[0].created_at.timestamp() == 1700000000
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("a", "b", False)
    assert msgspec.json.decode(ANT.models([], 0))["first_id"] is None


def ended(scanner, *pieces):
    out = b"".join(scanner.feed(piece) for piece in pieces) + scanner.close()
    return out, scanner.ended, scanner.tail


def test_a_missing_end_mark_is_made_up_only_when_all_choices_finished():
    first, last = chunk({"role": "assistant", "content": "a"}), chunk({}, "stop")
    done = b"data: [DONE]\n\n"
    assert ended(OAI.scanner(strip_usage=False), first, last) == (first + last, True, done)
    assert ended(OAI.scanner(strip_usage=False), first)[1:] == (False, b"")
    other = chunk({"role": "assistant", "content": "b"}, index=1)
    assert ended(OAI.scanner(strip_usage=False), first, other, last)[1] is False
    assert ended(OAI.scanner(strip_usage=False), first, other, last, chunk({}, "stop", index=1))[1] is True
    assert ended(OAI.scanner(strip_usage=False), first, last, b"data: [DONE]") == (first + last, True, done)
    assert ended(OAI.scanner(strip_usage=False), first, last[:-2]) == (first + last, True, done)
    assert ended(OAI.scanner(strip_usage=False), first, last, first[:20])[:2] == (first + last, False)
    assert ended(OAI.scanner(strip_usage=False)) == (b"", False, b"")
    start = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
    assert ended(ANT.scanner(strip_usage=False), start) == (start, False, b"")
    stop = b'event: message_stop\ndata: {"type":"message_stop"}'
    assert ended(ANT.scanner(strip_usage=False), start, stop) == (start, True, stop + b"\n\n")


def test_bytes_after_the_end_mark_stay_with_the_tail():
    scanner = OAI.scanner(strip_usage=False)
    assert scanner.feed(chunk({"content": "a"}, "stop") + b"data: [DONE]\n\n: bye\n\n") == chunk(
        {"content": "a"}, "stop"
    )
    assert scanner.feed(b"more") == b""
    assert scanner.tail == b"data: [DONE]\n\n: bye\n\nmore"


def test_usage_wherever_providers_put_it():
    first = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    last = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    scanner = OAI.scanner(strip_usage=True)
    pieces = chunk({"content": "a"}, usage=first), chunk({"content": "b"}, "stop", usage=last)
    assert [scanner.feed(piece) for piece in pieces] == list(pieces)  # the provider's own way: not asked for, not ours
    assert scanner.usage == Usage(input=5, output=2)
    assert scanner.feed(event({"choices": [], "prompt_filter_results": []})) != b""
    assert scanner.feed(event({"choices": [], "usage": last})) == b""
    before = (
        b'data: {"usage": null, "model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    )
    assert b"usage" not in scanner.feed(before) + scanner.feed(before)


def test_multi_line_data_is_read():
    scanner = OAI.scanner(strip_usage=False)
    text = b'data: {"model":"m","choices":[{"index":0,\ndata: "delta":{"content":"a"},"finish_reason":\ndata: "stop"}]}'
    text += b"\n\n"
    assert scanner.feed(text) == text
    assert (scanner.finish, scanner.model, scanner.first_token) == ("stop", "m", True)


def test_empty_deltas_are_no_first_token():
    scanner = OAI.scanner(strip_usage=False)
    for delta in ({"role": "assistant", "content": ""}, {"content": None}, {"reasoning_content": ""}, {}):
        scanner.feed(chunk(delta))
    assert not scanner.first_token
    scanner.feed(chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}))
    assert scanner.first_token


def test_text_that_looks_like_fields_is_text():
    scanner = OAI.scanner(strip_usage=True)
    scanner.feed(chunk({"role": "assistant", "content": ""}))
    for text in (
        '"usage":{"prompt_tokens":9}',
        ',"usage":null',
        '"finish_reason":"stop"',
        "[DONE]",
        "error",
        "role",
        "usage",
    ):
        piece = chunk({"content": text})
        assert scanner.feed(piece) == piece
    assert (scanner.usage, scanner.finish, scanner.error, scanner.ended) == (None, "", "", False)
    assert scanner.tokens_seen == 7


@pytest.mark.parametrize("codec", [OAI, ANT])
def test_events_that_are_not_json_are_invalid(codec):
    head = b"event: message_start\n" if codec is ANT else b""
    with pytest.raises(UpstreamInvalid):
        codec.scanner(strip_usage=False).feed(head + b"data: {oops\n\n")
    with pytest.raises(UpstreamInvalid):
        codec.assemble(head + b"data: {oops\n\n")


def test_an_endless_event_is_refused(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    scanner = OAI.scanner(strip_usage=False)
    with pytest.raises(UpstreamInvalid, match="longer"):
        for _ in range(20):
            scanner.feed(b"data: xxxxxxxx")


def test_tool_calls_of_careless_servers():
    def calls(*deltas):
        stream = b"".join(chunk({"tool_calls": [delta]}) for delta in deltas) + chunk({}, "tool_calls")
        message = msgspec.json.decode(OAI.assemble(stream))["choices"][0]["message"]
        assembled = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]
        translator = StreamTranslator(Dialect.OPENAI, Dialect.ANTHROPIC, include_usage=True)
        blocks = msgspec.json.decode(ANT.assemble(translator.feed(stream) + translator.close() + translator.tail))[
            "content"
        ]
        assert [(b["name"], b["input"]) for b in blocks] == [
            (name, msgspec.json.decode(text or "{}")) for _, name, text in assembled
        ]
        return assembled

    f, g = {"name": "f", "arguments": "{}"}, {"name": "g", "arguments": "{}"}
    assert calls({"index": 0, "id": "a", "function": f}, {"index": 0, "id": "b", "function": g}) == [
        ("a", "f", "{}"),
        ("b", "g", "{}"),
    ]
    assert calls({"id": "a", "function": f}, {"id": "b", "function": g}) == [("a", "f", "{}"), ("b", "g", "{}")]
    repeated = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [repeated | {"function": {"name": "f", "arguments": text}} for text in ('{"x"', ": 1}")]
    assert calls(repeated, *more) == [("a", "f", '{"x": 1}')]


def test_anthropic_tool_input_must_be_an_object():
    stream = b'event: message_start\ndata: {"type":"message_start","message":{"type":"message","content":[]}}\n\n'
    for payload in (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "f"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"a'}},
    ):
        stream += event(payload)
    with pytest.raises(UpstreamInvalid, match="tool input"):
        ANT.assemble(stream)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    body = {"id": "x", "choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    with pytest.raises(UpstreamInvalid, match="arguments of f"):
        ANT.encode_reply(OAI.decode_reply(encode(body)), model="")


def test_foreign_stop_reasons_stay_foreign():
    stream = chunk({"content": "a"}) + chunk({}, "abort") + b"data: [DONE]\n\n"
    translator = StreamTranslator(Dialect.OPENAI, Dialect.ANTHROPIC, include_usage=True)
    whole = ANT.assemble(translator.feed(stream) + translator.tail)
    assert translator.finish == ANT.read_reply(whole).finish == "abort"
    assert not ANT.finish_is_whole("abort", {})
