"""Regular expressions of the user's own: which are accepted, and how they run."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final

from trimtab.redact.rules import Rule, whole

LABEL: Final = "CUSTOM"
_WINDOW: Final = 256  # characters; small, so that a pattern that goes back and forth does so in a small place
_REACH: Final = 1024  # the longest match that is surely found
_MANY: Final = 10


def rule(pattern: str) -> Rule:
    """The rule of a pattern that `pattern_problem` had no objection to. Raises re.error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Rule(LABEL, re.compile(pattern), whole, window=_WINDOW, reach=_REACH, least=1)


def pattern_problem(pattern: str) -> str:
    """Why a pattern cannot be used, with the way out, or "".

    It runs over whatever clients send, so one that may take exponential time is refused: a repeat of what repeats or
    of alternatives, unless it is possessive and so never tries again.
    """
    try:
        compiled = rule(pattern).pattern
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression of Python's: {error}; correct it (in single quotes, \\d needs no escape)"
    if compiled.match("") is not None:
        return "matches nothing at all, too; ask for at least one character"
    if may_explode(compiled):
        return (
            "repeats what repeats itself (or alternatives), which can take for ever on some texts; make one of the "
            "two repeats possessive, such as (?:[A-Z]++-)+ in place of (?:[A-Z]+-)+"
        )
    return ""


def may_explode(pattern: re.Pattern[str]) -> bool:
    """Whether a pattern repeats what repeats itself, or alternatives: it may take exponential time."""
    return any(
        name == "BRANCH" or _repeats_much(name, value)
        for outer, repeated in _parts(_parsed(pattern))
        if _repeats_much(outer, repeated)
        for name, value in _parts(repeated[2])
    )


def repeats(pattern: re.Pattern[str]) -> int:
    """How many parts of a pattern repeat without a small limit: the time that it takes is a power of that."""
    return sum(_repeats_much(name, value) for name, value in _parts(_parsed(pattern)))


def _parsed(pattern: re.Pattern[str]) -> Any:
    parser: Any = importlib.import_module("re._parser")  # not public, but re has no other way to look at a pattern
    return parser.parse(pattern.pattern, pattern.flags)


def _repeats_much(name: str, value: Any) -> bool:
    return name in ("MAX_REPEAT", "MIN_REPEAT") and int(value[1]) > _MANY


def _parts(parsed: Any) -> Iterator[tuple[str, Any]]:
    """Every part of a parsed pattern that can be tried again, the whole before what is in it."""
    for code, value in parsed:
        name = str(code)
        yield name, value
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            yield from _parts(value[2])
        elif name == "SUBPATTERN":
            yield from _parts(value[3])
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from _parts(value[1])
        elif name == "BRANCH":
            for branch in value[1]:
                yield from _parts(branch)
