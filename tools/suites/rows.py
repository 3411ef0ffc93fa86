"""How the generators gather rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def row(prompt: str, reference: Any, **more: Any) -> Row:
    """A prompt with its right answer."""
    return {"prompt": prompt, "reference": reference, **more}


def distinct(make: Callable[[random.Random], Row], count: int, dice: random.Random) -> list[Row]:
    """As many rows with prompts that differ."""
    found: dict[str, Row] = {}
    while len(found) < count:
        one = make(dice)
        found.setdefault(one["prompt"], one)
    return list(found.values())


def each(makers: tuple[Callable[[random.Random], Row], ...], count: int, dice: random.Random) -> list[Row]:
    """The rows of every maker, `count` of each."""
    return [one for make in makers for one in distinct(make, count, dice)]
