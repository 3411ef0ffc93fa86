"""Prompts of an exact length in the target's own tokens, made for traces that hold lengths only.

The target counts for us: `calibrate` sends a few short requests and reads `usage.prompt_tokens`, which says what the
chat template adds and which of our words are one token each. So any server that reports usage can be measured, whatever
its tokenizer, and nothing about it has to be installed here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.measure.traces import Traced

_OPENER: Final = "the"
# Short, common words: with a space before it each is one token in the vocabularies in use.
WORDS: Final = tuple(
    re.findall(
        r"[a-z]+",
        "a about after again all also always an and any are as at back be because been before big but by call can "
        "change city come could country day did different do does down each early end even every eye family far "
        "few find first follow food for found from gave get give go good great group had hand has have he head "
        "help her here high him his home house how if important in into is it just keep kind know land large last "
        "late learn leave left life light like line list little live long look made make man many may mean men "
        "might more most move much must my name near need never new next night no not now number of off often old "
        "on once one only open or order other our out over own page paper part people place plan play point power "
        "put read real right river room run said same saw say school sea second see seem set she should show side "
        "small so some sound spell stand start state still stop story study such sun take talk tell than that "
        "them then there these they thing think this those thought three through time to together too took tree "
        "try turn two under until up us use very walk want was watch water way we well went were what when where "
        "which while white who why will with without word work world would write year you young your ",
    )
)
_FEWEST_WORDS: Final = 50
_BLOCKS_KEPT: Final = 8192


class Pool(msgspec.Struct, frozen=True):
    """Words of one token each for a target, and the tokens of a message that holds the opener alone."""

    words: tuple[str, ...]
    base_tokens: int


async def calibrate(count: Callable[[str], Awaitable[int]]) -> Pool:
    """Find out by asking; `count` says how many prompt tokens a user message with that text makes.

    Raises BadRequest when too few words are one token each: the target's usage cannot be relied on then.
    """
    base_tokens = await count(_OPENER)

    async def single(words: tuple[str, ...]) -> tuple[str, ...]:
        if await count(" ".join((_OPENER, *words))) == base_tokens + len(words):
            return words
        if len(words) == 1:
            return ()
        half = len(words) // 2
        return await single(words[:half]) + await single(words[half:])

    words = await single(WORDS)
    if len(words) < _FEWEST_WORDS:
        raise BadRequest(
            f"only {len(words)} of {len(WORDS)} common words are one token each by the target's own count; "
            "prompts of an exact length cannot be made for it. Replay a trace with bodies instead",
            param="trace",
        )
    return Pool(words, base_tokens)


class PromptMaker:
    """Makes user messages; the same request always gets the same text for one seed."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool = pool
        self._seed = seed
        self._block = lru_cache(_BLOCKS_KEPT)(self._make_block)

    def can_make(self, request: Traced) -> bool:
        """Whether a prompt can be as short as the request's: the template's tokens are in every one."""
        return request.body is not None or request.input_tokens >= self._pool.base_tokens

    def text(self, request: Traced, number: int) -> str:
        """A text that makes `request.input_tokens` prompt tokens; never fewer than the template with one word.

        Blocks come from the request's hash ids, so that equal ids at the start are an equal start; what they leave over
        is the request's own (`number` tells it from the others). The template's tokens count into the first block.
        """
        wanted = request.input_tokens - self._pool.base_tokens
        words: list[str] = []
        for hash_id in request.hash_ids:
            if len(words) - self._pool.base_tokens >= wanted:
                break
            words += self._block(hash_id, request.block_tokens)
        words = words[self._pool.base_tokens :][: max(0, wanted)]
        missing = wanted - len(words)
        if missing > 0:
            words += random.Random(f"{self._seed}/own/{number}").choices(self._pool.words, k=missing)
        return " ".join((_OPENER, *words))

    def _make_block(self, hash_id: int, tokens: int) -> list[str]:
        return block(self._pool.words, self._seed, hash_id, tokens)


def block(words: tuple[str, ...], seed: int, hash_id: int, count: int) -> list[str]:
    """`count` words that stand for a block of a trace: the same ones for the same arguments."""
    return random.Random(f"{seed}/block/{hash_id}").choices(words, k=count)
