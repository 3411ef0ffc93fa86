"""How an answer lies in the file: a header with a checksum over all of it, then msgpack; and keys that sort by age."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from trimtab.types import Scope, Selector, Stored, Target

HEADER: Final = struct.Struct("<QdddI")  # generation, created, expires, written, checksum
AGE: Final = struct.Struct(">Q")
_ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(Stored)


class Named(msgspec.Struct, frozen=True, gc=False):
    """What a purge looks at."""

    model: str
    target: Target
    request_id: str
    scope: Scope | None = None
    asked_model: str = ""


_NAMES: Final = msgspec.msgpack.Decoder(Named)


def pack(key: bytes, generation: int, stored: Stored, written: float) -> bytes:
    """An entry's bytes, written at `written` (unix seconds)."""
    payload = _ENCODER.encode(stored)
    head = HEADER.pack(generation, stored.created, stored.expires, written, 0)
    checksum = zlib.crc32(payload, zlib.crc32(head[:-4], zlib.crc32(key)))
    return HEADER.pack(generation, stored.created, stored.expires, written, checksum) + payload


def is_sound(key: bytes, value: memoryview | bytes) -> bool:
    """Whether the bytes are what was written under that key."""
    if len(value) < HEADER.size:
        return False
    checksum = zlib.crc32(value[HEADER.size :], zlib.crc32(value[: HEADER.size - 4], zlib.crc32(key)))
    return bool(checksum == HEADER.unpack_from(value)[4])


def is_meant(key: bytes, value: memoryview | bytes, what: Selector) -> bool:
    """Whether a purge means the entry of these bytes; it always means one that cannot be read."""
    if not is_sound(key, value):
        return True
    try:
        return what.matches(_NAMES.decode(value[HEADER.size :]))
    except msgspec.MsgspecError:
        return True


def age_of(created: float) -> int:
    """Microseconds since 1970."""
    return max(0, int(created * 1e6))


def place_of(age: int, key: bytes) -> bytes:
    """Where an entry lies: sorted by age."""
    return AGE.pack(age) + key


def age_and_key(place: bytes) -> tuple[int, bytes]:
    """What a place says."""
    return AGE.unpack_from(place)[0], place[AGE.size :]
