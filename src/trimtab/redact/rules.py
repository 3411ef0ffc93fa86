"""What is found in a text, rule by rule: a pattern that opens a candidate, and a check that has the last word.

Time is linear in the text, whatever is in it: no pattern tries a repeat in two ways, and those that could start again
and again within one run of characters are bounded, or start only where the run begins. Patterns begin with a letter or
a class and look back from there, because then `re` skips to where they may begin (5 times as fast). Texts are searched
in windows, because a search keeps the GIL from its begin to its end, and the event loop waits for it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

PLACEHOLDER: Final = re.compile(r"\[[A-Z][A-Z_]{1,20}_[0-9]{1,9}\]")
_WINDOW: Final = 32 << 10  # characters in which one search may start
_REACH: Final = 4 << 10  # characters beyond it that a candidate may need; `accept` sees the rest of the text

Accept = Callable[[re.Match[str], int], tuple[int, int] | None]
"""From a candidate and the end of what may be looked at to the span to be replaced, or None."""


class Rule(msgspec.Struct, frozen=True):
    """One kind of finding. A text with none of `hints` in it is not searched."""

    label: str
    pattern: re.Pattern[str]
    accept: Accept
    hints: tuple[str, ...] = ()
    window: int = _WINDOW
    reach: int = _REACH
    least: int = 5  # characters of the shortest finding


class Span(msgspec.Struct, frozen=True):
    """Where something was found, and what it is."""

    start: int
    end: int
    label: str


def found(text: str, rules: tuple[Rule, ...]) -> list[Span]:
    """What the rules find, in order; findings that overlap are one, with the label of the first. Side effects: none.

    Placeholders are never looked into: what a rule would find across one is found on its sides.
    """
    wanted = [rule for rule in rules if not rule.hints or any(hint in text for hint in rule.hints)]
    if not wanted:
        return []
    spans: list[tuple[int, int, int, str]] = []
    least = min(rule.least for rule in wanted)
    for low, high in _between_placeholders(text):
        if high - low < least:
            continue
        for rank, rule in enumerate(wanted):
            if high - low >= rule.least:
                spans += [(start, -end, rank, rule.label) for start, end in _search(rule, text, low, high)]
    spans.sort()
    merged: list[Span] = []
    for start, minus_end, _, label in spans:
        if merged and start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Span(last.start, max(last.end, -minus_end), last.label)
        else:
            merged.append(Span(start, -minus_end, label))
    return merged


def _between_placeholders(text: str) -> Iterator[tuple[int, int]]:
    low = 0
    if "[" in text:
        for match in PLACEHOLDER.finditer(text):
            if match.start() > low:
                yield low, match.start()
            low = match.end()
    if low < len(text):
        yield low, len(text)


def _search(rule: Rule, text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    search, accept = rule.pattern.search, rule.accept
    at = low
    while at < high:
        last = min(at + rule.window, high)  # candidates start before it
        end = min(last + rule.reach, high)
        while (match := search(text, at, end)) is not None and match.start() < last:
            span = accept(match, high)
            if span is None or span[0] < low or span[1] <= match.start():
                at = match.start() + 1
                continue
            yield span
            at = span[1]
        at = max(at, last)


# --- what a candidate must be ----------------------------------------------------------------------------------------


def whole(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    """The match; one of no length is none."""
    return match.span() if match.end() > match.start() else None


def _group(match: re.Match[str], _end: int) -> tuple[int, int]:
    return match.span(1)


def _then(more: str, group: int = 0) -> Accept:
    """The match (or a group of it) and whatever characters of a class follow it, however many."""
    follow = re.compile(f"[{more}]*+")

    def accept(match: re.Match[str], end: int) -> tuple[int, int]:
        tail = follow.match(match.string, match.end(), end)
        return match.start(group), tail.end() if tail else match.end()

    return accept


_ASSIGNED: Final = re.compile(
    r"(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key)[\"'\\]{0,3}[ \t]{0,3}\Z", re.IGNORECASE
)


def _assigned(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    """The value, if the name before it says that it is a secret."""
    before = match.string[max(0, match.start() - 24) : match.start()]
    return match.span(1) if _ASSIGNED.search(before) else None


_ESCAPE: Final = re.compile(r"\\[nrt]")
_LOCAL_PART: Final = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}+")


def _email(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    at = match.start()
    local = _LOCAL_PART.match(match.string[max(0, at - 64) : at][::-1])  # backwards: only an @ is worth a look
    return None if local is None else (at - local.end(), match.end())


_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def _private_key(match: re.Match[str], end: int) -> tuple[int, int]:
    """To the key's end, or the text's: half a key is a secret too."""
    last = _KEY_END.search(match.string, match.end(), end)
    return match.start(), last.end() if last else end


_IBANS: Final = (  # each country's code and how long its numbers are
    "ad24 ae23 al28 at20 az28 ba20 be16 bg22 bh22 bi27 br29 by28 ch21 cr22 cy28 cz24 de22 dj27 dk18 do28 ee20 eg29 "
    "es24 fi18 fk18 fo18 fr27 gb22 ge22 gi23 gl18 gr27 gt28 hr21 hu28 ie22 il23 iq23 is26 it27 jo30 kw30 kz20 lb28 "
    "lc32 li21 lt20 lu20 lv21 ly25 mc27 md24 me22 mk19 mn20 mr27 mt31 mu30 ni28 nl18 no15 om23 pk24 pl28 ps29 pt25 "
    "qa29 ro24 rs22 ru33 sa24 sc31 sd18 se24 si19 sk24 sm27 so23 st25 sv28 tl23 tn24 tr26 ua29 va22 vg24 xk20 ye30"
)
_IBAN_LENGTHS: Final = {part[:2].upper(): int(part[2:]) for part in _IBANS.split()}


def _iban(match: re.Match[str], end: int) -> tuple[int, int] | None:
    """As long as the country's are, and the remainder by 97 is 1 (ISO 13616). The match begins at the check digits."""
    text, start = match.string, match.start() - 2
    wanted = _IBAN_LENGTHS.get(text[start : match.start()].upper(), 0)
    if not wanted or (text[start - 1 : start].isalnum() and not _ESCAPE.match(text, max(start - 2, 0))):
        return None
    taken, at = "", start
    while at < match.end() and len(taken) < wanted:
        if text[at].isalnum():
            taken += text[at]
        at += 1
    if len(taken) < wanted or (at < end and text[at].isalnum()):
        return None
    digits = "".join(str(int(mark, 36)) for mark in taken[4:] + taken[:4])
    return (start, at) if int(digits) % 97 == 1 else None


