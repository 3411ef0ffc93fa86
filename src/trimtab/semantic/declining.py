"""Whether an answer only says that there is none."""

from __future__ import annotations

import re
from typing import Final

_DECLINES: Final = re.compile(
    r"""\W*(?:
      as\ an?\ (?:ai|language\ model|assistant)\b
    | (?:i'm\ |i\ am\ )?(?:very\ |really\ |so\ )?(?:sorry|afraid)\b
      .{0,60} \b(?:can't|cannot|can\ not|unable|not\ able|don't|do\ not)\b
    | i(?:'m|\ am)\ (?:unable|not\ able)\b
    | i\ (?:can't|cannot|can\ not|don't|do\ not)\ (?:help|assist|answer|know|have|provide|say)\b
    | unfortunately,?\ i\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_LONGEST_DECLINE_CHARS: Final = 400


def declines(text: str) -> bool:
    """Whether a short answer only says that there is none: two such are alike, and say nothing of their questions."""
    return len(text) <= _LONGEST_DECLINE_CHARS and _DECLINES.match(text.replace("’", "'")) is not None
