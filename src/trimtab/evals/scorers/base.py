"""What a scorer is: its settings, what it wants of a reference, and how it judges one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item

Flaw = tuple[str, str]  # the key at fault ("reference", "options.NAME", "tools") and what is wrong, with the way out


class Score(msgspec.Struct, frozen=True):
    """How good an answer is, 0 to 1, and the reason in a few words."""

    value: float
    why: str


class Scorer(msgspec.Struct, frozen=True):
    """One way to score.

    `options` describes each field of `settings`, the Struct that an item's options are read into. `check` finds what is
    wrong with an item's reference and settings; `score` never raises for any answer, if `check` found nothing.
    """

    description: str
    reference: str
    settings: type[msgspec.Struct]
    options: Mapping[str, str]
    check: Callable[[Item, Any], Iterable[Flaw]]
    score: Callable[[Item, Any, Answer], Score]


def passed(good: bool, why: str) -> Score:
    """All or nothing."""
    return Score(1.0 if good else 0.0, why)


def shown(text: str) -> str:
    """A text for a reason: short, on one line."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return ascii(short) if not short.isprintable() else f"'{short}'"


def texts(reference: Any) -> list[str]:
    """The texts of a reference that is one or a list of them."""
    return [reference] if isinstance(reference, str) else list(reference)


def check_texts(item: Item, _settings: Any) -> Iterable[Flaw]:
    """Flaws of a reference that must be a text or a list of texts, none of them empty."""
    reference = item.reference
    if reference is None:
        yield "reference", f'is missing; scorer "{item.scorer}" needs a text, or a list of texts'
    elif isinstance(reference, list) and not reference:
        yield "reference", "is an empty list; give at least one text"
    elif not all(isinstance(text, str) and text.strip() for text in _listed(reference)):
        yield "reference", "must be a text, or a list of texts, and none may be empty"


def _listed(reference: Any) -> list[Any]:
    return reference if isinstance(reference, list) else [reference]
