"""Sessions of an agent with tools: every call repeats the whole history before it and adds a little.

The trace has lengths and the numbers of its blocks of 16 tokens, no text. Here a block is four words that its number
makes, so that two prompts begin alike exactly as far as they do in the trace, at a quarter of the lengths.
"""

from __future__ import annotations

import random
from importlib.resources import files
from itertools import takewhile
from typing import Any, Final

import msgspec

from trimtab.measure.prompts import WORDS, block
from trimtab.measure.workloads import Asked, Workload, gaps

COUNT: Final = 60
MAX_TOKENS: Final = 48
OPEN: Final = 4  # sessions that go on side by side
SCALE: Final = 4  # tokens of the trace for a word here
_BLOCK_WORDS: Final = 16 // SCALE
_ABOUT: Final = (
    "Real: which call begins like which, the steps of a session, the lengths at a quarter (tau-bench airline, gpt-4o), "
    f"the length of answers up to {MAX_TOKENS} tokens, and the pattern of arrivals (Azure, November 2023). "
    f"Made up: the text, which is random words, and that {OPEN} sessions go on side by side."
)


class Session(msgspec.Struct, frozen=True):
    """Calls as tokens of prompt and of answer, and the blocks of all that was said up to the last call's prompt."""

    session: str
    calls: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]


def sessions() -> list[Session]:
    """The sessions that come with Trimtab."""
    text = (files("trimtab.measure") / "data" / "agent_sessions.jsonl").read_text(encoding="utf-8")
    return [msgspec.json.decode(line, type=Session) for line in text.splitlines()]


def workload(seed: int, count: int) -> Workload:
    """`count` calls; which sessions they are of and how these interleave depends on `seed`, not what a call says.

    The last sessions may be cut short. Raises ValueError beyond the calls that there are.
    """
    known = sessions()
    calls = sum(len(one.calls) for one in known)
    if not 1 <= count <= calls:
        raise ValueError(f"from 1 to {calls} requests, not {count}")
    rng = random.Random(f"agent/{seed}")
    system_words = _system_words(known)
    waiting = [_asked(one, system_words) for one in rng.sample(known, len(known))]
    going: list[list[Asked]] = []
    asked: list[Asked] = []
    while len(asked) < count:
        while waiting and len(going) < OPEN:
            going.append(waiting.pop())
        chosen = rng.choice(going)
        asked.append(chosen.pop(0))
        if not chosen:
            going.remove(chosen)
    warm = _body([("system", _words(known[0].blocks)[:system_words]), ("user", ["Hello"])], 1)
    return Workload("agent", _ABOUT, tuple(asked), gaps(seed, count - 1), warm=(warm,))


def _system_words(known: list[Session]) -> int:
    """How many words all sessions begin with: the agent's instructions and tools."""
    side_by_side = zip(*(one.blocks for one in known), strict=False)
    return sum(_BLOCK_WORDS for _ in takewhile(lambda numbers: len(set(numbers)) == 1, side_by_side))


def _words(blocks: tuple[int, ...]) -> list[str]:
    return [word for number in blocks for word in block(WORDS, 0, number, _BLOCK_WORDS)]


def _asked(one: Session, system_words: int) -> list[Asked]:
    """The calls of a session, in their order. What comes between two answers is a user's message, tool results too."""
    words = _words(one.blocks)
    messages = [("system", words[:system_words])]
    at, asked = system_words, []
    for input_tokens, output_tokens in one.calls:
        end, answered = input_tokens // SCALE, (input_tokens + output_tokens) // SCALE
        messages.append(("user", words[at:end]))
        asked.append(Asked(_body(messages, min(MAX_TOKENS, output_tokens)), session=one.session))
        messages.append(("assistant", words[end:answered]))
        at = answered
    return asked


def _body(messages: list[tuple[str, list[str]]], max_tokens: int) -> dict[str, Any]:
    said = [{"role": role, "content": " ".join(words)} for role, words in messages]
    return {"messages": said, "max_tokens": max_tokens}
