"""Traces of real traffic: when requests came, how long they were, what they shared. Read from four kinds of file.

    azure      CSV: TIMESTAMP,ContextTokens,GeneratedTokens
    mooncake   JSONL: timestamp (ms), input_length, output_length, hash_ids (512-token blocks)
    sessions   JSONL: session_id, turn, input_length, output_length, hash_ids (16-token blocks); a turn follows the
               answer to the one before it, sessions start at random
    bodies     JSONL: timestamp (ms, or an ISO date-time) beside `body`, a chat completion's request, or its fields

Files may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from trimtab.errors import BadRequest

KINDS: Final = ("azure", "mooncake", "sessions", "bodies")
_MOONCAKE_BLOCK: Final = 512  # tokens that one hash id stands for
_SESSION_BLOCK: Final = 16
_MOONCAKE_STEP_MS: Final = 3000  # its timestamps are rounded down to this
_OURS: Final = "openai"
_MOONCAKE_OFF_S: Final = 0.01  # the published ones lie up to 3 ms beside a step
_NAMED: Final = 5  # malformed lines that are kept with their reason


class Traced(msgspec.Struct, frozen=True):
    """One request of a trace. With a `body` it is sent as it is; else a prompt of `input_tokens` is made.

    `hash_ids` name blocks of `block_tokens` tokens: requests that begin with the same ids begin with the same text.
    """

    at_s: float  # after the first
    input_tokens: int = 0
    output_tokens: int = 0
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    body: msgspec.Raw | None = None
    session: str = ""  # its turns follow each other


class Trace(msgspec.Struct, frozen=True):
    """A trace that was read. `malformed` counts the lines that could not be; the first few are in `problems`.

    `other_dialect` counts requests that were not OpenAI's and therefore left out.
    """

    kind: str
    requests: tuple[Traced, ...]  # in order of time
    malformed: int = 0
    problems: tuple[str, ...] = ()
    other_dialect: int = 0


class _Lengths(msgspec.Struct):
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    timestamp: float | None = None
    session_id: str = ""
    turn: int = 0


class _Body(msgspec.Struct):
    timestamp: float | str
    body: msgspec.Raw = msgspec.Raw()
    dialect: str = _OURS


_LENGTHS: Final = msgspec.json.Decoder(_Lengths)
_BODY: Final = msgspec.json.Decoder(_Body)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(path: Path, *, kind: str = "", strict: bool = False, seed: int = 0, sessions_per_s: float = 1.0) -> Trace:
    """Read a trace; `kind` is found out where it is not said.

    `seed` fixes what a file leaves open: where within a rounded time stamp a request came, and when sessions start.
    Raises BadRequest for a file that cannot be read or is of no known kind; with `strict` also for the first bad line.
    """
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadRequest(f"the trace {path} cannot be read: {error}", param="trace") from None
    kind = kind or _kind_of(path, lines)
    problems: list[str] = []
    malformed = other_dialect = 0
    found: list[Traced] = []
    for number, parse in _PARSERS[kind](lines):
        try:
            found.append(parse())
        except _OtherDialect:
            other_dialect += 1
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            malformed += 1
            what = f"{path}, line {number}: {error}"
            if strict:
                raise BadRequest(f"{what}; leave out --strict to skip such lines", param="trace") from None
            if len(problems) < _NAMED:
                problems.append(what)
    if not found:
        said = f"; the first problem: {problems[0]}" if problems else ""
        said += f"; {other_dialect:,} lines are in another dialect than OpenAI's" if other_dialect else ""
        raise BadRequest(f"the trace {path} holds no request of kind {kind}{said}", param="trace")
    rng = random.Random(seed)
    if kind == "sessions":
        found = _started(found, sessions_per_s, rng)
    elif kind == "mooncake":
        found = _spread(found, rng)
    start = min(request.at_s for request in found)
    shifted = [msgspec.structs.replace(request, at_s=request.at_s - start) for request in found]
    if kind != "sessions":
        shifted.sort(key=lambda request: request.at_s)
    return Trace(kind, tuple(shifted), malformed, tuple(problems), other_dialect)


def _kind_of(path: Path, lines: list[str]) -> str:
    for line in lines:
        if line.replace(" ", "").upper().startswith("TIMESTAMP,CONTEXTTOKENS"):
            return "azure"
        try:
            fields = _FIELDS.decode(line)
        except msgspec.MsgspecError:
            continue
        if "input_length" in fields:
            return "mooncake" if "timestamp" in fields else "sessions"
        if "body" in fields or "messages" in fields:
            return "bodies"
    raise BadRequest(f"the trace {path} is of no known kind; name one with --kind: {', '.join(KINDS)}", param="kind")


class _OtherDialect(Exception):
    """The line says that its body is not OpenAI's (`trimtab capture export` writes such lines)."""


