"""The top level of a request: what is read, what is refused with which field, and what is sent upstream."""

import json

import msgspec
import pytest

from trimtab.errors import BadRequest, MalformedJson
from trimtab.protocols import CODECS
from trimtab.types import Dialect

OAI, ANT = CODECS[Dialect.OPENAI], CODECS[Dialect.ANTHROPIC]
BOTH = pytest.mark.parametrize("codec", [OAI, ANT], ids=["openai", "anthropic"])
MESSAGES = b'"messages": [{"role": "user", "content": "hi"}]'


def body(extra=b"", messages=MESSAGES):
    return b'{"model": "m", "max_tokens": 5, ' + messages + extra + b"}"


def sent(codec, raw, **kwargs):
    return codec.body(codec.parse(raw).fields, **({"model": None, "stream_usage": False} | kwargs))


@BOTH
def test_fields_keep_their_bytes_and_their_order(codec):
    raw = body(b', "temperature": 1.50, "x": {"b" : [1 , 2], "a": "\\u00e9\xc3\xa9"}')
    parsed = codec.parse(raw)
    assert list(parsed.fields) == ["model", "max_tokens", "messages", "temperature", "x"]
    assert bytes(parsed.fields["x"]) == b'{"b" : [1 , 2], "a": "\\u00e9\xc3\xa9"}'
    out = sent(codec, raw, model="other")
    assert b'"temperature":1.50' in out and bytes(parsed.fields["x"]) in out
    assert list(json.loads(out)) == list(parsed.fields) and json.loads(out)["model"] == "other"
    assert (parsed.model, parsed.stream, parsed.metadata) == ("m", False, {})


@BOTH
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nope",
        b"[]",
        b"null",
        b'"x"',
        body() + b"x",
        body()[:-1],
        body(b', "x": [1,]'),
        body(b', "x": NaN'),
        body(b', "x": "\xff"'),
        b'{"\xff": 1}',
        body(b', "x": ' + b"[" * 5000 + b"]" * 5000),
        b"\xef\xbb\xbf" + body(),
    ],
)
def test_malformed_json_is_refused(codec, raw):
    with pytest.raises(MalformedJson):
        codec.parse(raw)


@BOTH
@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"max_tokens": 1, ' + MESSAGES + b"}", "model"),
        (b'{"model": "", "max_tokens": 1, ' + MESSAGES + b"}", "model"),
        (b'{"model": null, "max_tokens": 1, ' + MESSAGES + b"}", "model"),
        (b'{"model": ["m"], "max_tokens": 1, ' + MESSAGES + b"}", "model"),
        (b'{"model": "m", "max_tokens": 1}', "messages"),
        (body(messages=b'"messages": "hi"'), "messages"),
        (body(messages=b'"messages": null'), "messages"),
        (body(messages=b'"messages": {}'), "messages"),
        (body(messages=b'"messages": []'), "messages"),
        (body(messages=b'"messages": [' + b" " * 40 + b"\n]"), "messages"),
        (body(b', "stream": 1'), "stream"),
        (body(b', "stream": "true"'), "stream"),
        (body(b', "metadata": {"trimtab": null}'), "metadata.trimtab"),
        (body(b', "metadata": {"trimtab": "x"}'), "metadata.trimtab"),
        (body(b', "metadata": {"trimtab": {"route": 1}}'), "metadata.trimtab"),
    ],
)
def test_wrong_fields_are_named(codec, raw, param):
    with pytest.raises(BadRequest) as caught:
        codec.parse(raw)
    assert caught.value.param == param and param in caught.value.message


@pytest.mark.parametrize("value", [b"-1", b'"5"', b"null", b"true", b"1.5"])
def test_anthropic_needs_a_token_limit(value):
    raw = b'{"model": "m", ' + MESSAGES + b', "max_tokens": ' + value + b"}"
    with pytest.raises(BadRequest) as caught:
        ANT.parse(raw)
    assert caught.value.param == "max_tokens"
    assert OAI.parse(raw).model == "m"
    with pytest.raises(BadRequest, match="max_tokens"):
        ANT.parse(b'{"model": "m", ' + MESSAGES + b"}")
    assert ANT.parse(b'{"model": "m", ' + MESSAGES + b', "max_tokens": 0}').model == "m"


