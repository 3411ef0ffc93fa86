"""Strata about doing as told: instructions, texts that do not tell, forms of writing."""

from __future__ import annotations

import datetime
import random

from suites.rows import Row, each, row
from suites.words import ADJECTIVES, CITIES, COLOURS, NAMES, REGULAR_NOUNS, THINGS, Y_NOUNS, plural

ANY = {"scorer": "normalised"}
UNKNOWN = ["unknown", "not say", "not tell", "not stated", "not mentioned"]


def instruction_following(dice: random.Random) -> list[Row]:
    """Ten kinds of instruction."""
    kinds = (_sort, _reverse, _pick_nth, _repeat, _drop, _count_words, _begin_end, _avoid_letter, _replace, _condition)
    return each(kinds, 8, dice)


def _words(dice: random.Random, least: int, most: int) -> list[str]:
    return dice.sample(THINGS, dice.randint(least, most))


def _sort(dice: random.Random) -> Row:
    words = _words(dice, 3, 5)
    backwards = dice.random() < 0.5
    how = "in reverse alphabetical order" if backwards else "in alphabetical order"
    wanted = ", ".join(sorted(words, reverse=backwards))
    return row(f"Write these words {how}, separated by commas: {', '.join(words)}", wanted, **ANY)


def _reverse(dice: random.Random) -> Row:
    words = _words(dice, 3, 6)
    return row(
        f"Write these words in the opposite order, separated by spaces: {' '.join(words)}", " ".join(words[::-1]), **ANY
    )


def _pick_nth(dice: random.Random) -> Row:
    words = _words(dice, 4, 7)
    at = dice.randrange(1, len(words) - 1)
    nth = ("", "second", "third", "fourth", "fifth", "sixth")[at]
    return row(f"Write only the {nth} word of this list: {', '.join(words)}", words[at], **ANY)


def _repeat(dice: random.Random) -> Row:
    word, times, mark = (
        dice.choice(THINGS),
        dice.randint(2, 5),
        dice.choice(("a hyphen -", "a slash /", "a plus sign +")),
    )
    return row(
        f"Write the word {word} {times} times, with {mark} between and no spaces.", mark[-1].join([word] * times)
    )


def _drop(dice: random.Random) -> Row:
    words = _words(dice, 4, 6)
    out = dice.choice(words)
    left = ", ".join(word for word in words if word != out)
    return row(f"Write this list again without the word {out}: {', '.join(words)}", left, **ANY)


def _count_words(dice: random.Random) -> Row:
    count, thing = dice.randint(2, 6), dice.choice(THINGS)
    words = r"[^\W_]+(?:['’-][^\W_]+)*"
    pattern = rf"\W*{words}(?:\W+{words}){{{count - 1}}}\W*"
    return row(f"Describe a {thing} in exactly {count} words.", pattern, scorer="regex", options={"whole": True})


def _begin_end(dice: random.Random) -> Row:
    thing, first = dice.choice(THINGS), dice.choice(("Well", "Indeed", "Surely", "Perhaps", "Today", "Once"))
    mark, name = dice.choice(((r"\?", "a question mark"), ("!", "an exclamation mark")))
    return row(
        f"Write one short sentence about a {thing}. Its first word is {first} and its last character is {name}.",
        rf"{first}\b[^\n]{{4,200}}{mark}",
        scorer="regex",
        options={"whole": True},
    )


def _avoid_letter(dice: random.Random) -> Row:
    letter, kind = dice.choice("aeiost"), dice.choice(("fruit", "animal", "country", "colour", "tool", "city"))
    return row(
        f"Name one {kind} whose name does not have the letter {letter} in it. Write only the name, in small letters.",
        rf"\W*[^\W\d{letter}{letter.upper()}]{{2,20}}(?: [^\W\d{letter}{letter.upper()}]{{2,20}})?\W*",
        scorer="regex",
        options={"whole": True},
    )


def _replace(dice: random.Random) -> Row:
    words = _words(dice, 3, 5)
    out, into = dice.choice(words), dice.choice(COLOURS)
    wanted = " ".join(into if word == out else word for word in words)
    return row(f"Write this again with {into} in place of {out}: {' '.join(words)}", wanted, **ANY)


def _condition(dice: random.Random) -> Row:
    number, limit = dice.randint(2, 98), dice.randint(20, 80)
    high, low = dice.sample(COLOURS, 2)
    wanted = high if number > limit else low
    return row(f"If {number} is greater than {limit}, write {high}; otherwise write {low}.", wanted, **ANY)


def hallucination(dice: random.Random) -> list[Row]:
    """Texts that tell what is asked, and as many that do not; things that exist, and as many that never did."""
    told = each((_told_person, _told_order, _told_house, _told_trip), 10, dice)
    return told + [_untold(one, dice) for one in told]


def _fact(text: str, question: str, reference: str, untold: tuple[str, ...]) -> Row:
    return {"prompt": f"Text: {text}\nQuestion: {question}", "reference": reference, "untold": (text, untold)}


def _told_person(dice: random.Random) -> Row:
    name, city, thing, age = dice.choice(NAMES), dice.choice(CITIES), dice.choice(THINGS), dice.randint(21, 69)
    question, reference = dice.choice(((f"How old is {name}?", str(age)), (f"In which city does {name} live?", city)))
    untold = (
        f"What is {name}'s job?",
        f"When did {name} buy the {thing}?",
        f"What is {name}'s brother called?",
        f"How much did the {thing} cost?",
        f"Who sold {name} the {thing}?",
    )
    return _fact(f"{name}, {age}, lives in {city} and has bought a {thing}.", question, reference, untold)


