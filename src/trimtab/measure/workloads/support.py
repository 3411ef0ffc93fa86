"""Support chat of a bank: customers' questions, many of them asked before in the same or in other words.

What is real: the questions and their intents (banking77) and the pattern of arrivals (Azure). What is assumed: how
often an intent comes (Zipf), that half of the requests use its usual question, and the bank's facts.
"""

from __future__ import annotations

import csv
import random
from importlib.resources import files
from typing import Any, Final

import msgspec

from trimtab.measure.workloads import Asked, Workload, gaps

COUNT: Final = 120
ZIPF_EXPONENT: Final = 0.9
CANONICAL_SHARE: Final = 0.5  # of requests that ask an intent's usual question to the letter
# The middle of 32 to 48, for all: a limit of its own would keep each question apart from others in the semantic cache.
MAX_TOKENS: Final = 40

POLICY: Final = """\
You are the support assistant of Example Bank, a bank in a phone app. Answer in one short sentence, with these facts.
Cards: a new card arrives in 7 days, by express delivery in 2 days for 12 euros. A spare card costs 6 euros, a \
replacement for an expired one is free. Activate a card under Cards > Activate, link it under Cards > Link, change or \
unblock its PIN under Cards > PIN. For a lost card or phone, open Cards > Freeze.
Payments: card payments are free at home, abroad they cost 1.5 percent. They stay pending for 3 days, refunds take 10 \
days. Dispute an unknown payment, debit or withdrawal under Payments > Dispute.
Cash: a withdrawal costs 2 euros.
Top-ups: by card 1 percent, by bank transfer free. They take 1 hour, cheques 6 days. Top up automatically under \
Money > Auto.
Transfers: they cost 50 cents and take 1 day in Europe, 4 days elsewhere. Cancel one under Transfers > Cancel.
Exchange: 0.4 percent on the market rate, in 30 currencies, under Money > Exchange.
Account: from 18 years on. The identity check takes 2 days and needs a passport, under Profile > Identity. Change \
personal details under Profile > Details, close the account under Profile > Close."""


class Intent(msgspec.Struct, frozen=True):
    """What customers want, in their words."""

    name: str
    canonical: str
    paraphrases: tuple[str, ...]


def intents() -> tuple[Intent, ...]:
    """The 60 intents that come with Trimtab, 40 paraphrases each."""
    text = (files("trimtab.measure") / "data" / "support.csv").read_text(encoding="utf-8")
    usual: dict[str, str] = {}
    other: dict[str, list[str]] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["canonical"] == "1":
            usual[row["intent"]] = row["text"]
        else:
            other.setdefault(row["intent"], []).append(row["text"])
    return tuple(Intent(name, question, tuple(other[name])) for name, question in usual.items())


def fields(question: str) -> dict[str, Any]:
    """The request that asks it."""
    messages = [{"role": "system", "content": POLICY}, {"role": "user", "content": question}]
    return {"messages": messages, "max_tokens": MAX_TOKENS}


def workload(seed: int, count: int) -> Workload:
    """`count` requests: intents by Zipf in an order of the seed's, each in its usual words or in one of 40 others.

    A request's `label` is its intent.
    """
    rng = random.Random(f"support/{seed}")
    known = list(intents())
    rng.shuffle(known)
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(known))]
    asked = []
    for intent in rng.choices(known, weights, k=count):
        usual = rng.random() < CANONICAL_SHARE
        question = intent.canonical if usual else rng.choice(intent.paraphrases)
        asked.append(Asked(fields(question), label=intent.name))
    return Workload(
        "support",
        "Questions to a bank's support with their intents (banking77) and the pattern of arrivals (Azure) are real; "
        "how often each is asked (Zipf) and the bank's policy are assumed.",
        tuple(asked),
        gaps(seed, max(0, count - 1)),
        ({**fields("Hello!"), "max_tokens": 1},),
        one_prefix=True,
    )
