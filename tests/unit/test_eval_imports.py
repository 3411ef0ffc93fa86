"""Other tools' files become suites that load; what cannot be taken over is listed."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.evals.answers import Answer
from trimtab.evals.imports import import_file, save
from trimtab.evals.scorers import score
from trimtab.evals.suite import load

needs_yaml = pytest.mark.skipif(find_spec("yaml") is None, reason="needs the extra evals")

PROMPTFOO = """
description: Shop answers
prompts:
  - "Answer in {{language}}: {{question}}"
providers: [openai:gpt-4o-mini]
defaultTest:
  vars: {language: English}
tests:
  - vars: {question: "Capital of France?"}
    assert:
      - {type: icontains, value: paris}
      - {type: javascript, value: output.length < 20}
  - vars: {question: ["What is 2+2?", "What is 1+3?"]}
    assert:
      - {type: equals, value: "4", weight: 2}
      - {type: not-regex, value: "\\\\bfive\\\\b"}
      - {type: latency, threshold: 100}
"""


def taken(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    imported = import_file(file)
    save(imported, tmp_path / "suite")
    suite = load(tmp_path / "suite")
    assert len(suite.items) == imported.items
    return suite, imported.left_out


def value(item, text):
    return score(item, Answer(text, (), "stop")).value


@needs_yaml
def test_promptfoo(tmp_path):
    suite, left_out = taken(tmp_path, "promptfooconfig.yaml", PROMPTFOO)
    assert suite.name == "shop-answers"
    assert [item.id for item in suite.items] == [
        "test-1.1.1.1", "test-2.1.1.1", "test-2.1.1.2", "test-2.1.2.1", "test-2.1.2.2",
    ]  # fmt: skip
    first, four, no_five = suite.items[:3]
    assert first.messages == ({"role": "user", "content": "Answer in English: Capital of France?"},)
    assert value(first, "It is PARIS.") == 1
    assert (value(four, "4"), value(four, "Four"), four.weight) == (1, 0, 2)
    assert (value(no_five, "five"), value(no_five, "fivefold")) == (0, 1)
    assert left_out[0].startswith("providers: is left out")
    assert left_out[1].startswith("test 1, assertion 2: javascript runs code of the configuration")
    assert left_out[2:] == ("test 2, assertion 3: latency has no counterpart",)


@pytest.mark.parametrize(
    ("assertion", "good", "bad"),
    [
        ({"type": "contains", "value": "Red"}, "Red hat", "red hat"),
        ({"type": "not-icontains", "value": "red"}, "blue", "a RED one"),
        ({"type": "contains-any", "value": "red, blue"}, "blue", "green"),
        ({"type": "icontains-all", "value": ["red", "blue"]}, "Red, Blue", "Red"),
        ({"type": "equals", "value": {"a": 1}}, '{"a": 1}', '{"a": 2}'),
        ({"type": "not-equals", "value": "a.b"}, "acb", "a.b "),
        ({"type": "starts-with", "value": "Yes"}, "Yes, sir", "Oh yes"),
        ({"type": "regex", "value": r"\d{3}"}, "a 123", "12"),
        ({"type": "is-json"}, "[1]", "```json\n[1]\n```"),
        ({"type": "contains-json"}, "Here: [1]", "none"),
        ({"type": "is-refusal"}, "I'm sorry, I can't help with that.", "Sure"),
        ({"type": "not-is-refusal"}, "Sure", "I'm sorry, I can't help with that."),
    ],
)
def test_assertions_of_promptfoo(tmp_path, assertion, good, bad):
    config = {"prompts": ["Hi"], "tests": [{"assert": [assertion]}]}
    suite, left_out = taken(tmp_path, "c.json", config)
    assert left_out == ()
    assert (value(suite.items[0], good), value(suite.items[0], bad)) == (1, 0)


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="needs the extra evals")
def test_a_schema_of_promptfoo(tmp_path):
    schema = {"type": "object", "required": ["a"]}
    config = {"prompts": ["Hi"], "tests": [{"assert": [{"type": "is-json", "value": schema}]}]}
    suite, _ = taken(tmp_path, "c.json", config)
    assert (value(suite.items[0], '{"a": 1}'), value(suite.items[0], "{}")) == (1, 0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tests": "file://tests.csv"}, "tests: are in another file"),
        ({"tests": ["file://a.yaml"]}, "test 1: is in another file"),
        (
            {"prompts": ["{{x}}"], "tests": [{"assert": [{"type": "equals", "value": "a"}]}]},
            "the variable x has no value",
        ),
        ({"prompts": ["{{x | upper}}"], "tests": [{"assert": [{"type": "equals", "value": "a"}]}]}, "logic or filters"),
        ({"prompts": ["file://a.py"], "tests": [{}]}, "prompt 1: a.py is no text file"),
        ({"prompts": ["x"], "tests": [{"vars": {}}]}, "test 1: has no assertion"),
        (
            {"prompts": ["x"], "tests": [{"assert": [{"type": "equals", "value": "file://v.txt"}]}]},
            "is in another file",
        ),
        ({"prompts": ["x"], "tests": [{"assert": [{"type": "equals", "value": "a", "transform": "x"}]}]}, "transform"),
        ({"prompts": ["x"], "tests": [{"assert": [{"type": "regex", "value": "("}]}]}, "no regular expression"),
        ({"prompts": ["x"], "tests": [{"assert": [{"type": "equals", "value": "a", "weight": 0}]}]}, "decides nothing"),
        ({"prompts": ["x"], "tests": [{"assert": [{"type": "rouge-n", "value": "a"}]}]}, "rouge-n has no counterpart"),
    ],
)
def test_what_promptfoo_has_beyond_is_listed(tmp_path, config, said):
    (tmp_path / "c.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        import_file(tmp_path / "c.json")
    assert said in str(caught.value)


def test_prompts_in_text_files_and_as_conversations(tmp_path):
    (tmp_path / "p.txt").write_text("Say {{word}}")
    chat = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say {{word}}"}]'
    test = {"vars": {"word": "hi"}, "assert": [{"type": "equals", "value": "{{word}}"}]}
    suite, _ = taken(tmp_path, "c.json", {"prompts": ["file://p.txt", chat], "tests": [test]})
    assert suite.items[0].messages == ({"role": "user", "content": "Say hi"},)
    assert suite.items[1].messages[0] == {"role": "system", "content": "Be brief."}
    assert suite.items[1].reference == "hi"


INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {"task": "my_task", "model": "x"},
    "samples": [
        {"id": 1, "epoch": 1, "input": "2+2?", "target": "4", "scores": {"match": {"value": "C"}}},
        {"id": 1, "epoch": 2, "input": "2+2?", "target": "4", "scores": {"match": {"value": "C"}}},
        {"id": "b", "epoch": 1, "input": [{"role": "user", "content": "Hi"}], "target": ["a", "b"],
         "scores": {"includes": {}}},
        {"id": 3, "epoch": 1, "input": "Which?", "choices": ["red", "blue"], "target": "B", "scores": {"choice": {}}},
        {"id": 4, "epoch": 1, "input": "Why?", "target": "Because.", "scores": {"model_graded_qa": {}, "f1": {}}},
        {"id": 5, "epoch": 1, "input": [{"role": "user", "content": [{"type": "image"}]}], "target": "x", "scores": {}},
    ],
}  # fmt: skip


def test_inspect(tmp_path):
    suite, left_out = taken(tmp_path, "log.json", INSPECT)
    assert suite.name == "my-task"
    assert [(item.id, item.scorer) for item in suite.items] == [
        ("1", "regex"), ("b", "contains"), ("3", "one_of"), ("4", "judge"),
    ]  # fmt: skip
    four, either, choice, _ = suite.items
    assert [value(four, text) for text in ("It is 4.", "4 or 5", "It is 14.")] == [1, 0, 0]
    assert value(either, "B it is") == 1
    assert "A) red\nB) blue" in choice.messages[0]["content"]
    assert value(choice, "B") == 1
    assert any(line.startswith("sample 4: was judged by f1") for line in left_out)
    assert any(line.startswith("sample 5: its input") for line in left_out)


SETTINGS = {"until": ["\n"], "max_gen_toks": 64, "do_sample": False, "x": 1}


def test_lm_eval(tmp_path):
    generated = {
        "doc_id": 0, "doc": {}, "target": "3 * 6 = 18\n#### 18", "filter": "strict-match", "filtered_resps": ["18"],
        "arguments": {"gen_args_0": {"arg_0": "How many?", "arg_1": SETTINGS}},
    }  # fmt: skip
    again = {**generated, "filter": "flexible-extract"}
    words = {"doc_id": 1, "target": "Paris", "arguments": [["Capital?", {"until": ["."]}]]}
    chosen = {"doc_id": 2, "target": 1, "arguments": [["Sky is", " red"], ["Sky is", " blue"]]}
    lone = {"doc_id": 3, "target": "x", "arguments": [["A text", " that goes on"]]}
    lines = "\n".join(json.dumps(one) for one in (generated, again, words, chosen, lone)) + "\n{\n{}\n"
    suite, left_out = taken(tmp_path, "samples_gsm8k_2024-05-01T10-00-00.1.jsonl", lines)
    assert suite.name == "gsm8k"
    number, word, choice = suite.items
    assert (number.scorer, number.reference) == ("numeric", 18)
    assert number.request == {"stop": ["\n"], "max_tokens": 64, "temperature": 0}
    assert (word.scorer, word.reference) == ("normalised", "Paris")
    assert value(choice, "B") == 1
    assert [line.split(": ")[0] for line in left_out] == [
        "x", "multiple choice was judged by likelihoods; items ask for the letter instead, so figures will differ",
        "line 5", "line 6", "line 7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", "{}", "of no kind that can be imported"),
        ("a.csv", "a,b", "of no kind that can be imported"),
        ("a.jsonl", "{}", "nothing in it can be imported"),
        ("a.json", '{"eval": {}}', "are not in the log"),
    ],
)
def test_files_of_another_kind(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        import_file(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        import_file(tmp_path / "none.json")
    (tmp_path / "log.eval").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ConfigError, match="inspect log dump"):
        import_file(tmp_path / "log.eval")


def test_yaml_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "c.yaml").write_text("tests: []")
    with pytest.raises(ConfigError, match="pip install pyyaml"):
        import_file(tmp_path / "c.yaml")


@needs_yaml
def test_bad_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        import_file(tmp_path / "c.yaml")


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(INSPECT))
    imported = import_file(tmp_path / "log.json")
    save(imported, tmp_path / "new" / "suite")
    with pytest.raises(ConfigError, match="is there already"):
        save(imported, tmp_path / "new" / "suite")


KEYS = ["id", "input", "target", "type", "value", "vars", "assert", "choices", "scores"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    document=st.fixed_dictionaries({"tests": st.lists(JSON, max_size=3), "prompts": st.lists(JSON, max_size=2)})
    | st.fixed_dictionaries({"eval": st.just({}), "samples": st.lists(JSON, max_size=3)}),
    lines=st.lists(st.dictionaries(st.sampled_from(["arguments", "target", "doc_id"]), JSON), max_size=3),
)
def test_no_file_makes_an_import_raise_anything_else(tmp_path_factory, document, lines):
    folder = tmp_path_factory.mktemp("import")
    (folder / "a.json").write_text(json.dumps(document))
    (folder / "b.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for number, name in enumerate(("a.json", "b.jsonl")):
        try:
            imported = import_file(folder / name)
        except ConfigError:
            continue
        save(imported, folder / str(number))
        assert load(folder / str(number)).items
