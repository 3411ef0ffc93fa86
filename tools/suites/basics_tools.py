"""The stratum tool_arguments: eight tools, and questions that need none."""

from __future__ import annotations

import random
from typing import Any

from suites.rows import Row, each, row
from suites.words import CITIES, COLOURS, NAMES, THINGS


def _tool(name: str, description: str, required: str = "", **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required.split() or list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
TOOLS = {
    "get_weather": _tool(
        "get_weather",
        "The forecast for a city.",
        city=_TEXT,
        days={"type": "integer", "description": "days ahead, 0 is today"},
    ),
    "set_timer": _tool("set_timer", "Start a timer.", minutes=_WHOLE, label=_TEXT),
    "convert_money": _tool(
        "convert_money",
        "Convert an amount.",
        amount={"type": "number"},
        source={"type": "string", "description": "three-letter code"},
        target={"type": "string", "description": "three-letter code"},
    ),
    "book_table": _tool(
        "book_table",
        "Book a table in a restaurant.",
        city=_TEXT,
        people=_WHOLE,
        time={"type": "string", "description": "HH:MM, 24 hours"},
        outside={"type": "boolean"},
    ),
    "find_order": _tool("find_order", "Look up an order.", number={"type": "string", "description": "as given"}),
    "search_products": _tool(
        "search_products",
        "Search the shop.",
        "query",
        query={"type": "string", "description": "the thing alone, singular"},
        colour=_TEXT,
        max_price={"type": "number"},
    ),
    "send_message": _tool("send_message", "Send a message to somebody.", to=_TEXT, text=_TEXT),
    "switch_lights": _tool(
        "switch_lights", "Switch the lights of a room.", room=_TEXT, state={"type": "string", "enum": ["on", "off"]}
    ),
}
CURRENCIES = {"dollars": "USD", "euros": "EUR", "pounds": "GBP", "yen": "JPY", "Swiss francs": "CHF", "rupees": "INR"}


def tool_arguments(dice: random.Random) -> list[Row]:
    """Eight items for each tool, eight with two calls and eight with none; three tools are offered each time."""
    makers = (_weather, _timer, _money, _table, _order, _search, _message, _lights, _two, _none)
    return each(makers, 8, dice)


def _row(dice: random.Random, prompt: str, *calls: tuple[str, dict[str, Any]]) -> Row:
    used = [name for name, _ in calls]
    others = dice.sample([name for name in TOOLS if name not in used], 3 - len(set(used)))
    offered = [TOOLS[name] for name in TOOLS if name in used or name in others]
    wanted = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return row(prompt, wanted[0] if len(wanted) == 1 else wanted, tools=offered)


def _weather(dice: random.Random) -> Row:
    city = dice.choice(CITIES)
    when, days = dice.choice((("today", 0), ("tomorrow", 1), ("in three days", 3), ("in 5 days", 5)))
    form = dice.choice(("What will the weather be like in {city} {when}?", "Do I need an umbrella in {city} {when}?"))
    return _row(dice, form.format(city=city, when=when), ("get_weather", {"city": city, "days": days}))


def _timer(dice: random.Random) -> Row:
    minutes, label = (
        dice.randint(2, 90),
        dice.choice(("pasta", "tea", "laundry", "cake", "nap", "eggs", "call", "rice")),
    )
    form = dice.choice(
        ("Set a timer of {minutes} minutes called {label}.", "Remind me in {minutes} minutes, label it {label}.")
    )
    return _row(dice, form.format(minutes=minutes, label=label), ("set_timer", {"minutes": minutes, "label": label}))


def _money(dice: random.Random) -> Row:
    one, other = dice.sample(sorted(CURRENCIES), 2)
    amount = dice.choice((dice.randint(5, 9000), dice.randint(100, 9999) / 4))
    form = dice.choice(("How many {other} are {amount} {one}?", "Convert {amount} {one} into {other}."))
    arguments = {"amount": amount, "source": CURRENCIES[one], "target": CURRENCIES[other]}
    return _row(dice, form.format(one=one, other=other, amount=amount), ("convert_money", arguments))


def _table(dice: random.Random) -> Row:
    city, people, outside = dice.choice(CITIES), dice.randint(2, 9), dice.random() < 0.5
    hour, minute = dice.randint(5, 9), dice.choice((0, 15, 30, 45))
    place = "outside" if outside else "inside"
    said = f"{hour}:{minute:02} pm"
    return _row(
        dice,
        f"Book a table in {city} for {people} people at {said}, {place} please.",
        ("book_table", {"city": city, "people": people, "time": f"{hour + 12}:{minute:02}", "outside": outside}),
    )


def _order(dice: random.Random) -> Row:
    number = f"{dice.choice('ABCDEFGH')}{dice.randint(0, 99_999):05}"
    form = dice.choice(
        ("Where is my order {number}?", "Has order {number} been sent yet?", "Please check on {number} for me.")
    )
    return _row(dice, form.format(number=number), ("find_order", {"number": number}))


def _search(dice: random.Random) -> Row:
    thing, colour, price = dice.choice(THINGS), dice.choice(COLOURS), 5 * dice.randint(2, 60)
    said, arguments = dice.choice(
        (
            (f"Find me a {colour} {thing}.", {"query": thing, "colour": colour}),
            (f"Do you have a {thing} for at most {price} dollars?", {"query": thing, "max_price": price}),
            (f"I want a {colour} {thing} under ${price}.", {"query": thing, "colour": colour, "max_price": price}),
        )
    )
    return _row(dice, said, ("search_products", arguments))


def _message(dice: random.Random) -> Row:
    name, text = (
        dice.choice(NAMES),
        dice.choice(
            (
                "I am late",
                "See you at noon",
                "The key is under the mat",
                "Call me back",
                "Dinner is ready",
                "The train left",
            )
        ),
    )
    return _row(dice, f'Send {name} this message: "{text}"', ("send_message", {"to": name, "text": text}))


def _lights(dice: random.Random) -> Row:
    room, state = (
        dice.choice(("kitchen", "bedroom", "hall", "office", "cellar", "bathroom")),
        dice.choice(("on", "off")),
    )
    form = dice.choice(("Turn the lights {state} in the {room}.", "Lights {state} in the {room}, please."))
    return _row(dice, form.format(room=room, state=state), ("switch_lights", {"room": room, "state": state}))


def _two(dice: random.Random) -> Row:
    one, other = dice.sample(CITIES, 2)
    return _row(
        dice,
        f"Compare today's weather in {one} and in {other}.",
        ("get_weather", {"city": one, "days": 0}),
        ("get_weather", {"city": other, "days": 0}),
    )


def _none(dice: random.Random) -> Row:
    thing, colour = dice.choice(THINGS), dice.choice(COLOURS)
    said = dice.choice(
        (
            f"How do you spell {thing}?",
            f"Which word rhymes with {thing}?",
            f"Is {colour} a warm or a cold colour?",
            f"Name a poem about a {thing}.",
            f"What is the plural of {thing}?",
        )
    )
    return row(said, [], tools=[TOOLS[name] for name in sorted(dice.sample(sorted(TOOLS), 3))])
