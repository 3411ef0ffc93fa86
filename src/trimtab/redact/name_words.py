"""Whether words are a person's name: by lists of given names, of surnames, and of words that are neither.

`name_lists/README.md` says where the lists are from. They are read when they are first needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

_NOT_SURNAMES: Final = re.compile(r"(?:[tsc]ions?|ments?|ness|ity|ing|isms?|[ae]nce|ships?|ology|ics?|able|ible)\Z")
_LETTERS: Final = str.maketrans({"ß": "ss", "ø": "o", "ł": "l", "ı": "i", "đ": "d", "æ": "ae", "’": "'"})
"""What no decomposition makes plain."""
_BEFORE_PLACES: Final = frozenset(
    ("saint", "st", "fort", "port", "lake", "mount", "san", "santa", "hotel", "cape", "hms")
)
_COMPANIES: Final = frozenset(
    (
        "morgan stanley", "wells fargo", "charles schwab", "ralph lauren", "tommy hilfiger", "calvin klein", "mary kay",
        "merrill lynch", "edward jones", "raymond james", "dean witter", "louis vuitton", "hugo boss", "jimmy choo",
        "kate spade", "michael kors", "marc jacobs", "philip morris", "eli lilly", "harley davidson", "betty crocker",
        "jack daniel", "jack daniels", "sara lee", "trader joe", "oscar mayer", "christian dior", "paul smith",
        "johns hopkins", "carnegie mellon", "jim beam", "johnnie walker", "captain morgan", "jp morgan",
        "mercedes benz",
    )
)  # fmt: skip


class _Lists(NamedTuple):
    given: frozenset[str]
    given_also_words: frozenset[str]  # of the language, of places, of companies
    surnames: frozenset[str]
    other_words: frozenset[str]


@cache
def _lists() -> _Lists:
    folder = resources.files(__package__) / "name_lists"
    return _Lists(*(frozenset((folder / f"{name}.txt").read_text("ascii").split()) for name in _Lists._fields))


def is_surname(word: str) -> bool:
    """Whether it is in the list of surnames."""
    return _plain(word) in _lists().surnames


def generic(words: Iterable[str]) -> bool:
    """Whether any of these is a word and no name: Customer, Team, Required."""
    lists = _lists()
    return any(
        plain in lists.other_words
        and not (plain in lists.given or plain in lists.given_also_words or plain in lists.surnames)
        for plain in map(_plain, words)
    )


def known(words: list[str], *, alone: bool = True) -> bool:
    """Whether they begin with a given name, or are several with a surname at the end.

    `alone`: a given name that is a word as well, such as Grace, will do.
    """
    lists = _lists()
    if generic(words):
        return False
    first = _plain(words[0])
    if first in lists.given or (alone and first in lists.given_also_words):
        return True
    return len(words) > 1 and is_surname(words[-1])


def full_name(words: list[str]) -> bool:
    """Whether a given name and a surname follow each other, and nothing says that they name a thing.

    `words` are capitalised, as they stand in a text.
    """
    lists = _lists()
    for n, word in enumerate(words[:-1]):
        given = _plain(word)
        sure = given in lists.given
        if not (sure or given in lists.given_also_words) or word.endswith(("'s", "’s")):
            continue
        last = n + 1
        while last < len(words) - 1 and len(words[last].rstrip(".")) == 1:  # John F. Kennedy
            last += 1
        if _may_follow(word, words[last], sure=sure) and not _is_thing(words, n, last):
            return True
    return False


def _may_follow(given: str, word: str, *, sure: bool) -> bool:
    """Whether the word is the surname to a given name; if that is a word as well, only a listed one is."""
    lists = _lists()
    plain = _plain(word.rpartition("-")[2])
    listed, other = plain in lists.surnames, plain in lists.other_words
    if not sure or given.isupper() or word.isupper():
        return listed and not other and given.isupper() == word.isupper()
    return listed or not (other or len(plain) < 3 or _NOT_SURNAMES.search(plain))


def _is_thing(words: list[str], first: int, last: int) -> bool:
    """Whether it is a company, or part of the name of a place or an institution: Martin Luther King Boulevard."""
    if f"{_plain(words[first])} {_plain(words[last])}" in _COMPANIES:
        return True
    if first and _plain(words[first - 1]) in _BEFORE_PLACES:
        return True
    lists = _lists()
    behind = map(_plain, words[last + 1 : last + 3])
    return any(plain in lists.other_words and plain not in lists.surnames for plain in behind)


def _plain(word: str) -> str:
    """In lower case, without accents and a genitive; of a double name the first."""
    plain = word.lower()
    if plain.isalpha() and plain.isascii():
        return plain
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain.translate(_LETTERS)).encode("ascii", "ignore").decode()
    return plain.removesuffix("'s").rstrip(".'").partition("-")[0]
