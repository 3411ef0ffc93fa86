"""Takes what identifies people, and secrets, out of a request's body: by patterns, before anything is written.

`Redactor` walks a body; `rules` says what is found in one text. It finds what has a form (an address, a number with a
checksum, a key with a known prefix) and cannot find what has none: names, streets, anything only a reader would know.
"""

from functools import cache

from trimtab.errors import BadRequest
from trimtab.redact.body import Redactor
from trimtab.redact.custom import pattern_problem

__all__ = ["Redactor", "identity_in", "pattern_problem"]


def identity_in(body: bytes) -> str:
    """What identifies somebody in a JSON body, such as "EMAIL"; "" if nothing, "UNREADABLE" if that cannot be said.

    It takes about 0.15 ms for 2 KB of text.
    """
    try:
        return _redactor().finding(body)
    except BadRequest:
        return "UNREADABLE"


@cache
def _redactor() -> Redactor:
    return Redactor()
