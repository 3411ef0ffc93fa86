"""The stratum long_context: one fact among many of its kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from suites.rows import Row, each, row
from suites.words import CITIES, COLOURS, NAMES, THINGS, plural

_STARTS = ("Mar", "Hol", "Wen", "Bras", "Kel", "Tarn")
PLACES = [f"{start}{end}" for start in _STARTS for end in ("low", "by", "ford", "stead", "wick")]
Kind = Callable[[random.Random, str], tuple[str, str, str]]  # a fact about a place, a question for it, the answer
FILLERS = (
    "The {colour} {thing} near the office was repaired in spring.",
    "{name} asked whether the road to {place} would be open in winter.",
    "A note from {city} said that the meeting had been moved by a week.",
    "Nobody could find the {thing} that {name} had left behind.",
    "Rain kept the workers at {place} indoors for most of the morning.",
    "{name} suggested that the {thing} should be painted {colour}.",
)


def long_context(dice: random.Random) -> list[Row]:
    """Four kinds of facts; in every third item the fact is corrected later on."""
    kinds: tuple[Kind, ...] = (_stock, _keeper, _code, _visit)
    return each(tuple(partial(_item, kind=kind) for kind in kinds), 16, dice)


def _stock(dice: random.Random, place: str) -> tuple[str, str, str]:
    value = str(dice.randint(112, 989))
    thing = plural(dice.choice(("barrel", "crate", "sack", "carton")))
    return f"The depot at {place} holds {value} {thing}", f"How many containers does the depot at {place} hold?", value


def _keeper(dice: random.Random, place: str) -> tuple[str, str, str]:
    value = dice.choice(NAMES)
    return (
        f"The keys of the store at {place} are kept by {value}",
        f"Who keeps the keys of the store at {place}?",
        value,
    )


def _code(dice: random.Random, place: str) -> tuple[str, str, str]:
    value = f"{dice.choice('BDFGHKLMPRST')}{dice.choice('BDFGHKLMPRST')}{dice.randint(100, 999)}"
    return f"The gate at {place} opens with the code {value}", f"Which code opens the gate at {place}?", value


def _visit(dice: random.Random, place: str) -> tuple[str, str, str]:
    value = dice.choice(CITIES)
    return f"The inspector of {place} comes from {value}", f"From which city does the inspector of {place} come?", value


def _item(dice: random.Random, kind: Kind) -> Row:
    places = dice.sample(PLACES, dice.randint(18, 30))
    facts = [kind(dice, place) for place in places]
    at = dice.randrange(len(places))
    _, question, reference = facts[at]
    lines = [f"{fact}." for fact, _, _ in facts]
    if dice.random() < 1 / 3:
        fact, _, reference = kind(dice, places[at])
        correction = f"Correction: {fact[0].lower()}{fact[1:]}, not what was said before."
        lines.insert(dice.randint(at + 1, len(lines)), correction)
    text = " ".join(f"{line} {' '.join(_filler(dice) for _ in range(dice.randint(1, 2)))}" for line in lines)
    return row(f"{text}\n\n{question}", reference)


def _filler(dice: random.Random) -> str:
    return dice.choice(FILLERS).format(
        colour=dice.choice(COLOURS),
        thing=dice.choice(THINGS),
        name=dice.choice(NAMES),
        city=dice.choice(CITIES),
        place=dice.choice(("the harbour", "the mill", "the old bridge", "the north field")),
    )
