"""Reads suite.toml and its JSONL files into a Suite; every mistake is kept, with its file and line."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from trimtab.config.decode import decode
from trimtab.config.problems import Path as Key
from trimtab.config.problems import Problem, Problems, choices, index_lines
from trimtab.evals.item import Item, Suite
from trimtab.evals.rows import Defaults, Head, Row, Stratum, check_messages, check_request, check_stratum, check_tools
from trimtab.evals.scorers import SCORERS

_STRATUM: Final = re.compile(r"^\s*\[\[\s*strata\s*\]\]")
_TOML_LINE: Final = re.compile(r"\(at line (\d+)")


def read(file: Path) -> tuple[Suite | None, list[Problem]]:
    """The suite, or its problems: exactly one of the two is there."""
    return _Reader(file).suite()


class _Reader:
    def __init__(self, file: Path) -> None:
        self.file = file
        self._hash = hashlib.sha256()
        self.problems: list[Problem] = []
        self.ids: dict[str, str] = {}

    def suite(self) -> tuple[Suite | None, list[Problem]]:
        text = self._text(self.file, "")
        document = self._document(text) if text is not None else None
        if text is None or document is None:
            return None, self.problems
        found = Problems(str(self.file), text)
        head = decode(Head, document.get("suite"), ("suite",), found) if "suite" in document else None
        if "suite" not in document:
            found.add((), 'has no table [suite]; add it, with name = "..."', 1)
        for key in document:
            if key not in ("suite", "defaults", "strata"):
                found.add((key,), f"unknown table; {choices(key, ('suite', 'defaults', 'strata'))}")
        defaults = decode(Defaults, document.get("defaults", {}), ("defaults",), found) or Defaults()
        check_request(defaults.request, ("defaults", "request"), found)
        self.problems += found.sorted()
        items = self._strata(document.get("strata"), text, defaults)
        if self.problems or head is None:
            return None, self.problems
        return Suite(head.name, head.description, head.license, tuple(items), self._hash.hexdigest()), []

    def _text(self, path: Path, key: str, line: int = 0) -> str | None:
        place = (str(self.file), line, key) if key else (str(path), 0, "")
        name = f"{path.name} " if key else ""
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            self.add(*place, f"{name}cannot be read: {error.strerror}; correct the path or its permissions")
            return None
        except UnicodeDecodeError as error:
            number = data[: error.start].count(b"\n") + 1
            self.add(str(path), number, "", f"is not UTF-8 text (byte {error.start} of the file); save it so")
            return None
        self._hash.update(f"{path.name}\0{len(data)}\0".encode())
        self._hash.update(data)
        return text

    def add(self, file: str, line: int, key: str, message: str) -> None:
        """Report once: what is wrong with a stratum's options is wrong for each of its items."""
        found = Problem(file, line, key, message)
        if found not in self.problems:
            self.problems.append(found)

    def _document(self, text: str) -> dict[str, Any] | None:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            place = _TOML_LINE.search(str(error))
            line = int(place[1]) if place else text.rstrip().count("\n") + 1
            self.add(str(self.file), line, "TOML", f"{error}; correct it there")
            return None

    def _strata(self, tables: Any, text: str, defaults: Defaults) -> list[Item]:
        if not isinstance(tables, list) or not tables:
            self.add(str(self.file), 0, "strata", 'is missing; add [[strata]] with name = "..." and file = "x.jsonl"')
            return []
        items: list[Item] = []
        names: set[str] = set()
        for table, (line, lines) in zip(tables, _places(text, len(tables)), strict=True):
            found = Problems(str(self.file))
            stratum = decode(Stratum, table, ("strata",), found)
            if stratum is not None:
                check_stratum(stratum, names, found)
                names.add(stratum.name)
            for one in found.sorted():
                self.add(one.file, _line_of(one.key, lines, line), one.key, one.message)
            if stratum is not None:
                items += _StratumReader(self, stratum, defaults, line, lines).items()
        return items

    def stratum_text(self, stratum: Stratum, line: int) -> str | None:
        path = self.file.parent / stratum.file
        if not path.resolve().is_relative_to(self.file.parent.resolve()):
            message = f'"{stratum.file}" lies outside the suite\'s folder; move it in'
            self.add(str(self.file), line, "strata.file", message)
            return None
        return self._text(path, "strata.file", line)


