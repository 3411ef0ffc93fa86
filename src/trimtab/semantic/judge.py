"""Whether two answers are equivalent: could the one be served where the other was asked for?

A judge says same, different or unknown, never more than it can read from the texts; unknown is no evidence either way.
`cascade` asks judges in turn, the sure and cheap ones first. An empty answer says nothing about what was asked: every
judge leaves it unknown. Work is bounded: beyond `LONGEST_CHARS` an answer is only compared whole, or as JSON, or found
different by its beginning; "same" is never said of text that was not read.
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.semantic import amounts, lexical
from trimtab.semantic.embed import Embedder

LONGEST_CHARS: Final = 4000
LONGEST_JSON_CHARS: Final = 100_000
# For the accurate embedder, measured by bench/judge.py. A false "same" hides a wrong hit from the promise, a false
# "different" only costs hits: so the upper limit is strict (about one in a hundred near statements that differ is
# called same), and the lower one lies where hardly any rewording was found.
SAME_AT: Final = 0.92
DIFFERENT_AT: Final = 0.5
_PIECE_CHARS: Final = 1000  # about the 256 tokens that the accurate embedder reads
_KEPT_VECTORS: Final = 4096
_GUARDED_WORDS: Final = 40  # in longer answers an opposite somewhere says little about the whole
_NEGATED_WORDS: Final = 12  # in longer ones "fails" may as well be "unsuccessful": a doubt, no proof
_FORMS_OF_ONE: Final = 0.4  # by trigrams: "Japan" and "Japanese" have 0.62

_FENCE: Final = re.compile(r"\A\s*```[\w+-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_LINE_MARKS: Final = re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+•]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_LIST_NUMBERS: Final = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+", re.MULTILINE)
_SPAN_MARKS: Final = re.compile(r"`+|~~|(?<!\w)[*_]+(?=\S)|(?<=\S)[*_]+(?!\w)")
_LINK: Final = re.compile(r"\[([^\][]*)\]\((?:[^()\s]*)\)")
_IDENTIFIER: Final = re.compile(r"\w+_\w+")
_CLOSING: Final = " .。…;:,\"'“”‘’«»"
_OPENING: Final = re.compile(r"\W*([^\W\d_]+)(?:\s+([^\W\d_]+))?")
_YES: Final = frozenset(
    ("yes", "yeah", "yep", "yup", "certainly", "absolutely", "definitely", "correct", "true", "right", "indeed")
)
_NO: Final = frozenset(("no", "nope", "never", "false", "incorrect", "wrong"))
_POLITE: Final = frozenset(("problem", "problems", "worries", "worry", "doubt", "trouble", "idea", "matter", "one"))


class Outcome(StrEnum):
    """What a judge says of two answers."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's word on one pair, and the judge's name.

    `score` is 0 (different) to 1 (same): for embeddings the cosine, else 1, 0, or 0.5 for unknown.
    """

    outcome: Outcome
    judge: str
    score: float

    @property
    def same(self) -> bool | None:
        """Whether they are the same; None where that is unknown."""
        return None if self.outcome is Outcome.UNKNOWN else self.outcome is Outcome.SAME


class Judge(Protocol):
    """Compares a fresh answer with cached ones. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """What its verdicts call it."""
        ...

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """A verdict for each cached answer, in their order. Never raises for any text."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Cosines: at or above `same_at` two answers are the same, at or below `different_at` different.

    Raises ValueError unless -1 <= different_at < same_at; a `same_at` above 1 never says same.
    """

    same_at: float = SAME_AT
    different_at: float = DIFFERENT_AT

    def __post_init__(self) -> None:
        if not -1 <= self.different_at < self.same_at:
            raise ValueError("different_at must be at least -1 and less than same_at")


def verdict(judge: str, same: bool | None) -> Verdict:
    """A verdict without a scale of its own; None is unknown."""
    if same is None:
        return Verdict(Outcome.UNKNOWN, judge, 0.5)
    return Verdict(Outcome.SAME if same else Outcome.DIFFERENT, judge, float(same))


def plain(text: str) -> str:
    """The text in NFKC without Markdown's marks and list numbers, whitespace made single; case and order stay.

    Raised digits get a caret, so that 10² does not become 102.
    """
    if not text.isascii():
        text = "".join(_spelled(char) for char in text)
        text = unicodedata.normalize("NFKC", text)
    text = _LINK.sub(r"\1", _LINE_MARKS.sub("", text))
    return " ".join(_SPAN_MARKS.sub("", text).split())


def _spelled(char: str) -> str:
    kind = unicodedata.decomposition(char)
    if kind.startswith("<super>") and char.isdigit():
        return "^" + char
    return " " + char if kind.startswith("<fraction>") else char


