"""Scorer by regular expression; what a pattern may cost is bounded."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from trimtab.evals import sandbox
from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, passed, shown
from trimtab.redact.custom import may_explode, repeats

LONGEST_CHARS: Final = 20_000  # of an answer; the rest is not searched
_SHORT_CHARS: Final = 2_000
_LIMITS: Final = sandbox.Limits(cpu_s=2, wall_s=10.0, memory_mb=512)
_SEARCH: Final = """
import json, re
pattern, flags, whole, text = json.loads(DATA)
compiled = re.compile(pattern, flags)
found = (compiled.fullmatch if whole else compiled.search)(text) is not None
print("found" if found else "absent")
"""


class Regex(Struct, frozen=True):
    """Settings of "regex"."""

    whole: bool = False
    absent: bool = False
    ignore_case: bool = False
    multiline: bool = False
    dot_all: bool = False


@lru_cache(1024)
def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(pattern, flags)


@lru_cache(1024)
def _is_cheap(pattern: re.Pattern[str]) -> bool:
    """Whether a search takes at most the square of a text's length: one part repeats, and nothing in it does."""
    return repeats(pattern) <= 1 and not may_explode(pattern)


def _flags(settings: Regex) -> int:
    wanted = ((settings.ignore_case, re.IGNORECASE), (settings.multiline, re.MULTILINE), (settings.dot_all, re.DOTALL))
    return sum(int(flag) for on, flag in wanted if on)


def found(pattern: str, text: str, settings: Regex) -> bool | None:
    """Whether the pattern is in the text; None if it took longer than `_LIMITS` allow.

    A pattern that may try for long runs in a process of its own, which can be stopped: a thread that searches cannot.
    """
    compiled = _compiled(pattern, _flags(settings))
    text = text[:LONGEST_CHARS]
    if len(text) <= _SHORT_CHARS and _is_cheap(compiled):
        return (compiled.fullmatch if settings.whole else compiled.search)(text) is not None
    data = json.dumps([pattern, _flags(settings), settings.whole, text])
    ran = sandbox.run(_SEARCH.replace("DATA", repr(data)), _LIMITS)
    return "found" in ran.output if ran.finished else None


def _check(item: Item, settings: Regex) -> Iterable[Flaw]:
    pattern = item.reference
    if pattern is None:
        yield "reference", 'is missing; scorer "regex" needs a pattern'
        return
    if not isinstance(pattern, str) or not pattern:
        yield "reference", "must be a pattern: a text that is not empty"
        return
    try:
        compiled = _compiled(pattern, _flags(settings))
    except (re.error, OverflowError, RecursionError) as error:
        yield "reference", f"is no regular expression of Python's: {error}; in JSON each backslash is written twice"
        return
    if not settings.whole and compiled.match("") is not None:
        yield (
            "reference",
            "is found in every answer, since it matches nothing at all too; ask for a character, or set whole",
        )


def _score(item: Item, settings: Regex, answer: Answer) -> Score:
    there = found(item.reference, answer.text, settings)
    if there is None:
        return Score(0.0, f"the pattern took over {_LIMITS.cpu_s} s on {shown(answer.text)}")
    return passed(there != settings.absent, "the pattern matches" if there else "the pattern does not match")


SCORERS: Final[dict[str, Scorer]] = {
    "regex": Scorer(
        "The regular expression (Python's) matches somewhere in the answer, within a limit of time.",
        "the pattern", Regex,
        {
            "whole": "the answer as a whole must match (default false: somewhere in it)",
            "absent": "the pattern must not match (default false)",
            "ignore_case": "upper and lower case are the same (default false)",
            "multiline": "^ and $ match at each line (default false)",
            "dot_all": "a dot matches line breaks too (default false)",
        },
        _check, _score,
    )
}  # fmt: skip
