"""Scorer of tool calls: the right tools with the right arguments, in any order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from msgspec import Struct

from trimtab.evals.answers import Answer, ToolCall
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, shown
from trimtab.evals.scorers.structured import equal, mismatch, schema_problem, value_in

_TAGGED: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MOST_CALLS: Final = 64


class ToolCalls(Struct, frozen=True):
    """Settings of "tool_call"."""

    arguments: Literal["exact", "schema", "ignore"] = "exact"
    extra: bool = False
    ordered: bool = False
    case: bool = True
    in_text: bool = False


def wanted_calls(reference: Any) -> list[dict[str, Any]]:
    """The calls of a reference: one, a list of them, or an empty list for none."""
    return [reference] if isinstance(reference, dict) else list(reference)


def calls_of(answer: Answer, *, in_text: bool) -> list[ToolCall]:
    """The calls of an answer; `in_text` also reads those that a model without tools of its own wrote as JSON."""
    if answer.tool_calls or not in_text:
        return list(answer.tool_calls)
    pieces = _TAGGED.findall(answer.text) or [answer.text]
    found: list[ToolCall] = []
    for piece in pieces[:_MOST_CALLS]:
        value, _ = value_in(piece, embedded=True)
        found += [call for one in (value if isinstance(value, list) else [value]) if (call := _written(one))]
    return found


def _written(value: Any) -> ToolCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _problem(call: ToolCall, wanted: dict[str, Any], item: Item, settings: ToolCalls) -> str:
    """Why a call is not the wanted one, or ""."""
    if call.name != wanted["name"]:
        return f"called {shown(call.name)}, wanted {shown(wanted['name'])}"
    if settings.arguments == "ignore":
        return ""
    value, problem = value_in(call.arguments or "{}", fenced=False)
    if problem or not isinstance(value, dict):
        return f"the arguments of {call.name} are no JSON object: {shown(call.arguments)}"
    if settings.arguments == "schema":
        schema = _parameters(item, call.name)
        if schema is not None and (problem := mismatch(value, schema)):
            return f"the arguments of {call.name} do not fit its schema: {problem}"
    expected = wanted.get("arguments")
    if expected is None:
        return ""
    extra = settings.extra or settings.arguments == "schema"
    lacking = [name for name in expected if name not in value]
    if lacking:
        return f"{call.name} lacks the argument {lacking[0]}"
    wrong = [name for name in expected if not equal(value[name], expected[name], extra=extra, case=settings.case)]
    if wrong:
        return f"{call.name}: {wrong[0]} is {shown(json.dumps(value[wrong[0]]))}"
    more = [name for name in value if name not in expected]
    return f"{call.name} has the argument {more[0]}, which nobody asked for" if more and not extra else ""


def _parameters(item: Item, name: str) -> dict[str, Any] | None:
    for tool in item.tools:
        function = tool.get("function", tool)
        if isinstance(function, dict) and function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, dict) else None
    return None


def _all_matched(problems: list[list[str]]) -> bool:
    """Whether each wanted call (row) can have a call of its own (column): augmenting paths in a bipartite graph."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, problem in enumerate(problems[row]):
            if problem or column in tried:
                continue
            tried.add(column)
            if column not in owner or place(owner[column], tried):
                owner[column] = row
                return True
        return False

    return all(place(row, set()) for row in range(len(problems)))


def _score(item: Item, settings: ToolCalls, answer: Answer) -> Score:
    wanted = wanted_calls(item.reference)
    calls = calls_of(answer, in_text=settings.in_text)
    if len(calls) != len(wanted):
        names = ", ".join(call.name for call in calls[:5]) or "nothing"
        return Score(0.0, f"called {shown(names)}, wanted {len(wanted)} call{'s' * (len(wanted) != 1)}")
    if settings.ordered:
        problem = next(filter(None, (_problem(*pair, item, settings) for pair in zip(calls, wanted, strict=True))), "")
    else:
        problems = [[_problem(call, one, item, settings) for call in calls] for one in wanted]
        problem = "" if _all_matched(problems) else next(text for row in problems for text in row if text)
    return Score(float(not problem), problem or ("called as wanted" if wanted else "called nothing, as wanted"))


def _check(item: Item, settings: ToolCalls) -> Iterable[Flaw]:
    reference = item.reference
    if reference is None:
        yield "reference", 'is missing; give {"name": ..., "arguments": {...}}, a list of them, or [] for no call'
        return
    calls = reference if isinstance(reference, list) else [reference]
    if len(calls) > _MOST_CALLS:
        yield "reference", f"has {len(calls)} calls; at most {_MOST_CALLS} can be compared"
    known = [name for tool in item.tools if (name := _name(tool))]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call.keys() - {"name", "arguments"}:
            yield "reference", 'must be {"name": ..., "arguments": {...}}, a list of such calls, or [] for none'
            return
        if not isinstance(call.get("arguments", {}), dict):
            yield "reference", f'has arguments of "{call["name"]}" that are no object'
        if known and call["name"] not in known:
            yield "reference", f'calls "{call["name"]}", which is none of the item\'s tools: {", ".join(known)}'
    if settings.arguments == "schema":
        for name in known:
            parameters = _parameters(item, name)
            if parameters is not None and (problem := schema_problem(parameters)):
                yield "tools", f'parameters of "{name}": {problem}'


def _name(tool: dict[str, Any]) -> str:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


SCORERS: Final[dict[str, Scorer]] = {
    "tool_call": Scorer(
        "The answer calls the tools of the reference with its arguments, no more and no fewer, in any order.",
        '{"name", "arguments"}, a list of them, or [] for no call; without "arguments" any will do', ToolCalls,
        {
            "arguments": '"exact" (default), "schema" (those of the reference are equal, all fit the tool\'s '
            'parameters; extra evals), or "ignore"',
            "extra": "more arguments than those of the reference are allowed (default false)",
            "ordered": "the order of the calls counts (default false)",
            "case": "upper and lower case of text arguments differ (default true)",
            "in_text": "calls written as JSON in the text count where there are no real ones (default false)",
        },
        _check, _score,
    )
}  # fmt: skip
