"""Suites: what is read, every mistake with its file and line, and the suites that are shipped."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.evals.answers import Answer, ToolCall
from trimtab.evals.scorers import SCORERS, score
from trimtab.evals.scorers.tool_call import wanted_calls
from trimtab.evals.suite import load, shipped

HEAD = """[suite]
name = "own"
description = "Ours."
license = "MIT"

[defaults]
system = "Be brief."

[defaults.request]
temperature = 0
max_tokens = 16

[[strata]]
name = "capitals"
file = "capitals.jsonl"
scorer = "normalised"
request = { max_tokens = 8 }

[[strata]]
name = "sums"
file = "sums.jsonl"
scorer = "numeric"
options = { absolute = 0.5 }
weight = 2
system = ""
"""
CAPITALS = '{"id": "c1", "prompt": "Capital of France?", "reference": "Paris"}\n'
SUMS = '{"id": "s1", "messages": [{"role": "user", "content": "2+2"}], "reference": 4}\n'


@pytest.fixture
def write(tmp_path):
    def write(toml=HEAD, capitals=CAPITALS, sums=SUMS):
        (tmp_path / "suite.toml").write_text(toml)
        (tmp_path / "capitals.jsonl").write_text(capitals)
        (tmp_path / "sums.jsonl").write_text(sums)
        return tmp_path

    return write


def problems_of(folder):
    with pytest.raises(ConfigError) as caught:
        load(folder)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_suite_is_read_with_its_defaults(write):
    suite = load(write())
    capital, total = suite.items
    assert (suite.name, suite.description, suite.license) == ("own", "Ours.", "MIT")
    assert capital.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"},
    )
    assert (capital.stratum, capital.scorer, capital.reference) == ("capitals", "normalised", "Paris")
    assert capital.weight == 1
    assert capital.request == {"temperature": 0, "max_tokens": 8}
    assert total.messages == ({"role": "user", "content": "2+2"},)
    assert (total.options, total.weight) == ({"absolute": 0.5}, 2)


def test_an_item_may_override_its_stratum(write):
    row = {
        "id": "c2", "prompt": "Rome?", "reference": "B", "scorer": "one_of", "weight": 3, "system": "Choose.",
        "request": {"max_tokens": 1}, "options": {"choices": ["A", "B"]},
    }  # fmt: skip
    item = load(write(capitals=CAPITALS + json.dumps(row) + "\n")).items[1]
    assert (item.scorer, item.options, item.weight) == ("one_of", {"choices": ["A", "B"]}, 3)
    assert item.messages[0]["content"] == "Choose."
    assert item.request == {"temperature": 0, "max_tokens": 1}


def test_a_suite_may_be_named_by_its_file_and_has_a_hash_of_all_files(write):
    folder = write()
    first = load(folder / "suite.toml")
    assert first == load(str(folder))
    (folder / "sums.jsonl").write_text(SUMS.replace("2+2", "1+3"))
    assert load(folder).sha256 != first.sha256


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "x", "reference": "y"}', "id: is missing"),
        ('{"id": " ", "prompt": "x", "reference": "y"}', "id: is empty"),
        ('{"id": 7, "prompt": "x", "reference": "y"}', "id: must be a text in quotes, not 7"),
        ('{"id": "c1", "prompt": "x", "reference": "y"}', 'id: "c1" is there already, at capitals.jsonl:1'),
        ('{"id": "n", "reference": "y"}', "prompt: is missing"),
        ('{"id": "n", "prompt": "", "reference": "y"}', "prompt: is empty"),
        ('{"id": "n", "prompt": null, "reference": "y"}', "prompt: must be a text in quotes, not null"),
        ('{"id": "n", "prompt": "x", "messages": [], "reference": "y"}', 'prompt: is there beside "messages"'),
        ('{"id": "n", "messages": [], "reference": "y"}', "messages: is empty"),
        ('{"id": "n", "messages": [{"role": "usr", "content": "x"}], "reference": "y"}', "messages: message 0: role"),
        ('{"id": "n", "messages": [{"role": "user"}], "reference": "y"}', "messages: message 0: content"),
        ('{"id": "n", "prompt": "x"}', 'reference: is missing; scorer "normalised" needs a text'),
        ('{"id": "n", "prompt": "x", "reference": 3}', "reference: must be a text"),
        ('{"id": "n", "prompt": "x", "refrence": "y"}', "refrence: unknown key; did you mean 'reference'?"),
        ('{"id": "n", "prompt": "x", "scorer": "numerc"}', "scorer: \"numerc\" is unknown; did you mean 'numeric'?"),
        ('{"id": "n", "prompt": "x", "reference": "y", "weight": 0}', "weight: must be a number above 0, not 0"),
        ('{"id": "n", "prompt": "x", "reference": "y", "options": {"prt": "all"}}', "options.prt: unknown key"),
        ('{"id": "n", "prompt": "x", "reference": "y", "options": {"part": "some"}}', "options.part: "),
        ('{"id": "n", "prompt": "x", "reference": "y", "request": {"model": "m"}}', "request.model: is not for"),
        ('{"id": "n", "prompt": "x", "reference": "y", "tools": [{"name": "f"}]}', "tools: tool 0 must be"),
        ('{"id": "n", "prompt": "x", "reference": "("', "is no JSON object on one line"),
        ('{"id": "n", "id": "m", "prompt": "x", "reference": "y"}', '"id" is there twice'),
        ('{"id": "n", "prompt": "x", "reference": NaN}', "NaN is no JSON number"),
        ('["n"]', "must be a JSON object"),
        ('{"id": "n", "prompt": "x", "reference": "(", "scorer": "regex"}', "reference: is no regular expression"),
        ('{"id": "n", "prompt": "x", "scorer": "json_schema"}', "options.schema: is missing"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_item_is_told_with_its_line(write, line, expected):
    found = problems_of(write(capitals=f"{CAPITALS}\n{line}\n"))
    assert all(problem.startswith("capitals.jsonl:3: ") for problem in found)
    assert expected in found[0]


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="needs the extra evals")
def test_a_schema_that_is_none_is_told(write):
    line = '{"id": "n", "prompt": "x", "scorer": "json_schema", "options": {"schema": {"type": "objekt"}}}'
    (problem,) = problems_of(write(capitals=f"{CAPITALS}{line}\n"))
    assert problem.startswith("capitals.jsonl:2: options.schema: is no valid JSON schema: 'objekt'")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "own"', "", "suite.toml:1: suite.name: is missing"),
        ('[suite]\nname = "own"', "", "suite.toml:1: has no table [suite]"),
        ('license = "MIT"', "licence = 'MIT'", "suite.toml:4: suite.licence: unknown key; did you mean 'license'?"),
        ("max_tokens = 16", "stream = true", "suite.toml:11: defaults.request.stream: is not for a suite to set"),
        ('name = "sums"', 'name = "capitals"', 'suite.toml:20: strata.name: "capitals" is there already'),
        ('"numeric"', '"numbers"', "suite.toml:22: strata.scorer: \"numbers\" is unknown; did you mean 'numeric'?"),
        ('"numeric"', '""', "sums.jsonl:1: scorer: is missing"),
        ("absolute = 0.5", "absolute = -1", "suite.toml:23: strata.options.absolute: must be a number of at least 0"),
        ("absolute = 0.5", "absolut = 1", "suite.toml:23: strata.options.absolut: unknown key"),
        ("weight = 2", "weight = 'two'", "suite.toml:24: strata.weight: must be a number above 0"),
        ('file = "sums.jsonl"', 'file = "none.jsonl"', "suite.toml:21: strata.file: none.jsonl cannot be read"),
        ('file = "sums.jsonl"', 'file = "../x.jsonl"', 'suite.toml:21: strata.file: "../x.jsonl" lies outside'),
        ('file = "sums.jsonl"', "", "suite.toml:19: strata.file: is missing"),
        ("[defaults]", "[default]", "suite.toml:6: default: unknown table; did you mean 'defaults'?"),
        ("weight = 2", "weight = ", "suite.toml:24: TOML: Invalid value"),
    ],
)
def test_a_mistake_in_the_suite_is_told_with_its_line(write, old, new, expected):
    assert old in HEAD
    assert any(problem.startswith(expected) for problem in problems_of(write(toml=HEAD.replace(old, new))))


def test_a_mistake_of_a_stratum_is_told_once_for_all_its_items(write):
    sums = "".join(SUMS.replace("s1", f"s{number}") for number in range(5))
    assert len(problems_of(write(toml=HEAD.replace("0.5", '"x"'), sums=sums))) == 1


def test_an_empty_stratum_is_told(write):
    (problem,) = problems_of(write(sums="\n"))
    assert problem.startswith('suite.toml:19: strata: stratum "sums" is empty')


def test_a_suite_without_strata_is_told(write):
    (problem,) = problems_of(write(toml=HEAD[: HEAD.index("[[strata]]")]))
    assert problem.startswith("suite.toml: strata: is missing")


def test_all_mistakes_come_at_once(write):
    found = problems_of(write(capitals='{"id": "a"}\n{"prompt": "x"}\n', sums='{"id": "a", "prompt": "x"}\nx\n'))
    assert [problem.split(": ")[0] for problem in found] == [
        "capitals.jsonl:1", "capitals.jsonl:1", "capitals.jsonl:2", "capitals.jsonl:2",
        "sums.jsonl:1", "sums.jsonl:1", "sums.jsonl:2",
    ]  # fmt: skip


def test_a_file_that_is_no_text_is_told(write):
    folder = write()
    (folder / "sums.jsonl").write_bytes(SUMS.encode() + b'{"id": "\xff"}')
    assert problems_of(folder)[0].startswith("sums.jsonl:2: is not UTF-8 text")


def test_a_suite_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="did you mean 'basics'"):
        load("basic")


@given(st.binary(max_size=300), st.text(st.characters(codec="utf-8"), max_size=300))
def test_no_file_makes_reading_raise_anything_else(tmp_path_factory, data, text):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.toml").write_text(HEAD)
    (folder / "capitals.jsonl").write_bytes(data)
    (folder / "sums.jsonl").write_text(text)
    assert problems_of(folder)


def perfect(item):
    """The answer that an item's reference is, or None where it is not one."""
    reference = item.reference
    match item.scorer:
        case "tool_call":
            calls = wanted_calls(reference)
            return Answer("", tuple(ToolCall(one["name"], json.dumps(one["arguments"])) for one in calls), "tool_calls")
        case "refusal":
            text = "I'm sorry, but I can't help with that." if reference is not False else "Here is how."
        case "contains":
            text = reference if isinstance(reference, str) else " ".join(reference)
        case "json":
            text = json.dumps(reference)
        case "regex" | "judge" | "code" | "json_schema" | "similarity":
            return None
        case _:
            text = str(reference[0] if isinstance(reference, list) else reference)
    return Answer(text, (), "stop")


@pytest.mark.parametrize("name", shipped())
def test_shipped_suites_are_whole(name):
    suite = load(name)
    assert suite.name == name
    assert suite.license == {"support": "CC-BY-4.0"}.get(name, "Apache-2.0")
    asked = [json.dumps(item.messages) + json.dumps(item.tools) for item in suite.items]
    assert len(set(asked)) == len(asked), "a question comes twice"
    for item in suite.items:
        assert item.scorer in SCORERS
        if (answer := perfect(item)) is not None:
            assert score(item, answer).value == 1, (item, answer)
        if item.scorer != "refusal" and item.reference != []:
            assert score(item, Answer("", (), "stop")).value == 0, item