class ExactJudge:
    """Same if equal but for Unicode form, case, whitespace, Markdown marks and closing punctuation; else unknown.

    Code and JSON keep their case and marks. Answers beyond `LONGEST_CHARS` have to be equal to the letter.
    """

    name = "exact"

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """See `Judge.compare`."""
        ours = _level(fresh)
        return [verdict(self.name, self._same(fresh, ours, other)) for other in cached]

    @staticmethod
    def _same(fresh: str, ours: str, other: str) -> bool | None:
        if not ours:
            return None
        if fresh == other:
            return True
        if max(len(fresh), len(other)) > LONGEST_CHARS:
            return None
        return True if _level(other) == ours else None


def _level(text: str) -> str:
    if len(text) > LONGEST_CHARS:
        return text.strip()
    if "```" in text or text.lstrip()[:1] in ("{", "["):
        return text.strip()
    level = plain(text).casefold().rstrip(_CLOSING).lstrip("\"'“‘«")
    if level[-1:] in ("!", "?") and not level[-2:-1].isdigit():  # 5! is not 5
        level = level.rstrip("!?" + _CLOSING)
    return level or text.strip()  # an answer of nothing but punctuation


class StructuredJudge:
    """Same if both are JSON objects or arrays of equal value, different if of another; unknown unless both are.

    The order of keys, whitespace, a code fence around it, and 1 against 1.0 make no difference.
    """

    name = "structured"

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """See `Judge.compare`."""
        ours = _structure(fresh)
        if ours is None:
            return [verdict(self.name, None) for _ in cached]
        return [verdict(self.name, self._same(ours, _structure(other))) for other in cached]

    @staticmethod
    def _same(ours: Any, theirs: Any) -> bool | None:
        if theirs is None:
            return None
        try:
            return _equal(ours, theirs)
        except RecursionError:
            return None


def _structure(text: str) -> Any:
    """The value of a text that is a JSON object or array, else None."""
    if len(text) > LONGEST_JSON_CHARS:
        return None
    match = _FENCE.match(text)
    body = match[1].strip() if match else text.strip()
    if body[:1] not in ("{", "["):
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, bool) or isinstance(other, bool):  # True == 1 in Python only
        return one is other
    return bool(one == other)


class NumericJudge:
    """Compares what answers amount to: numbers, sums, dates, times (see `amounts`).

    Two answers that are amounts, or name one as their result, are the same if these are equal and different if not.
    Running text is different if its numbers differ, and never the same by its numbers alone.
    """

    name = "numeric"

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """See `Judge.compare`."""
        ours = _Read(fresh)
        return [verdict(self.name, self._same(ours, _Read(other))) for other in cached]

    @staticmethod
    def _same(ours: _Read, theirs: _Read) -> bool | None:
        if ours.final is None or theirs.final is None:
            return None
        equal = amounts.equal(ours.final, theirs.final)
        if ours.sure and theirs.sure:
            return equal
        if ours.sure or theirs.sure:
            sure, loose = (ours, theirs) if ours.sure else (theirs, ours)
            if equal or equal is None:
                return equal
            said = sure.final.values[0] if sure.final is not None else 0.0
            return None if any(amounts.close(abs(said), number) for number in loose.numbers) else False
        return False if _apart(ours.numbers, theirs.numbers) else None


class _Read:
    """What the numeric judge sees of an answer; nothing of a long one."""

    __slots__ = ("final", "numbers", "sure")

    def __init__(self, text: str) -> None:
        self.final: amounts.Amount | None = None
        self.sure = False
        self.numbers: frozenset[float] = frozenset()
        if len(text) <= LONGEST_CHARS:
            text = _LIST_NUMBERS.sub("", text)
            self.final, self.sure = amounts.final(text)
            self.numbers = amounts.numbers(text)


def _apart(one: frozenset[float], other: frozenset[float]) -> bool:
    """Whether each text has a number that the other lacks: one that only says more is not yet different."""
    return any(all(not amounts.close(a, b) for b in other) for a in one) and any(
        all(not amounts.close(a, b) for a in one) for b in other
    )


