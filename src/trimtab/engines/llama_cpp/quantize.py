"""Write a model's GGUF file in other types: planned whole, then converted in pieces, and named only when complete."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

from trimtab.engines.llama_cpp import gguf
from trimtab.engines.llama_cpp.ggml import Ggml
from trimtab.engines.llama_cpp.gguf import Gguf, Tensor
from trimtab.engines.llama_cpp.mixes import Choice, FileType, choose
from trimtab.errors import BadRequest, StoreError

_QUANTIZATION_VERSION: Final = 2  # of ggml's blocks, as they have been since 2023
_PIECE_VALUES: Final = 1 << 20

Progress = Callable[[int], None]
"""Told the bytes of each piece that was written."""


@dataclass(frozen=True)
class Plan:
    """A file to write: everything about it is known but the tensors' data."""

    source: Gguf
    kind: FileType
    path: Path
    choices: tuple[Choice, ...]
    head: bytes
    tensors: tuple[Tensor, ...]

    @cached_property
    def size_bytes(self) -> int:
        """Of the whole file."""
        last = self.tensors[-1]
        return last.offset + gguf.aligned(last.size_bytes, self.source.alignment)

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, those that stay as they are included."""
        return bits_per_weight(self.tensors)

    @property
    def fallbacks(self) -> Counter[tuple[str, str]]:
        """How many tensors have another type than wanted, since their rows do not fill its blocks: (wanted, got)."""
        return Counter((one.wanted.name, one.type.name) for one in self.choices if one.is_fallback)

    @property
    def is_there(self) -> bool:
        """Whether the file is there already, whole, and not older than its source."""
        try:
            found, source = self.path.stat(), self.source.path.stat()
            if found.st_size != self.size_bytes or found.st_mtime_ns < source.st_mtime_ns:
                return False
            with self.path.open("rb") as file:
                return file.read(len(self.head)) == self.head
        except OSError:
            return False


def plan(source: Gguf, kind: FileType, folder: Path, stem: str) -> Plan:
    """What the file `<stem>-<TYPE>.gguf` in that folder will be. Raises BadRequest for a model that cannot be written.

    The metadata stays as it is, but for `general.file_type` and `general.quantization_version`.
    """
    if source.number("split.count", 1) > 1:
        raise BadRequest(
            f"{source.path} is one part of a model that was split: merge its parts first (llama-gguf-split --merge)",
            param="model",
        )
    if not source.tensors:
        raise BadRequest(f"{source.path} holds no tensors, only metadata: name the model itself", param="model")
    path = folder / f"{stem}-{kind.name}.gguf"
    if path.exists() and path.samefile(source.path):
        raise BadRequest(f"{path} would overwrite the model that it is made from: use another --out", param="out")
    metadata = {
        **source.metadata,
        "general.file_type": gguf.uint32(kind.number),
        "general.quantization_version": gguf.uint32(_QUANTIZATION_VERSION),
    }
    choices = choose(kind, source)
    head, tensors = gguf.lay_out(source, metadata, (one.type for one in choices))
    return Plan(source, kind, path, choices, head, tensors)


def warnings(plans: list[Plan]) -> list[str]:
    """What its user should know about quantizing this model into these files."""
    if not plans:
        return []
    source = plans[0].source
    found, bits = _main_type(source), bits_per_weight(source.tensors)
    rounded = [one.kind.name for one in plans if one.bits_per_weight < bits]
    finer = [one.kind.name for one in plans if one.bits_per_weight >= bits]
    said = []
    if rounded and found.block > 1:
        said.append(
            f"{', '.join(rounded)}: {source.path.name} is quantized itself ({found.name}, {bits:.1f} bits a weight), "
            f"so these are rounded twice; name the model's F16 or BF16 file if you have it"
        )
    if finer:
        said.append(f"{', '.join(finer)}: not below the precision of {source.path.name}, so larger but no better")
    return said


def write(plan: Plan, ggml: Ggml, progress: Progress = lambda size_bytes: None) -> float:
    """Write the file under a temporary name beside its own, rename it when it is whole; the seconds that it took.

    Whatever ends it early (Ctrl-C, a full disk), no part of a file stays; what a `kill -9` leaves, the next run
    overwrites. Raises StoreError, with the way out, if it cannot be written, BadRequest if the model is damaged.
    """
    began = time.monotonic()
    folder = plan.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < plan.size_bytes:
            raise StoreError(
                f"{plan.path.name} needs {plan.size_bytes / 1e6:.0f} MB, {free_bytes / 1e6:.0f} MB are free in "
                f"{folder}: make room, or name another folder with --out"
            )
        with _own(plan.path) as (part, file), plan.source.path.open("rb") as source:
            _fill(plan, ggml, file, source.fileno(), progress)
            file.flush()
            os.fsync(file.fileno())
            part.replace(plan.path)
    except OSError as error:
        raise StoreError(
            f"{plan.path} cannot be written ({error.strerror}): make room, or name another folder with --out"
        ) from error
    return time.monotonic() - began


def bits_per_weight(tensors: tuple[Tensor, ...]) -> float:
    """Bits a number takes on average."""
    return 8 * sum(one.size_bytes for one in tensors) / sum(one.values for one in tensors)


def _main_type(model: Gguf) -> gguf.Type:
    """The type that most of a model's numbers have."""
    values: Counter[gguf.Type] = Counter()
    for tensor in model.tensors:
        values[tensor.type] += tensor.values
    return values.most_common(1)[0][0]


@contextlib.contextmanager
def _own(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A temporary file beside `path` that no other process writes; gone at the end unless it was renamed."""
    part = path.with_name(f".{path.name}.part")
    with part.open("ab") as file:
        if not _is_mine(part, file):
            raise StoreError(f"another process is writing {path}: wait until it is done, then run this again")
        try:
            file.truncate(0)
            yield part, file
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _is_mine(part: Path, file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except (BlockingIOError, FileNotFoundError):  # being written, or just renamed
        return False


def _fill(plan: Plan, ggml: Ggml, file: BinaryIO, source: int, progress: Progress) -> None:
    file.write(plan.head)
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for before, after in zip(plan.source.tensors, plan.tensors, strict=True):
            pieces = _pieces(before)

            def convert(piece: tuple[int, int], before: Tensor = before, after: Tensor = after) -> bytes:
                return _convert(ggml, before, after, _read(source, *piece))

            while batch := list(itertools.islice(pieces, threads)):
                for data in pool.map(convert, batch):
                    file.write(data)
                    progress(len(data))
            file.write(bytes(-after.size_bytes % plan.source.alignment))


def _pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Offset and size of each run of whole rows, about four megabytes of floats."""
    row_bytes = tensor.type.size(tensor.shape[0])
    piece_bytes = max(1, _PIECE_VALUES // tensor.shape[0]) * row_bytes
    end = tensor.offset + tensor.size_bytes
    for offset in range(tensor.offset, end, piece_bytes):
        yield offset, min(piece_bytes, end - offset)


def _read(source: int, offset: int, size_bytes: int) -> bytes:
    data = os.pread(source, size_bytes, offset)
    if len(data) != size_bytes:
        raise BadRequest("the model's file became shorter while it was read: run this again", param="model")
    return data


def _convert(ggml: Ggml, before: Tensor, after: Tensor, data: bytes) -> bytes:
    if before.type is after.type:
        return data
    try:
        return ggml.convert(data, before.type, after.type, before.shape[0])
    except ValueError as error:
        raise BadRequest(
            f"{before.name} holds numbers that are not finite, or too large for {after.type.name}: fetch the model "
            f"again, or use another type",
            param="model",
        ) from error
