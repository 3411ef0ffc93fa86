"""How surprised a model is by a text: the first thing to look at of a quantized file, and not the last.

The text is cut into windows, and the tokens of each window's second half are guessed from all before them in it, as
llama.cpp's own `llama-perplexity` does. The server gives the probability of a token that it chose, so it is made to
choose the text's: a bias on that one token, which does not enter the probability that it reports.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from trimtab.engines.llama_cpp.alone import Ask
from trimtab.errors import BadRequest

WINDOW: Final = 512  # tokens
SCORED: Final = WINDOW // 2  # of a window
_FORCED: Final = 1000.0  # logits
_TAIL: Final = 1.96


class Times(NamedTuple):
    """A perplexity over another's on the same tokens, with its 95% interval."""

    value: float
    low: float
    high: float


def windows_of(ask: Ask, text: str, count: int) -> list[list[int]]:
    """The text's first `count` windows, in tokens. Raises BadRequest if it has fewer."""
    tokens: list[int] = ask("/tokenize", content=text)["tokens"]
    if len(tokens) < count * WINDOW:
        raise BadRequest(f"the text has {len(tokens)} tokens, {count * WINDOW} are needed", param="text")
    return [tokens[first : first + WINDOW] for first in range(0, count * WINDOW, WINDOW)]


def losses(ask: Ask, windows: Sequence[Sequence[int]], tick: Callable[[], object]) -> list[float]:
    """By token that was guessed: minus the logarithm of its probability; `tick` is called for each.

    A token that ends inside a character is left out: the server says nothing of it until the character is whole.
    """
    found = []
    for window in windows:
        for at in range(WINDOW - SCORED, WINDOW):
            answer = ask(
                "/completion",
                prompt=window[:at],
                n_predict=1,
                n_probs=1,
                temperature=0,
                logit_bias=[[window[at], _FORCED]],
                cache_prompt=True,
            )
            found += [-float(chosen["logprob"]) for chosen in answer.get("completion_probabilities", ())]
            tick()
    return found


def perplexity(found: Sequence[float]) -> float:
    """Of a text, from its tokens' losses."""
    return math.exp(statistics.fmean(found))


def times(found: Sequence[float], reference: Sequence[float]) -> Times:
    """How many times the reference's perplexity. Token by token, so that the text's own difficulty cancels out."""
    gaps = [one - other for one, other in zip(found, reference, strict=True)]
    mean = statistics.fmean(gaps)
    reach = _TAIL * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Times(*(math.exp(mean + side) for side in (0.0, -reach, reach)))
