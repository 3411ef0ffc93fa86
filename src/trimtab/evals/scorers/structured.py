"""Scorers of JSON: equal values, and values that fit a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final

from msgspec import Struct

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, shown

WAY_OUT: Final = 'needs the package jsonschema: pip install "trimtab[evals]"'
_FENCE: Final = re.compile(r"\A\s*```[\w+-]*[ \t]*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_OPENERS: Final = re.compile(r"[{\[]")
_MOST_STARTS: Final = 50
_LONGEST_CHARS: Final = 200_000


class Json(Struct, frozen=True):
    """Settings of "json"."""

    fenced: bool = True
    embedded: bool = False
    extra: bool = False


class JsonSchema(Struct, frozen=True):
    """Settings of "json_schema"."""

    schema: dict[str, Any] | None = None
    fenced: bool = True
    embedded: bool = False


def value_in(text: str, *, fenced: bool = True, embedded: bool = False) -> tuple[Any, str]:
    """The JSON value that a text is, and "" or why it is none.

    A code fence around it is taken off if `fenced`; `embedded` takes the first object or list that begins anywhere.
    """
    text = text[:_LONGEST_CHARS]
    if fenced and (inside := _FENCE.match(text)):
        text = inside[1]
    try:
        return _decoder().decode(text.strip()), ""
    except (ValueError, RecursionError) as error:
        problem = f"is no JSON ({error if isinstance(error, json.JSONDecodeError) else 'it cannot be read'})"
    if embedded:
        for opener in list(_OPENERS.finditer(text))[:_MOST_STARTS]:
            try:
                return _decoder().raw_decode(text, opener.start())[0], ""
            except (ValueError, RecursionError):
                continue
    return None, problem


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def equal(said: Any, wanted: Any, *, extra: bool = False, case: bool = True) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, not true. `extra` allows more keys, without `case` texts fold."""
    if isinstance(wanted, dict):
        keys_fit = isinstance(said, dict) and (wanted.keys() <= said.keys() if extra else wanted.keys() == said.keys())
        return keys_fit and all(equal(said[key], wanted[key], extra=extra, case=case) for key in wanted)
    if isinstance(wanted, list):
        return (
            isinstance(said, list)
            and len(said) == len(wanted)
            and all(equal(one, other, extra=extra, case=case) for one, other in zip(said, wanted, strict=True))
        )
    if isinstance(wanted, bool) or isinstance(said, bool):
        return said is wanted
    if isinstance(wanted, str) and isinstance(said, str) and not case:
        return " ".join(said.casefold().split()) == " ".join(wanted.casefold().split())
    return bool(said == wanted)


def schema_problem(schema: Any) -> str:
    """Why a schema cannot be used, with the way out, or ""."""
    if find_spec("jsonschema") is None:
        return WAY_OUT
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"is no valid JSON schema: {error.message} at {error.json_path}"
    try:
        mismatch(None, schema)
    except Exception as error:  # a $ref that leads nowhere has an error class of another package
        return f"is no valid JSON schema: {error}"
    return ""


def mismatch(value: Any, schema: dict[str, Any]) -> str:
    """What about a value does not fit a schema (draft 2020-12; nothing is fetched for a $ref), or ""."""
    try:
        error = next(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value), None)
    except (RecursionError, OverflowError):
        return "is nested too deeply, or has a number beyond all bounds"
    return "" if error is None else f"{error.json_path}: {shown(error.message)[1:-1]}"


@lru_cache(256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())


def _check_json(_item: Item, _settings: Json) -> Iterable[Flaw]:
    return ()


def _score_json(item: Item, settings: Json, answer: Answer) -> Score:
    value, problem = value_in(answer.text, fenced=settings.fenced, embedded=settings.embedded)
    if problem:
        return Score(0.0, f"{shown(answer.text)} {problem}")
    if item.reference is None:
        return Score(1.0, "is JSON")
    same = equal(value, item.reference, extra=settings.extra)
    return Score(float(same), "is the reference" if same else f"is JSON, but not the reference: {shown(answer.text)}")


def _check_schema(item: Item, settings: JsonSchema) -> Iterable[Flaw]:
    if settings.schema is None:
        yield "options.schema", "is missing; give the JSON schema that an answer must fit"
    elif problem := schema_problem(settings.schema):
        yield "options.schema", problem
    elif item.reference is not None and (problem := mismatch(item.reference, settings.schema)):
        yield "reference", f"does not fit the schema itself: {problem}"


def _score_schema(item: Item, settings: JsonSchema, answer: Answer) -> Score:
    value, problem = value_in(answer.text, fenced=settings.fenced, embedded=settings.embedded)
    if problem:
        return Score(0.0, f"{shown(answer.text)} {problem}")
    assert settings.schema is not None  # checked when the suite was read
    if problem := mismatch(value, settings.schema):
        return Score(0.0, f"does not fit the schema: {problem}")
    if item.reference is not None and not equal(value, item.reference):
        return Score(0.0, f"fits the schema, but is not the reference: {shown(answer.text)}")
    return Score(1.0, "fits the schema")


_FENCED: Final = "a code fence around it is taken off (default true)"
_EMBEDDED: Final = "the first object or list within other text will do (default false)"
SCORERS: Final[dict[str, Scorer]] = {
    "json": Scorer(
        "The answer is JSON, and the value of the reference if there is one.", "any JSON value, or none", Json,
        {"fenced": _FENCED, "embedded": _EMBEDDED, "extra": "objects may have more keys (default false)"},
        _check_json, _score_json,
    ),
    "json_schema": Scorer(
        "The answer is JSON that fits a schema (draft 2020-12, extra evals).",
        "none, or the value that it must be", JsonSchema,
        {"schema": "the JSON schema; required", "fenced": _FENCED, "embedded": _EMBEDDED}, _check_schema, _score_schema,
    ),
}  # fmt: skip
