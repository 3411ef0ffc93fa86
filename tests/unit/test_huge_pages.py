"""Moving weights to huge pages: which regions, and that nothing they hold changes."""

from __future__ import annotations

import mmap
import sys

import pytest

from trimtab.engines.llama_cpp import huge_pages

MAPS = """\
55d0c8a00000-55d0c8b00000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
7f1000000000-7f1008000000 r--p 00000000 00:00 0
7f2000000000-7f2008000000 rw-s 00000000 00:01 1027                       /dev/shm/ring
7f3000000000-7f3008000000 rw-p 00000000 08:01 4711                       /models/m.gguf
7f4000000000-7f4000800000 rw-p 00000000 00:00 0                          [anon: thread stack]
"""


def test_only_large_private_memory_is_moved() -> None:
    assert huge_pages._large(MAPS) == [(0x7F0000000000, 0x7F0008000000)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such pages")
def test_what_was_written_stays() -> None:
    length = 48 << 20
    with mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = bytes(range(256)) * (length // 256)
        moved = huge_pages.take()  # none where the kernel has them switched off
        assert moved >= 0 and moved % (2 << 20) == 0
        assert memory[:] == bytes(range(256)) * (length // 256)


def test_elsewhere_nothing_happens(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "none")
    assert huge_pages.take() == 0
