"""Which engines run here as processes of ours, whose they are and where they listen: a folder of files for each.

engines/NAME/lock          held by whoever supervises the engine; the kernel drops it, whatever ends that process
engines/NAME/run.json      what runs, or ran last: a process id counts only while the lock is held
engines/NAME/engine.log    what the engine wrote
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from trimtab.errors import StoreError

_PATIENCE_S: Final = 0.5  # a reader looks whether the lock is free by taking it for a moment
_KEPT_LOG_BYTES: Final = 16 << 20


class Run(msgspec.Struct, frozen=True):
    """An engine and its supervisor, `trimtab serve` or `trimtab engine start`, whose process `pid` is."""

    engine: str
    kind: str
    owner: Literal["serve", "start"]
    pid: int
    port: int
    began_at: float  # unix time
    slots: int = 0  # requests that it runs at once; 0: not known
    starts: int = 1
    ready: bool = False

    @property
    def url(self) -> str:
        """Where the engine listens, without /v1."""
        return f"http://127.0.0.1:{self.port}"


class Claim:
    """The right to run an engine. It ends with the last process that has inherited it, or by `close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder = folder
        self._lock = lock

    def say(self, run: Run) -> None:
        """Write down what runs, in one step: a reader sees the former or this. Raises OSError."""
        fresh = self._folder / f"run.new{os.getpid()}"
        fresh.write_bytes(msgspec.json.encode(run))
        fresh.replace(self._folder / "run.json")

    def close(self) -> None:
        """Let go of it in this process."""
        with contextlib.suppress(OSError):
            os.close(self._lock)


def claim(data_dir: Path, engine: str) -> Claim | None:
    """Take the engine, or None if somebody has it. Raises OSError."""
    folder = _folder(data_dir, engine)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _PATIENCE_S
    while not _locked(lock, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(lock)
            return None
        time.sleep(0.02)
    return Claim(folder, lock)


def is_claimed(data_dir: Path, engine: str) -> bool:
    """Whether somebody has the engine now. Raises OSError."""
    try:
        lock = os.open(_folder(data_dir, engine) / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _locked(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def last(data_dir: Path, engine: str) -> Run | None:
    """What runs, or ran last; None if nothing ever did. Raises StoreError."""
    path = _folder(data_dir, engine) / "run.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); the engine's next start writes it anew") from None


def running(data_dir: Path) -> list[Run]:
    """The engines that run now, by name. Raises StoreError."""
    with contextlib.suppress(OSError):
        names = sorted(path.parent.name for path in (data_dir / "engines").glob("*/lock"))
        found = [last(data_dir, name) for name in names if is_claimed(data_dir, name)]
        return [run for run in found if run is not None]
    return []


def log_path(data_dir: Path, engine: str) -> Path:
    """Where the engine's log is."""
    return _folder(data_dir, engine) / "engine.log"


def fresh_log(data_dir: Path, engine: str) -> Path:
    """The log to append to; one that has grown beyond 16 MiB becomes `engine.log.1`. Raises OSError."""
    path = log_path(data_dir, engine)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _KEPT_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return path


def _folder(data_dir: Path, engine: str) -> Path:
    return data_dir / "engines" / engine


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
