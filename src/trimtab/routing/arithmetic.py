"""Checks the sums that an answer writes out: "4 x 125 - 2 = 498"."""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

_VALUE: Final = r"\(?-?\d[\d,]*(?:\.\d+)?%?\)?"
_SUM: Final = re.compile(
    rf"(?<![\d.,/*+=-])({_VALUE}(?:\s*[-+*/]\s*{_VALUE}){{1,12}})\s*=\s*(?:<<[^>\n]*>>)?\s*(-?\d[\d,]*(?:\.\d+)?)"
)
_TOKEN: Final = re.compile(r"\d[\d,]*(?:\.\d+)?|[-+*/()%]")
_ROUNDING: Final = 0.011  # relative; answers round to cents
_MOST: Final = 200  # sums read of one answer
_DEEPEST: Final = 20  # brackets within brackets


class Sums(msgspec.Struct, frozen=True):
    """How many of the sums written out are right and wrong, and what the last one is said to be."""

    right: int
    wrong: int
    last: float | None


def checked(text: str) -> Sums:
    """Every "a op b ... = c" with + - * / x, brackets and percent, worked out again. Currency marks are ignored."""
    plain = text.replace("\\*", "*").replace("×", "*").replace("÷", "/").replace("$", "")
    plain = re.sub(r"(?<=[\d)])\s*x\s*(?=[\d(])", " * ", plain)
    right = wrong = 0
    last = None
    for n, found in enumerate(_SUM.finditer(plain)):
        if n == _MOST:
            break
        value = evaluate(found[1])
        if value is None:
            continue
        last = float(found[2].replace(",", ""))
        if abs(value - last) <= _ROUNDING * max(1.0, abs(last)):
            right += 1
        else:
            wrong += 1
    return Sums(right, wrong, last)


def evaluate(expression: str) -> float | None:
    """The value of a sum of numbers with + - * / ( ) and %; None if it is no whole one, or divides by nothing."""
    reader = _Reader(_TOKEN.findall(expression))
    try:
        value = reader.sum(0)
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None
    return value if reader.done and math.isfinite(value) else None


class _Reader:
    """Recursive descent over tokens. Raises ValueError or IndexError where the tokens are no sum."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self._tokens)

    def sum(self, depth: int) -> float:
        value = self._product(depth)
        while not self.done and self._tokens[self._at] in "+-":
            sign = 1 if self._take() == "+" else -1
            value += sign * self._product(depth)
        return value

    def _product(self, depth: int) -> float:
        value = self._factor(depth)
        while not self.done and self._tokens[self._at] in "*/":
            if self._take() == "*":
                value *= self._factor(depth)
            else:
                value /= self._factor(depth)
        return value

    def _factor(self, depth: int) -> float:
        token = self._take()
        if depth > _DEEPEST:
            raise ValueError("too many brackets")
        if token == "-":
            return -self._factor(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if self._take() != ")":
                raise ValueError("an open bracket")
        else:
            value = float(token.replace(",", ""))
        if not self.done and self._tokens[self._at] == "%":
            self._take()
            value /= 100
        return value

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]
