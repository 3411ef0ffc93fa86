"""A file of a fixed size that several processes have mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def mapped(path: Path, size: int) -> tuple[mmap.mmap, bool]:
    """The file, and whether it was made, or made anew for another size, full of zeros. Raises OSError."""
    fresh = not path.exists() or path.stat().st_size != size
    if fresh:
        # Beside it, then renamed: whoever has the former mapped must not find its end gone.
        made = path.with_name(f"{path.name}.{os.getpid()}")
        made.unlink(missing_ok=True)
        made.touch(mode=0o600)
        with made.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk must be an error here, not a SIGBUS later
        made.replace(path)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size), fresh
