"""Takes what identifies people, and secrets, out of a request's body: by patterns, before anything is written.

`Redactor` walks a body; `rules` says what is found in one text. It finds what has a form (an address, a number with a
checksum, a key with a known prefix) and cannot find what has none: names, streets, anything only a reader would know.
"""

from trimtab.redact.body import Redactor
from trimtab.redact.custom import pattern_problem

__all__ = ["Redactor", "pattern_problem"]
