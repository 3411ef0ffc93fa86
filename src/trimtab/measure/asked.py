"""What a chat request asks: the text of its last message, if that is a user's, in either dialect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

_TEXTS: Final = ("text", "input_text")
_RESULTS: Final = frozenset({"tool_result", "web_search_tool_result", "mcp_tool_result"})


def last_turn(messages: Sequence[Any]) -> str:
    """The user's last turn as text, "" where the last message is another's or brings what a tool said."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return ""
    content = last.get("content")
    if isinstance(content, str):
        return content.strip()
    blocks = list(_blocks(content))
    if any(block.get("type") in _RESULTS for block in blocks):
        return ""
    said = [block.get("text") for block in blocks if block.get("type") in _TEXTS]
    return "\n".join([one for one in said if isinstance(one, str)]).strip()


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, list):
        yield from (block for block in content if isinstance(block, dict))
