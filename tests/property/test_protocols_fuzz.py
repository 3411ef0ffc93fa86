"""Whatever clients and upstreams send, codecs answer with a value or with an error of ours, never with another one."""

from contextlib import suppress
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import BadRequest, UpstreamInvalid
from trimtab.protocols import CODECS, StreamTranslator, translate_error, translate_reply, translate_request
from trimtab.protocols.sse import read_events
from trimtab.types import Dialect

FOLDER = Path(__file__).parent.parent / "golden" / "protocols"
REQUESTS = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*_request.json"))}
REPLIES = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*_reply_*.json"))}
STREAMS = {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.sse"))}
often = settings(deadline=None, max_examples=300)
JUNK = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "x", [], [1], ["x"], [[]], [None], {}, {"x": 1}, {"type": "text"}, {"type": []}, [{}]]
)
SEED = st.integers(0, 10**6)


def places(node, path=()):
    yield path
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*path, key))


def spoil(document, seed, junk):
    """Replace one value inside a JSON document."""
    spots = list(places(document))[1:]
    if not spots:
        return junk
    *way, last = spots[seed % len(spots)]
    node = document
    for key in way:
        node = node[key]
    node[last] = junk
    return document


def pair(name):
    source = Dialect(name.split("_")[0])
    return source, Dialect.OPENAI if source is Dialect.ANTHROPIC else Dialect.ANTHROPIC


@often
@given(st.sampled_from(sorted(REQUESTS)), SEED, JUNK)
def test_spoilt_requests(name, seed, junk):
    source, target = pair(name)
    body = msgspec.json.encode(spoil(msgspec.json.decode(REQUESTS[name]), seed, junk))
    try:
        parsed = CODECS[source].parse(body)
        CODECS[source].body(parsed.fields, model="m", stream_usage=True)
        translate_request(parsed.fields, source, target, model="m", stream=parsed.stream)
    except BadRequest as error:
        assert error.param or "JSON" in error.message


@often
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes(data):
    for dialect, codec in CODECS.items():
        with suppress(BadRequest):
            codec.parse(data)
        for read in (codec.read_reply, codec.decode_reply, codec.assemble):
            with suppress(UpstreamInvalid):
                read(data)
        codec.is_error_body(data)
        translate_error(data, dialect, dialect, 500, "")
        with suppress(UpstreamInvalid):
            scanner = codec.scanner(strip_usage=True)
            scanner.feed(b"data: " + data + b"\n\n")
            scanner.close()


@often
@given(st.sampled_from(sorted(REPLIES)), SEED, JUNK)
def test_spoilt_replies(name, seed, junk):
    source, target = pair(name)
    body = msgspec.json.encode(spoil(msgspec.json.decode(REPLIES[name]), seed, junk))
    codec = CODECS[source]
    for read in (
        codec.read_reply,
        lambda b: translate_reply(b, source, target),
        lambda b: codec.replay(b, include_usage=True),
    ):
        with suppress(UpstreamInvalid):
            read(body)


@often
@given(st.sampled_from(sorted(STREAMS)), SEED, SEED, JUNK)
def test_spoilt_streams(name, which, seed, junk):
    source, target = pair(name)
    events = [(event, data) for event, data in read_events(STREAMS[name]) if data != b"[DONE]"]
    event, data = events[which % len(events)]
    events[which % len(events)] = event, msgspec.json.encode(spoil(msgspec.json.decode(data), seed, junk))
    stream = b"".join((b"event: " + e + b"\n" if e else b"") + b"data: " + d + b"\n\n" for e, d in events)
    for scanner in (
        CODECS[source].scanner(strip_usage=True),
        StreamTranslator(source, target, include_usage=True),
    ):
        with suppress(UpstreamInvalid):
            scanner.feed(stream)
            scanner.close()
    with suppress(UpstreamInvalid):
        CODECS[source].assemble(stream)
