"""The child of `sandbox`: binds itself, runs the program and its tests, and tells what came of it. Run as a script."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_NEW_USER_AND_NETWORK = 0x10000000 | 0x40000000  # CLONE_NEWUSER | CLONE_NEWNET
_DENIED = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.fork", "os.exec", "os.posix_spawn", "os.spawn",
    "os.kill", "signal.pthread_kill", "_thread.start_new_thread", "resource.setrlimit", "resource.prlimit",
    "sys.addaudithook", "syslog.", "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.",
)  # fmt: skip
_CHANGES = {  # events that change files, and which of their arguments are paths
    "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (0, 1), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "os.chflags": (0,), "os.setxattr": (0,),
    "os.removexattr": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1), "shutil.chown": (0,),
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Reads the order from standard input; the argument is the file descriptor for the result."""
    order = json.loads(sys.stdin.buffer.read())
    result = int(sys.argv[1])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    _bind(order)
    problem, problems = _run(order["program"], order["tests"])
    sys.stdout.flush()
    told = {"nonce": order["nonce"], "problem": problem, "problems": problems}
    os.write(result, json.dumps(told).encode())
    os._exit(0)  # no exit handlers of the program


def _bind(order: dict[str, Any]) -> None:
    with suppress(
        OSError, AttributeError
    ):  # elsewhere than on Linux, or not allowed: the hook below still denies sockets
        ctypes.CDLL(None).unshare(_NEW_USER_AND_NETWORK)
    signal.alarm(int(order["wall_s"]) + 2)  # in case nobody is left to stop us
    memory = order["memory_mb"] * 1_000_000
    for what, soft, hard in (
        (resource.RLIMIT_CPU, order["cpu_s"], order["cpu_s"] + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, order["file_bytes"], order["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        with suppress(ValueError, OSError):  # a lower limit was there before, or the system knows none
            resource.setrlimit(what, (soft, hard))
    sys.addaudithook(_watch(os.getcwd()))  # noqa: PTH109


def _watch(home: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that denies network, processes and writing outside `home`; hooks cannot be taken off."""
    real, inside, null = os.path.realpath, os.path.realpath(home) + os.sep, os.devnull

    def check(path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        if name != null and not (real(name) + os.sep).startswith(inside):
            raise PermissionError("writing is allowed in the current folder only")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITES)
            if writes:
                check(path)
        elif event in _CHANGES:
            for at in _CHANGES[event]:
                check(arguments[at])
        elif event.startswith(_DENIED):
            raise PermissionError(f"{event} is not allowed here")

    return watch


def _run(program: str, tests: list[str]) -> tuple[str, list[str]]:
    """What is wrong with the program ("" if nothing), and with each test."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module  # dataclasses and pickle look there
    problem = _execute(program, "answer", module)
    if problem:
        return problem, [problem] * len(tests)
    return "", [_execute(test, f"test {number}", module) for number, test in enumerate(tests, 1)]


def _execute(code: str, name: str, module: types.ModuleType) -> str:
    try:
        exec(compile(code, name, "exec"), module.__dict__)
    except BaseException as error:
        return _described(error)
    return ""


def _described(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:
        said = ""
    return (f"{type(error).__name__}: {said}" if said else type(error).__name__)[:200]


if __name__ == "__main__":
    main()
