"""A suite in the making: rows that would load, and a line for each thing that was left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from trimtab.evals.item import Item
from trimtab.evals.scorers import SCORERS


class Imported(msgspec.Struct, frozen=True):
    """The files of a suite by name, how many items are in it, and what was left out and why."""

    files: Mapping[str, str]
    items: int
    left_out: tuple[str, ...]


class Draft:
    """Gathers the rows of one stratum."""

    def __init__(self, tool: str, name: str) -> None:
        self.name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "imported"
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._tool = tool
        self._ids: set[str] = set()

    def skip(self, line: str) -> None:
        """Note what could not be taken over, and why; the same line only once."""
        if line not in self.left_out:
            self.left_out.append(line)

    def add(self, place: str, identity: str, asked: dict[str, Any], scoring: dict[str, Any]) -> None:
        """Take an item, unless its scorer objects: that is noted with the `place`. Ids are made unique."""
        scorer = SCORERS[scoring["scorer"]]
        messages = tuple(asked.get("messages", ())) or ({"role": "user", "content": asked["prompt"]},)
        item = Item(
            identity, self.name, messages, scoring["scorer"], scoring.get("reference"), scoring.get("options", {})
        )
        try:
            flaws = list(scorer.check(item, msgspec.convert(item.options, scorer.settings)))
        except msgspec.ValidationError as error:
            flaws = [("options", str(error))]
        if flaws:
            self.skip(f"{place}: {flaws[0][0]} {flaws[0][1]}")
            return
        unique, number = identity, 2
        while unique in self._ids:
            unique, number = f"{identity}-{number}", number + 1
        self._ids.add(unique)
        self.rows.append({"id": unique, **asked, **scoring})

    def imported(self) -> Imported:
        """The files as text."""
        quoted = json.dumps(self.name)
        toml = (
            f"[suite]\nname = {quoted}\ndescription = {json.dumps(f'Imported from {self._tool}.')}\n\n"
            f'[[strata]]\nname = {quoted}\nfile = "items.jsonl"\nsource = {json.dumps(self._tool)}\n'
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        files = {"suite.toml": toml, "items.jsonl": lines.encode("utf-8", "replace").decode()}
        return Imported(files, len(self.rows), tuple(self.left_out))


def conversation(value: Any) -> list[dict[str, Any]] | None:
    """Chat messages out of a list of them (or its JSON text), each with its role and its text; None if it is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    messages = []
    for one in value:
        if not isinstance(one, dict) or one.get("role") not in ("system", "developer", "user", "assistant"):
            return None
        text = _text(one.get("content"))
        if text is None:
            return None
        messages.append({"role": one["role"], "content": text})
    return messages


def _text(content: Any) -> str | None:
    """Text of a message, whose content may be a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(parts) if len(parts) == len(content) else None
