"""Recorded outcomes of several models on the same prompts, read from a folder."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest
from trimtab.routing import questions

Floats = NDArray[np.float64]

PROMPTS: Final = "prompts.jsonl.gz"
SCORES: Final = "scores.csv.gz"
PREDS: Final = "preds.csv.gz"
OUTCHARS: Final = "outchars.csv.gz"


class Prompt(msgspec.Struct, frozen=True):
    """One line of the prompts' file. The responses are those of the first and of the second model of the scores."""

    id: str
    prompt: str
    category: str = ""
    weak_response: str | None = None
    strong_response: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What is known of one model's answer: its text, the answer taken from it, its length. None where not recorded."""

    text: str | None = None
    final: str | None = None
    chars: int | None = None

    @property
    def known(self) -> bool:
        """Whether anything is."""
        return self.text is not None or self.final is not None or self.chars is not None


class Outcomes(msgspec.Struct, frozen=True):
    """Prompts x models: scores (0 to 1, NaN where a model was not asked), and answers where the folder has them."""

    folder: Path
    prompts: tuple[Prompt, ...]
    models: tuple[str, ...]
    scores: Any  # Floats, shape (prompts, models)
    preds: Mapping[str, tuple[str, ...]]
    outchars: Mapping[str, tuple[int | None, ...]]

    def column(self, model: str) -> Floats:
        """A model's scores, shape (prompts,). Raises BadRequest that lists the folder's models."""
        if model not in self.models:
            known = ", ".join(sorted(self.models))
            raise BadRequest(f"{self.folder} has no model {model!r}; it has: {known}", param="model")
        column: Floats = self.scores[:, self.models.index(model)]
        return column

    def answers(self, model: str) -> list[Answer]:
        """A model's answers, one a prompt, as far as they were recorded."""
        self.column(model)
        place = self.models.index(model)
        texts: Sequence[str | None] = [None] * len(self.prompts)
        if place < 2:
            texts = [one.weak_response if place == 0 else one.strong_response for one in self.prompts]
        finals: Sequence[str | None] = self.preds.get(model) or [None] * len(self.prompts)
        chars: Sequence[int | None] = self.outchars.get(model) or [None] * len(self.prompts)
        return [
            Answer(text, final, len(text) if count is None and text is not None else count)
            for text, final, count in zip(texts, finals, chars, strict=True)
        ]

    def keys(self) -> list[str]:
        """What makes the prompts the same question as others, here and in other folders."""
        return [questions.key(one.prompt) for one in self.prompts]


def read(folder: Path) -> Outcomes:
    """The outcomes in a folder. Raises BadRequest that names the file and the first bad line."""
    if not folder.is_dir():
        raise BadRequest(f"{folder} is no folder; it should hold {PROMPTS} and {SCORES}", param="data")
    prompts = _prompts(folder / PROMPTS)
    ids = [one.id for one in prompts]
    models, rows = _table(folder / SCORES, ids)
    if not models:
        raise BadRequest(f"{folder / SCORES}, line 1: no models; it should be ',MODEL,MODEL,...'", param="data")
    scores = np.array([[_score(cell, folder / SCORES, line) for cell in row] for line, row in rows]).reshape(
        len(ids), len(models)
    )
    return Outcomes(
        folder,
        tuple(prompts),
        tuple(models),
        scores,
        _columns(folder / PREDS, ids, lambda cell, path, line: cell.strip()),
        _columns(folder / OUTCHARS, ids, _count),
    )


def join(data: Outcomes, other: Outcomes) -> list[int | None]:
    """For each prompt of `data` the row of `other` that asks the same question; None where there is none.

    The whole text counts first; where only the question without its options agrees, it must be one of a kind.
    """
    whole: dict[str, int] = {}
    by_key: dict[str, list[int]] = {}
    for row, (prompt, name) in enumerate(zip(other.prompts, other.keys(), strict=True)):
        whole.setdefault(_squeezed(prompt.prompt), row)
        by_key.setdefault(name, []).append(row)
    found: list[int | None] = []
    for prompt, name in zip(data.prompts, data.keys(), strict=True):
        rows = by_key.get(name, [])
        alone = rows[0] if len(rows) == 1 else None
        found.append(whole.get(_squeezed(prompt.prompt), alone))
    return found


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise BadRequest(f"{path} cannot be read: {error}", param="data") from error
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadRequest(f"{path}, line {line}: not UTF-8", param="data") from error
    yield from enumerate(io.StringIO(text, newline="\n"), 1)


def _prompts(path: Path) -> list[Prompt]:
    decoder = msgspec.json.Decoder(Prompt)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            prompt = decoder.decode(line)
        except msgspec.MsgspecError as error:
            shape = '{"id": "...", "prompt": "..."}'
            raise BadRequest(f"{path}, line {number}: {error}; a line should be {shape}", param="data") from error
        if prompt.id in seen:
            raise BadRequest(f"{path}, line {number}: id {prompt.id!r} is also in line {seen[prompt.id]}", param="data")
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise BadRequest(f"{path} has no prompts", param="data")
    return prompts


def _table(path: Path, ids: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header without its first cell, and for each id its line number and cells."""
    reader = csv.reader(line for _, line in _lines(path))
    try:
        header = next(reader, [])
        rows: dict[str, tuple[int, list[str]]] = {}
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise BadRequest(
                    f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}", param="data"
                )
            if row[0] in rows:
                raise BadRequest(f"{path}, line {reader.line_num}: id {row[0]!r} comes twice", param="data")
            rows[row[0]] = (reader.line_num, row[1:])
    except csv.Error as error:
        raise BadRequest(f"{path}, line {reader.line_num}: {error}", param="data") from error
    models = header[1:]
    if len(set(models)) != len(models):
        raise BadRequest(f"{path}, line 1: a model comes twice", param="data")
    lacking = next((one for one in ids if one not in rows), None)
    if lacking is not None:
        raise BadRequest(f"{path} has no row for {lacking!r} of {PROMPTS}", param="data")
    return models, [rows[one] for one in ids]


def _columns(path: Path, ids: Sequence[str], read_cell: Any) -> dict[str, tuple[Any, ...]]:
    if not path.exists():
        return {}
    models, rows = _table(path, ids)
    cells = [[read_cell(cell, path, line) for cell in row] for line, row in rows]
    return dict(zip(models, zip(*cells, strict=True), strict=True))


def _score(cell: str, path: Path, line: int) -> float:
    if not cell.strip():
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadRequest(f"{path}, line {line}: {cell!r} is no score from 0 to 1", param="data")
    return value


def _count(cell: str, path: Path, line: int) -> int | None:
    if not cell.strip():
        return None
    try:
        value = int(float(cell))
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise BadRequest(f"{path}, line {line}: {cell!r} is no number of characters", param="data")
    return value
