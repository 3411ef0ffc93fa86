"""What a model answered, as the scorers see it."""

from __future__ import annotations

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model asked for; `arguments` is the JSON text as the model wrote it."""

    name: str
    arguments: str


class Answer(msgspec.Struct, frozen=True):
    """One answer; `finish` is its reason to end in OpenAI's words ("stop", "length", "tool_calls", ...)."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish: str
