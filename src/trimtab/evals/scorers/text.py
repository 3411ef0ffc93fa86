"""Scorers of wording: exact, normalised, contains."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, check_texts, passed, shown, texts

Part = Literal["all", "first_line", "last_line", "first_word"]
Aspect = Literal["case", "punctuation", "articles"]

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_WORD: Final = re.compile(r"\w+(?:['’.-]\w+)*")
_PART_HELP: Final = '"all" (default), "first_line", "last_line" or "first_word" of the answer'


class Exact(Struct, frozen=True):
    """Settings of "exact"."""

    part: Part = "all"
    strip: bool = True


class Normalised(Struct, frozen=True):
    """Settings of "normalised"."""

    part: Part = "all"
    keep: tuple[Aspect, ...] = ()


class Contains(Struct, frozen=True):
    """Settings of "contains"."""

    mode: Literal["all", "any", "none"] = "all"
    forbidden: tuple[str, ...] = ()
    case: bool = False
    words: bool = False
    graded: bool = False


def part_of(text: str, part: Part) -> str:
    """The part of an answer that counts."""
    if part == "all":
        return text
    if part == "first_word":
        word = _WORD.search(text)
        return word[0] if word else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[0] if part == "first_line" else lines[-1]) if lines else ""


def normalised(text: str, keep: tuple[Aspect, ...] = ()) -> str:
    """The text in NFKC, without what does not count: case, punctuation, articles, runs of whitespace.

    Marks inside numbers stay (1.5, -3, 12:30), so that no number becomes another.
    """
    text = unicodedata.normalize("NFKC", text)
    if "case" not in keep:
        text = text.casefold()
    if "punctuation" not in keep:
        text = "".join(" " if _is_loose_mark(text, at) else char for at, char in enumerate(text))
    if "articles" not in keep:
        text = _ARTICLES.sub(" ", text) if "case" not in keep else re.sub(_ARTICLES.pattern, " ", text, flags=re.I)
    return " ".join(text.split())


def _is_loose_mark(text: str, at: int) -> bool:
    char = text[at]
    if unicodedata.category(char)[0] not in "PS":
        return False
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if after.isdigit() and (char in "-−+" or (char in ".,:/" and before.isdigit())):
        return char in "-−+" and before.isalnum()
    return not (char == "%" and before.isdigit())


def _exact(item: Item, settings: Exact, answer: Answer) -> Score:
    said = part_of(answer.text, settings.part)
    wanted = texts(item.reference)
    if settings.strip:
        said, wanted = said.strip(), [text.strip() for text in wanted]
    return passed(said in wanted, f"said {shown(said)}, wanted {shown(wanted[0])}")


def _normalised(item: Item, settings: Normalised, answer: Answer) -> Score:
    said = normalised(part_of(answer.text, settings.part), settings.keep)
    wanted = [normalised(text, settings.keep) for text in texts(item.reference)]
    return passed(said in wanted, f"said {shown(said)}, wanted {shown(wanted[0])}")


def _check_normalised(item: Item, settings: Normalised) -> Iterable[Flaw]:
    flaws = list(check_texts(item, settings))
    yield from flaws
    if not flaws and not all(normalised(text, settings.keep) for text in texts(item.reference)):
        yield "reference", "has nothing left once it is normalised; use the scorer exact, or keep an aspect"


def _contains(item: Item, settings: Contains, answer: Answer) -> Score:
    wanted = texts(item.reference) if item.reference is not None else []
    there = [text for text in wanted if _holds(answer.text, text, settings)]
    bad = [text for text in settings.forbidden if _holds(answer.text, text, settings)]
    if settings.mode == "none":
        bad += there
    if bad:
        return Score(0.0, f"has {shown(bad[0])}, which it must not")
    if settings.mode == "none" or not wanted:
        return Score(1.0, "has none of what it must not")
    if settings.mode == "any":
        return passed(bool(there), f"has {shown(there[0])}" if there else "has none of what was wanted")
    if len(there) == len(wanted):
        return Score(1.0, "has all that was wanted")
    lacking = next(text for text in wanted if text not in there)
    return Score(len(there) / len(wanted) if settings.graded else 0.0, f"lacks {shown(lacking)}")


def _holds(text: str, wanted: str, settings: Contains) -> bool:
    if not settings.case:
        text, wanted = text.casefold(), wanted.casefold()
    if not settings.words:
        return wanted in text
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text) is not None


def _check_contains(item: Item, settings: Contains) -> Iterable[Flaw]:
    if item.reference is not None or not settings.forbidden:
        yield from check_texts(item, settings)
    if not all(text.strip() for text in settings.forbidden):
        yield "options.forbidden", "has an empty text, which every answer contains; take it out"
    if settings.graded and settings.mode != "all":
        yield "options.graded", 'counts how many of all are there; take it out, or set mode to "all"'


_TEXTS: Final = "a text, or a list of texts of which any will do"
SCORERS: Final[dict[str, Scorer]] = {
    "exact": Scorer(
        "The answer is the reference, character by character.", _TEXTS, Exact,
        {"part": _PART_HELP, "strip": "ignore whitespace at both ends (default true)"}, check_texts, _exact,
    ),
    "normalised": Scorer(
        "The answer is the reference but for case, punctuation, articles and whitespace.", _TEXTS, Normalised,
        {"part": _PART_HELP, "keep": 'what counts all the same: any of "case", "punctuation", "articles"'},
        _check_normalised, _normalised,
    ),
    "contains": Scorer(
        "The answer has the texts of the reference in it.", "a text or a list of texts", Contains,
        {
            "mode": '"all" (default), "any" or "none" of them',
            "forbidden": "texts that must not be there either",
            "case": "upper and lower case differ (default false)",
            "words": "whole words only (default false)",
            "graded": "the score is the share that is there (default false: all or nothing)",
        },
        _check_contains, _contains,
    ),
}  # fmt: skip
