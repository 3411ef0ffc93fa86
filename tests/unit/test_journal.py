"""The journal: whole lines or none, disk full survived, rotation that never strands an intent."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

import trimtab
from trimtab.errors import ConfigError, Overloaded
from trimtab.stores import journal as journal_module
from trimtab.stores.journal import FileJournal, _fill
from trimtab.types import AttemptRecord, Intent, Record, Scope, Usage

DECODE = msgspec.json.Decoder(Intent | Record).decode


def intent(request_id, n=0):
    return Intent(
        id=request_id, n=n, at=1.0, purpose="serve", engine="e", model="m", provider="p", client_model="c",
        dialect="openai", path="/", stream=False, scope=Scope("t"), input_estimate=5,
    )  # fmt: skip


def row(request_id, **changes):
    fields = {
        "id": request_id, "at": 1.0, "scope": Scope("t"), "dialect": "openai", "path": "/", "model": "c",
        "stream": False, "end": "ok", "status": 200, "total_s": 0.1,
    }  # fmt: skip
    return Record(**(fields | changes))


def lines(folder):
    """Every readable message, and how many lines were not."""
    messages, torn = [], 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line.strip(b"\0"):
                try:
                    messages.append(DECODE(line))
                except msgspec.MsgspecError:
                    torn += 1
    return messages, torn


def is_locked(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Disk:
    """A disk that has `pages` of 4 KiB left, None means plenty."""

    def __init__(self):
        self.pages = None

    def __call__(self, fd, offset, length):
        if self.pages is not None:
            if self.pages * 4096 < length:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.pages -= length // 4096
        os.posix_fallocate(fd, offset, length)


def journal_on(disk, folder, **options):
    return FileJournal(folder, "w0", allocate=disk, **options)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(journal_module, "_STEP_BYTES", 4096)


def test_what_is_written_is_read_back(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w/0 \N{SNOWMAN}")
    journal.intent(intent("a"))
    usage = Usage(input=5, output=6)
    attempt = AttemptRecord(0, "serve", "e", "m", "p", "ok", 0.0, 0.1, usage=usage, usage_source="reported")
    journal.row(row("a", attempts=(attempt,), stages={"parse": 0.5}))
    assert lines(tmp_path / "journal") == (
        [intent("a"), row("a", attempts=(attempt,), stages={"parse": 0.5})],
        0,
    )
    assert journal.healthy
    assert journal.waiting == 0


def test_the_file_is_locked_for_life_and_private(tmp_path):
    journal = FileJournal(tmp_path, "w0")
    assert is_locked(journal.path)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    path = journal.path
    journal.close()
    assert not is_locked(path)


def test_names_are_unique_and_sort_by_time(tmp_path):
    journals = [FileJournal(tmp_path, f"w{number}") for number in range(3)]
    assert len({journal.path for journal in journals}) == 3
    assert list(tmp_path.glob(".*")) == []


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"server\.data_dir"):
        FileJournal(tmp_path / "file" / "journal", "w0")


@pytest.mark.parametrize("pages", [0, 1, 2, 5])
def test_rows_wait_for_space_and_none_is_lost_or_torn(tmp_path, pages):
    disk = Disk()
    journal = journal_on(disk, tmp_path)
    journal.row(row("before"))
    disk.pages = pages
    for number in range(200):
        journal.intent(intent(f"r{number}"))
        journal.row(row(f"r{number}"))
    assert not journal.healthy
    assert journal.waiting > 0
    disk.pages = None
    journal.flush()
    assert journal.healthy
    assert journal.waiting == 0
    messages, torn = lines(tmp_path)
    assert [m.id for m in messages] == ["before", *[f"r{number}" for number in range(200) for _ in range(2)]]
    assert torn == 0


@pytest.mark.parametrize("chars", [0, 4000, 10_000])
def test_lines_around_and_above_a_step(tmp_path, chars):
    journal = journal_on(Disk(), tmp_path)
    for number in range(50):
        journal.row(row(f"r{number}", error="x" * (chars + number)))
    assert [m.id for m in lines(tmp_path)[0]] == [f"r{number}" for number in range(50)]


def test_what_was_reserved_is_given_back(tmp_path):
    journal = FileJournal(tmp_path, "w0")
    journal.row(row("a"))
    path = journal.path
    assert path.stat().st_size == 4096
    journal.close()
    assert b"\0" not in path.read_bytes()


def test_space_can_be_reserved_where_the_system_has_no_call_for_it(tmp_path):
    journal = FileJournal(tmp_path, "w0", allocate=_fill)
    for number in range(100):
        journal.row(row(f"r{number}"))
    assert len(lines(tmp_path)[0]) == 100


@pytest.mark.parametrize("limits", [{"max_waiting": 10}, {"max_waiting_bytes": 2000}])
def test_a_full_buffer_refuses_new_calls_but_keeps_rows_of_old_ones(tmp_path, limits):
    disk = Disk()
    journal = journal_on(disk, tmp_path, **limits)
    disk.pages = 0
    begun = 0
    with pytest.raises(Overloaded, match="disk full"):
        for number in range(100):
            journal.intent(intent(f"r{number}"))
            begun += 1
    assert 5 < begun <= 11
    for number in range(begun):
        journal.row(row(f"r{number}"))
    assert journal.lost == 0
    for number in range(100):
        journal.row(row(f"late{number}"))
    assert journal.lost > 0
    disk.pages = None
    journal.intent(intent("after"))
    assert journal.waiting == 0
    assert {m.id for m in lines(tmp_path)[0]} >= {"after", *[f"r{number}" for number in range(begun)]}


def test_close_flushes_what_waits(tmp_path):
    disk = Disk()
    journal = journal_on(disk, tmp_path)
    disk.pages = 0
    for number in range(2500):
        journal.row(row(f"r{number}"))
    disk.pages = None
    journal.close()
    assert len(lines(tmp_path)[0]) == 2500
    journal.row(row("late"))  # never raises
    assert not journal.healthy


def test_rotation_keeps_a_file_locked_until_its_requests_are_settled(tmp_path):
    journal = FileJournal(tmp_path, "w0", rotate_bytes=2000)
    journal.intent(intent("slow"))
    first = journal.path
    for number in range(40):
        journal.intent(intent(f"r{number}"))
        journal.row(row(f"r{number}"))
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) > 3
    assert all(is_locked(path) for path in files)  # released oldest first, and the oldest waits
    journal.intent(intent("slow", 1))
    journal.row(row("slow"))
    assert not is_locked(first)
    assert [path for path in files if is_locked(path)] == [journal.path]
    journal.close()


def test_rotation_survives_a_folder_without_room(tmp_path, monkeypatch):
    journal = FileJournal(tmp_path, "w0", rotate_bytes=500)

    def refuse():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "_open_file", refuse)
    for number in range(20):
        journal.row(row(f"r{number}"))
    assert journal.healthy
    assert len(lines(tmp_path)[0]) == 20


def test_texts_and_numbers_that_json_cannot_hold_do_not_lose_the_row(tmp_path):
    journal = FileJournal(tmp_path, "w0")
    attempt = AttemptRecord(0, "serve", "e", "m", "p", "ok", 0.0, 0.1, usage=Usage(input=10**30))
    journal.row(row("a", model="bad \ud800 name", attempts=(attempt,)))
    journal.intent(structs.replace(intent("b"), client_model="\udfff"))
    (first, second), torn = lines(tmp_path)
    assert torn == 0
    assert (first.model, first.attempts[0].usage.input) == ("bad ? name", 2**63 - 1)
    assert isinstance(second, Intent)


def test_a_killed_process_leaves_every_finished_write(tmp_path):
    code = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_journal as t
journal = t.FileJournal(Path(sys.argv[1]), "w0")
for number in range(10**9):
    journal.intent(t.intent(f"r{number}"))
    journal.row(t.row(f"r{number}"))
    os.write(1, b"%d\\n" % number)
"""
    env = os.environ | {"PYTHONPATH": str(Path(trimtab.__file__).parents[1])}
    here = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), here], env=env, stdout=subprocess.PIPE) as writer:
        seen = b""
        while seen.count(b"\n") < 500:
            seen += os.read(writer.stdout.fileno(), 4096)
        assert is_locked(next(tmp_path.glob("*.jsonl")))
        writer.kill()
        seen += writer.stdout.read()
    done = seen.count(b"\n")
    messages, torn = lines(tmp_path)
    rows = [m.id for m in messages if isinstance(m, Record)]
    assert rows[:done] == [f"r{number}" for number in range(done)]
    assert len(rows) <= done + 1
    assert torn <= 1
    assert not is_locked(next(tmp_path.glob("*.jsonl")))
