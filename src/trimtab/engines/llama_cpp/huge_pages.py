"""Weights in pages of 2 MB. Every token reads all of them, and with pages of 4 kB part of that goes to finding them.

Linux alone; elsewhere, and where the kernel refuses, nothing happens.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_PAGE: Final = 2 << 20
_SMALLEST: Final = 16 * _PAGE  # below it a region is no model's
_MAPS: Final = Path("/proc/self/maps")
# From Linux's <asm-generic/mman-common.h>.
_HUGEPAGE: Final = 14  # later pages of the region
_COLLAPSE: Final = 25  # those that it has; since Linux 6.1


def take() -> int:
    """Move this process's large private regions to huge pages; how many bytes moved. Takes some 0.1 s a gigabyte.

    Call it once the weights are loaded, into memory of the process's own: a mapped file stays as it is.
    """
    if not _MAPS.exists():
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    moved = 0
    for start, end in _large(_MAPS.read_text()):
        madvise(start, end - start, _HUGEPAGE)
        # Asked page by page: one that cannot be moved, as nothing has been written there, would end the whole call.
        for page in range(-(-start // _PAGE) * _PAGE, end - _PAGE + 1, _PAGE):
            moved += _PAGE * (madvise(page, _PAGE, _COLLAPSE) == 0)
    return moved


def _large(maps: str) -> list[tuple[int, int]]:
    """Where large, writable regions without a file begin and end, from lines as in /proc/PID/maps."""
    found = []
    for line in maps.splitlines():
        where, mode, _, _, inode, *_ = line.split()
        start, end = (int(side, 16) for side in where.split("-"))
        if mode == "rw-p" and inode == "0" and end - start >= _SMALLEST:
            found.append((start, end))
    return found
