"""Strata about working something out: arithmetic, and several steps."""

from __future__ import annotations

import random
from itertools import pairwise

from suites.rows import Row, each, row
from suites.words import COLOURS, NAMES, REGULAR_NOUNS, WOMEN, plural

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def arithmetic(dice: random.Random) -> list[Row]:
    """Ten kinds of sums."""
    return each((_add, _subtract, _multiply, _divide, _percent, _fraction, _change, _speed, _share, _brackets), 9, dice)


def _things(dice: random.Random) -> str:
    return plural(dice.choice(REGULAR_NOUNS))


def _add(dice: random.Random) -> Row:
    one, other = dice.randint(120, 4999), dice.randint(120, 4999)
    return row(f"{one} + {other} = ?", one + other)


def _subtract(dice: random.Random) -> Row:
    one, other = dice.randint(2000, 9999), dice.randint(120, 6999)
    return row(f"What is {one} minus {other}?", one - other)


def _multiply(dice: random.Random) -> Row:
    one, other = dice.randint(6, 49), dice.randint(6, 29)
    return row(f"{one} times {other} is how much?", one * other)


def _divide(dice: random.Random) -> Row:
    one, other = dice.randint(6, 99), dice.randint(3, 19)
    return row(f"Divide {one * other} by {other}.", one)


def _percent(dice: random.Random) -> Row:
    share, whole = dice.choice((5, 10, 15, 20, 25, 30, 40, 60, 75)), 20 * dice.randint(3, 60)
    return row(f"How much is {share}% of {whole}?", share * whole / 100)


