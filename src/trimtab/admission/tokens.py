"""What a request is estimated to cost an engine, and what a call did cost: tokens, those of the answer weighted."""

from __future__ import annotations

from typing import Final

from trimtab.call import BYTES_PER_TOKEN
from trimtab.types import Request, Usage

_OUTPUT_WEIGHT: Final = 2.0  # as in the Virtual Token Counter's evaluation (Sheng et al., OSDI 2024)
_USUAL_OUTPUT: Final = 256  # tokens, where the client sets no limit
_MOST_OUTPUT: Final = 1024  # a higher limit is seldom used up; what is used beyond is counted afterwards
_LIMITS: Final = ("max_completion_tokens", "max_tokens")


def cost_of(request: Request) -> float:
    """Before the call: the prompt by its bytes, the answer by the limit that the client set."""
    return request.body_bytes / BYTES_PER_TOKEN + _OUTPUT_WEIGHT * _output(request)


def cost_used(usage: Usage) -> float:
    """After it; what came from the provider's cache cost next to nothing."""
    return usage.input_total - usage.cache_read + _OUTPUT_WEIGHT * usage.output_total


def _output(request: Request) -> int:
    for name in _LIMITS:
        text = bytes(request.fields.get(name, b""))
        if text.isdigit() and len(text) < 10:
            return min(int(text), _MOST_OUTPUT)
    return _USUAL_OUTPUT