def _told_order(dice: random.Random) -> Row:
    number, count, thing = dice.randint(1000, 9999), dice.randint(2, 40), plural(dice.choice(REGULAR_NOUNS))
    day = dice.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"))
    question, reference = dice.choice(
        ((f"On which day was order {number} sent?", day), (f"How many {thing} are in order {number}?", str(count)))
    )
    untold = (
        f"Who placed order {number}?",
        f"What did order {number} cost?",
        f"To which city was order {number} sent?",
        f"What colour are the {thing}?",
        f"When did order {number} arrive?",
    )
    return _fact(f"Order {number} of {count} {thing} was sent on {day}.", question, reference, untold)


def _told_house(dice: random.Random) -> Row:
    name, colour, rooms, year = dice.choice(NAMES), dice.choice(COLOURS), dice.randint(3, 9), dice.randint(1890, 2015)
    question, reference = dice.choice(
        (
            ("In which year was the house built?", str(year)),
            ("What colour is the door?", colour),
            ("How many rooms are there?", str(rooms)),
        )
    )
    untold = (
        "Who built the house?",
        "How large is the garden?",
        "What did the house cost?",
        f"How old is {name}?",
        "In which street is the house?",
    )
    return _fact(
        f"{name}'s house, built in {year}, has {rooms} rooms and a {colour} door.", question, reference, untold
    )


def _told_trip(dice: random.Random) -> Row:
    name, friend = dice.sample(NAMES, 2)
    start, end = dice.sample(CITIES, 2)
    hour = dice.randint(6, 11)
    question, reference = dice.choice(
        (
            (f"Where did {name} travel to?", end),
            (f"With whom did {name} travel?", friend),
            (f"Where did {name} set out?", start),
        )
    )
    untold = (
        f"Why did {name} travel?",
        f"How long did {name} stay?",
        "What did the ticket cost?",
        "On which day was it?",
        f"Where did {name} sleep?",
    )
    return _fact(
        f"{name} took the {hour} o'clock train from {start} to {end} with {friend}.", question, reference, untold
    )


def _untold(told: Row, dice: random.Random) -> Row:
    text, questions = told.pop("untold")
    return row(f"Text: {text}\nQuestion: {dice.choice(questions)}", UNKNOWN, options={"mode": "any"})


def exact_formatting(dice: random.Random) -> list[Row]:
    """Ten forms."""
    return each((_date, _time, _padded, _pairs, _csv, _json, _title, _bullets, _upper, _money), 8, dice)


def _date(dice: random.Random) -> Row:
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=dice.randrange(27_000))
    return row(f"Write the date {day.day} {day:%B %Y} as YYYY-MM-DD.", day.isoformat())


def _time(dice: random.Random) -> Row:
    hour, minute = dice.randint(1, 11), dice.randint(0, 59)
    half = dice.choice(("am", "pm"))
    return row(
        f"Write {hour}:{minute:02} {half} in the 24-hour form HH:MM.", f"{hour + 12 * (half == 'pm'):02}:{minute:02}"
    )


def _padded(dice: random.Random) -> Row:
    number, width = dice.randint(3, 4999), dice.randint(5, 8)
    return row(f"Write the number {number} with zeros in front, {width} digits in all.", f"{number:0{width}}")


def _pairs(dice: random.Random) -> Row:
    name, city, age = dice.choice(NAMES), dice.choice(CITIES), dice.randint(20, 80)
    return row(
        f"{name} is {age} and lives in {city}. Write this as name=...;age=...;city=... without spaces.",
        f"name={name};age={age};city={city}",
    )


def _csv(dice: random.Random) -> Row:
    words = dice.sample(THINGS, dice.randint(3, 5))
    mark, name = dice.choice(((",", "commas"), (";", "semicolons"), ("|", "vertical bars")))
    said = f"{', '.join(words[:-1])} and {words[-1]}"
    return row(f"Write as one line with {name} between the words, without spaces: {said}", mark.join(words))


def _json(dice: random.Random) -> Row:
    name, count, thing = dice.choice(NAMES), dice.randint(2, 60), plural(dice.choice(Y_NOUNS))
    return row(
        f'{name} has {count} {thing}. Write a JSON object with the keys "name", "count" (a number) '
        'and "thing" (as written).',
        {"name": name, "count": count, "thing": thing},
        scorer="json",
    )


def _title(dice: random.Random) -> Row:
    words = [dice.choice(ADJECTIVES), *dice.sample(THINGS, 2)]
    return row(f"Write with a capital letter at the start of each word: {' '.join(words)}", " ".join(words).title())


def _bullets(dice: random.Random) -> Row:
    words = dice.sample(THINGS, 3)
    wanted = "\n".join(f"- {word}" for word in words)
    return row(
        f"Write as a list, each word on a line of its own after a hyphen and a space: {', '.join(words)}", wanted
    )


def _upper(dice: random.Random) -> Row:
    words = dice.sample(THINGS, 3)
    return row(
        f"Write in capital letters with underscores between the words: {' '.join(words)}", "_".join(words).upper()
    )


def _money(dice: random.Random) -> Row:
    cents = dice.randint(100_001, 99_999_999)
    return row(
        f"Write {cents // 100} dollars and {cents % 100} cents with a dollar sign, commas for thousands "
        "and two decimals.",
        f"${cents / 100:,.2f}",
    )