@BOTH
def test_a_field_that_came_twice_counts_last_and_is_sent_once(codec):
    raw = b'{"model": "a", "max_tokens": 1, "temperature": 0, ' + MESSAGES + b', "model": "b", "temperature": 1}'
    assert codec.parse(raw).model == "b"
    assert sent(codec, raw).count(b'"model"') == sent(codec, raw).count(b'"temperature"') == 1
    assert json.loads(sent(codec, raw))["temperature"] == 1


@BOTH
@pytest.mark.parametrize(
    ("metadata", "left", "taken"),
    [
        (b'{"trimtab": {"route": "support", "session": "s"}}', None, {"route": "support", "session": "s"}),
        (b'{"user_id": "u", "trimtab": {"cache": "off"}, "n": 1.50}', b'{"user_id":"u","n":1.50}', {"cache": "off"}),
        (b'{"tr\\u0069mtab": {}}', None, {}),
        (b'{ "user_id":  "u" }', b'{ "user_id":  "u" }', {}),
        (b"null", b"null", {}),
        (b'"odd"', b'"odd"', {}),
    ],
)
def test_our_metadata_is_taken_out(codec, metadata, left, taken):
    parsed = codec.parse(body(b', "metadata": ' + metadata))
    assert parsed.metadata == taken
    assert (bytes(parsed.fields["metadata"]) if "metadata" in parsed.fields else None) == left


@pytest.mark.parametrize(
    ("extra", "stream", "wants"),
    [
        (b"", False, False),
        (b', "stream": null', False, False),
        (b', "stream": false', False, False),
        (b', "stream": true', True, False),
        (b', "stream": true, "stream_options": null', True, False),
        (b', "stream": true, "stream_options": 7', True, False),
        (b', "stream": true, "stream_options": {"include_usage": false}', True, False),
        (b', "stream": true, "stream_options": {"include_usage": true}', True, True),
    ],
)
def test_stream_and_usage_wishes(extra, stream, wants):
    parsed = OAI.parse(body(extra))
    assert (parsed.stream, parsed.wants_usage) == (stream, wants)
    assert (ANT.parse(body(extra)).stream, ANT.parse(body(extra)).wants_usage) == (stream, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", {"include_usage": True}),
        (b', "stream_options": null', {"include_usage": True}),
        (b', "stream_options": {"include_usage": false, "x": 1}', {"include_usage": True, "x": 1}),
        (b', "stream_options": [1]', [1]),
    ],
)
def test_usage_is_asked_for_on_streams(options, expected):
    raw = body(b', "stream": true' + options)
    before = OAI.parse(raw).fields
    out = OAI.body(before, model=None, stream_usage=True)
    assert json.loads(out)["stream_options"] == expected
    assert before == OAI.parse(raw).fields  # the fields that are hashed are not changed
    assert json.loads(ANT.body(before, model="x", stream_usage=True)) == json.loads(raw) | {"model": "x"}


def test_whole_stop_reasons():
    limited, unlimited = {"max_tokens": msgspec.Raw(b"5")}, {"max_tokens": msgspec.Raw(b"null")}
    for finish in ("stop", "tool_calls", "function_call"):
        assert OAI.finish_is_whole(finish, {})
    for finish in ("end_turn", "tool_use", "stop_sequence"):
        assert ANT.finish_is_whole(finish, {})
    for finish in ("", "content_filter", "refusal", "pause_turn", "error", "model_context_window_exceeded"):
        assert not OAI.finish_is_whole(finish, limited) and not ANT.finish_is_whole(finish, limited)
    assert OAI.finish_is_whole("length", limited) and ANT.finish_is_whole("max_tokens", limited)
    assert OAI.finish_is_whole("length", {"max_completion_tokens": msgspec.Raw(b"5")})
    assert not OAI.finish_is_whole("length", unlimited) and not OAI.finish_is_whole("length", {})
