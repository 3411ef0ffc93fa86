"""Collects every mistake of one configuration, each with file, line, key, what is wrong and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

Path = tuple[str, ...]  # of keys, such as ("models", "gpt-4.1", "engine")

_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Shapes of well-known providers' secrets, and ours.
_SECRET = re.compile(r"(sk-|sk_|rk-|tt-|gsk_|xai-|hf_|pplx-|AIza|AKIA|ghp_|Bearer )[A-Za-z0-9_./+=-]{12,}")
_SECRET_NAME = re.compile(r"(.*[_-])?(api_?key|key|secret|token|password|passwd|authorization)", re.IGNORECASE)
_SHOWN_CHARS = 60


class Problem(msgspec.Struct, frozen=True):
    """One mistake; `line` is 0 where it is not known, `key` "" where it is about the file as a whole."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class Problems:
    """The mistakes found so far in one file. Lines are looked up in its text, and only when a problem needs one."""

    def __init__(self, file: str, text: str = "") -> None:
        self._file = file
        self._text = text
        self._lines: dict[Path, int] | None = None
        self._found: list[Problem] = []
        self._paths: set[Path] = set()

    def add(self, path: Path, message: str, line: int = 0) -> None:
        """Report a mistake at a key; `line` where it is known already."""
        self._paths.add(path)
        key = _printable(dotted(path))
        self._found.append(Problem(self._file, line or self._line(path), key, _printable(message)))

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, path: object) -> bool:
        """Whether exactly this key was reported already."""
        return path in self._paths

    def sorted(self) -> list[Problem]:
        """All mistakes in the order of the file's lines."""
        return sorted(self._found, key=lambda problem: problem.line)

    def _line(self, path: Path) -> int:
        if self._lines is None:
            self._lines = index_lines(self._text)
        for end in range(len(path), 0, -1):
            line = self._lines.get(path[:end])
            if line is not None:
                return line
        return 0


def dotted(path: Path) -> str:
    """A path as TOML writes it: parts joined by dots, quoted where they need it."""
    return ".".join(part if _BARE.fullmatch(part) else '"' + part.replace('"', '\\"') + '"' for part in path)


def _printable(text: str) -> str:
    """Line breaks and control characters written as escapes: a problem is one line, harmless to a terminal."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def choices(wrong: str, right: Iterable[str]) -> str:
    """The way out of a name that does not exist: the nearest one, else all of them."""
    names = sorted(set(right))
    near = nearest(wrong, names)
    if near:
        return f"did you mean {near!r}?"
    return f"choose one of: {', '.join(names)}" if names else "there is none yet"


def nearest(wrong: str, right: Iterable[str]) -> str:
    """The name that was probably meant, or ""."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in right}
    longer = [name for name in by_lower if name.startswith(f"{wrong.lower()}_")]  # a unit or a class is missing
    found = get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.6) or longer
    return by_lower[found[0]] if found else ""


def looks_secret(value: object) -> bool:
    """Whether a value has the shape of a provider's secret or of one of our keys."""
    return isinstance(value, str) and _SECRET.match(value) is not None


def names_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret."""
    return _SECRET_NAME.fullmatch(key) is not None


def shown(value: Any) -> str:
    """A value for a message: short, on one line, and never a secret."""
    if looks_secret(value):
        return "a secret (not shown)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        text = f'"{value}"' if isinstance(value, str) else str(value)
        return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else "a date or time"


_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_MULTILINE_QUOTES = ('"""', "'''")


def index_lines(text: str) -> dict[Path, int]:
    """The line of each table and key in a TOML text, counted from 1.

    Best effort: keys inside inline tables have no entry of their own, so that a caller takes their table's line.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    closing = ""  # the quotes that end an open multi-line string
    for number, line in enumerate(text.split("\n"), 1):
        if closing:
            closing = "" if closing in line else closing
            continue
        content = line.strip()
        if content.startswith("["):
            path, rest = _key(content.lstrip("["))
            if path and rest.startswith("]"):
                table = path
                _note(found, table, number)
            continue
        path, rest = _key(content)
        if path and rest.startswith("="):
            _note(found, table + path, number)
            closing = next((quotes for quotes in _MULTILINE_QUOTES if rest.count(quotes) == 1), "")
    return found


def _note(found: dict[Path, int], path: Path, number: int) -> None:
    for end in range(1, len(path) + 1):
        found.setdefault(path[:end], number)


def _key(text: str) -> tuple[Path, str]:
    """The dotted key at the start of a text, and what follows it."""
    parts: list[str] = []
    position = 0
    while match := _KEY_PART.match(text, position):
        quoted, literal, bare = match.groups()
        parts.append(bare or literal or (quoted or "").replace('\\"', '"'))
        position = match.end()
        if not text.startswith(".", position):
            break
        position += 1
    return tuple(parts), text[position:]
