"""The suite small-model: what a chat model of 135 million parameters can do, so that damage to its weights shows.

Each stratum shows the model two examples, since so small a model follows examples and hardly any instructions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from suites import further_words
from suites.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    DOUBLING_VERBS,
    NAMES,
    ODD_NOUNS,
    ODD_VERBS,
    REGULAR_NOUNS,
    REGULAR_VERBS,
    THINGS,
    Y_NOUNS,
    Y_VERBS,
    past,
    plural,
)

Row = dict[str, Any]
_Answer = TypeVar("_Answer")
ITEMS = 300
NUMBERS = [number for number in range(13, 98) if number % 10]

HEAD = """[suite]
name = "small-model"
description = "Six things that a chat model of 135 million parameters can do; made to see damage by quantization."
license = "Apache-2.0"

[defaults.request]
temperature = 0
max_tokens = 12
"""
STRATA = """
[[strata]]
name = "copy"
file = "copy.jsonl"
scorer = "exact"
description = "Repeats a list of words and numbers, character by character."
system = "Repeat the words."
examples = [["blue stone cat", "blue stone cat"]]
request = { max_tokens = 24 }

[[strata]]
name = "extract"
file = "extract.jsonl"
scorer = "normalised"
options = { keep = ["articles"] }
description = "Finds the number, the person, the colour or the city in a sentence."

[[strata]]
name = "forms"
file = "forms.jsonl"
scorer = "normalised"
description = "Writes the plural of a noun or the past tense of a verb."

[[strata]]
name = "position"
file = "position.jsonl"
scorer = "normalised"
description = "Repeats the first or the last word of a list."

[[strata]]
name = "record"
file = "record.jsonl"
scorer = "exact"
description = "Writes what a sentence says as a record."
system = "Write name;age;city."
examples = [["Ann is 30 and lives in Rome.", "Ann;30;Rome"]]
request = { max_tokens = 16 }

[[strata]]
name = "swap"
file = "swap.jsonl"
scorer = "normalised"
description = "Swaps two words."
system = "Swap the two words."
examples = [["red lamp", "lamp red"], ["big cat", "cat big"]]
"""


def strata() -> Iterator[tuple[str, list[Row]]]:
    """The name and rows of each file."""
    for make in MAKERS:
        yield make.__name__, _numbered(make, "small-model", ITEMS, frozenset())


def new_sample(seed: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, list[Row]]]:
    """The name and rows of each file of another sample: of the same kinds, and no prompt is in the shipped one.

    `sizes` are items by stratum, multiples of 4; `forms` has 600 at most, for want of words.
    """
    shipped = {name: frozenset(row["prompt"] for row in rows) for name, rows in strata()}
    for make in MAKERS:
        name = make.__name__
        yield name, _numbered(make, seed, sizes[name], shipped[name])


def _numbered(make: Callable[..., list[Row]], seed: str, size: int, taken: Collection[str]) -> list[Row]:
    rows = make(random.Random(f"{seed}/{make.__name__}"), size, taken)
    return [{"id": f"{make.__name__}-{number:03}", **row} for number, row in enumerate(rows, 1)]


def copy(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """Lists of four to eight words, some of them numbers."""

    def make(dice: random.Random, number: int) -> tuple[str, str]:
        words = dice.sample(THINGS, 4 + number % 5)
        for at in dice.sample(range(len(words)), number % 3):
            words[at] = str(dice.choice(NUMBERS))
        return " ".join(words), " ".join(words)

    return [row(*one) for one in distinct(make, size, dice, taken)]


def extract(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """A sentence each, of four kinds."""
    kinds = (
        ("Name the number.", [["Ann has 3 cats.", "3"], ["12 boys ran.", "12"]], _number),
        ("Who did it?", [["Ann ate the cake.", "Ann"], ["It was Tom.", "Tom"]], _person),
        ("Name the colour.", [["Ann has a red car.", "red"], ["It is blue.", "blue"]], _colour),
        ("Name the city.", [["Ann lives in Rome.", "Rome"], ["Go to Lima.", "Lima"]], _city),
    )
    return [
        {**row(*one), "system": system, "examples": examples}
        for system, examples, make in kinds
        for one in distinct(make, size // len(kinds), dice, taken)
    ]


def _number(dice: random.Random, _: int) -> tuple[str, str]:
    number, name, thing = dice.choice(NUMBERS), dice.choice(NAMES), plural(dice.choice(REGULAR_NOUNS))
    form = dice.choice(
        (
            "{name} bought {number} {thing}.",
            "The box holds {number} {thing}.",
            "We waited {number} minutes for {name}.",
            "There are {number} {thing} in the shop.",
            "{name} is {number} years old.",
            "The bus to {name} has {number} seats.",
        )
    )
    return form.format(number=number, name=name, thing=thing), str(number)


def _person(dice: random.Random, _: int) -> tuple[str, str]:
    name, thing = dice.choice(NAMES), dice.choice(THINGS)
    form = dice.choice(
        (
            "{name} broke the {thing}.",
            "The {thing} was found by {name}.",
            "Yesterday {name} sold the {thing}.",
            "A {thing} was stolen by {name}.",
            "Then {name} cleaned the {thing}.",
            "It was {name} who lost the {thing}.",
        )
    )
    return form.format(name=name, thing=thing), name


def _colour(dice: random.Random, _: int) -> tuple[str, str]:
    colour, name, thing = dice.choice(COLOURS), dice.choice(NAMES), dice.choice(THINGS)
    form = dice.choice(
        (
            "{name} has a {colour} {thing}.",
            "The {thing} is {colour}.",
            "{name} painted the {thing} {colour}.",
            "A {colour} {thing} stood there.",
            "The {thing} of {name} was {colour} once.",
        )
    )
    return form.format(name=name, thing=thing, colour=colour), colour


def _city(dice: random.Random, _: int) -> tuple[str, str]:
    city, name, thing = dice.choice(CITIES), dice.choice(NAMES), dice.choice(THINGS)
    form = dice.choice(
        (
            "{name} moved to {city}.",
            "{name} works in {city} now.",
            "The train to {city} was late.",
            "{name} bought a {thing} in {city}.",
            "They met in {city} last year.",
        )
    )
    return form.format(name=name, thing=thing, city=city), city


def forms(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """Nouns and verbs, half of them with a form that is not just an ending."""
    nouns, verbs = _further_forms(dice, size // 2, taken) if taken else _shipped_forms(dice, size // 2)
    return [
        {**row(*noun), "system": "Write the plural.", "examples": [["cat", "cats"], ["box", "boxes"]]} for noun in nouns
    ] + [
        {**row(*verb), "system": "Write the past tense.", "examples": [["walk", "walked"], ["go", "went"]]}
        for verb in verbs
    ]


def _shipped_forms(dice: random.Random, size: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """So many nouns and so many verbs; all there are that do not just take an ending."""
    nouns = [*ODD_NOUNS, *Y_NOUNS]
    nouns += dice.sample([noun for noun in REGULAR_NOUNS if noun not in ("box", "cat")], size - len(nouns))
    verbs = [*(verb for verb in ODD_VERBS if verb != "go"), *DOUBLING_VERBS, *Y_VERBS]
    verbs += dice.sample([verb for verb in REGULAR_VERBS if verb != "walk"], size - len(verbs))
    return [(noun, plural(noun)) for noun in nouns], [(verb, past(verb)) for verb in verbs]


def _further_forms(
    dice: random.Random, size: int, taken: Collection[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The same of other words. Kinds have about the shares that they have in the shipped suite; odd verbs are rarer."""
    new = further_words

    def some(odd: list[tuple[Collection[str], float]], regular: Collection[str]) -> list[str]:
        found: list[str] = []
        for words, share in odd:
            left = [word for word in words if word not in taken]
            found += dice.sample(left, min(len(left), round(share * size)))
        return found + dice.sample([word for word in regular if word not in taken], size - len(found))

    nouns = some([(new.ODD_NOUNS, 0.16), (new.Y_NOUNS, 0.21)], new.REGULAR_NOUNS)
    verbs = some([(new.ODD_VERBS, 0.36), (new.DOUBLING_VERBS, 0.17), (new.Y_VERBS, 0.09)], new.REGULAR_VERBS)
    return (
        [(noun, plural(noun, new.ODD_NOUNS)) for noun in nouns],
        [(verb, past(verb, new.ODD_VERBS, new.DOUBLING_VERBS)) for verb in verbs],
    )


