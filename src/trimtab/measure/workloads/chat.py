"""Open prompts, each asked once: what a lever that reuses anything can do nothing for."""

from __future__ import annotations

import random
from importlib.resources import files
from typing import Any, Final

import msgspec

from trimtab.measure.workloads import Asked, Workload, gaps

COUNT: Final = 60
MAX_TOKENS: Final = 48
SYSTEM_PROMPT: Final = "You are a helpful assistant. Be brief."
_ABOUT: Final = (
    "Real: the first turns of MT-bench and the pattern of arrivals (Azure, November 2023). "
    "Assumed: that nobody asks twice, the system prompt and the length of answers."
)


class Prompt(msgspec.Struct, frozen=True):
    """A question of MT-bench with its number there."""

    id: int
    text: str


def prompts() -> list[Prompt]:
    """The prompts that come with Trimtab."""
    text = (files("trimtab.measure") / "data" / "open_prompts.jsonl").read_text(encoding="utf-8")
    return [msgspec.json.decode(line, type=Prompt) for line in text.splitlines()]


def workload(seed: int, count: int) -> Workload:
    """`count` different prompts in an order of their own by `seed`.

    Raises ValueError beyond the prompts that there are.
    """
    pool = prompts()
    if not 1 <= count <= len(pool):
        raise ValueError(f"from 1 to {len(pool)} requests, not {count}")
    chosen = random.Random(f"chat/{seed}").sample(pool, count)
    asked = tuple(Asked(_fields(prompt.text), label=f"mt-bench-{prompt.id}") for prompt in chosen)
    return Workload("chat", _ABOUT, asked, gaps(seed, count - 1))


def _fields(text: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": MAX_TOKENS}
