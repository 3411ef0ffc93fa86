"""Tests of a promptfoo configuration: each prompt with each test, an item for each assertion.

Source: the configuration reference and the list of assertions in promptfoo's documentation.
"""

from __future__ import annotations

import json
import re
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

from trimtab.evals.imports.draft import Draft, conversation

_KNOWN: Final = ("description", "prompts", "tests", "defaultTest")
_TEST_KEYS: Final = ("description", "vars", "assert")
_ASSERT_KEYS: Final = ("type", "value", "threshold", "weight", "metric")
_VARIABLE: Final = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")
_LOGIC: Final = re.compile(r"\{\{|\{%")
_MOST_COMBINATIONS: Final = 1000


class _Unusable(Exception):
    """Why a part cannot be taken over."""


def read(document: Any, path: Path) -> Draft:
    """The draft of a configuration; what it cannot hold is noted."""
    document = document if isinstance(document, dict) else {}
    draft = Draft("promptfoo", str(document.get("description") or path.stem))
    for key in document:
        if key not in _KNOWN:
            draft.skip(f"{key}: is left out; models and their settings are Trimtab's own configuration")
    prompts = _prompts(document.get("prompts"), path.parent, draft)
    default = document.get("defaultTest")
    if default is not None and not isinstance(default, dict):
        draft.skip("defaultTest: is in another file; write it into the configuration")
    tests = document.get("tests")
    if not isinstance(tests, list):
        draft.skip("tests: are in another file; write them into the configuration")
        return draft
    for number, test in enumerate(tests, 1):
        if isinstance(test, dict):
            _test(draft, f"test {number}", test, default if isinstance(default, dict) else {}, prompts)
        else:
            draft.skip(f"test {number}: is in another file; write it into the configuration")
    return draft


def _prompts(prompts: Any, folder: Path, draft: Draft) -> list[str]:
    found = []
    for number, prompt in enumerate(prompts if isinstance(prompts, list) else [prompts], 1):
        text = prompt.get("raw", prompt.get("id")) if isinstance(prompt, dict) else prompt
        try:
            found.append(_prompt(text, folder))
        except _Unusable as error:
            draft.skip(f"prompt {number}: {error}")
    return found


def _prompt(text: Any, folder: Path) -> str:
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("is no text")
    if not text.startswith("file://"):
        return text
    file = folder / text.removeprefix("file://")
    if file.suffix not in (".txt", ".md", ".json"):
        raise _Unusable(f"{file.name} is no text file, and Trimtab runs no code to make prompts")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Unusable(f"{file.name} cannot be read") from error


def _test(draft: Draft, place: str, test: dict[str, Any], default: dict[str, Any], prompts: list[str]) -> None:
    for key in (*test, *default):
        if key not in _TEST_KEYS:
            draft.skip(f"{place}: {key} is left out; it may change what passes")
    asserts = [*_listed(default.get("assert")), *_listed(test.get("assert"))]
    if not asserts:
        draft.skip(f"{place}: has no assertion")
    given = [one.get("vars") or {} for one in (default, test)]
    if not all(isinstance(one, dict) for one in given):
        draft.skip(f"{place}: its variables are in another file; write them into the configuration")
        return
    variables = {**given[0], **given[1]}
    for prompt_number, prompt in enumerate(prompts, 1):
        for version, values in enumerate(_combinations(variables, place, draft), 1):
            for number, one in enumerate(asserts, 1):
                where = f"{place}, assertion {number}"
                try:
                    asked = _asked(prompt, values)
                    scoring = _scoring(one, values, where, draft)
                except _Unusable as error:
                    draft.skip(f"{where}: {error}")
                    continue
                identity = f"{place.replace(' ', '-')}.{prompt_number}.{version}.{number}"
                draft.add(where, identity, asked, scoring)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _combinations(variables: dict[str, Any], place: str, draft: Draft) -> list[dict[str, Any]]:
    """Lists among the variables stand for each of their values in turn."""
    choices = [value if isinstance(value, list) else [value] for value in variables.values()]
    several = islice(product(*choices), _MOST_COMBINATIONS + 1)
    made = [dict(zip(variables, values, strict=True)) for values in several]
    if len(made) > _MOST_COMBINATIONS:
        draft.skip(f"{place}: has more than {_MOST_COMBINATIONS} combinations of variables; the rest is left out")
    return made[:_MOST_COMBINATIONS]


