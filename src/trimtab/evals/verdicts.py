"""A gate's verdict as a file: what was compared, under which versions, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trimtab.errors import BadRequest
from trimtab.evals.compare import pairs, require_same_items
from trimtab.evals.runs import Head, Run
from trimtab.quality.paired import Item
from trimtab.quality.verdict import GateTerms, Verdict, judge


class VerdictFile(msgspec.Struct, frozen=True):
    """Both runs' heads hold the settings as text, the suite by its hash, model, version and machine."""

    verdict: Verdict
    reference: Head
    candidate: Head
    at: float  # unix seconds


def of_runs(reference: Run, candidate: Run, terms: GateTerms, at: float) -> VerdictFile:
    """Judge two whole runs. Raises BadRequest where the two lack items that the other has."""
    strata: Mapping[str, list[Item]] = pairs(reference, candidate)
    require_same_items(reference, candidate)
    return VerdictFile(judge(strata, terms), reference.head, candidate.head, at)


def read(path: Path) -> VerdictFile:
    """A verdict's file. Raises BadRequest."""
    return decoded(content(path), path)


def content(path: Path) -> bytes:
    """What a verdict's file holds. Raises BadRequest."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}", param="verdict") from None


def decoded(data: bytes, path: Path) -> VerdictFile:
    """A verdict from what its file holds. Raises BadRequest."""
    try:
        return msgspec.json.decode(data, type=VerdictFile)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"{path} is no verdict of `trimtab gate`: {error}", param="verdict") from None


def as_json(found: VerdictFile) -> bytes:
    """The file's text, for people to read as well."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