_ISSUER: Final = re.compile(r"4|5[0-9]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[0-9]|6")


def is_card(digits: str) -> bool:
    """Whether these are a payment card's: 13 to 19, with an issuer's first ones and Luhn's checksum (ISO 7812)."""
    if not 13 <= len(digits) <= 19 or not _ISSUER.match(digits):
        return False
    total = 0
    for n, mark in enumerate(reversed(digits)):
        value = int(mark) * (2 if n % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


_DIGITS: Final = re.compile(r"[0-9]+")


def _card(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    """The longest row of whole groups that is a card: other numbers may stand behind it."""
    taken, best = "", 0
    for group in _DIGITS.finditer(match.string, match.start(), match.end()):
        taken += group[0]
        if is_card(taken):
            best = group.end()
    return (match.start(), best) if best and not match.string[best : best + 1].isdecimal() else None


def _ipv4(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    return match.span() if all(int(part) < 256 for part in match[0].split(".")) else None


def _ipv6(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    if len(_HEX.findall(match[0])) < 3:
        return None  # `a[::2]`, `::1`
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return None
    return match.span()


_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
_DATE: Final = re.compile(r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}(?![0-9])")


def _with_bracket(match: re.Match[str]) -> int:
    start = match.start()
    return start - 1 if match.string[start - 1 : start] == "(" else start


def _national_phone(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    return None if _DATE.match(match.string, match.start()) else (_with_bracket(match), match.end())


def _american_phone(match: re.Match[str], _end: int) -> tuple[int, int] | None:
    text, start = match.string, _with_bracket(match)
    if text[start - 1 : start] in ("-", ".", " ", "\xa0") and text[start - 2 : start - 1].isdecimal():
        if text[start - 2] == "1" and not text[start - 3 : start - 2].isdecimal():
            return start - 2, match.end()
        if text[start - 1] in "-.":
            return None
    return start, match.end()


# --- the rules -------------------------------------------------------------------------------------------------------

_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # no letter or digit before it, but for that of an escape: \nsk-...
_RUN_EDGE: Final = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))"
_SEP: Final = r"[ \xa0.()/\u2010-\u2014-]"
_FIRST: Final = (
    r"(?<![0-9].)(?<![0-9][.,].)"  # the digit before is the first, and of no decimals; where it stands is fast
)

_KEY_HINTS: Final = (
    "sk-", "sk_", "rk-", "rk_", "pk-", "pk_", "tt-", "tt_", "gsk", "xai", "hf_", "hf-", "pplx", "glpat", "npm",
    "dop_v1", "shpat", "whsec", "github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xox", "SG.", "AIza", "ya29.",
)  # fmt: skip

MEDIA: Final = Rule(
    "MEDIA",
    re.compile(r"data:(?:[\w.+-]{1,60}/[\w.+-]{1,80})?(?:;[\w.=\"-]{1,80}){0,4};base64,"),
    _then(r"A-Za-z0-9+/=_%-"),
    (";base64,",),
)
"""Inline files as data URLs; found before anything else, because the other rules have no business in base64."""

BUILT_IN: Final = (
    Rule(
        "PRIVATE_KEY",
        re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
        _private_key,
        ("-----BEGIN ",),
    ),
    Rule("URL_LOGIN", re.compile(r"://([^\s/?#]{1,512})@"), _group, ("://",)),
    Rule("EMAIL", re.compile(r"@(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}"), _email, ("@",)),
    Rule("SECRET", re.compile(_RUN_EDGE + r"eyJ[\w-]{8,}\.[\w-]{8,}"), _then(r"\w.-"), ("eyJ",)),  # JWT
    Rule(
        "SECRET",
        re.compile(
            _EDGE + r"(?:(?:sk|rk|pk|tt|gsk|xai|hf|pplx|glpat|npm|dop_v1|shpat|whsec)[-_]|github_pat_|gh[pousr]_"
            r"|xox[abeprs]-|SG\.|AIza|ya29\.)[A-Za-z0-9_-]{16,}"
        ),
        _then(r"A-Za-z0-9_.-"),
        _KEY_HINTS,
    ),
    Rule(
        "SECRET",  # AWS access key ids
        re.compile(r"A(?:KIA|SIA|BIA|CCA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
        whole,
        ("AKIA", "ASIA", "ABIA", "ACCA"),
    ),
    Rule(
        "SECRET",
        re.compile(r"(?:[Bb]earer|BEARER|[Bb]asic)[ \t]{1,8}([A-Za-z0-9._~+/=-]{16,})"),
        _then(r"A-Za-z0-9._~+/=-", 1),
        ("earer", "BEARER", "asic"),
    ),
    Rule(
        "SECRET",  # what is assigned to a name such as password, if there is a digit in it
        re.compile(
            r"[:=](?<=[dentyDENTY\"'\\ \t].)[ \t]{0,3}[\"'\\]{0,3}(?=[^\s\"'\\,;&]{0,127}[0-9])([^\s\"'\\,;&]{8,128})"
        ),
        _assigned,
        (":", "="),
    ),
    Rule("IBAN", re.compile(r"[0-9](?<=[A-Za-z]{2}.)[0-9](?:[ \xa0-]?[A-Za-z0-9]){11,30}"), _iban),
    Rule(
        "CARD",  # in one piece, or in groups as they are printed: 4-4-4-4, 4-6-5
        re.compile(
            rf"[2-6]{_FIRST}(?:[0-9]{{12,18}}|[0-9]{{3}}[ \xa0.-][0-9]{{4,6}}[ \xa0.-][0-9]{{4,5}}"
            r"(?:[ \xa0.-][0-9]{1,4}){0,2})"
        ),
        _card,
    ),
    Rule(
        "SSN",
        re.compile(rf"[0-8]{_FIRST}[0-9]{{2}}(?<!000)(?<!666)([ \xa0-])(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}(?![0-9])"),
        whole,
    ),
    Rule("IP", re.compile(r"[0-9](?<![0-9.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9]|\.[0-9])"), _ipv4, (".",)),
    Rule(
        "IP",
        re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f:]{0,38}:(?:[0-9A-Fa-f]{1,4}|[0-9.]{7,15})?(?![\w:])"),
        _ipv6,
        (":",),
    ),
    Rule("PHONE", re.compile(rf"\+(?<![\w+].)[0-9](?:{_SEP}{{0,3}}[0-9]){{6,14}}(?![0-9])"), whole, ("+",)),
    Rule(
        "PHONE",  # 0049 30 ..., 030 ..., (030) ..., 01 23 45 67 89
        re.compile(rf"0{_FIRST}(?<![0-9][-/:].)0?[1-9](?:{_SEP}{{0,2}}[0-9]){{7,12}}(?![0-9])"),
        _national_phone,
        ("0",),
    ),
    Rule(
        "PHONE",  # (555) 123-4567, 1-555-123-4567
        re.compile(r"[2-9](?<![0-9].)[0-9]{2}(?:\)[ \xa0-]?|[-. \xa0])[0-9]{3}[-. \xa0][0-9]{4}(?![0-9])"),
        _american_phone,
    ),
)
