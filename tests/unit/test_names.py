"""Names of private people in answers: which contexts count, what is no name, and how bodies are read."""

from __future__ import annotations

import json

import pytest
from names_corpus import BARE, OTHERS, PRIVATE, PUBLIC

from trimtab.redact import identity_in
from trimtab.redact.name_words import full_name
from trimtab.redact.names import name_in, name_in_body


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_name_is_found_by_its_context(text):
    assert name_in(text, bare=False)
    assert name_in(text, bare=True)


@pytest.mark.parametrize("text", OTHERS)
def test_what_names_nobody_is_left_alone(text):
    assert not name_in(text, bare=False)
    assert not name_in(text, bare=True)


@pytest.mark.parametrize("text", [*BARE, *PUBLIC])
def test_a_bare_name_does_not_count_by_itself(text):
    assert not name_in(text, bare=False)


@pytest.mark.parametrize("text", [*BARE, "Marie Curie discovered polonium.", "It was John F. Kennedy."])
def test_a_bare_name_counts_on_request(text):
    assert name_in(text, bare=True)


@pytest.mark.parametrize(
    "words",
    [
        "Maria Lopez",
        "José Álvarez",
        "Łukasz Kowalski",
        "Anne-Marie Dubois",
        "Siobhan O’Brien",
        "JANE MILLER",
        "John F. Kennedy",
        "Grace Johnson",
        "Bo Lindqvist",
        "Manager Ulrike Qvorst",
    ],
)
def test_a_given_name_and_a_surname_are_a_full_name(words):
    assert full_name(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "Grace Period",
        "Maria Street",
        "Maria's Bakery",
        "Lopez Maria's",
        "Saint John Baker",
        "Henry Ford Hospital",
        "MARIA DB",
        "Maria DB",
        "Peter Documentation",
        "Grace Qvorst",
        "Maria",
        "J. K.",
    ],
)
def test_a_thing_is_no_full_name(words):
    assert not full_name(words.split())


def chat(message: object) -> bytes:
    return json.dumps({"id": "chatcmpl-1", "model": "Maria", "choices": [{"index": 0, "message": message}]}).encode()


def call(arguments: str, name: str = "Maria") -> bytes:
    return chat(
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}
    )


@pytest.mark.parametrize(
    "body",
    [
        chat({"role": "assistant", "content": "Dear Maria,\nwelcome."}),
        chat({"role": "assistant", "content": [{"type": "text", "text": "Dear Maria,\nwelcome."}]}),
        chat({"role": "assistant", "content": '{"rows": [{"first_name": "Qvelda"}]}'}),
        chat({"role": "assistant", "content": 'Here:\n```json\n{"first_name": "Qvelda"}\n```'}),
        call('{"to": "Jane Roe", "text": "See you"}'),
        call('{"text": "Dear Maria,\\nsee you"}'),
        call('{"row": "{\\"patient\\": \\"Jane Roe\\"}"}'),
        json.dumps({"content": [{"type": "text", "text": "Ms. Chen is out."}], "role": "assistant"}).encode(),
        json.dumps(
            {"content": [{"type": "tool_use", "name": "f", "input": {"customer": {"name": "Jane Roe"}}}]}
        ).encode(),
        b'"Dear Maria,"',
    ],
)
def test_a_name_is_found_wherever_an_answer_says_it(body):
    assert identity_in(body, "context") == "NAME"
    assert identity_in(body) == identity_in(body, "off") == ""


@pytest.mark.parametrize(
    "body",
    [
        chat({"role": "assistant", "content": "They open at nine."}),
        chat({"role": "assistant", "content": None}),
        call('{"city": "Maria"}'),
        call("{broken"),
        json.dumps(
            {"choices": [{"logprobs": {"content": [{"token": "Dear Maria,"}]}, "message": {"content": "x"}}]}
        ).encode(),
        b"[]",
        b"7",
    ],
)
def test_what_is_the_protocols_own_is_no_name(body):
    assert identity_in(body, "any") == ""


def test_patterns_come_before_names_and_both_before_nothing():
    both = chat({"role": "assistant", "content": "Dear Maria, write to ann.lee@example.org."})
    assert identity_in(both, "context") == "EMAIL"
    assert identity_in(b'{"a": ', "context") == identity_in(b'"\\ud800"', "any") == "UNREADABLE"


def test_bare_names_of_a_body_count_on_request():
    body = chat({"role": "assistant", "content": BARE[0]})
    assert (identity_in(body, "context"), identity_in(body, "any")) == ("", "NAME")


def test_answers_may_be_deep():
    deep: object = "Dear Maria,"
    for _ in range(20_000):
        deep = [deep]
    assert name_in_body(deep, bare=False)
