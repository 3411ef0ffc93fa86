"""What is read from a request's headers before anything else."""

from __future__ import annotations

import pytest

from trimtab import trace_context
from trimtab.errors import BadRequest
from trimtab.types import Scope
from trimtab.wire.intake import Head, scope_of, stages_after, stages_in


def test_stages_of_the_application():
    head = Head(
        [(b"x-trimtab-stages", b"retrieval;dur=120.5, rerank ; dur = 40,retrieval;dur=10"), (b"accept", b"*/*")]
    )
    assert head.app_stages == {"retrieval": pytest.approx(0.1305), "rerank": 0.04}
    assert head.forward == [(b"accept", b"*/*")]
    assert head.ours == {}


@pytest.mark.parametrize(("word", "priority"), [("batch", "batch"), ("interactive", ""), ("", "")])
def test_who_waits_for_the_answer(word, priority):
    head = Head([(b"x-trimtab-priority", word.encode())])
    assert scope_of("t", head.ours | {"route": ""}) == Scope("t", priority=priority)
    assert head.forward == []


def test_a_priority_that_does_not_exist_is_named():
    with pytest.raises(BadRequest, match="priority must be interactive or batch, not 'urgent'") as refused:
        scope_of("t", {"priority": "urgent"})
    assert refused.value.param == "x-trimtab-priority"


TOO_MANY = ",".join(f"y{n};dur=1" for n in range(21))


@pytest.mark.parametrize("text", ["", "retrieval", "x;dur=-1", "a b;dur=1", "x;dur=1e9", "x;dur=99999999999", TOO_MANY])
def test_what_is_no_stage_is_named(text):
    with pytest.raises(BadRequest, match=r"retrieval;dur=120\.5") as refused:
        stages_in(text)
    assert refused.value.param == "x-trimtab-stages"


def test_stages_after_the_answer():
    said = b'{"stages": [{"name": "validation", "duration_ms": 12.5}, {"name": "validation", "duration_ms": 1}]}'
    assert stages_after(said) == {"validation": pytest.approx(0.0135)}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "stages"),
        (b'{"stages": []}', "stages"),
        (b'{"stages": [{"name": "x"}]}', "stages"),
        (b'{"stages": [' + b",".join([b'{"name":"x","duration_ms":1}'] * 21) + b"]}", "stages"),
        (b'{"stages": [{"name": "a b", "duration_ms": 1}]}', "stages[0].name"),
        (b'{"stages": [{"name": "x", "duration_ms": -1}]}', "stages[0].duration_ms"),
        (b'{"stages": [{"name": "x", "duration_ms": 1e12}]}', "stages[0].duration_ms"),
    ],
)
def test_what_is_no_stage_after_the_answer_is_named(body, param):
    with pytest.raises(BadRequest) as refused:
        stages_after(body)
    assert refused.value.param == param


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"),
        (f"cc-{TRACE}-{PARENT}-00-what-comes-later", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-01-more", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{PARENT}-01", ""),
        ("", ""),
    ],
)
def test_trace_context(header, kept):
    head = Head([(b"traceparent", header.encode()), (b"tracestate", b"a=1")])
    assert (head.trace, head.forward) == (kept, [(b"tracestate", b"a=1")])


def test_names_in_a_trace():
    trace = f"00-{TRACE}-{PARENT}-01"
    assert trace_context.trace_id(trace, "r1") == TRACE
    assert trace_context.parent_id(trace) == PARENT
    assert (trace_context.sampled(trace), trace_context.sampled("")) == (True, None)
    assert trace_context.sampled(trace[:-1] + "2") is False
    own = {trace_context.trace_id("", f"r{n}") for n in range(100)}
    assert len(own) == 100
    assert all(len(trace_id) == 32 for trace_id in own)
    spans = {trace_context.span_id("r1"), trace_context.span_id("r1", 0), trace_context.span_id("r1", 1)}
    assert len(spans) == 3
    sent = trace_context.upstream(trace, "r1", 1).decode()
    assert sent == f"00-{TRACE}-{trace_context.span_id('r1', 1)}-01"
    assert trace_context.accept(sent.encode()) == sent


def test_a_header_of_ours_that_does_not_exist_is_named():
    with pytest.raises(BadRequest, match="x-trimtab-stages"):
        Head([(b"x-trimtab-typo", b"1")])