class _StratumReader:
    """The items of one stratum; problems go to the reader of the suite."""

    def __init__(self, suite: _Reader, stratum: Stratum, defaults: Defaults, line: int, lines: dict[Key, int]) -> None:
        self._suite = suite
        self._stratum = stratum
        self._defaults = defaults
        self._line = line
        self._lines = lines

    def items(self) -> list[Item]:
        line = self._lines.get(("strata", "file"), self._line)
        text = self._suite.stratum_text(self._stratum, line)
        if text is None:
            return []
        file = str(self._suite.file.parent / self._stratum.file)
        rows = [(number, one) for number, one in enumerate(text.split("\n"), 1) if one.strip()]
        if not rows:
            message = f'stratum "{self._stratum.name}" is empty: {file} has no item; add some, or take it out'
            self._suite.add(str(self._suite.file), self._line, "strata", message)
        return [item for number, one in rows if (item := self._item(one, file, number)) is not None]

    def _item(self, text: str, file: str, line: int) -> Item | None:
        before = len(self._suite.problems)
        try:
            table = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        except RecursionError:
            self._suite.add(file, line, "", "is nested too deeply")
            return None
        except ValueError as error:
            self._suite.add(file, line, "", f"is no JSON object on one line: {error}")
            return None
        found = Problems(file)
        if not isinstance(table, dict):
            self._suite.add(file, line, "", 'must be a JSON object such as {"id": "1", "prompt": "..."}')
            return None
        row = decode(Row, table, (), found)
        item = None
        if row is not None:
            self._check_row(row, table, found, f"{Path(file).name}:{line}")
            item = self._made(row, found)
        for one in found.sorted():
            self._suite.add(one.file, line, one.key, one.message)
        return item if len(self._suite.problems) == before else None

    def _check_row(self, row: Row, table: dict[str, Any], found: Problems, place: str) -> None:
        if "id" not in table:
            found.add(("id",), 'is missing; add "id": "...", unique in the suite')
        elif ("id",) in found:
            pass
        elif not row.id.strip():
            found.add(("id",), "is empty; give a name that is unique in the suite")
        elif first := self._suite.ids.get(row.id):
            found.add(("id",), f'"{row.id}" is there already, at {first}; ids are unique in the suite')
        else:
            self._suite.ids[row.id] = place
        if "prompt" not in table and "messages" not in table:
            found.add(("prompt",), 'is missing; add "prompt": "..." or "messages": [...]')
        elif "prompt" in table and "messages" in table:
            found.add(("prompt",), 'is there beside "messages"; take one out')
        elif "prompt" in table and not row.prompt.strip() and ("prompt",) not in found:
            found.add(("prompt",), "is empty; say what to ask")
        if "messages" in table and "prompt" not in table and ("messages",) not in found:
            check_messages(row.messages, found)
        check_request(row.request, ("request",), found)
        check_tools(row.tools, found)

    def _made(self, row: Row, found: Problems) -> Item | None:
        name = self._stratum.scorer if row.scorer is None else row.scorer
        if not name:
            found.add(("scorer",), "is missing; name one here or in the stratum")
            return None
        if name not in SCORERS:
            if row.scorer is not None:
                found.add(("scorer",), f'"{name}" is unknown; {choices(name, SCORERS)}')
            return None  # an unknown scorer of the stratum is reported there
        own = row.scorer not in (None, self._stratum.scorer)
        options = row.options if own else {**self._stratum.options, **row.options}
        item = Item(
            id=row.id, stratum=self._stratum.name, messages=self._messages(row), scorer=name, reference=row.reference,
            options=options, tools=tuple(row.tools), weight=self._stratum.weight if row.weight is None else row.weight,
            request={**self._defaults.request, **self._stratum.request, **row.request},
        )  # fmt: skip
        self._check_scoring(item, row, found)
        return item

    def _messages(self, row: Row) -> tuple[dict[str, Any], ...]:
        messages = tuple(row.messages) or self._asked(row)
        stratum = self._stratum.system
        system = row.system if row.system is not None else stratum if stratum is not None else self._defaults.system
        if not system or messages[0].get("role") in ("system", "developer"):
            return messages
        return ({"role": "system", "content": system}, *messages)

    def _asked(self, row: Row) -> tuple[dict[str, Any], ...]:
        """The prompt as a conversation, with the examples before it as turns of their own."""
        examples = self._stratum.examples if row.examples is None else row.examples
        turns = [(("user", question), ("assistant", answer)) for question, answer in examples]
        spoken = [one for turn in turns for one in turn] + [("user", row.prompt)]
        return tuple({"role": role, "content": text} for role, text in spoken)

    def _check_scoring(self, item: Item, row: Row, found: Problems) -> None:
        scorer = SCORERS[item.scorer]
        own = Problems("")
        settings = decode(scorer.settings, item.options, ("options",), own)
        flaws = [(one.key, one.message) for one in own.sorted()]
        if not flaws and settings is not None:
            flaws = list(scorer.check(item, settings))
        inherited = item.options.keys() - row.options.keys()
        for key, message in flaws:
            path = tuple(key.split("."))
            if path[0] == "options" and path[-1] in inherited:
                line = _line_of(f"strata.{key}", self._lines, self._line)
                self._suite.add(str(self._suite.file), line, f"strata.{key}", message)
            else:
                found.add(path, message)


def _line_of(key: str, lines: dict[Key, int], table: int) -> int:
    """The line of a stratum's key, or of the table that it is in; `table` is that of the stratum."""
    path = tuple(key.split("."))
    return next((lines[path[:n]] for n in (3, 2) if path[:n] in lines), table)


def _places(text: str, count: int) -> list[tuple[int, dict[Key, int]]]:
    """For each [[strata]] table its line and the lines of its keys; line 0 where they are written in another way."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if _STRATUM.match(line)]
    if len(starts) != count:
        return [(index_lines(text).get(("strata",), 0), {})] * count
    ends = [*starts[1:], len(lines)]
    return [
        (start + 1, {key: line + start for key, line in index_lines("\n".join(lines[start:end])).items()})
        for start, end in zip(starts, ends, strict=True)
    ]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'"{next(key for key in keys if keys.count(key) > 1)}" is there twice; take one out')
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
