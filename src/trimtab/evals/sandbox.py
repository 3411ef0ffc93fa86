"""Runs Python code that a model wrote in a child process with limits, never in this one.

The child has limits of processor time, memory, file size and open files, an empty folder of its own that is removed
afterwards, an empty environment, the standard library only, no network, no processes or threads of its own, and may
write nowhere else. That holds against mistakes. Against code that attacks, run the evals in a container that has
nothing to lose.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

_CHILD: Final = Path(__file__).with_name("_sandboxed.py")
_OUTPUT_BYTES: Final = 1_000_000  # that the child may write into any one file
_SHOWN_CHARS: Final = 10_000
_RESULT_BYTES: Final = 60_000  # less than a pipe holds, so that nobody has to read while the child runs
MOST_TESTS: Final = 200


class Limits(msgspec.Struct, frozen=True):
    """What a run may use: processor seconds (whole ones), seconds by the clock, and megabytes of address space."""

    cpu_s: int = 5
    wall_s: float = 10.0
    memory_mb: int = 512


class Ran(msgspec.Struct, frozen=True):
    """What came of a run.

    `finished` says that the program and all tests came to their ends; `problems` has an entry for each test, "" if it
    passed. `problem` is why the program itself did not finish, or ""; `output` is what was printed, cut.
    """

    finished: bool
    problems: tuple[str, ...]
    problem: str
    output: str


def run(program: str, limits: Limits, tests: tuple[str, ...] = ()) -> Ran:
    """Run a program and then each test in its namespace; at most `MOST_TESTS` tests. Blocks until done.

    Side effects: a child process and a temporary folder, both gone at the end. Raises OSError if no child can be
    started.
    """
    nonce = secrets.token_hex(16)  # so that a program that ends early cannot say that the tests passed
    order = {"nonce": nonce, "program": program, "tests": tests, "file_bytes": _OUTPUT_BYTES, **_as_dict(limits)}
    with tempfile.TemporaryDirectory(prefix="trimtab-eval-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        with (Path(folder) / "output").open("w+b") as output:
            ended, result = _child(json.dumps(order).encode(), work, output, limits.wall_s)
            output.seek(0)
            printed = output.read(_SHOWN_CHARS).decode("utf-8", "replace")
    return _read(result, nonce, ended, printed, limits)


def _as_dict(limits: Limits) -> dict[str, Any]:
    return msgspec.structs.asdict(limits)


def _child(order: bytes, work: Path, output: Any, wall_s: float) -> tuple[int | None, bytes]:
    """The exit status (None: it was stopped by the clock) and what the child wrote into its result pipe."""
    reader, writer = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), str(writer)],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL, cwd=work, env={},
            pass_fds=(writer,), start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        writer = -1
        ended: int | None = None
        try:
            child.communicate(order, timeout=wall_s)
            ended = child.returncode
        except subprocess.TimeoutExpired:
            pass
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        os.set_blocking(reader, False)
        with suppress(BlockingIOError):
            return ended, os.read(reader, _RESULT_BYTES)
        return ended, b""
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _read(result: bytes, nonce: str, ended: int | None, printed: str, limits: Limits) -> Ran:
    told: dict[str, Any] = {}
    with suppress(ValueError):
        told = json.loads(result)
    if isinstance(told, dict) and told.get("nonce") == nonce:
        return Ran(told["problem"] == "", tuple(told["problems"]), told["problem"], printed)
    if ended is None:
        problem = f"took over {limits.wall_s:g} s"
    elif ended in (-signal.SIGXCPU, -signal.SIGKILL):
        problem = f"took over {limits.cpu_s} s of processor time"
    elif ended < 0:
        problem = f"was ended by {signal.Signals(-ended).name}"
    else:
        problem = f"ended itself with status {ended} before its tests"
    return Ran(False, (), problem, printed)
