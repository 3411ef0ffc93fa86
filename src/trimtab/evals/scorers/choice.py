"""Scorer of multiple choice: which of several labels an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, passed, shown

LETTERS: Final = ("A", "B", "C", "D")
_LONGEST_CHARS: Final = 20_000
_OPENING: Final = r"[\s(\[*_\"'`]*"
_SAYS: Final = r"(?:answer|option|choice|correct(?:\s+(?:answer|option|choice|one))?)(?:\s+is|\s*[:=])?"
_NO_WORD: Final = r"(?![AaIi]\s+[a-z])"  # "A" and "I" are words too: followed by another word they are no labels


class OneOf(Struct, frozen=True):
    """Settings of "one_of": labels, or labels with what they stand for."""

    choices: tuple[str, ...] | dict[str, str] = LETTERS


def chosen(text: str, choices: dict[str, str]) -> str | None:
    """The label that an answer chooses, or None if it chooses none or cannot be told.

    `choices` are labels with what they stand for ("" if that is not known). In order: the answer is a label; it begins
    with one that a mark sets off ("B)", "(B)", "B."); it says so ("the answer is B", the last time counts); it names
    what exactly one stands for. Of labels that are words the first one in the answer counts; of letters the only one
    that stands alone.
    """
    text = text[:_LONGEST_CHARS]
    if all(len(label) == 1 for label in choices):
        return _letter(text, choices)
    return _first(text, {label: label for label in choices}) or _meant(text, choices)


def _letter(text: str, choices: dict[str, str]) -> str | None:
    by_upper = {label.upper(): label for label in choices}
    label = "[" + "".join(re.escape(one) for one in by_upper) + "]"
    alone = re.fullmatch(rf"{_OPENING}({label})[\s)\].:*_\"'`,!]*", text, re.IGNORECASE)
    begins = alone or re.match(rf"{_OPENING}({label})(?:[)\].:,*\"'`]|\s*[-–—]\s|\s*\n)", text, re.IGNORECASE)
    if begins:
        return by_upper[begins[1].upper()]
    says = re.findall(
        rf"\b{_SAYS}{_OPENING}({label})(?![\w'’])(?!\s+[a-z])", text.replace("\\boxed{", "answer: "), re.I
    )
    if says:
        return by_upper[says[-1].upper()]
    meant = _meant(text, choices)
    if meant:
        return meant
    lone = {one for one in re.findall(rf"(?<![\w'’]){_NO_WORD}({label})(?![\w'’])", text) if one in by_upper}
    return by_upper[lone.pop()] if len(lone) == 1 else None


def _first(text: str, words: dict[str, str]) -> str | None:
    """The label whose word comes first; of two at one place the longer ("very good" before "very")."""
    places = [
        (match.start(), -len(word), label)
        for label, word in words.items()
        if (match := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))
    ]
    return min(places)[2] if places else None


def _meant(text: str, choices: dict[str, str]) -> str | None:
    """The only label whose text is in the answer and not just as a piece of another's."""
    named = {label: meaning for label, meaning in choices.items() if meaning}
    there = [label for label, meaning in named.items() if _first(text, {label: meaning})]
    whole = [
        one for one in there
        if not any(one != other and named[one].casefold() in named[other].casefold() for other in there)
    ]  # fmt: skip
    return whole[0] if len(whole) == 1 else None


def _table(choices: Any) -> dict[str, str]:
    return choices if isinstance(choices, dict) else dict.fromkeys(choices, "")


def _check(item: Item, settings: OneOf) -> Iterable[Flaw]:
    labels = list(settings.choices)
    if len(labels) < 2 or not all(label.strip() for label in labels):
        yield "options.choices", "must be at least two labels, none of them empty"
    elif len({label.casefold() for label in labels}) < len(labels):
        yield "options.choices", "has a label twice; labels differ by more than case"
    if item.reference is None:
        yield "reference", f"is missing; it must be one of {', '.join(labels)}"
    elif item.reference not in labels:
        yield "reference", f"must be one of {', '.join(labels)}"


def _score(item: Item, settings: OneOf, answer: Answer) -> Score:
    label = chosen(answer.text, _table(settings.choices))
    if label is None:
        return Score(0.0, f"chooses none: {shown(answer.text)}")
    return passed(label == item.reference, f"chose {label}, wanted {item.reference}")


SCORERS: Final[dict[str, Scorer]] = {
    "one_of": Scorer(
        "The answer chooses the right label: a letter however it is set off, or the first of several words.",
        "one of the labels", OneOf,
        {"choices": 'labels such as ["yes", "no"], or labels with what they stand for (default A, B, C, D)'},
        _check, _score,
    )
}  # fmt: skip
