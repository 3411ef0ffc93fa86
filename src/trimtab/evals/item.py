"""Items and suites as values."""

from __future__ import annotations

from typing import Any

import msgspec


class Item(msgspec.Struct, frozen=True):
    """One question with what its answer is held against.

    `id` is unique in the suite, `messages` are in OpenAI's chat dialect, `options` the scorer's own settings, `request`
    the other fields of the request (`max_tokens`, `stop`, `response_format`, `tool_choice`, ...).
    """

    id: str
    stratum: str
    messages: tuple[dict[str, Any], ...]
    scorer: str
    reference: Any = None
    options: dict[str, Any] = {}
    tools: tuple[dict[str, Any], ...] = ()
    weight: float = 1.0
    request: dict[str, Any] = {}


class Suite(msgspec.Struct, frozen=True):
    """Items under one name; `sha256` is over the bytes of all its files: a verdict can say what it was about."""

    name: str
    description: str
    license: str
    items: tuple[Item, ...]
    sha256: str
