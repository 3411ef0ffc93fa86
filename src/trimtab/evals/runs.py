"""A run on disk: one JSON line about it, then one for each answer. Whoever is killed goes on where the file ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.evals.answers import ToolCall

_ENCODE: Final = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True, tag="run", tag_field="k"):
    """What was run: the suite by its hash, the setting as its text (empty where only its URL is known)."""

    suite: str
    suite_sha256: str
    config: str  # its name
    settings: str
    url: str
    model: str
    seed: int
    trimtab: str
    machine: str
    at: float  # unix seconds
    judge_model: str = ""
    route: str = "default"
    prompt_version: str = ""
    policy_version: str = ""


class Answered(msgspec.Struct, frozen=True, tag="answer", tag_field="k", omit_defaults=True):
    """One answer, kept whole, with its score (0 to 1)."""

    item: str
    stratum: str
    score: float
    why: str
    text: str
    repeat: int = 0
    weight: float = 1.0
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    total_s: float = 0.0
    cache: str = ""
    request_id: str = ""


_DECODE: Final = msgspec.json.Decoder(Head | Answered).decode
# What must be equal for a run to be continued: everything that can change an answer or its score.
_SAME: Final = (
    "suite",
    "suite_sha256",
    "settings",
    "url",
    "model",
    "seed",
    "judge_model",
    "route",
    "prompt_version",
    "policy_version",
)


class Run:
    """A run as far as it got; `answers` are in the order in which they came."""

    def __init__(self, head: Head, answers: dict[tuple[str, int], Answered]) -> None:
        self.head = head
        self.answers = answers

    @property
    def name(self) -> str:
        """The setting's."""
        return self.head.config


def read(path: Path) -> Run:
    """A run's file. Raises BadRequest naming the line; a last line that was cut off is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}", param="run") from None
    head: Head | None = None
    answers: dict[tuple[str, int], Answered] = {}
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = _DECODE(line)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"{path}, line {number} is no line of an eval run: {error}", param="run") from None
        if isinstance(row, Head):
            head = row
        else:
            answers[row.item, row.repeat] = row
    if head is None:
        raise BadRequest(f"{path} holds no eval run; `trimtab eval SUITE --config FILE` writes one", param="run")
    return Run(head, answers)


class RunFile:
    """A run that is being written; a context manager. Each answer is on its way to disk when `add` returns."""

    def __init__(self, path: Path, head: Head, *, fresh: bool) -> None:
        """Go on with the run at `path`, or begin it. Raises BadRequest if that is of something else."""
        self.path = path
        self.answers: dict[tuple[str, int], Answered] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size and not fresh:
            former = read(path)
            differ = [name for name in _SAME if getattr(former.head, name) != getattr(head, name)]
            if differ:
                raise BadRequest(
                    f"{path} is of another {', '.join(differ)}; begin anew with --fresh, or write elsewhere with --out",
                    param="out",
                )
            self.answers = former.answers
            self.head = former.head
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            self._file = path.open("ab", buffering=0)
        else:
            self.head = head
            self._file = path.open("wb", buffering=0)
            self._file.write(_ENCODE(head) + b"\n")

    @property
    def run(self) -> Run:
        """As far as it got."""
        return Run(self.head, self.answers)

    def add(self, answered: Answered) -> None:
        """Keep an answer. Raises OSError if the disk is full."""
        self._file.write(_ENCODE(answered) + b"\n")
        self.answers[answered.item, answered.repeat] = answered

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
