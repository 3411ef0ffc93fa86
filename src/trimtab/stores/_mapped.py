"""A file of a fixed size that several processes have mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path


def mapped(path: Path, size: int) -> tuple[mmap.mmap, bool]:
    """The file, and whether it was made, or made anew for another size, full of zeros. Raises OSError."""
    fresh = not _is_there(path, size)
    if fresh:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # processes that begin at once must not each have a file of its own
            fresh = not _is_there(path, size)
            if fresh:
                _make(path, size)
        finally:
            os.close(folder)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size), fresh


def _is_there(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _make(path: Path, size: int) -> None:
    """Beside it, then renamed: whoever has the former mapped must not find its end gone."""
    made = path.with_name(f"{path.name}.{os.getpid()}")
    made.unlink(missing_ok=True)
    made.touch(mode=0o600)
    with made.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk must be an error here, not a SIGBUS later
    made.replace(path)
