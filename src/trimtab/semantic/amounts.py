"""Numbers, sums of money, dates and times that an answer is, or ends in, and whether two of them are equal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from trimtab.semantic.lexical import NUMBER_WORDS

TOLERANCE: Final = 1e-6  # relative: what printing with fewer digits of a double changes, and no more

_DIGITS: Final = r"""
    \d{1,3}(?:,\d{3})+(?:\.\d+)? (?![\d,]) | \d{1,3}(?:\.\d{3})+,\d+ (?!\d) | \d{1,3}(?:[ ]\d{3})+(?:[.,]\d+)? (?!\d)
    | \d+/\d+ (?![\d/]) | \d+(?:[.,]\d+)?(?:e[-+]?\d+)? | \.\d+
"""
_CURRENCY: Final = r"[$€£¥₹]|usd|eur|gbp|jpy|inr"
_AMOUNT: Final = re.compile(
    rf"(?P<sign>[-+])?\s*(?:(?P<currency>{_CURRENCY})\s*(?P<inner>[-+])?)?(?P<number>{_DIGITS})"
    r"(?:\s*(?P<scale>thousand|million|billion|trillion|k|m|bn)\b(?!/))?"
    r"(?:\s*(?P<unit>[%°€£¥₹$]\s*[cf]?\b|[%°€£¥₹$]|[^\W\d_]+(?:/[^\W\d_]+)?))?",
    re.VERBOSE,
)
_NUMBER: Final = re.compile(rf"(?<![\w.]) [-+]? (?:{_DIGITS})", re.VERBOSE)
_SCALES: Final = {"thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12}
_UNITS: Final = {
    name: names.split()[0]
    for names in """
        % percent pct|$ usd dollar dollars|€ eur euro euros|£ gbp pound pounds quid|¥ jpy yen|₹ inr rupee rupees
        cent cents|km kilometer kilometers kilometre kilometres|m meter meters metre metres|cm centimeter centimeters
        centimetre centimetres|mm millimeter millimeters millimetre millimetres|mile miles mi|foot feet ft
        inch inches|yard yards yd|kg kilogram kilograms kilo kilos|g gram grams|mg milligram milligrams|lb lbs
        oz ounce ounces|l liter liters litre litres|ml milliliter milliliters millilitre millilitres|gallon gallons
        second seconds sec secs s|ms millisecond milliseconds|minute minutes min mins|hour hours hr hrs h
        day days|week weeks|month months|year years yr yrs|c °c celsius centigrade|f °f fahrenheit|° degree degrees
        km/h kph kmh|mph|w watt watts|kw kilowatt kilowatts|kb kilobyte kilobytes|mb megabyte megabytes
        gb gigabyte gigabytes|tb terabyte terabytes
    """.replace("\n", "|").split("|")
    for name in names.split()
}
_MONTH_NAMES: Final = """
    january february march april may june july august september october november december
"""
_MONTHS: Final = {
    name: number
    for number, month in enumerate(_MONTH_NAMES.split(), 1)
    for name in (month, month[:3], "sept" if number == 9 else month)
}
_MONTH: Final = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})",
        rf"(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<year>\d{{4}}))?",
        rf"(?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?(?P<month>{_MONTH})\.?(?:,? (?P<year>\d{{4}}))?",
        rf"(?P<month>{_MONTH})\.?,? (?P<year>\d{{4}})",
    )
)
_TIME: Final = re.compile(r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>[ap])?\.?(?(half)m\b\.?)")
_PERCENT: Final = re.compile(r"\s?(?:%|per\s?cent\b|pct\b)", re.IGNORECASE)
_RESULT: Final = re.compile(rf"=\s*[$€£¥₹]?\s*([-+]?(?:{_DIGITS}))", re.VERBOSE)
_LEAD: Final = re.compile(
    r"^(?:so,? |thus,? |therefore,? )?(?:(?:the )?(?:final |correct )?(?:answer|result|total)(?: is)?\s*[:=]?"
    r"|it(?: is|'s)|that(?: is|'s)|=)\s*"
)
_HEDGE: Final = re.compile(r"^(?:about |approximately |around |roughly |on |at |in |[~≈] ?)")
_MILLIONS: Final = re.compile(r"(?<=\d)M\b")  # "5 m" are metres
_MARK: Final = re.compile(r"####|\bfinal answer(?: is)?\b\s*:?|\banswer(?: is\b|\s*[:=])", re.IGNORECASE)
_BOXED: Final = re.compile(r"\\boxed\{([^{}]{1,80})\}")
_FRACTION: Final = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_LONGEST: Final = 80  # characters of a text that is nothing but an amount


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its unit ("" if none is said), a date ("date": year, month, day, 0 where unsaid) or a time.

    A time has the unit "time" and two values: minutes, and 1 if it is known which half of the day is meant, else 0.
    """

    values: tuple[float, ...]
    unit: str


def lone(text: str) -> Amount | None:
    """The amount that a text consists of, apart from a lead-in such as "the answer is"; None if there is more."""
    if len(text) > _LONGEST:
        return None
    text = _MILLIONS.sub(" million", _written(text))
    text = " ".join(text.lower().split()).rstrip(".!;,: ")
    if len(text) > 2 and text[0] == text[-1] == "$":  # mathematics, not money
        text = text[1:-1].strip()
    text = _HEDGE.sub("", _LEAD.sub("", text, count=1), count=1)
    return _date(text) or _time(text) or _number(text) or _words(text)


