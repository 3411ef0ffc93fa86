"""Takes what identifies people, and secrets, out of a request's body: by patterns, before anything is written.

`Redactor` walks a body; `rules` says what is found in one text. It finds what has a form (an address, a number with a
checksum, a key with a known prefix) and cannot find what has none: names, streets, anything only a reader would know.
"""

import re
from functools import cache
from typing import Final

from trimtab.errors import BadRequest
from trimtab.redact.body import Redactor
from trimtab.redact.custom import pattern_problem
from trimtab.redact.rules import BUILT_IN, MEDIA, found

_RULES: Final = (MEDIA, *BUILT_IN)
_HINTED: Final = tuple(rule for rule in _RULES if rule.hints)  # what the others find has a digit in it
_DIGIT: Final = re.compile("[0-9]")

__all__ = ["Redactor", "identity_in", "identity_in_text", "pattern_problem"]


def identity_in(body: bytes) -> str:
    """What identifies somebody in a JSON body, such as "EMAIL"; "" if nothing, "UNREADABLE" if that cannot be said.

    It takes about 0.15 ms for 2 KB of text.
    """
    try:
        return _redactor().finding(body)
    except BadRequest:
        return "UNREADABLE"


def identity_in_text(text: str) -> str:
    """What identifies somebody in one text, such as "EMAIL"; "" if nothing."""
    spans = found(text, _RULES if _DIGIT.search(text) else _HINTED)
    return spans[0].label if spans else ""


@cache
def _redactor() -> Redactor:
    return Redactor()
