"""The table that says where a key's answer lies: a hint that may forget, and never costs an answer that is wrong."""

import hashlib
import os

import pytest

from trimtab.stores._lmdb_index import Index


def key(n):
    return hashlib.sha256(b"%d" % n).digest()


@pytest.fixture
def index(tmp_path):
    made = Index(tmp_path / "index", 1 << 20)
    yield made
    made.close()


def test_it_finds_what_was_set_and_nothing_else(index):
    assert index.fresh and index.find(key(1)) == []
    index.set(key(1), 1_800_000_000_000_000)
    assert index.find(key(1)) == [1_800_000_000_000_000]
    assert not any(index.find(key(n)) for n in range(2, 50))
    index.forget(key(1), 1_799_999_999_999_999)  # another answer's age
    assert index.find(key(1)) == [1_800_000_000_000_000]
    index.forget(key(1), 1_800_000_000_000_000)
    assert index.find(key(1)) == []


def test_half_full_it_forgets_few_and_those_are_old(tmp_path):
    index = Index(tmp_path / "index", 512 * 4096)  # 4,096 places
    for n in range(2048):
        index.set(key(n), n + 1)
    lost = [n for n in range(2048) if n + 1 not in index.find(key(n))]
    assert 0 < len(lost) < 41  # 2%
    assert max(lost) < 2000
    index.clear()
    assert not any(index.find(key(n)) for n in range(2048))
    index.close()


def test_other_processes_see_it_and_it_survives_a_restart(tmp_path, index):
    again = Index(tmp_path / "index", 1 << 20)
    index.set(key(3), 7)
    assert not again.fresh and again.find(key(3)) == [7]
    again.close()


def test_another_size_makes_it_anew_beside_whoever_uses_the_former(tmp_path, index):
    index.set(key(3), 7)
    larger = Index(tmp_path / "index", 1 << 22)
    assert larger.fresh and larger.find(key(3)) == []
    assert index.find(key(3)) == [7]
    larger.close()


def test_whoever_looks_in_takes_the_table_as_it_is(tmp_path, index):
    index.set(key(3), 7)
    visitor = Index(tmp_path / "index", 1 << 30, resize=False)
    assert not visitor.fresh and visitor.find(key(3)) == [7]
    visitor.close()


def test_no_room_is_an_error_and_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def full(fd, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Index(tmp_path / "index", 1 << 20)
    assert not (tmp_path / "index").exists()
