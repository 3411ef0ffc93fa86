"""A suite whose answers are some 25 to 45 tokens long, for what works only on such: n-grams that all requests share.

Lists to be copied, punctuated, put into the plural, and sentences to be written as records, each scored by
the share of it that is right: a model of 135 million parameters seldom gets all of a long answer.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import make_suites
from suites.small_model import Row, distinct, row
from suites.words import CITIES, NAMES, REGULAR_NOUNS, THINGS, plural

ITEMS: Final = 900
Pair = tuple[str, list[str]]  # what is asked, and the parts of the right answer
HEAD: Final = """[suite]
name = "long-answers"
description = "Answers of some 25 to 45 tokens that a chat model of 135 million parameters gets right in part."
license = "Apache-2.0"

[defaults.request]
temperature = 0
max_tokens = 48
"""


def _grouped(words: list[str], size: int, between: str) -> list[str]:
    return [between.join(words[at : at + size]) for at in range(0, len(words), size)]


def _copy(dice: random.Random, _: int) -> Pair:
    words = dice.sample(THINGS, 16)
    return " ".join(words), _grouped(words, 4, " ")


def _commas(dice: random.Random, _: int) -> Pair:
    words = dice.sample(THINGS, 12)
    return " ".join(words), _grouped(words, 3, ", ")


def _plurals(dice: random.Random, _: int) -> Pair:
    nouns = dice.sample(REGULAR_NOUNS, 8)
    return ", ".join(nouns), list(map(plural, nouns))


def _records(dice: random.Random, _: int) -> Pair:
    people = [(dice.choice(NAMES), dice.randrange(13, 98), dice.choice(CITIES)) for _ in range(3)]
    said = " ".join(f"{name} is {age} and lives in {city}." for name, age, city in people)
    return said, [f"{name};{age};{city}" for name, age, city in people]


# By stratum: how an item is made, what the model is told, and what it is shown.
_STRATA: Final[dict[str, tuple[Callable[[random.Random, int], Pair], str, list[list[str]]]]] = {
    "copy": (_copy, "Repeat the words.", [["blue stone cat", "blue stone cat"]]),
    "commas": (
        _commas,
        "Put commas between the words.",
        [["blue stone cat", "blue, stone, cat"], ["red lamp old dog", "red, lamp, old, dog"]],
    ),
    "plurals": (
        _plurals,
        "Write the plurals.",
        [["cat, box, stone", "cats, boxes, stones"], ["dog, lamp, hat, tree", "dogs, lamps, hats, trees"]],
    ),
    "records": (
        _records,
        "Write name;age;city.",
        [["Ann is 30 and lives in Rome. Bob is 25 and lives in Lima.", "Ann;30;Rome\nBob;25;Lima"]],
    ),
}


def write(folder: Path) -> None:
    """The suite, always the same."""
    make_suites.write(folder, HEAD + "".join(map(_stratum, _STRATA)), ((name, _rows(name)) for name in _STRATA))


def _stratum(name: str) -> str:
    _, system, examples = _STRATA[name]
    facts = {"name": name, "file": f"{name}.jsonl", "scorer": "contains", "system": system, "examples": examples}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items())
    return f"\n[[strata]]\n{lines}options = {{ graded = true, case = true }}\n"


def _rows(name: str) -> list[Row]:
    pairs = distinct(_STRATA[name][0], ITEMS, random.Random(f"long-answers/{name}"), ())
    return [{"id": f"{name}-{number:03}", **row(*pair)} for number, pair in enumerate(pairs, 1)]
