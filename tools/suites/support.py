"""The suite `support`: customers' questions whose right answer is a fact of a bank. Its questions are banking77's.

A model of 135 million parameters does not find its way through the whole policy of the workload `support`; here it
has three facts at a time, each shown with three questions. Examples go round, so that none is always the last.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final, NamedTuple

ITEMS: Final = 60  # an intent


class Fact(NamedTuple):
    """What customers of an intent are to be told."""

    intent: str
    examples: tuple[str, str, str]  # questions in our own words
    answer: str
    pattern: str  # found in a right answer


class Stratum(NamedTuple):
    """Facts that may be mistaken for each other, under one system prompt."""

    name: str
    description: str
    system: str
    facts: tuple[Fact, ...]


STRATA: Final = (
    Stratum(
        "fees",
        "What something costs.",
        "Fees of the bank. Cash: 2 euros. Exchange: 4 percent. Spare card: 6 euros.",
        (
            Fact(
                "cash_withdrawal_charge",
                ("Is there a fee for cash?", "Why did the ATM charge me?", "Do withdrawals cost money?"),
                "Cash: 2 euros.",
                r"(?<![\d.])2 euros",
            ),
            Fact(
                "exchange_charge",
                (
                    "What does it cost to exchange money?",
                    "Is there a fee for foreign currencies?",
                    "Do you take a commission on an exchange?",
                ),
                "Exchange: 4 percent.",
                r"(?<![\d.])4 ?(percent|%)",
            ),
            Fact(
                "getting_spare_card",
                ("Can I have a second card?", "I want a card for my wife.", "Do I pay for another card?"),
                "Spare card: 6 euros.",
                r"(?<![\d.])6 euros",
            ),
        ),
    ),
    Stratum(
        "times",
        "How long something takes.",
        "Times of the bank. Cash: 2 hours. Refund: 10 days. Top-up: 1 hour.",
        (
            Fact(
                "pending_cash_withdrawal",
                (
                    "Why is the cash pending?",
                    "The ATM gave nothing and it still is pending.",
                    "When does my withdrawal go through?",
                ),
                "Cash: 2 hours.",
                r"\b2 hours",
            ),
            Fact(
                "Refund_not_showing_up",
                (
                    "Where is my refund?",
                    "I sent it back and still have no refund.",
                    "The shop says it returned the money.",
                ),
                "Refund: 10 days.",
                r"\b10 days",
            ),
            Fact(
                "pending_top_up",
                ("Why is my top-up pending?", "My top-up has not gone through.", "When is my top-up done?"),
                "Top-up: 1 hour.",
                r"\b1 hour\b",
            ),
        ),
    ),
    Stratum(
        "menus",
        "Where in the app it is done.",
        "Menus of the app: Exchange, Profile, Phone.",
        (
            Fact(
                "exchange_via_app",
                ("Can I buy dollars?", "How do I exchange pounds for euros?", "Does the app exchange money?"),
                "Open Exchange.",
                r"Open Exchang",
            ),
            Fact(
                "edit_personal_details",
                ("I have a new address.", "How do I change my name?", "My number is new."),
                "Open Profile.",
                r"Open Profile",
            ),
            Fact(
                "lost_or_stolen_phone",
                ("I lost my phone.", "My phone was stolen.", "Somebody took my phone, what now?"),
                "Open Phone.",
                r"Open Phone",
            ),
        ),
    ),
)

HEAD: Final = """\
[suite]
name = {name}
description = "Questions to a bank's support, near enough to each other to be mistaken by a cache."
license = "CC-BY-4.0"

[defaults.request]
temperature = 0
max_tokens = 8
stop = ["\\n"]
"""


def head(name: str) -> str:
    """The suite's `suite.toml`."""
    parts = [HEAD.format(name=json.dumps(name))]
    for stratum in STRATA:
        shown = [[fact.examples[n], fact.answer] for n in range(3) for fact in stratum.facts[n:] + stratum.facts[:n]]
        lines = (
            ("name", stratum.name),
            ("file", f"{stratum.name}.jsonl"),
            ("scorer", "regex"),
            ("description", stratum.description),
            ("source", "Questions: banking77 (PolyAI), training split, CC BY 4.0. Examples and facts: own."),
            ("system", stratum.system),
            ("examples", shown),
        )
        parts.append("\n[[strata]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines))
    return "".join(parts)


def strata(by_intent: dict[str, list[str]], seed: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Items by stratum: `ITEMS` of each intent's questions, in an order of chance, so that alike ones come apart."""
    found = []
    for stratum in STRATA:
        rows: list[dict[str, Any]] = []
        for fact in stratum.facts:
            shown = {question for fact in stratum.facts for question in fact.examples}
            known = sorted(set(by_intent[fact.intent]) - shown)
            chosen = random.Random(f"{seed}/{fact.intent}").sample(known, ITEMS)
            rows += [
                {"id": f"{fact.intent}-{n:02}", "prompt": text, "reference": fact.pattern}
                for n, text in enumerate(chosen, 1)
            ]
        random.Random(f"{seed}/{stratum.name}").shuffle(rows)
        found.append((stratum.name, rows))
    return found