class EmbeddingJudge:
    """Cosine of the answers' embeddings, with words as guards: what they contradict is not the same, however near.

    Contradictions: a yes against a no, other numbers, opposites, a negation on one side, two unlike single words.
    Keeps the vectors of the last 4,096 answers (6 MB with 384 dimensions), found by a hash of the text, since cached
    answers are compared again and again. A text counts up to `LONGEST_CHARS`, as the mean of pieces of 1,000.
    """

    name = "embedding"

    def __init__(self, embedder: Embedder, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._embedder = embedder
        self._vectors: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """See `Judge.compare`. Embeds what it has not met lately in one call, outside of its lock."""
        vectors = self._embed([fresh, *cached])
        ours = _Words(fresh)
        return [
            self._judge(ours, _Words(other), float(vectors[0] @ vector))
            for other, vector in zip(cached, vectors[1:], strict=True)
        ]

    def _judge(self, ours: _Words, theirs: _Words, cosine: float) -> Verdict:
        same: bool | None = None
        if ours.empty or theirs.empty:
            pass
        elif _unlike_words(ours, theirs) and cosine < self.limits.same_at:
            same = False
        elif cosine <= self.limits.different_at:
            # "France" and "in north-western France" are far apart, yet the one holds all the words of the other.
            same = None if _within(ours, theirs) else False
        elif _opposed(ours, theirs):
            same = False
        elif cosine >= self.limits.same_at and not ours.cut and not theirs.cut:
            contradict = _contradict(ours, theirs)
            same = None if contradict is None else not contradict
        outcome = verdict(self.name, same).outcome
        return Verdict(outcome, self.name, min(max(cosine, 0.0), 1.0))

    def _embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        raw = [text[:LONGEST_CHARS].encode("utf-8", "replace") for text in texts]  # tokenizers refuse lone surrogates
        keys = [hashlib.blake2b(text, digest_size=16).digest() for text in raw]
        with self._lock:
            known = {key: self._vectors[key] for key in keys if key in self._vectors}
        missing = {key: text.decode() for key, text in zip(keys, raw, strict=True) if key not in known}
        if missing:
            pieces = [_pieces(text) for text in missing.values()]
            rows = iter(self._embedder.embed([piece for some in pieces for piece in some]))
            for key, some in zip(missing, pieces, strict=True):
                total = np.stack([next(rows) for _ in some]).sum(axis=0)
                known[key] = total / max(float(np.linalg.norm(total)), 1e-12)
        with self._lock:
            for key in keys:
                self._vectors[key] = known[key]
                self._vectors.move_to_end(key)
            while len(self._vectors) > _KEPT_VECTORS:
                self._vectors.popitem(last=False)
        return [known[key] for key in keys]


def _pieces(text: str) -> list[str]:
    return [text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS)] or [""]


class _Words:
    """What the guards see of an answer."""

    __slots__ = ("cut", "empty", "identifiers", "opening", "profile")

    def __init__(self, text: str) -> None:
        self.cut = len(text) > LONGEST_CHARS
        self.empty = not text.strip()
        level = plain(text[:LONGEST_CHARS])
        self.profile = lexical.profile(level)
        self.identifiers = frozenset(_IDENTIFIER.findall(level))
        self.opening = _opening(level)


def _opening(text: str) -> bool | None:
    """True if an answer opens with a yes, False with a no, None with neither."""
    match = _OPENING.match(text.casefold())
    if match is None or (match[1] in _NO and match[2] in _POLITE):
        return None
    return True if match[1] in _YES else False if match[1] in _NO else None


def _contradict(ours: _Words, theirs: _Words) -> bool | None:
    """Whether words show that two near answers differ; None if they cast a doubt."""
    one, other = ours.profile, theirs.profile
    if lexical.number_mismatch(one, other) == 1.0:
        return True
    if ours.identifiers - theirs.identifiers and theirs.identifiers - ours.identifiers:
        return None
    words = max(len(one.stems), len(other.stems))
    if words > _GUARDED_WORDS:
        return False
    if lexical.antonyms(one, other) == 1.0:
        return True
    if one.negated != other.negated:
        return True if words <= _NEGATED_WORDS else None
    return False


def _opposed(ours: _Words, theirs: _Words) -> bool:
    return ours.opening is not None and theirs.opening is not None and ours.opening != theirs.opening


def _unlike_words(ours: _Words, theirs: _Words) -> bool:
    """Whether both answers are one word, as a classifier's are, and no two forms of one."""
    one, other = ours.profile, theirs.profile
    if len(one.stems) != 1 or len(other.stems) != 1 or (ours.opening is not None and ours.opening == theirs.opening):
        return False
    return lexical.trigram_dice(one, other) < _FORMS_OF_ONE


def _within(ours: _Words, theirs: _Words) -> bool:
    one, other = ours.profile.content, theirs.profile.content
    return bool(one and other) and (one <= other or other <= one)


class Cascade:
    """Judges in turn: of each cached answer, the first verdict that is not unknown, else the last judge's unknown."""

    name = "cascade"

    def __init__(self, judges: Sequence[Judge]) -> None:
        if not judges:
            raise ValueError("a cascade needs a judge")
        self._judges = tuple(judges)

    def compare(self, fresh: str, cached: Sequence[str]) -> list[Verdict]:
        """See `Judge.compare`; verdicts carry the name of the judge that decided. A later judge sees what is open."""
        found = [verdict(self.name, None)] * len(cached)
        left = [n for n, other in enumerate(cached) if fresh.strip() and other.strip()]
        for judge in self._judges:
            if not left:
                break
            for n, word in zip(left, judge.compare(fresh, [cached[n] for n in left]), strict=True):
                found[n] = word
            left = [n for n in left if found[n].outcome is Outcome.UNKNOWN]
        return found


def cascade(embedder: Embedder, limits: Limits | None = None) -> Cascade:
    """The usual cascade: exact, structured, numeric, embedding."""
    return Cascade((ExactJudge(), StructuredJudge(), NumericJudge(), EmbeddingJudge(embedder, limits)))
