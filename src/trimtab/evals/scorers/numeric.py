"""Scorer of numbers: which one an answer gives, and whether it is near enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, passed
from trimtab.semantic import amounts
from trimtab.semantic.amounts import Amount

_LONGEST_CHARS: Final = 20_000  # of an answer; a number beyond is not found
_NOISE: Final = 1e-12  # what arithmetic in floats leaves
_ROUNDED: Final = 1 + 1e-9
_MOMENTS: Final = ("date", "time")
_Far = Annotated[float, Meta(ge=0, description="a number of at least 0")]


class Numeric(Struct, frozen=True):
    """Settings of "numeric"."""

    absolute: _Far = 0.0
    relative: _Far = amounts.TOLERANCE
    after: str = ""
    pick: Literal["last", "first", "only"] = "last"


def given(text: str, after: str = "", pick: str = "last") -> Amount | None:
    """The number that a text gives as its answer, or None.

    Behind the last `after` it is the first one. Otherwise it is what the text marks as its answer ("####", "the answer
    is", a box, being nothing else), and failing that the last; "first" and "only" do not look for marks.
    """
    text = text[-_LONGEST_CHARS:]
    if after:
        start = text.casefold().rfind(after.casefold())
        if start < 0:
            return None
        text, pick = text[start + len(after) :], "first"
    alone = amounts.lone(text)
    if alone is not None and alone.unit not in _MOMENTS:
        return alone
    if pick == "last":
        found, sure = amounts.final(text)
        if found is not None and sure and found.unit not in _MOMENTS:
            return found
    listed = amounts.each(text)
    if not listed or (pick == "only" and len({amount.values for amount in listed}) > 1):
        return None
    return listed[-1 if pick == "last" else 0]


def near(said: Amount, wanted: Amount, settings: Numeric) -> bool:
    """Whether two values agree within the tolerance; beside a number without a sign 12% is 0.12 as well as 12."""
    (a,), (b,) = said.values, wanted.values
    pairs = [(a, b)]
    if (said.unit == "%") != (wanted.unit == "%"):
        pairs.append((a / 100, b) if said.unit == "%" else (a, b / 100))
    return any(
        abs(one - other) <= max(settings.absolute, settings.relative * abs(other)) * _ROUNDED + _NOISE * abs(other)
        for one, other in pairs
    )


def _amount(reference: Any) -> Amount | None:
    if isinstance(reference, bool):
        return None
    if isinstance(reference, int | float):
        return Amount((float(reference),), "") if math.isfinite(reference) else None
    if not isinstance(reference, str):
        return None
    found = amounts.lone(reference)
    return None if found is None or found.unit in _MOMENTS else found


def _check(item: Item, _settings: Numeric) -> Iterable[Flaw]:
    if item.reference is None:
        yield "reference", 'is missing; scorer "numeric" needs a number'
    elif _amount(item.reference) is None:
        yield "reference", 'must be a number, or a text that is one, such as "3/4", "12%" or "1,200"'


def _score(item: Item, settings: Numeric, answer: Answer) -> Score:
    wanted = _amount(item.reference)
    assert wanted is not None  # checked when the suite was read
    said = given(answer.text, settings.after, settings.pick)
    if said is None:
        where = f' after "{settings.after}"' if settings.after else ""
        return Score(0.0, f"no number found{where}")
    return passed(near(said, wanted, settings), f"said {said.values[0]:g}, wanted {wanted.values[0]:g}")


SCORERS: Final[dict[str, Scorer]] = {
    "numeric": Scorer(
        "The number that the answer gives is the reference; thousands separators, fractions and percents are read.",
        "a number, or a text that is one", Numeric,
        {
            "absolute": "how far off it may be (default 0)",
            "relative": f"how far off it may be, as a share of the reference (default {amounts.TOLERANCE:g})",
            "after": "a marker; the first number behind its last occurrence counts",
            "pick": '"last" (default: the one marked as the answer, else the last), "first", or "only" (all are equal)',
        },
        _check, _score,
    )
}  # fmt: skip
