"""What stands in suite.toml and in a line of JSONL, and what may not."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from trimtab.config.problems import Path as Key
from trimtab.config.problems import Problems, choices
from trimtab.evals.scorers import SCORERS

_Weight = Annotated[float, Meta(gt=0, description="a number above 0")]
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
# Fields that the item, the runner or the configuration decide.
_NOT_REQUEST: Final = ("messages", "model", "tools", "stream", "n", "metadata")


class Head(Struct, frozen=True):
    """The table [suite]."""

    name: str
    description: str = ""
    license: str = ""


class Defaults(Struct, frozen=True):
    """The table [defaults]: what every request has unless a stratum or an item says otherwise."""

    system: str = ""
    request: dict[str, Any] = {}


class Stratum(Struct, frozen=True):
    """One table of [[strata]].

    `examples` are pairs of question and answer that stand before each prompt; `source` and `license` say where items
    come from.
    """

    name: str
    file: str
    scorer: str = ""
    options: dict[str, Any] = {}
    weight: _Weight = 1.0
    request: dict[str, Any] = {}
    system: str | None = None
    examples: list[tuple[str, str]] = []
    description: str = ""
    source: str = ""
    license: str = ""


class Row(Struct, frozen=True):
    """One line of JSONL."""

    id: str = ""
    prompt: str = ""
    messages: list[dict[str, Any]] = []
    reference: Any = None
    scorer: str | None = None
    options: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    weight: _Weight | None = None
    request: dict[str, Any] = {}
    system: str | None = None
    examples: list[tuple[str, str]] | None = None


def check_stratum(stratum: Stratum, names: set[str], found: Problems) -> None:
    """Report what is wrong with a stratum's own fields; `names` are those of the strata before it."""
    if not stratum.name.strip():
        found.add(("strata", "name"), "is empty")
    elif stratum.name in names:
        found.add(("strata", "name"), f'"{stratum.name}" is there already; each stratum has a name of its own')
    if stratum.scorer and stratum.scorer not in SCORERS:
        found.add(("strata", "scorer"), f'"{stratum.scorer}" is unknown; {choices(stratum.scorer, SCORERS)}')
    check_request(stratum.request, ("strata", "request"), found)


def check_request(request: dict[str, Any], path: Key, found: Problems) -> None:
    """Report request fields that others decide."""
    for key in request:
        if key in _NOT_REQUEST:
            found.add((*path, key), "is not for a suite to set; take it out")


def check_messages(messages: list[dict[str, Any]], found: Problems) -> None:
    """Report messages without a known role or without content."""
    if not messages:
        found.add(("messages",), "is empty; give at least one message")
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            found.add(("messages",), f"message {number}: role must be one of {', '.join(_ROLES)}")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            found.add(("messages",), f"message {number}: content must be a text, or a list of parts")


def check_tools(tools: list[dict[str, Any]], found: Problems) -> None:
    """Report tools that are no functions in OpenAI's dialect."""
    for number, tool in enumerate(tools):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            found.add(
                ("tools",),
                f'tool {number} must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}',
            )
