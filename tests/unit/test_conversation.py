"""What a request shows of its conversation, in both dialects."""

import json

import msgspec
import pytest

from trimtab.protocols import conversation
from trimtab.types import Dialect, Request, Scope


def ask(messages, **fields):
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in (fields | {"messages": messages}).items()}
    return Request("id", Dialect.OPENAI, "/v1/chat/completions", Scope("t"), "m", raw, False, False, 400, 1.0, 1.0)


USER = {"role": "user", "content": "How far is the moon?"}
SYSTEM = {"role": "system", "content": "Be brief. It is 12:00."}
SAID = {"role": "assistant", "content": "Far."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "7"}
BLOCK_CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
BLOCK_RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "7"}]}


def test_a_first_turn():
    talk = conversation.read(ask([SYSTEM, USER]))
    assert (talk.text, talk.earlier, talk.begun, talk.tool_loop, talk.signed) == (
        USER["content"],
        (),
        False,
        False,
        False,
    )
    assert (talk.tools, talk.json, talk.kinds, talk.tokens) == (False, False, frozenset(), 100)


def test_the_next_request_knows_this_one_and_the_time_of_day_in_the_instructions_does_not_matter():
    first = conversation.read(ask([SYSTEM, USER]))
    later = [SYSTEM | {"content": "Be brief. It is 12:01."}, USER, SAID, {"role": "user", "content": "And the sun?"}]
    second = conversation.read(ask(later))
    assert first.whole in second.before
    assert (first.root, second.begun, second.text, second.earlier) == (
        second.root,
        True,
        "And the sun?",
        (USER["content"],),
    )
    assert first.whole not in conversation.read(ask([SYSTEM, USER | {"content": "Else"}, SAID, USER])).before


@pytest.mark.parametrize("messages", [[USER, CALL], [USER, CALL, RESULT], [USER, BLOCK_CALL, BLOCK_RESULT]])
def test_a_tool_loop(messages):
    talk = conversation.read(ask(messages))
    assert (talk.tool_loop, talk.text, talk.earlier) == (True, "", (USER["content"],))


def test_a_question_after_a_tool_loop_is_none():
    talk = conversation.read(ask([USER, CALL, RESULT, SAID, USER]))
    assert (talk.tool_loop, talk.text) == (False, USER["content"])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "hm", "signature": "abc"},
        {"type": "redacted_thinking", "data": "xyz"},
    ],
)
def test_reasoning_that_only_its_author_reads(block):
    assert conversation.read(ask([USER, {"role": "assistant", "content": [block]}, USER])).signed
    assert not conversation.read(
        ask([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}, USER])
    ).signed


def test_what_a_request_carries_and_demands():
    picture = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}]}
    talk = conversation.read(ask([picture], tools=[{"type": "function"}], response_format={"type": "json_object"}))
    assert (talk.kinds, talk.tools, talk.json, talk.text) == (frozenset({"image"}), True, True, "What?")
    assert not conversation.read(ask([USER], tools=[])).tools


@pytest.mark.parametrize("messages", ["no list", [], [7], None])
def test_what_cannot_be_read(messages):
    assert conversation.read(ask(messages)) is None
