"""What workers and the process with the answers say to each other: msgpack behind a length, over a Unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from trimtab.ports import Answered
from trimtab.sockets import socket_folder
from trimtab.types import Asked, Embedded, ReuseTerms, Similar, Stored

_LONGEST_BYTES: Final = 64 << 20


class Look(msgspec.Struct, frozen=True, gc=False, tag="look"):
    """May this question have an earlier one's answer?"""

    n: int
    asked: Asked
    terms: ReuseTerms


class Found(msgspec.Struct, frozen=True, gc=False, tag="found"):
    """The answer to `Look`; `errors` are the process's failures so far."""

    n: int
    similar: Similar
    errors: int = 0


class Learn(msgspec.Struct, frozen=True, gc=False, tag="learn"):
    """The fresh answer to the question of a token: it is compared with the neighbours', and kept."""

    token: int
    stored: Stored
    may_ask: bool = False  # whether a model may be asked where our own judges cannot tell
    tell: bool = False  # whether the worker wants to hear the verdict on the answer that was found


class Doubt(msgspec.Struct, frozen=True, gc=False, tag="doubt"):
    """Our judges cannot tell whether these two answers are equivalent: let a model say."""

    token: int
    fresh: str
    cached: str


class Judged(msgspec.Struct, frozen=True, gc=False, tag="judged"):
    """What it said; None if it could not tell either."""

    token: int
    same: bool | None


class Told(msgspec.Struct, frozen=True, gc=False, tag="told"):
    """The verdict on the answer that was found, when the fresh one came; None if nobody could tell."""

    token: int
    same: bool | None


class Compare(msgspec.Struct, frozen=True, gc=False, tag="compare"):
    """Is each of these answers as good as the fresh one?"""

    n: int
    fresh: str
    others: list[str]


class Compared(msgspec.Struct, frozen=True, gc=False, tag="compared"):
    """The answer to `Compare`; None where it cannot be read from the texts."""

    n: int
    same: list[bool | None]


class Embed(msgspec.Struct, frozen=True, gc=False, tag="embed"):
    """Turn texts into vectors, by the accurate model or by the fast one."""

    n: int
    accurate: bool
    texts: list[str]


class Vectors(msgspec.Struct, frozen=True, gc=False, tag="vectors"):
    """The answer to `Embed`."""

    n: int
    embedded: Embedded


class Gain(msgspec.Struct, frozen=True, gc=False, tag="gain"):
    """What would the strong model gain on this prompt, by a router's file? Or over an answer to it?"""

    n: int
    router: str
    prompt: str
    answered: Answered | None = None


class Gained(msgspec.Struct, frozen=True, gc=False, tag="gained"):
    """The answer to `Gain`; `far`: the prompt is far from all that the router learned from."""

    n: int
    gain: float
    far: bool = False


class Census(msgspec.Struct, frozen=True, gc=False, tag="census"):
    """How are things? For metrics and `trimtab cache stats`."""

    n: int


class Space(msgspec.Struct, frozen=True, gc=False):
    """One tenant's route: its promise, and how it went so far."""

    tenant: str
    route: str
    entries: int
    requests: int
    hits: int
    audits: int
    audited_wrong: int
    wrong_estimate: float
    limit: float
    alarms: int


class Counted(msgspec.Struct, frozen=True, gc=False, tag="counted"):
    """The answer to `Census`."""

    n: int
    spaces: list[Space]


_ENCODE: Final = msgspec.msgpack.Encoder().encode
Asking = Look | Learn | Judged | Compare | Embed | Gain | Census
Said = Found | Doubt | Told | Compared | Vectors | Gained | Counted
DECODE_ASKED: Final = msgspec.msgpack.Decoder(Asking).decode
DECODE_SAID: Final = msgspec.msgpack.Decoder(Said).decode


def framed(message: Asking | Said) -> bytes:
    """A message with its length before it."""
    body = _ENCODE(message)
    return len(body).to_bytes(4, "little") + body


async def read(reader: asyncio.StreamReader) -> bytes:
    """The next message's bytes. Raises IncompleteReadError at the end, ValueError for what is no message of ours."""
    size = int.from_bytes(await reader.readexactly(4), "little")
    if size > _LONGEST_BYTES:
        raise ValueError(f"a message of {size} bytes is none of ours")
    return await reader.readexactly(size)


def socket_path(data_dir: Path) -> Path:
    """Where the process listens. Raises StoreError if the folder for it is somebody else's."""
    return socket_folder(data_dir / "run") / "similar.sock"