def position(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """Lists of three to six words."""
    rows = []
    for which, at in (("first", 0), ("last", -1)):
        shown = [[" ".join(given), given[at]] for given in (["table", "horse", "spoon"], ["cat", "shirt", "chair"])]

        def make(dice: random.Random, number: int, at: int = at) -> tuple[str, str]:
            words = dice.sample(THINGS, 3 + number % 4)
            return " ".join(words), words[at]

        system = f"Repeat the {which} word."
        rows += [{**row(*one), "system": system, "examples": shown} for one in distinct(make, size // 2, dice, taken)]
    return rows


def record(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """A person's name, age and city, said in several ways."""

    def make(dice: random.Random, _: int) -> tuple[str, str]:
        name, city, age = dice.choice(NAMES), dice.choice(CITIES), dice.choice(NUMBERS)
        form = dice.choice(
            (
                "{name} is {age} and lives in {city}.",
                "{name}, {age}, comes from {city}.",
                "In {city} lives {name}, aged {age}.",
                "At {age}, {name} moved to {city}.",
            )
        )
        return form.format(name=name, age=age, city=city), f"{name};{age};{city}"

    return [row(*one) for one in distinct(make, size, dice, taken)]


def swap(dice: random.Random, size: int, taken: Collection[str]) -> list[Row]:
    """An adjective and a noun."""

    def make(dice: random.Random, _: int) -> tuple[str, str]:
        adjective, noun = dice.choice(ADJECTIVES), dice.choice(THINGS)
        return f"{adjective} {noun}", f"{noun} {adjective}"

    return [row(*one) for one in distinct(make, size, dice, taken)]


MAKERS = (copy, extract, forms, position, record, swap)


def row(prompt: str, reference: Any) -> Row:
    """A prompt with its right answer."""
    return {"prompt": prompt, "reference": reference}


def distinct(
    make: Callable[[random.Random, int], tuple[str, _Answer]], count: int, dice: random.Random, taken: Collection[str]
) -> list[tuple[str, _Answer]]:
    """As many pairs with prompts that differ, none of them taken; `make` is told how many there are already."""
    found: dict[str, _Answer] = {}
    while len(found) < count:
        prompt, reference = make(dice, len(found))
        if prompt not in taken:
            found.setdefault(prompt, reference)
    return list(found.items())
