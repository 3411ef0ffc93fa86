"""Properties of the judgement on names: any text has one, the same one, and more context never takes a name away."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.redact import identity_in
from trimtab.redact.names import name_in

# What the patterns begin, go on and end with, so that they meet and overlap.
pieces = st.sampled_from(
    [
        "Dear", "Hello", "Mr", "Mr.", "Dr.", "J.", "Maria", "Lopez", "O'Brien", "Anne-Marie", "de", "la", "von", "Name",
        "name is", "Your", "Best regards", "JANE", "Grace", "Period", "[EMAIL_1]", "{{name}}", "Ž", "š", "ß", "’", "'",
        "-", ".", ",", ":", "=", "|", '"', "{", "}", "[", "(", "\n", " ", " ", " ", "\xa0", "\t", "_", "*", "A", "a",
        "1", "@", "/", "\\", "\\n",
    ]
)  # fmt: skip
texts = st.one_of(st.text(max_size=80), st.lists(pieces, max_size=40).map("".join))
given_names = st.sampled_from(["Maria", "John", "Priya", "Oluwaseun", "Ulrike", "Łukasz", "José", "Hiroshi", "Fatima"])
surnames = st.sampled_from(["Lopez", "Smith", "Raman", "Adeyemi", "Özdemir", "Kowalski", "Álvarez", "Tanaka", "Qvorst"])
placeholders = st.sampled_from(
    [
        "[Name]",
        "[Your Name]",
        "[Customer Name]",
        "{{first_name}}",
        "{name}",
        "<Name>",
        "[EMAIL_1]",
        "$NAME",
        "___",
        "%s",
    ]
)
contexts = st.sampled_from(
    [
        "Dear {},\nyour order left.",
        "Hello {}!",
        "Customer name: {}",
        "**Account holder:** {}",
        '{{"full_name": "{}"}}',
        "Your name is {}.",
        "It is over.\n\nBest regards,\n{}",
        "The account of {} is open.",
        "Mr. {} called.",
    ]
)


@given(texts, st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_text_has_a_judgement_and_bare_is_the_wider_one(text: str, bare: bool) -> None:
    found = name_in(text, bare=bare)
    assert found in (True, False)
    assert name_in(text, bare=True) >= found


@given(st.text(max_size=80), st.sampled_from(["off", "context", "any"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_have_a_judgement(text: str, names: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    assert isinstance(identity_in(body, names), str)  # type: ignore[arg-type]
    assert isinstance(identity_in(json.dumps({"content": text}).encode(), names), str)  # type: ignore[arg-type]


@given(contexts, given_names, surnames)
@settings(max_examples=200, deadline=None)
def test_a_name_is_found_in_each_context(context: str, first: str, last: str) -> None:
    assert name_in(context.format(f"{first} {last}"), bare=False)


@given(contexts, placeholders)
@settings(max_examples=200, deadline=None)
def test_a_placeholder_is_nobody(context: str, placeholder: str) -> None:
    assert not name_in(context.format(placeholder), bare=True)


@given(given_names, surnames, texts, texts)
@settings(max_examples=200, deadline=None)
def test_a_full_name_on_a_line_of_its_own_is_found_whatever_the_others_say(
    first: str, last: str, before: str, after: str
) -> None:
    assert name_in(f"{before}\n{first} {last}\n{after}", bare=True)


@given(
    st.sampled_from(
        ["A'", "A-", "Aa ", "Mr. ", "A. ", "A de ", "Name: ", "Dear ", "Best\n", "é", "A’B ", "|", "Maria "]
    )
)
@settings(deadline=None)
def test_what_repeats_is_read_to_its_end(piece: str) -> None:
    text = piece * 20_000  # a pattern that tried a repeat in two ways would not come back
    assert name_in(f"{text}\n\nDear Maria,\n", bare=False)
