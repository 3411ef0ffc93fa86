"""Questions over retrieved passages: the same question comes again, and the same passages before another one."""

from __future__ import annotations

import random
from importlib.resources import files
from typing import Any, Final

import msgspec

from trimtab.measure.workloads import Asked, Workload, gaps

COUNT: Final = 80
MAX_REQUESTS: Final = 400  # as many as there are gaps
MAX_TOKENS: Final = 32
ZIPF_EXPONENT: Final = 0.9
SYSTEM_PROMPT: Final = """\
You answer the questions of readers from the passages of an encyclopedia. Use only what the passages say. Answer with \
a few words: a name, a number, a date or a short phrase, and nothing else. If the passages do not say it, answer: not \
in the passages."""
_ABOUT: Final = (
    "Real: passages and questions (SQuAD 2.0) and the pattern of arrivals (Azure, November 2023). Assumed: how often a "
    "passage is asked about (Zipf), a retriever that finds the same three passages for every question on one of them, "
    "and the system prompt."
)


class Topic(msgspec.Struct, frozen=True):
    """Questions that one passage answers, and the names of the passages retrieved for them, in their order."""

    passage: str
    retrieved: tuple[str, ...]
    questions: tuple[str, ...]


class Collection(msgspec.Struct, frozen=True):
    """Passages by name, and what is asked about them."""

    passages: dict[str, str]
    asked: tuple[Topic, ...]


def collection() -> Collection:
    """The passages that come with Trimtab."""
    text = (files("trimtab.measure") / "data" / "passages.json").read_bytes()
    return msgspec.json.decode(text, type=Collection)


def workload(seed: int, count: int) -> Workload:
    """`count` questions: which passages are popular depends on `seed`, as does the order.

    Raises ValueError beyond `MAX_REQUESTS`.
    """
    if not 1 <= count <= MAX_REQUESTS:
        raise ValueError(f"from 1 to {MAX_REQUESTS} requests, not {count}")
    known = collection()
    rng = random.Random(f"rag/{seed}")
    topics = rng.sample(known.asked, len(known.asked))
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(topics))]
    asked = []
    for topic in rng.choices(topics, weights, k=count):
        number = rng.randrange(len(topic.questions))
        asked.append(Asked(_fields(known, topic, number), label=f"{topic.passage}/{number + 1}"))
    return Workload("rag", _ABOUT, tuple(asked), gaps(seed, count - 1), warm=(_warm(),))


def _fields(known: Collection, topic: Topic, number: int) -> dict[str, Any]:
    passages = [f"[{place}] {known.passages[name]}" for place, name in enumerate(topic.retrieved, 1)]
    return _body("\n\n".join((*passages, f"Question: {topic.questions[number]}")), MAX_TOKENS)


def _warm() -> dict[str, Any]:
    return _body("Question: What is asked here?", 1)


def _body(content: str, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": max_tokens}
