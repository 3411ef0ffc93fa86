"""Properties of redaction: JSON stays JSON of the same shape, what has a form is gone, and twice is once."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.redact import Redactor, pattern_problem
from trimtab.redact.rules import PLACEHOLDER, is_card

REDACTOR = Redactor([r"ACME-\d+", r"[xy]{2,}z"])

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="0123456789@:.+/-=(\\"), max_size=12)
alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def digits(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=length, max_size=length)


@st.composite
def cards(draw: st.DrawFn) -> str:
    start = draw(st.sampled_from(["4", "51", "2221", "34", "6011"]))
    length = {"34": 15}.get(start, 16)
    body = start + draw(digits(length - len(start) - 1))
    number = next(body + last for last in "0123456789" if is_card(body + last))
    separator = draw(st.sampled_from(["", " ", "-", "\xa0"]))
    sizes = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    return separator.join(number[a:b] for a, b in pairwise(ends))


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country, rest = draw(st.sampled_from([("DE", 18), ("NO", 11), ("MT", 27), ("FR", 23), ("GB", 18)]))
    body = draw(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=rest, max_size=rest))
    as_number = int("".join(str(int(mark, 36)) for mark in body + country + "00"))
    number = f"{country}{98 - as_number % 97:02d}{body}"
    if draw(st.booleans()):
        number = " ".join(number[n : n + 4] for n in range(0, len(number), 4))
    return number


emails = st.builds(
    "{}@{}.{}".format,
    st.text(alnum + "._+-", min_size=1, max_size=20),
    st.from_regex(r"[a-z0-9]{1,10}(\.[a-z]{1,8})?", fullmatch=True),
    st.sampled_from(["com", "de", "co.uk", "example", "museum"]),
)
phones = st.one_of(
    st.builds("+49{}{}{}{}".format, st.sampled_from([" ", "-", ""]), digits(3), st.sampled_from([" ", "/"]), digits(7)),
    st.builds("({}) {}-{}".format, st.sampled_from(["555", "212"]), digits(3), digits(4)),
    st.builds("0{}{} {}".format, st.sampled_from("123456789"), digits(3), digits(6)),
)
secrets = st.one_of(
    st.builds("sk-{}".format, st.text(alnum, min_size=20, max_size=60)),
    st.builds("AKIA{}".format, st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=16, max_size=16)),
    st.builds("ghp_{}".format, st.text(alnum, min_size=36, max_size=36)),
    st.builds("Bearer {}".format, st.text(alnum, min_size=20, max_size=50)),
    st.builds("eyJ{0}.eyJ{0}.{0}".format, st.text(alnum + "_-", min_size=12, max_size=80)),
    st.builds(
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----".format, st.text(alnum, max_size=200)
    ),
)
addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str).filter(lambda text: len(re.findall("[0-9a-f]+", text)) > 2),
)
ssns = st.builds("{}-{}-{}".format, st.sampled_from(["123", "078"]), st.sampled_from(["45", "05"]), st.just("1120"))
logins = st.builds("https://{}:{}@host/".format, st.text(alnum, min_size=1), st.text(alnum + "@:!", min_size=1))
private = st.one_of(emails, cards(), ibans(), phones, secrets, addresses, ssns, st.just("ACME-12"))
# What is made of the marks that rules begin with, so that they meet and overlap.
hard = st.lists(
    st.one_of(private, logins, words, st.sampled_from([*"@:.+/-= ()[]{}\\\n0417\"'", "sk-", "[EMAIL_1]", "\\n", "00"])),
    max_size=12,
).map("".join)


@given(private, words, words)
@settings(max_examples=400, deadline=None)
def test_what_has_a_form_is_gone(value: str, before: str, after: str) -> None:
    redacted = REDACTOR.text(f"{before} {value}; {after}")
    assert value.removeprefix("Bearer ") not in redacted, redacted
    assert PLACEHOLDER.search(redacted)


@given(private)
@settings(max_examples=300, deadline=None)
def test_what_has_a_form_leaves_no_half(value: str) -> None:
    assert PLACEHOLDER.fullmatch(REDACTOR.text(value).removeprefix("Bearer ").strip())


@given(hard)
@settings(max_examples=500, deadline=None)
def test_twice_is_once(text: str) -> None:
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), hard
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return [shape(part) for part in value.values()]
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value)


def raw(fields: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}


@given(json_values, json_values, hard)
@settings(max_examples=300, deadline=None)
def test_json_stays_json_of_the_same_shape(content: Any, arguments: Any, text: str) -> None:
    fields = {
        "model": "gpt",
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": content},
            {
                "role": "assistant",
                "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": json.dumps(arguments)}}],
            },
        ],
        "metadata": arguments,
    }
    redacted = json.loads(REDACTOR.body(raw(fields)))
    assert shape(redacted) == shape(fields)
    assert list(redacted) == list(fields)
    assert redacted["messages"][2]["tool_calls"][0]["id"] == "call_1"
    assert [message["role"] for message in redacted["messages"]] == ["system", "user", "assistant"]
    inner = redacted["messages"][2]["tool_calls"][0]["function"]["arguments"]
    if isinstance(arguments, dict | list):
        assert shape(json.loads(inner)) == shape(arguments)
    again = json.loads(REDACTOR.body(raw(redacted)))
    assert again == redacted


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_pattern_is_accepted_or_told_why(pattern: str) -> None:
    if not pattern_problem(pattern):
        Redactor([pattern]).text("some text, a@b.example")
