"""What can be wrong with a cheap model's answer that can be seen without asking anybody. Pure."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, Final, Literal

import msgspec

from trimtab.protocols.reuse import Whole
from trimtab.semantic.declining import declines
from trimtab.types import Reply, Request

Check = Literal["format", "length", "refusal", "hedging"]

_READ_CHARS: Final = 20_000
_HEDGES: Final = re.compile(
    r"\b(?:i(?:'m| am) not (?:sure|certain)|i (?:think|guess|believe)|not entirely (?:sure|clear)|it(?:'s| is) unclear|"
    r"hard to say|cannot be determined|might be|perhaps|possibly|i(?:'d| would) need more|as far as i (?:know|can)|"
    r"wait, (?:no|actually|let me)|let me (?:re-?check|reconsider))",
    re.IGNORECASE,
)
_MARKED: Final = re.compile(r"(?:####|\\boxed\{|\b(?:final )?answer\s*(?:is|:|=))\s*([^\n}]+)", re.IGNORECASE)
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SHORT_CHARS: Final = 60
_CALLS: Final = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{|"type"\s*:\s*"tool_use"|"function_call"\s*:\s*\{')
_FENCE: Final = re.compile(r"\A\s*```[a-z]*\s*\n(?P<inner>.*)\n```\s*\Z", re.DOTALL)


def problem(
    checks: tuple[Check, ...], request: Request, reply: Reply, text: str | None, whole: Whole, *, json: bool
) -> str:
    """The first thing that is wrong with an answer, in words; "" if nothing is. `json`: it has to be JSON.

    `text` is what it says, None if it is not text alone (a tool call).
    """
    if not (text or "").strip() and not _CALLS.search(reply.body):
        return "an empty answer"
    if "length" in checks and not whole(request.dialect, reply.finish, request.fields):
        return f"not a whole answer ({reply.finish or 'no stop reason'})"
    if text is None:
        return ""
    if "refusal" in checks and declines(text):
        return "it declines"
    if "format" in checks and json and (wrong := _format_problem(text, request)):
        return wrong
    if "hedging" in checks and (hedge := _HEDGES.search(text[:_READ_CHARS])):
        return f"it hedges ({hedge[0].lower()!r})"
    return ""


def agree(one: str, other: str) -> bool:
    """Whether two answers come to the same: as texts, or in their last number, or in the letter they choose."""
    first, second = _final(one), _final(other)
    return bool(first) and first == second


def mean_logprob(body: bytes) -> float | None:
    """The mean log probability of an answer's tokens, where the engine gave it (OpenAI's dialect); else None."""
    try:
        choice = msgspec.json.decode(body)["choices"][0]
        tokens = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
    except (msgspec.DecodeError, LookupError, TypeError, ValueError):
        return None
    return sum(tokens) / len(tokens) if tokens else None


def _final(text: str) -> str:
    """What an answer comes to."""
    marked = list(_MARKED.finditer(text))
    last = str(marked[-1][1]) if marked else text
    numbers: list[str] = _NUMBER.findall(last) or (_NUMBER.findall(text) if len(text) > _SHORT_CHARS else [])
    if numbers:
        return numbers[-1].replace(",", "").rstrip(".")
    return " ".join(re.findall(r"\w+", last.casefold()))


def _format_problem(text: str, request: Request) -> str:
    try:
        value = msgspec.json.decode(text.strip().encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return "JSON in a code fence" if _FENCE.match(text) else "it is no JSON"
    schema = _schema(request)
    if schema is None or find_spec("jsonschema") is None:
        return ""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        error = next(iter(Draft202012Validator(schema).iter_errors(value)), None)
    except SchemaError:
        return ""  # the client's own mistake
    return "" if error is None else f"not of the schema: {error.json_path}"


def _schema(request: Request) -> dict[str, Any] | None:
    for name in ("response_format", "output_config", "output_format"):
        raw = request.fields.get(name)
        if raw is None:
            continue
        try:
            said = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            return None
        found = _first(said, "schema")
        if isinstance(found, dict):
            return found
    return None


def _first(value: Any, name: str) -> Any:
    """The value under a name, at whatever depth a dialect puts it (three at most)."""
    for _ in range(3):
        if not isinstance(value, dict):
            return None
        if name in value:
            return value[name]
        value = value.get("json_schema") or value.get("format")
    return None
