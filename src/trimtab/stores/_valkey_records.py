"""How an answer lies in a Valkey server: a header, what a purge looks at, then the `Stored`, compressed if large.

The checksum covers the key as well: what another client wrote there, or a reply that was meant for another question,
is never taken for an answer. It guards against accidents, not against somebody who may write to the server.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from trimtab.stores._answer_records import DECODER, Named
from trimtab.types import Selector, Stored

PREFIX: Final = b"trimtab:1:answer:"  # the number is the format's: records of another one are never met
MAX_BODY_BYTES: Final = 8 << 20
MAX_RECORD_BYTES: Final = 1 << 20
_COMPRESS_BYTES: Final = 4096
_PLAIN, _DEFLATED = 0, 1
# Magic, era, created, expires, written, how the rest lies, bytes of the names, checksum.
HEADER: Final = struct.Struct("<4s16sdddBII")
_MAGIC: Final = b"TTA1"
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_NAMES: Final = msgspec.msgpack.Decoder(Named)
PEEK_BYTES: Final = 1024  # the header and, nearly always, all names


class Head(msgspec.Struct, frozen=True):
    """What the header says."""

    era: bytes
    created: float
    expires: float
    written: float
    how: int
    names_bytes: int
    checksum: int


def pack(key: bytes, era: bytes, stored: Stored, now: float) -> bytes | None:
    """A record written at `now` (unix seconds); None if it is too large. Up to 100 ms for the largest."""
    scope = Named(stored.model, stored.target, stored.request_id, stored.scope, stored.asked_model)
    names, rest, how = _ENCODE(scope), _ENCODE(stored), _PLAIN
    if len(rest) > _COMPRESS_BYTES:
        rest, how = zlib.compress(rest, 1), _DEFLATED
    if len(names) + len(rest) > MAX_RECORD_BYTES:
        return None
    body = names + rest
    fields = (_MAGIC, era, stored.created, stored.expires, now, how, len(names))
    checksum = zlib.crc32(body, zlib.crc32(HEADER.pack(*fields, 0)[:-4], zlib.crc32(key)))
    return HEADER.pack(*fields, checksum) + body


def head(value: object) -> Head | None:
    """The header of a record or of its beginning; None if it is none."""
    if not isinstance(value, bytes) or len(value) < HEADER.size or not value.startswith(_MAGIC):
        return None
    return Head(*HEADER.unpack_from(value)[1:])


def unpack(key: bytes, value: bytes) -> Stored | None:
    """The answer of a whole record; None if it is not what was written under that key. A record may take 10 ms."""
    found = head(value)
    if found is None:
        return None
    checksum = zlib.crc32(value[HEADER.size :], zlib.crc32(value[: HEADER.size - 4], zlib.crc32(key)))
    if checksum != found.checksum:
        return None
    rest = value[HEADER.size + found.names_bytes :]
    try:
        if found.how == _DEFLATED:
            inflate = zlib.decompressobj()
            rest = inflate.decompress(rest, MAX_BODY_BYTES + (1 << 20))
            if not inflate.eof:
                return None
        return DECODER.decode(rest)
    except (zlib.error, msgspec.MsgspecError):
        return None


def is_meant(beginning: object, what: Selector) -> bool | None:
    """Whether a purge means the record that begins so; None: more of it is needed. What cannot be read is meant."""
    found = head(beginning)
    if found is None or not isinstance(beginning, bytes):
        return True
    end = HEADER.size + found.names_bytes
    if len(beginning) < end:
        return None if found.names_bytes < MAX_RECORD_BYTES else True
    try:
        return what.matches(_NAMES.decode(beginning[HEADER.size : end]))
    except msgspec.MsgspecError:
        return True
