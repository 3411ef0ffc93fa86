"""What a cheap model's answer shows of its own quality, and whether two answers say the same. No model is asked."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.routing import arithmetic
from trimtab.routing.data import Answer

VERSION: Final = 1  # of the features below
_LONGEST_CHARS: Final = 16_384  # read of an answer; its length counts in full
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MARKED: Final = re.compile(
    r"####\s*(?P<hash>[^\n]+)|\\boxed\{(?P<boxed>[^{}]+(?:\{[^{}]*\}[^{}]*)*)\}|"
    r"\b(?:answer|result) (?:is|=|:)\s*:?\s*"
    r"(?P<said>[^\n]+?)(?=\.(?:\s|\Z)|\n|\Z)|\banswer\s*:\s*(?P<label>[^\n]+)",
    re.IGNORECASE,
)
_HEDGE: Final = re.compile(
    r"\b(?:however|assum\w+|approximately|about|not (?:clear|possible|enough|sure)|unclear|unknown|wait|actually|"
    r"rounded?|depends|might|perhaps|probably|seems?|maybe|guess|likely)\b",
    re.IGNORECASE,
)
_REFUSAL: Final = re.compile(
    r"\b(?:sorry|apologi[sz]e|as an ai|i (?:cannot|can't|am unable|don't (?:know|have))|"
    r"cannot be (?:determined|answered)|unable to|not enough information|no (?:correct|valid) (?:answer|option))\b",
    re.IGNORECASE,
)
_UNKNOWN: Final = re.compile(r"\b[a-zA-Z]\s*=|\d[a-z]\b|\b[xyz]\b")
_LONG_FRACTION: Final = re.compile(r"\d\.\d{3,}")
_FINISHED: Final = re.compile(r"[.!?)\]}\d\n*$`\"']\Z")
_COUNT_ASKED: Final = re.compile(r"\bhow many\b", re.IGNORECASE)
_DIVISIBLE_ASKED: Final = re.compile(
    r"[$€£%]|\bdollars?|\bpercent|\baverage|\bcosts?\b|\bprices?\b|\bmoney|\bfraction|\bprobab", re.IGNORECASE
)


def final_of(answer: Answer) -> str | None:
    r"""The answer itself without its reasoning, or "" if there is none; None if nothing was recorded.

    It is the recorded one, or what follows the last mark ("####", "\\boxed", "the answer is"), or the last number.
    """
    if answer.final is not None:
        return answer.final
    if answer.text is None:
        return None
    marked = list(_MARKED.finditer(answer.text))
    if marked:
        return next(group for group in marked[-1].groups() if group is not None).strip()
    numbers = _NUMBER.findall(answer.text)
    return numbers[-1] if numbers else ""


def same(one: str | None, other: str | None) -> bool | None:
    """Whether two final answers agree: as numbers if both are, else by their words. None if one of them is missing."""
    if not one or not other:
        return None
    first, second = number(one), number(other)
    if first is not None and second is not None:
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)
    return _plain(one) == _plain(other)


def number(text: str) -> float | None:
    """The one number of a final answer ("$1,200.", "75%", "12 apples"); None if there is none or several."""
    found = _NUMBER.findall(text)
    if len(found) != 1 or len(text) > len(found[0]) + 24:
        return None
    return _float(found[0])


def matrix(prompts: Sequence[str], answers: Sequence[Answer]) -> NDArray[np.float64]:
    """Features of answers to prompts, shape (len(prompts), number of features); zeros for what is not known."""
    rows = [_features(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)


def agreement(answers: Sequence[Answer], second: Sequence[Answer]) -> NDArray[np.float64]:
    """1 where the final answers agree, -1 where they do not, 0 where that cannot be said; shape (len(answers),)."""
    verdicts = [same(final_of(one), final_of(other)) for one, other in zip(answers, second, strict=True)]
    return np.array([0.0 if verdict is None else 1.0 if verdict else -1.0 for verdict in verdicts])


def warning(answer: Answer) -> float:
    """Signs that an answer is none, from 0 to 1: nothing to take from it, refused, cut off, sums that are wrong."""
    if answer.known and not final_of(answer) and (answer.final is not None or answer.text is not None):
        return 1.0
    if answer.text is None:
        return 0.0
    read = answer.text[:_LONGEST_CHARS]
    signs = (_REFUSAL.search(read), arithmetic.checked(read).wrong, not _FINISHED.search(read))
    return sum(map(bool, signs)) / (len(signs) + 1)


def _features(prompt: str, answer: Answer) -> list[float]:
    asked = _numbers(prompt)
    return [
        *_of_length(prompt, answer),
        *_of_final(prompt, asked, final_of(answer)),
        *_of_text(prompt, asked, answer.text),
    ]


def _of_length(prompt: str, answer: Answer) -> list[float]:
    chars = answer.chars if answer.chars is not None else len(answer.text or "")
    return [math.log1p(chars), math.log1p(chars) - math.log1p(len(prompt)), float(chars < 40)]


def _of_final(prompt: str, asked: Sequence[float], final: str | None) -> list[float]:
    if not final:
        return [1.0, *[0.0] * 12]
    value = number(final)
    whole = value is not None and value == int(value)
    counted = _COUNT_ASKED.search(prompt) is not None
    return [
        0.0,
        float(value is not None),
        float(whole),
        float(value is not None and value < 0),
        math.log1p(abs(value or 0.0)),
        float(len(final.strip("0$ ").replace(".", "").replace(",", ""))) if value is not None else 0.0,
        float(value is not None and value in asked),
        float(counted and value is not None and not whole),
        float(value is not None and not whole and _DIVISIBLE_ASKED.search(prompt) is None),
        float(len(final.split()) > 3),
        float(len(final) == 1 and final.isalpha()),
        float(ord(final.upper()) - 64) if len(final) == 1 and final.isalpha() and final.isascii() else 0.0,
        math.log1p(len(final)),
    ]


def _of_text(prompt: str, asked: Sequence[float], text: str | None) -> list[float]:
    if text is None:
        return [0.0] * 26
    read = text[:_LONGEST_CHARS]
    stated = _numbers(read)
    sums = arithmetic.checked(read)
    marks = list(_MARKED.finditer(read))
    final = final_of(Answer(text=read)) or ""
    value = number(final)
    hedges = len(_HEDGE.findall(read))
    return [
        1.0,
        float(bool(marks)),
        float(bool(marks) and marks[-1].end() < len(read.rstrip())),
        float(read.endswith("\n")),
        float(_FINISHED.search(read) is not None),
        math.log1p(hedges),
        float(hedges > 0),
        float(_REFUSAL.search(read) is not None),
        math.log1p(sums.right),
        float(min(sums.wrong, 3)),
        float(sums.wrong > 0),
        float(sums.right + sums.wrong == 0),
        float(sums.last is not None and value is not None and math.isclose(sums.last, value, rel_tol=1e-6)),
        float(sums.right + sums.wrong - len(asked)),
        _share_used(asked, stated),
        float(_share_used(asked, stated) < 1),
        math.log1p(len(set(stated) - set(asked))),
        math.log1p(max(map(abs, stated), default=0.0)),
        float(any(one != int(one) for one in stated)),
        float(_LONG_FRACTION.search(read) is not None),
        math.log1p(len(_UNKNOWN.findall(read))),
        math.log1p(read.count("\n")),
        math.log1p(read.count("\n\n")),
        len(zlib.compress(read.encode("utf-8", "replace"), 1)) / max(len(read), 1),
        math.log1p(len(asked)),
        math.log1p(len(prompt)),
    ]


def _share_used(asked: Sequence[float], stated: Sequence[float]) -> float:
    """Of the prompt's numbers, how many the answer takes up; 1 if there are none."""
    known = set(stated)
    return sum(one in known for one in asked) / len(asked) if asked else 1.0


def _numbers(text: str) -> list[float]:
    return [value for value in map(_float, _NUMBER.findall(text)) if value is not None]


def _float(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(text: str) -> str:
    return "".join(text.split()).casefold().strip(".$()*")
