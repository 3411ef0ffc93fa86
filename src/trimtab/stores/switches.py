"""Which levers are switched off: a small file that the ingester writes and every worker watches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from trimtab.quality.marks import Mark

_log = logging.getLogger("trimtab")


class _Off(msgspec.Struct, frozen=True):
    route: str
    lever: str
    why: str


def path_in(data_dir: Path) -> Path:
    """Where the file is."""
    return data_dir / "run" / "levers-off.json"


def write(path: Path, marks: Iterable[Mark]) -> None:
    """Say which levers are off, in one step: a reader sees the former file or this one. Raises OSError."""
    off = [_Off(mark.route, mark.lever, mark.why) for mark in marks if not mark.on]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(off))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class Switches:
    """A worker's view of the file. What cannot be read changes nothing: a lever that was off stays off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._off: dict[tuple[str, str], str] = {}
        self._seen: tuple[int, int] | None = None
        self.look()

    def look(self) -> None:
        """Read the file if it is another one than before; a few microseconds if not."""
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_ino)
            if seen == self._seen:
                return
            self._seen = seen
            said = msgspec.json.decode(self._path.read_bytes(), type=list[_Off])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.error("which levers are off cannot be read from %s, all stay as they are: %s", self._path, error)
            return
        self._off = {(one.lever, one.route): one.why for one in said}

    def why(self, lever: str, route: str) -> str:
        """Why a lever is off on a route, "" if it is on."""
        return self._off.get((lever, route), "")
