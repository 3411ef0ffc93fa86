"""However the network cuts a stream, the output and everything that is learnt from it are the same."""

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.protocols import CODECS, StreamTranslator
from trimtab.protocols.sse import read_events
from trimtab.types import Dialect

FOLDER = Path(__file__).parent.parent / "golden" / "protocols"
STREAMS = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.sse"))}
NAMES = sorted(STREAMS)
NOISE = [b": ping\n\n", b"\n", b": keep-alive\r\n\r\n", b"\n\n\n", b"id: 7\n\n", b"retry: 10\n\n"]


def scanners(name):
    source = Dialect(name.split("_")[0])
    target = Dialect.OPENAI if source is Dialect.ANTHROPIC else Dialect.ANTHROPIC
    return [
        lambda: CODECS[source].scanner(strip_usage=False),
        lambda: CODECS[source].scanner(strip_usage=True),
        lambda: StreamTranslator(source, target, include_usage=True),
    ]


def run(make, pieces):
    scanner = make()
    out = b"".join([scanner.feed(piece) for piece in pieces]) + scanner.close()
    facts = (scanner.ended, scanner.finish, scanner.model, scanner.usage, scanner.error)
    return out, scanner.tail, scanner.tokens_seen, scanner.first_token, facts


def cut(stream, places):
    marks = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(marks)]


@pytest.mark.parametrize("name", NAMES)
def test_byte_by_byte_and_event_by_event(name):
    stream = STREAMS[name]
    for make in scanners(name):
        whole = run(make, [stream])
        assert run(make, [stream[n : n + 1] for n in range(len(stream))]) == whole
        blank = b"\r\n\r\n" if b"\r" in stream else b"\n\n"
        assert run(make, [part + blank for part in stream.split(blank)[:-1]]) == whole


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(NAMES), st.lists(st.integers(0, 10**6), max_size=12))
def test_any_cut_gives_the_same(name, places):
    for make in scanners(name):
        assert run(make, cut(STREAMS[name], places)) == run(make, [STREAMS[name]])


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(NAMES), st.integers(0, 10**6), st.lists(st.integers(0, 10**6), max_size=4))
def test_a_stream_that_breaks_off_gives_the_same_and_is_not_whole(name, length, places):
    stream = STREAMS[name][: length % len(STREAMS[name])]
    for make in scanners(name):
        whole = run(make, [stream])
        assert run(make, cut(stream, places)) == whole
        if whole[4][0]:  # ended: then the stop reason was there, and only the end mark or less was missing
            assert whole[4][1] and whole[1]


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(NOISE)), max_size=4),
    st.lists(st.integers(0, 10**6), max_size=8),
    st.booleans(),
)
def test_comments_blank_lines_and_line_ends_change_nothing(name, noise, places, crlf):
    blank = b"\r\n\r\n" if b"\r" in STREAMS[name] else b"\n\n"
    events = [part + blank for part in STREAMS[name].split(blank)[:-1]]
    for place, text in noise:
        events.insert(place % len(events), text)
    stream = b"".join(events)
    if crlf:
        stream = stream.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for make in scanners(name):
        plain, noisy = run(make, [STREAMS[name]]), run(make, [stream])
        assert noisy[2:] == plain[2:]
        assert run(make, cut(stream, places)) == noisy
        if make().__class__ is StreamTranslator:
            assert noisy == plain


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NAMES), st.lists(st.integers(0, 10**6), max_size=8))
def test_decoders_do_not_mind_the_cuts(name, places):
    codec = CODECS[Dialect(name.split("_")[0])]

    def deltas(pieces):
        decoder = codec.stream_decoder()
        return [delta for piece in pieces for delta in decoder.feed(piece)] + decoder.close()

    assert deltas(cut(STREAMS[name], places)) == deltas([STREAMS[name]])


TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        '"',
        "\\",
        '\\"',
        "usage",
        '"usage":null',
        ',"usage":null',
        "error",
        "role",
        "[DONE]",
        '{"usage":{"a":1}}',
        "\n\ndata: x",
    ]
)
DELTA_KEYS = ["content", "reasoning_content", "refusal"]


def dump_compact(obj):
    return msgspec.json.encode(obj)


def dump_spaced(obj):
    return json.dumps(obj).encode()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(DELTA_KEYS), TEXTS), max_size=14),
    st.sampled_from([dump_compact, dump_spaced]),
    st.sampled_from(["last", "first", "absent"]),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_any_text_is_counted_and_passed_without_the_usage(texts, dump, null_usage, places):
    stream, expected = b"", b""
    for key, text in [("content", ""), *texts]:
        delta = {key: text} if stream else {"role": "assistant", key: text}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        chunk = {"id": "c", "model": "m", "choices": [choice]}
        expected += b"data: " + dump(chunk) + b"\n\n"
        if null_usage != "absent":
            chunk = chunk | {"usage": None} if null_usage == "last" else {"usage": None} | chunk
        stream += b"data: " + dump(chunk) + b"\n\n"
    scanner = CODECS[Dialect.OPENAI].scanner(strip_usage=True)
    got = b"".join([scanner.feed(piece) for piece in cut(stream, places)])
    assert data_of(got) == data_of(expected)
    assert scanner.tokens_seen == sum(1 for _, text in texts if text)
    assert (scanner.usage, scanner.finish, scanner.error, scanner.ended) == (None, "", "", False)
    plain = CODECS[Dialect.OPENAI].scanner(strip_usage=False)
    assert b"".join([plain.feed(piece) for piece in cut(stream, places)]) == stream
    assert plain.tokens_seen == scanner.tokens_seen


def data_of(stream):
    return [msgspec.json.decode(data) for _, data in read_events(stream)]