_Rows = Iterator[tuple[int, Callable[[], Traced]]]


def _azure(lines: Iterable[str]) -> _Rows:
    reader = csv.DictReader(io.StringIO("\n".join(lines)))
    for row in reader:
        yield reader.line_num, partial(_of_row, row)


def _mooncake(lines: Iterable[str]) -> _Rows:
    for number, line in _filled(lines):
        yield number, partial(_of_lengths, line, _MOONCAKE_BLOCK)


def _sessions(lines: Iterable[str]) -> _Rows:
    for number, line in _filled(lines):
        yield number, partial(_of_lengths, line, _SESSION_BLOCK)


def _bodies(lines: Iterable[str]) -> _Rows:
    for number, line in _filled(lines):
        yield number, partial(_of_body, line)


_PARSERS: Final[dict[str, Callable[[Iterable[str]], _Rows]]] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "sessions": _sessions,
    "bodies": _bodies,
}


def _filled(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _of_row(row: dict[str, str]) -> Traced:
    return Traced(_moment(row["TIMESTAMP"]), _length(row["ContextTokens"]), _length(row["GeneratedTokens"]))


def _of_lengths(line: str, block_tokens: int) -> Traced:
    said = _LENGTHS.decode(line)
    if said.timestamp is None and not said.session_id:
        raise ValueError("neither timestamp nor session_id")
    at_s = 0.0 if said.timestamp is None else said.timestamp / 1000
    lengths = (_length(said.input_length), _length(said.output_length))
    return Traced(at_s, *lengths, said.hash_ids, block_tokens, session=said.session_id)


def _of_body(line: str) -> Traced:
    said = _BODY.decode(line)
    if said.dialect != _OURS:
        raise _OtherDialect
    at_s = _moment(said.timestamp) if isinstance(said.timestamp, str) else said.timestamp / 1000
    body = said.body
    if not bytes(body):
        fields: dict[str, Any] = dict(_FIELDS.decode(line))
        del fields["timestamp"]
        fields.pop("dialect", None)
        body = msgspec.Raw(msgspec.json.encode(fields))
    if "messages" not in _FIELDS.decode(body):
        raise ValueError("the body has no messages")
    return Traced(at_s, body=body)


def _length(value: str | int) -> int:
    length = int(value)
    if length < 0:
        raise ValueError(f"a length of {length} tokens")
    return length


def _moment(text: str) -> float:
    """Unix seconds; Azure writes seven decimals."""
    whole, _, rest = text.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    at = datetime.fromisoformat(whole + rest[len(digits) :])
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() + (float(f"0.{digits}") if digits else 0.0)


def _spread(requests: list[Traced], rng: random.Random) -> list[Traced]:
    """Undo the rounding of Mooncake's time stamps: each request somewhere in its step."""
    step_s = _MOONCAKE_STEP_MS / 1000
    steps = [round(request.at_s / step_s) * step_s for request in requests]
    if any(abs(request.at_s - step) > _MOONCAKE_OFF_S for request, step in zip(requests, steps, strict=True)):
        return requests
    return [
        msgspec.structs.replace(request, at_s=step + rng.uniform(0, step_s))
        for request, step in zip(requests, steps, strict=True)
    ]


def _started(requests: list[Traced], sessions_per_s: float, rng: random.Random) -> list[Traced]:
    """Sessions start as a Poisson process; each turn carries its session's start, and stays behind its predecessor."""
    starts: dict[str, float] = {}
    at_s = 0.0
    for request in requests:
        if request.session not in starts:
            starts[request.session] = at_s
            at_s += rng.expovariate(sessions_per_s)
    by_session = sorted(requests, key=lambda request: starts[request.session])  # stable: turns keep their order
    return [msgspec.structs.replace(request, at_s=starts[request.session]) for request in by_session]
