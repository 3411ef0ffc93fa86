"""GGUF files: their metadata and where each tensor lies, read and laid out anew; values stay the bytes that they are.

Little-endian, versions 2 and 3: `GGUF`, version, counts, metadata, tensor table, padding, then the tensors, each at
a multiple of `general.alignment`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.errors import BadRequest

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_HEADER: Final = struct.Struct("<4sIQQ")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_MAX_DIMENSIONS: Final = 4
_DEFAULT_ALIGNMENT: Final = 32
# Tags of metadata values, and how the numbers among them are packed.
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _TEXT, _ARRAY = 4, 8, 9


@dataclass(frozen=True)
class Type:
    """How values are stored: `block` of them take `block_bytes`."""

    number: int
    name: str
    block: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.block_bytes / self.block

    def size(self, values: int) -> int:
        """Bytes of that many values, which fill whole blocks."""
        return values // self.block * self.block_bytes


# Those that ggml can turn into floats here, then those that no quantizer touches.
TYPES: Final = tuple(
    Type(*row)
    for row in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (30, "BF16", 1, 2),
        (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210), (20, "IQ4_NL", 32, 18), (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
    )
)  # fmt: skip
COPIED_ONLY: Final = ("I8", "I16", "I32", "I64", "F64")
_BY_NUMBER: Final = {one.number: one for one in TYPES}
BY_NAME: Final = {one.name: one for one in TYPES}


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` has the length of a row first, `offset` counts from the file's begin."""

    name: str
    shape: tuple[int, ...]
    type: Type
    offset: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How long it is in the file."""
        return self.type.size(self.values)


@dataclass(frozen=True)
class Gguf:
    """A file's contents but for the tensors' data. Metadata values are their tag and bytes as they stand there."""

    path: Path
    metadata: dict[str, bytes]
    tensors: tuple[Tensor, ...]

    def number(self, key: str, default: int) -> int:
        """A whole number of the metadata, of an array the first one that is not 0; `default` where there is none."""
        value = self.metadata.get(key, b"")
        tag, values = _tag(value), value[4:]
        if tag == _ARRAY:
            tag, values = _tag(values), values[12:]
        if tag not in _NUMBERS or _NUMBERS[tag] in "fd?":
            return default
        return next((one for (one,) in struct.iter_unpack(f"<{_NUMBERS[tag]}", values) if one), default)

    def text(self, key: str) -> str:
        """A text of the metadata, "" where there is none."""
        value = self.metadata.get(key, b"")
        return value[12:].decode(errors="replace") if _tag(value) == _TEXT else ""

    @property
    def alignment(self) -> int:
        """Each tensor begins at a multiple of it."""
        return self.number("general.alignment", _DEFAULT_ALIGNMENT)


def uint32(value: int) -> bytes:
    """A metadata value."""
    return _U32.pack(_UINT32) + _U32.pack(value)


def read(path: Path) -> Gguf:
    """Read all but the tensors' data. Raises BadRequest, with the way out, for what is no whole GGUF file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
            if head != _MAGIC:
                raise BadRequest(f"{path} is no GGUF file: name a .gguf file", param="model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).whole()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read ({error.strerror}): name a .gguf file", param="model") from error
    except (struct.error, ValueError, OverflowError) as error:
        raise _damaged(path, "its header ends early or makes no sense") from error


def lay_out(source: Gguf, metadata: dict[str, bytes], types: Iterable[Type]) -> tuple[bytes, tuple[Tensor, ...]]:
    """The head of a file with the tensors of `source` in other types, padding included, and where each will lie."""
    table, placed, offset = bytearray(), [], 0
    for tensor, kind in zip(source.tensors, types, strict=True):
        table += _text(tensor.name) + _U32.pack(len(tensor.shape)) + b"".join(map(_U64.pack, tensor.shape))
        table += _U32.pack(kind.number) + _U64.pack(offset)
        placed.append(Tensor(tensor.name, tensor.shape, kind, offset))
        offset += aligned(placed[-1].size_bytes, source.alignment)
    head = _HEADER.pack(_MAGIC, _VERSIONS[-1], len(placed), len(metadata))
    head += b"".join(_text(key) + value for key, value in metadata.items()) + table
    head = head.ljust(aligned(len(head), source.alignment), b"\0")
    return head, tuple(Tensor(one.name, one.shape, one.type, len(head) + one.offset) for one in placed)