def _asked(prompt: str, values: dict[str, Any]) -> dict[str, Any]:
    text = _filled(prompt, values)
    messages = conversation(text)
    return {"messages": messages} if messages else {"prompt": text}


def _filled(text: str, values: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise _Unusable(f"the variable {name} has no value")
        if isinstance(values[name], str) and values[name].startswith("file://"):
            raise _Unusable(f"the variable {name} is in another file; write it into the configuration")
        return values[name] if isinstance(values[name], str) else json.dumps(values[name])

    if _LOGIC.search(_VARIABLE.sub("", text)):
        raise _Unusable("its template has logic or filters; only {{variable}} is filled in")
    return _VARIABLE.sub(value, text)


def _scoring(one: Any, values: dict[str, Any], where: str, draft: Draft) -> dict[str, Any]:
    kind = one.get("type") if isinstance(one, dict) else None
    if not isinstance(kind, str):
        raise _Unusable("has no type")
    if unknown := [key for key in one if key not in _ASSERT_KEYS]:
        raise _Unusable(f"{kind} has {', '.join(unknown)}, which cannot be taken over")
    value = one.get("value")
    if isinstance(value, str):
        if value.startswith("file://"):
            raise _Unusable(f"the value of {kind} is in another file; write it into the configuration")
        value = _filled(value, values)
    scoring = _mapped(kind, value, one.get("threshold"))
    weight = one.get("weight", 1)
    if not isinstance(weight, int | float) or weight <= 0:
        raise _Unusable(f"{kind} has the weight {weight}, so it decides nothing")
    return scoring if weight == 1 else {**scoring, "weight": weight}


def _mapped(kind: str, value: Any, threshold: Any) -> dict[str, Any]:
    """The scorer, reference and options that stand for an assertion."""
    negated, base = kind.startswith("not-"), kind.removeprefix("not-")
    if base in ("contains", "icontains", "contains-all", "contains-any", "icontains-all", "icontains-any"):
        many = base.endswith(("-all", "-any"))
        wanted = [part.strip() for part in value.split(",")] if many and isinstance(value, str) else value
        if negated and base.endswith("-all"):
            raise _Unusable(f"{kind} has no counterpart")
        mode = "none" if negated else "any" if base.endswith("-any") else "all"
        wanted = [str(part) for part in wanted] if isinstance(wanted, list) else str(wanted)
        return _made("contains", wanted, mode=mode, case=not base.startswith("i"))
    if base == "equals" and not isinstance(value, str):
        if negated:
            raise _Unusable(f"{kind} of a value that is no text has no counterpart")
        return _made("json", value)
    if base == "equals" and negated:
        return _made("regex", rf"\s*{re.escape(value.strip())}\s*", whole=True, absent=True)
    if base == "equals":
        return _made("exact", value)
    if base == "starts-with":
        return _made("regex", rf"\A{re.escape(str(value))}", absent=negated)
    if base == "regex":
        return _made("regex", value, absent=negated)
    if base == "is-refusal":
        return _made("refusal", not negated)
    if negated:
        raise _Unusable(f"{kind} has no counterpart")
    if base in ("is-json", "contains-json"):
        embedded = base == "contains-json"
        schema = _schema(value)
        if schema is None:
            return _made("json", None, embedded=embedded, fenced=embedded)
        return _made("json_schema", None, schema=schema, embedded=embedded, fenced=embedded)
    if base in ("llm-rubric", "model-graded-closedqa"):
        return _made("judge", None, rubric=str(value))
    if base in ("factuality", "model-graded-factuality"):
        return _made("judge", str(value), rubric="The answer agrees with the reference in every fact.")
    if base == "similar":
        return _made("similarity", value, threshold=0.75 if threshold is None else threshold)
    if base in ("javascript", "python", "ruby", "webhook"):
        raise _Unusable(f"{kind} runs code of the configuration, which Trimtab does not; use a scorer of its own")
    raise _Unusable(f"{kind} has no counterpart")


def _schema(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _Unusable("its schema is a text that is no JSON; write it as a table") from error
    if value is None or value == "":
        return None
    if not isinstance(value, dict):
        raise _Unusable("its schema is no table")
    return value


def _made(scorer: str, reference: Any, **options: Any) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if value is not False or name == "fenced"}
    found: dict[str, Any] = {"scorer": scorer}
    if reference is not None:
        found["reference"] = reference
    return {**found, "options": kept} if kept else found
