"""What a prompt shows of its difficulty before any model has read it: some thirty numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.routing import questions

VERSION: Final = 1  # of the list below: a model fitted to another version cannot be used
LONGEST_CHARS: Final = 4096  # read of a prompt, half from either end; its length counts in full
_NUMBER: Final = re.compile(r"\d+")
_SYMBOL: Final = re.compile(r"[$\\^=+*/<>{}|]")
_CODE: Final = re.compile(
    r"```|\bdef \w+\(|\bclass \w+[:({]|\breturn\b|;\s*$|#include|\bSELECT\b|=>|\bimport \w+", re.MULTILINE
)
_FORMULA: Final = re.compile(r"\\[a-zA-Z]+|\$[^$\n]+\$")
_NEGATED: Final = re.compile(r"\b(?:not|except|least|false|incorrect|never)\b", re.IGNORECASE)
_QUANTITY: Final = re.compile(
    r"\bhow (?:many|much|long|far|old|often)\b|\bcalculat|\bcomput|\bfind\b|\bevaluate\b|\bsolve\b", re.IGNORECASE
)
_WHICH: Final = re.compile(r"\bwhich\b", re.IGNORECASE)
_FACT: Final = re.compile(r"\b(?:who|when|where|what year)\b", re.IGNORECASE)
_REASON: Final = re.compile(
    r"\b(?:why|how (?:do|does|did|can|is|are)|explain|because|prove|show that)\b", re.IGNORECASE
)
_IF: Final = re.compile(r"\b(?:if|suppose|assume|given|let)\b", re.IGNORECASE)
_RELATION: Final = re.compile(
    r"\b(?:twice|half|third|quarter|times|percent|ratio|each|every|per|more than|less than|as many)\b|%", re.IGNORECASE
)
_STATEMENTS: Final = re.compile(r"\bstatement \d|\b(?:I|II|III|IV)\b[.,)]", re.IGNORECASE)
_BLANK: Final = re.compile(r"_{2,}")
_ALL_OF: Final = re.compile(r"\b(?:all|none|both|neither) (?:of )?(?:the|these|a and b)?", re.IGNORECASE)
_NUMERIC_OPTION: Final = re.compile(r"[-+$€£(]*\d[\d.,/ %()^*+-]*.{0,12}")


def matrix(prompts: Sequence[str]) -> NDArray[np.float64]:
    """The features of prompts, one a row, shape (len(prompts), number of features); raw, on scales of their own."""
    return np.array([_features(prompt) for prompt in prompts], dtype=np.float64).reshape(len(prompts), -1)


def excerpt(prompt: str) -> str:
    """The prompt, or its two ends if it is longer than LONGEST_CHARS: the question often stands last."""
    if len(prompt) <= LONGEST_CHARS:
        return prompt
    return f"{prompt[: LONGEST_CHARS // 2]}\n{prompt[-LONGEST_CHARS // 2 :]}"


def _features(prompt: str) -> list[float]:
    question = questions.parse(excerpt(prompt))
    stem, options = question.stem.strip(), question.options
    words = stem.split()
    letters = max(len(stem), 1)
    ascii_letters = len(stem.encode("ascii", "ignore"))
    return [
        math.log1p(len(prompt)),
        math.log1p(len(stem)),
        math.log1p(len(words)),
        sum(map(len, words)) / max(len(words), 1),
        len({word.lower() for word in words}) / max(len(words), 1),
        math.log1p(stem.count("\n")),
        math.log1p(stem.count(",")),
        math.log1p(stem.count(". ")),
        sum(map(str.isupper, stem)) / letters,
        1 - ascii_letters / letters,
        sum(map(str.isdigit, stem)) / letters,
        math.log1p(len(_NUMBER.findall(stem))),
        len(_SYMBOL.findall(stem)) / letters,
        math.log1p(len(_FORMULA.findall(stem))),
        math.log1p(len(_CODE.findall(stem))),
        stem.count('"') > 1,
        "?" in stem,
        stem.endswith("?"),
        _found(_BLANK, stem),
        _found(_NEGATED, stem),
        _found(_QUANTITY, stem),
        _found(_WHICH, stem),
        _found(_FACT, stem),
        _found(_REASON, stem),
        _found(_IF, stem),
        math.log1p(len(_RELATION.findall(stem))),
        _found(_STATEMENTS, stem),
        *_of_options(options),
    ]


def _of_options(options: Sequence[str]) -> list[float]:
    """Count, mean length, spread of lengths, share with digits, share of mere numbers, whether some point at others."""
    if not options:
        return [0.0] * 6
    lengths = [len(one) for one in options]
    return [
        float(len(options)),
        math.log1p(sum(lengths) / len(lengths)),
        math.log1p(max(lengths)) - math.log1p(min(lengths)),
        sum(any(map(str.isdigit, one)) for one in options) / len(options),
        sum(_NUMERIC_OPTION.fullmatch(one) is not None for one in options) / len(options),
        float(any(_ALL_OF.match(one) for one in options)),
    ]


def _found(pattern: re.Pattern[str], text: str) -> float:
    return float(pattern.search(text) is not None)