def aligned(offset: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // alignment) * alignment


def _tag(value: bytes) -> int:
    return _U32.unpack_from(value)[0] if len(value) >= 4 else -1


def _text(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def _damaged(path: Path, why: str) -> BadRequest:
    return BadRequest(f"{path} is no whole GGUF file: {why}; fetch it again", param="model")


class _Reader:
    """Reads a header from front to back; every length is checked against the file's."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def whole(self) -> Gguf:
        _, version, tensors, keys = _HEADER.unpack_from(self._data)
        self._at = _HEADER.size
        if version not in _VERSIONS:
            raise BadRequest(
                f"{self._path} is GGUF version {version}, which this command does not read: convert the model anew, "
                f"to version 3, little-endian",
                param="model",
            )
        metadata = {}
        for _ in range(keys):
            key = self._take_text()
            begin = self._at
            self._skip_value()
            metadata[key] = self._data[begin : self._at]
        table = [self._take_tensor() for _ in range(tensors)]
        found = Gguf(self._path, metadata, ())
        if found.alignment < 1 or found.alignment & (found.alignment - 1):
            raise _damaged(self._path, f"general.alignment is {found.alignment}")
        start = aligned(self._at, found.alignment)
        return Gguf(self._path, metadata, tuple(self._placed(one, start) for one in table))

    def _placed(self, tensor: Tensor, start: int) -> Tensor:
        placed = Tensor(tensor.name, tensor.shape, tensor.type, start + tensor.offset)
        if placed.shape[0] % placed.type.block:
            raise _damaged(self._path, f"rows of {placed.name} do not fill blocks of {placed.type.name}")
        if placed.offset + placed.size_bytes > len(self._data):
            raise _damaged(self._path, f"it ends before the data of {placed.name}")
        return placed

    def _take_tensor(self) -> Tensor:
        name = self._take_text()
        dimensions = self._take(_U32)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self._path, f"{name} has {dimensions} dimensions")
        shape = tuple(self._take(_U64) for _ in range(dimensions))
        number, offset = self._take(_U32), self._take(_U64)
        if number not in _BY_NUMBER:
            known = ", ".join(one.name for one in TYPES)
            raise BadRequest(
                f"{self._path}: {name} is stored in a type (ggml's number {number}) that this command cannot read; "
                f"name a file with these types only: {known}",
                param="model",
            )
        if not all(shape):
            raise _damaged(self._path, f"{name} is empty")
        return Tensor(name, shape, _BY_NUMBER[number], offset)

    def _take(self, form: struct.Struct) -> int:
        value: int = form.unpack_from(self._data, self._at)[0]
        self._at += form.size
        return value

    def _take_text(self) -> str:
        begin = self._at + _U64.size
        self._skip_text()
        return self._data[begin : self._at].decode()

    def _skip_text(self) -> None:
        self._skip(self._take(_U64))

    def _skip(self, size_bytes: int) -> None:
        self._at += size_bytes
        if self._at > len(self._data):
            raise ValueError("beyond the end")

    def _skip_value(self) -> None:
        tag, count = self._take(_U32), 1
        if tag == _ARRAY:
            tag, count = self._take(_U32), self._take(_U64)
        if tag == _TEXT:
            for _ in range(count):
                self._skip_text()
        elif tag in _NUMBERS:
            self._skip(count * struct.calcsize(f"<{_NUMBERS[tag]}"))
        else:
            raise ValueError(f"unknown tag {tag}")
