"""Where the engines of a running gateway listen: a small file in its run folder, for commands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trimtab.errors import StoreError


class EngineUp(msgspec.Struct, frozen=True):
    """An engine that runs as a process of the gateway."""

    name: str
    kind: str
    url: str


def path_in(data_dir: Path) -> Path:
    """Where the file is."""
    return data_dir / "run" / "engines.json"


def write(data_dir: Path, engines: Sequence[EngineUp]) -> None:
    """Say which engines run, in one step: a reader sees the former file or this one. Raises OSError."""
    path = path_in(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(engines))
    fresh.replace(path)


def remove(data_dir: Path) -> None:
    """Say that none runs any more. Raises OSError."""
    path_in(data_dir).unlink(missing_ok=True)


def read(data_dir: Path) -> list[EngineUp]:
    """The engines that run, or did when the gateway was killed; empty without a gateway. Raises StoreError."""
    path = path_in(data_dir)
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[EngineUp])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); a restart of the gateway writes it anew") from None