def _fraction(dice: random.Random) -> Row:
    below = dice.choice((3, 4, 5, 6, 8, 10))
    above, whole = dice.randint(1, below - 1), below * dice.randint(4, 40)
    return row(f"How much is {above}/{below} of {whole}?", above * whole // below)


def _change(dice: random.Random) -> Row:
    count, cents = dice.randint(2, 6), 5 * dice.randint(11, 150)
    paid = (count * cents // 1000 + 1) * 10
    name, things = dice.choice(NAMES), _things(dice)
    return row(
        f"{name} buys {count} {things} at ${cents / 100:.2f} each and pays with ${paid}. "
        f"How many dollars does {name} get back?",
        round(paid - count * cents / 100, 2),
    )


def _speed(dice: random.Random) -> Row:
    speed, hours = 5 * dice.randint(8, 26), dice.choice((0.5, 1.5, 2, 2.5, 3, 4))
    return row(f"A train goes {speed} km an hour for {hours:g} hours. How many km is that?", speed * hours)


def _share(dice: random.Random) -> Row:
    each_gets, people = dice.randint(4, 30), dice.randint(3, 12)
    left = dice.randint(1, people - 1)
    things = _things(dice)
    return row(f"{people} people share {each_gets * people + left} {things} evenly. How many are left over?", left)


def _brackets(dice: random.Random) -> Row:
    one, two, three, four = (dice.randint(2, 19) for _ in range(4))
    return row(f"({one} + {two}) * {three} - {four} = ?", (one + two) * three - four)


def multi_step_reasoning(dice: random.Random) -> list[Row]:
    """Ten kinds of small problems."""
    kinds = (_tallest, _day, _family, _route, _boxes, _ages, _all_are, _swap_cups, _queue, _rates)
    return each(kinds, 8, dice)


def _tallest(dice: random.Random) -> Row:
    people = dice.sample(NAMES, 4)
    facts = [f"{one} is taller than {other}." for one, other in pairwise(people)]
    dice.shuffle(facts)
    which, at = dice.choice((("tallest", 0), ("shortest", 3), ("second tallest", 1)))
    return row(f"{' '.join(facts)} Who is the {which}?", people[at])


def _day(dice: random.Random) -> Row:
    start, first, then = dice.randrange(7), dice.randint(2, 6), dice.randint(8, 20)
    return row(
        f"Today is {DAYS[start]}. The parcel leaves in {first} days and travels for {then} days. "
        "On which day does it arrive?",
        DAYS[(start + first + then) % 7],
    )


def _family(dice: random.Random) -> Row:
    first, second, wanted = dice.choice(
        (
            ("mother", "brother", "uncle"),
            ("mother", "sister", "aunt"),
            ("father", "mother", "grandmother"),
            ("mother", "father", "grandfather"),
            ("father", "brother", "uncle"),
            ("father", "sister", "aunt"),
        )
    )
    one = dice.choice(NAMES)
    two, three = (dice.choice([name for name in _names(word) if name != one]) for word in (first, second))
    if two == three:
        return _family(dice)
    question = f"What is {three} to {one}? Answer in one word."
    return row(f"{two} is the {first} of {one}. {three} is the {second} of {two}. {question}", wanted)


def _names(word: str) -> list[str]:
    return WOMEN if word in ("mother", "sister") else [name for name in NAMES if name not in WOMEN]


def _route(dice: random.Random) -> Row:
    winds = ("north", "east", "south", "west")
    at = start = dice.randrange(4)
    turns = [dice.choice(("right", "left")) for _ in range(dice.randint(2, 4))]
    for turn in turns:
        at = (at + (1 if turn == "right" else -1)) % 4
    said = ", then ".join(turns)
    return row(f"I face {winds[start]}. I turn {said}. Which way do I face now?", winds[at])


def _boxes(dice: random.Random) -> Row:
    boxes, each_has, gone, more = dice.randint(3, 9), dice.randint(4, 12), dice.randint(2, 11), dice.randint(2, 15)
    things = _things(dice)
    return row(
        f"{boxes} boxes hold {each_has} {things} each. {gone} {things} are sold and {more} are added. "
        "How many are there now?",
        boxes * each_has - gone + more,
        scorer="numeric",
    )


def _ages(dice: random.Random) -> Row:
    one, two, three = dice.sample(NAMES, 3)
    age, older, factor = dice.randint(5, 14), dice.randint(2, 6), dice.randint(2, 4)
    return row(
        f"{one} is {age}. {two} is {older} years older than {one}. {three} is {factor} times as old as {two}. "
        f"How old is {three}?",
        (age + older) * factor,
        scorer="numeric",
    )


def _all_are(dice: random.Random) -> Row:
    one, two, three = dice.sample(("zibs", "morks", "tulps", "fenns", "grals", "blims", "quons", "dreps"), 3)
    name, colour = dice.choice(NAMES), dice.choice(COLOURS)
    holds = dice.random() < 0.5
    facts = (
        f"All {one} are {two}. No {two} are {colour}." if not holds else f"All {one} are {two}. All {two} are {colour}."
    )
    return row(
        f"{facts} All {three} are {one}. {name} has one of the {three}. Is it {colour}? Answer yes or no.",
        "yes" if holds else "no",
        scorer="one_of",
        options={"choices": ["yes", "no"]},
    )


def _swap_cups(dice: random.Random) -> Row:
    cups = ["left", "middle", "right"]
    at = dice.choice(cups)
    said = []
    start = at
    for _ in range(dice.randint(2, 3)):
        one, other = dice.sample(cups, 2)
        said.append(f"the {one} and the {other} cup")
        at = other if at == one else one if at == other else at
    return row(
        f"A coin is under the {start} of three cups. I swap {', then '.join(said)}. "
        "Under which cup is it: left, middle or right?",
        at,
        scorer="one_of",
        options={"choices": cups},
    )


def _queue(dice: random.Random) -> Row:
    ahead, behind, left = dice.randint(3, 9), dice.randint(2, 9), dice.randint(1, 2)
    name = dice.choice(NAMES)
    return row(
        f"In a queue {ahead} people stand before {name} and {behind} behind. {left} at the front leave. "
        "How many people are in the queue now?",
        ahead + behind + 1 - left,
        scorer="numeric",
    )


def _rates(dice: random.Random) -> Row:
    machines, minutes, factor = dice.randint(2, 6), dice.randint(2, 9), dice.randint(2, 5)
    per = dice.randint(2, 9)
    things = _things(dice)
    return row(
        f"{machines} machines make {machines * minutes * per} {things} in {minutes} minutes. "
        f"How many {things} do {machines * factor} machines make in {minutes} minutes?",
        machines * minutes * per * factor,
        scorer="numeric",
    )
