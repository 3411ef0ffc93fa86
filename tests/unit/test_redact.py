"""Redaction: what is found, what is not, how it is numbered, and what of a body is left alone."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from trimtab.errors import BadRequest
from trimtab.redact import Redactor, pattern_problem

KEY = "sk-abcdefghijklmnopqrstuv"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijk_-"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc+/=\n-----END RSA PRIVATE KEY-----"


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("to bob.smith+x@mail.example.co.uk!", "to [EMAIL_1]!"),
        ("a@b.example, c@d.example, a@b.example", "[EMAIL_1], [EMAIL_2], [EMAIL_1]"),
        ("müller@bücher.example", "[EMAIL_1]"),
        ("+49 (0) 151 1234567, 0049 151 1234567", "[PHONE_1], [PHONE_2]"),
        ("(030) 1234567 or 01 23 45 67 89", "[PHONE_1] or [PHONE_2]"),
        ("(555) 123-4567, 1-555-123-4567, 555.123.4567", "[PHONE_1], [PHONE_2], [PHONE_3]"),
        ("4111 1111 1111 1111 12/26 123", "[CARD_1] 12/26 123"),
        ("4111111111111111 3782-822463-10005", "[CARD_1] [CARD_2]"),
        ("no. 12 4111-1111-1111-1111.", "no. 12 [CARD_1]."),
        ("DE89 3704 0044 0532 0130 00 EUR", "[IBAN_1] EUR"),
        ("gb29nwbk60161331926819", "[IBAN_1]"),
        ("078-05-1120 and 123 45 6789", "[SSN_1] and [SSN_2]"),
        ("10.0.0.1, 2001:db8::8a2e:370:7334", "[IP_1], [IP_2]"),
        (f"key {KEY} end", "key [SECRET_1] end"),
        (f"Authorization: Bearer {JWT}", "Authorization: Bearer [SECRET_1]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET_1]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[SECRET_1]"),
        ("password = hunter2hunter, API_KEY: 'abcd1234efgh'", "password = [SECRET_1], API_KEY: '[SECRET_2]'"),
        (f"{PEM} after", "[PRIVATE_KEY_1] after"),
        (f"{PEM[:50]} cut", "[PRIVATE_KEY_1]"),
        ("postgres://bob:p@ss@db.example/x", "postgres://[URL_LOGIN_1]/x"),
        ("![i](data:image/png;base64,iVBORw0KGgo=) there", "![i]([MEDIA_1]) there"),
        (f"log: \\n4111111111111111 \\n{KEY}", "log: \\n[CARD_1] \\n[SECRET_1]"),  # escapes of a JSON that is cut
        ("kept [EMAIL_1], new a@b.example", "kept [EMAIL_1], new [EMAIL_1]"),
    ],
)
def test_what_is_found(redactor: Redactor, text: str, expected: str) -> None:
    assert redactor.text(text) == expected
    assert redactor.text(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "on 2026-11-21 at 10:30, 01.02.2024 03:04, 12:30:45",
        "4111 1111 1111 1112",  # Luhn
        "GB81 WEST 1234 5698 7654 32",  # remainder
        "000-12-3456 and 666-12-3456",
        "0.4111111111111111, $1,234,567.89, 1234567890",
        "a[::2], std::vector, x::y, ::1",
        "lodash@4.17.21 and @app.route and a @ b",
        "max_tokens: 1000, token budget: none",
        "300.1.2.3 and 1.2.3.4.5",
        "https://example.com/a@b",
        "My name is Carla Smith, of 12 Main Street.",  # said in docs/capture.md
    ],
)
def test_what_is_not(redactor: Redactor, text: str) -> None:
    assert redactor.text(text) == text


def body(redactor: Redactor, fields: dict[str, object]) -> dict[str, object]:
    return json.loads(redactor.body({name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()}))


def test_numbers_hold_for_the_request_and_begin_anew_with_the_next(redactor: Redactor) -> None:
    fields = {"system": "x@y.example", "messages": [{"role": "user", "content": "a@b.example x@y.example"}]}
    first = body(redactor, fields)
    assert first["system"] == "[EMAIL_1]"
    assert first["messages"][0]["content"] == "[EMAIL_2] [EMAIL_1]"
    assert body(redactor, {"system": "z@z.example"})["system"] == "[EMAIL_1]"


def test_placeholders_of_the_clients_own_are_not_given_again(redactor: Redactor) -> None:
    found = body(redactor, {"system": "a@b.example", "prompt": "what was [EMAIL_1]?"})
    assert found == {"system": "[EMAIL_2]", "prompt": "what was [EMAIL_1]?"}


def test_the_protocols_own_words_stay(redactor: Redactor) -> None:
    call = {"id": "call_4915112345678", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    fields = {
        "model": "claude-3@20240620",
        "messages": [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_4915112345678", "content": "tel +4915112345678"},
        ],
        "max_tokens": 4111111111111111,
    }
    found = body(redactor, fields)
    fields["messages"][1]["content"] = "tel [PHONE_1]"
    assert found == fields


def test_names_are_only_left_where_they_are_the_protocols(redactor: Redactor) -> None:
    user = {"role": "user", "name": "123-45-6789", "content": "x"}
    tool = {"type": "tool_use", "id": "t1", "name": "mail", "input": {"name": "123-45-6789", "id": "10.0.0.1"}}
    found = body(redactor, {"messages": [user, {"role": "assistant", "content": [tool]}]})
    assert found["messages"][0]["name"] == "[SSN_1]"
    assert found["messages"][1]["content"][0] == tool | {"input": {"name": "[SSN_1]", "id": "[IP_1]"}}


def test_json_in_a_text_is_redacted_inside(redactor: Redactor) -> None:
    inner = {"to": "line\nbob@b.example", "bob@b.example": 4111111111111111, "n": 7, "t": 'say "hi"'}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps(inner, indent=1)}}
    found = body(redactor, {"messages": [{"role": "assistant", "tool_calls": [call]}]})
    arguments = json.loads(found["messages"][0]["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"to": "line\n[EMAIL_1]", "[EMAIL_1]": 0, "n": 7, "t": 'say "hi"'}
    clean = '{ "a" : 1.50 }'
    assert body(redactor, {"prompt": clean})["prompt"] == clean  # nothing in it: not even its blanks change


def test_inline_files_become_a_mark(redactor: Redactor) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUFB" * 5000}}
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    file = {"type": "file", "file": {"file_data": "QUFB" * 50, "filename": "cv of a@b.example.pdf"}}
    source = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "QUFB" * 50}}
    found = body(redactor, {"messages": [{"role": "user", "content": [image, audio, file, source, text]}]})
    content = found["messages"][0]["content"]
    assert content[0]["image_url"]["url"] == "[MEDIA_1]"
    assert content[1]["input_audio"] == {"data": "[MEDIA_2]", "format": "wav"}
    assert content[2]["file"]["file_data"] == "[MEDIA_3]"
    assert "[EMAIL_1]" in content[2]["file"]["filename"]
    assert content[3]["source"] == {"type": "base64", "media_type": "image/png", "data": "[MEDIA_2]"}
    assert content[4] == text  # a document in plain text is text


def test_fields_without_findings_keep_their_bytes(redactor: Redactor) -> None:
    fields = {"temperature": msgspec.Raw(b"1.50e0"), "messages": msgspec.Raw(b'[ {"role": "user" } ]')}
    assert redactor.body(fields) == b'{"temperature":1.50e0,"messages":[ {"role": "user" } ]}'


@pytest.mark.parametrize("raw", [rb'"\ud800"', b"1e999", b"[" * 5000 + b"]" * 5000])
def test_what_cannot_be_read_is_refused(redactor: Redactor, raw: bytes) -> None:
    with pytest.raises(BadRequest, match="not redacted"):
        redactor.body({"messages": msgspec.Raw(raw)})


@pytest.mark.parametrize(
    "part",
    [
        "a@",
        "-eyJ",
        "sk-",
        "://a",
        "1 2 3 ",
        "AB12 ",
        "token=",
        "a:b:",
        "+1 ",
        "[A_1",
        "-----BEGIN ",
        "data:a/b;",
        "{",
        "x",
    ],
)
def test_large_texts_of_hard_parts_end(part: str) -> None:
    text = part * (300_000 // len(part))
    redactor = Redactor([r"\d+x", r"[ab]+:"])
    assert redactor.text(text) == redactor.text(redactor.text(text))


def test_findings_in_a_large_text_are_found_wherever_its_windows_end(redactor: Redactor) -> None:
    text = "".join(f"{'word ' * n} user{n}@mail.example {KEY}{n} " for n in range(0, 4000, 37))
    found = redactor.text(text)
    assert "@mail" not in found
    assert KEY not in found
    assert len(re.findall(r"\[EMAIL_\d+\]", found)) == len(range(0, 4000, 37))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "no regular expression"),
        ("a*", "matches nothing"),
        ("(a+)+b", "possessive"),
        ("(?:foo|bar)+", "possessive"),
        ("(?:x[a-z]{2,40}){3,50}y", "possessive"),
        ("a{99999999999999999999}", "no regular expression"),
    ],
)
def test_patterns_that_are_refused(pattern: str, said: str) -> None:
    assert said in pattern_problem(pattern)


@pytest.mark.parametrize(
    "pattern", [r"\bACME-\d+\b", "(?:[A-Z]++-)+x", "(?:foo|bar)++", r"(?i)customer \d{1,9}", "a|b"]
)
def test_patterns_that_are_taken(pattern: str) -> None:
    assert pattern_problem(pattern) == ""