def final(text: str) -> tuple[Amount | None, bool]:
    """The amount in which a text ends, and whether the text says that it is its answer.

    It says so by being nothing else, by a mark with an amount behind it ("####", "the answer is", a box), or by ending
    in the result of its own equation ("3 * 180 = 540, so he runs 540 meters"). Otherwise it is the last number of the
    last sentence.
    """
    whole = lone(text)
    if whole is not None:
        return whole, True
    tail = _written(text[-400:])
    if boxes := _BOXED.findall(tail):
        return lone(boxes[-1]), True
    if marks := list(_MARK.finditer(tail)):
        said = lone(tail[marks[-1].end() :].strip(" \n*_:=."))
        if said is not None:
            return said, True
    sentences = [part for part in _SENTENCE_END.split(tail) if part.strip()]
    found = _NUMBER.findall(sentences[-1]) if sentences else []
    value = _value(found[-1].strip()) if found else None
    if value is None:
        return None, False
    results = (_value(result.strip()) for result in _RESULT.findall(text))
    return Amount((value,), ""), any(result is not None and close(value, result) for result in results)


def numbers(text: str) -> frozenset[float]:
    """All numbers written in digits in a text; signs are left out, since a dash may join."""
    values = (_value(found.strip(" +-")) for found in _NUMBER.findall(text))
    return frozenset(value for value in values if value is not None)


def each(text: str) -> list[Amount]:
    """The numbers written in digits in a text, in their order, with their signs; the unit is "%" or ""."""
    text = _written(text)
    found = []
    for match in _NUMBER.finditer(text):
        value = _value("".join(match[0].split()) if match[0][0] in "+-" else match[0].strip())
        if value is not None:
            found.append(Amount((value,), "%" if _PERCENT.match(text, match.end()) else ""))
    return found


def close(one: float, other: float) -> bool:
    """Whether two numbers are equal within `TOLERANCE`."""
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-12)


def equal(one: Amount, other: Amount) -> bool | None:
    """Whether two amounts say the same; None if one leaves open what the other says, or units cannot be compared."""
    if "date" in (one.unit, other.unit) or "time" in (one.unit, other.unit):
        return _equal_moments(one, other)
    (a,), (b,) = one.values, other.values
    same = close(a, b)
    if one.unit == other.unit:
        return same
    if not one.unit or not other.unit:
        percent = {one.unit, other.unit} == {"%", ""}
        if percent and (close(a, b * 100) if one.unit == "%" else close(a * 100, b)):
            return None  # 0.5 may stand for 50%, or for half a percent
        return same
    known = one.unit in _UNITS.values() and other.unit in _UNITS.values()
    return False if same and known else None


def _equal_moments(one: Amount, other: Amount) -> bool | None:
    if one.unit != other.unit:
        return None
    if one.unit == "date":
        if any(a and b and a != b for a, b in zip(one.values, other.values, strict=True)):
            return False
        return True if one.values == other.values else None
    (a, sure_a), (b, sure_b) = one.values, other.values
    if sure_a == sure_b:
        return a == b
    return None if a % 720 == b % 720 else False


def _written(text: str) -> str:
    """Plain signs for those of LaTeX, and for the minus."""
    return _FRACTION.sub(r"\1/\2", text).replace("−", "-").replace("\\$", "$").replace("\\%", "%")


def _value(number: str) -> float | None:
    sign, digits = (-1.0, number[1:]) if number[0] == "-" else (1.0, number.lstrip("+"))
    digits = digits.strip()
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", digits):
        digits = digits.replace(".", "").replace(",", ".")
    digits = digits.replace(" ", "").replace(",", ".")
    above, _, below = digits.partition("/")
    try:
        value = float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError):
        return None
    return sign * value if math.isfinite(value) else None


def _number(text: str) -> Amount | None:
    match = _AMOUNT.fullmatch(text)
    value = _value(match["number"].strip()) if match else None
    if match is None or value is None:
        return None
    if "-" in (match["sign"], match["inner"]):
        value = -value
    unit = (match["unit"] or "").replace(" ", "")
    scale, currency = match["scale"] or "", match["currency"] or ""
    if scale == "m" and not currency:  # "5 m" are metres, "$5 m" are millions
        scale, unit = "", "m"
    known = _UNITS.get(currency) or _UNITS.get(unit, unit)
    return Amount((value * _SCALES.get(scale, 1.0),), known)


def _words(text: str) -> Amount | None:
    """A number in words, with at most one word behind it: "twenty-five", "two hundred and six euros"."""
    total = current = 0.0
    seen = False
    unit = ""
    for word in text.replace("-", " ").split():
        digits = NUMBER_WORDS.get(word, "")
        if unit or not (digits or seen or word == "minus"):
            return None
        if not digits or digits.endswith("x"):
            if not seen:
                return None
            unit = "" if word == "and" else word
            continue
        seen = True
        value = float(digits)
        if value == 100:
            current = max(current, 1.0) * value
        elif value >= 1000:
            total, current = total + max(current, 1.0) * value, 0.0
        else:
            current += value
    return Amount((total + current,), _UNITS.get(unit, unit)) if seen else None


def _date(text: str) -> Amount | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            month = _MONTHS.get(parts["month"]) or int(parts["month"])
            return Amount((float(parts.get("year") or 0), float(month), float(parts.get("day") or 0)), "date")
    return None


def _time(text: str) -> Amount | None:
    match = _TIME.fullmatch(text)
    if match is None or (match["minute"] is None and match["half"] is None):
        return None
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if match["half"]:
        hour = hour % 12 + (12 if match["half"] == "p" else 0)
    return Amount((float(hour * 60 + minute), float(match["half"] is not None or hour > 12)), "time")
