"""A gateway of one's own to measure: `trimtab serve` as a child process that never outlives its starter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from trimtab.errors import TrimtabError
from trimtab.orphans import death_signal
from trimtab.transport import Origin

_KEPT_LINES: Final = 15


class GatewayFailed(TrimtabError):
    """The gateway ended, or was not ready in time; the message holds its last log lines and the way out."""


class GatewayProcess:
    """One running gateway. What it writes to stdout and stderr goes to `log_path`, and to `echo` while that is set."""

    def __init__(self, command: Sequence[str], port: int, log_path: Path, env: Mapping[str, str]) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.echo: Callable[[bytes], None] | None = None
        self._command = list(command)
        self._log_path = log_path
        self._env = dict(env)
        self._last = deque[bytes](maxlen=_KEPT_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Of the process that `start` began; 0 before."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches only us. Raises OSError."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=self._read_log, args=(self._process.stdout,), name="gateway-log", daemon=True
        )
        self._reader.start()

    async def wait_ready(self, at_most_s: float, tick: Callable[[str], None]) -> None:
        """Return once `GET /readyz` says 200; `tick` gets what it says before that, a few times a second.

        Raises GatewayFailed if the process ends or the time runs out.
        """
        assert self._process is not None, "start it first"
        began = time.monotonic()
        origin = Origin(self.base_url)
        try:
            while True:
                if (code := self._process.poll()) is not None:
                    self._join_reader()
                    raise GatewayFailed(
                        f"the gateway ended with exit code {code} before it was ready.\n{self.last_log()}"
                    )
                said = await _readyz(origin)
                if said is None:
                    return
                tick(said)
                if time.monotonic() - began > at_most_s:
                    raise GatewayFailed(
                        f"the gateway was not ready within {at_most_s:.0f} s"
                        f"{f' ({said})' if said else ''}.\n{self.last_log()}"
                    )
                await asyncio.sleep(0.25)
        finally:
            await origin.close()

    def last_log(self) -> str:
        """Its last lines, with a heading; not again what `echo` has shown."""
        if self.echo is not None:
            return "Its log is above."
        lines = b"\n".join(self._last).decode(errors="replace")
        return f"Its last lines:\n{lines}" if lines.strip() else "It wrote nothing to its log."

    def stop(self, grace_s: float = 15.0) -> None:
        """Let it finish and end it; by force after `grace_s`. Idempotent. Leaves no process behind."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its session: what it left behind, if anything
            process.wait(5)
        self._join_reader()

    def _join_reader(self) -> None:
        if self._reader is not None:
            self._reader.join(2.0)

    def _read_log(self, stream: IO[bytes]) -> None:
        rest = b""
        with stream, self._log_path.open("ab", buffering=0) as log:
            while piece := os.read(stream.fileno(), 4096):
                log.write(piece)
                if self.echo is not None:
                    self.echo(piece)
                *lines, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
                self._last.extend(line for line in lines if line.strip())
        if rest.strip():
            self._last.append(rest)


def of_config(config_file: Path, folder: Path) -> GatewayProcess:
    """A gateway with these settings on a free port, whose files go to `folder`; it ends when we do."""
    port = free_port()
    command = [*serve_command(config_file), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = {**os.environ, "TRIMTAB_DATA_DIR": str(folder / "data")}
    return GatewayProcess(command, port, folder / "serve.log", env)


def serve_command(config_file: Path) -> list[str]:
    """`trimtab serve`, told to end when we do."""
    code = (
        f"from trimtab.measure.gateway import end_with_parent; end_with_parent({os.getpid()}); "
        "from trimtab.cli import main; main(prog_name='trimtab')"
    )
    return [sys.executable, "-c", code, "serve", "--config", str(config_file)]


def free_port() -> int:
    """One that nobody listens on, at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def has_models(origin: Origin, at_most_s: float, tick: Callable[[], None] = lambda: None) -> bool:
    """Wait until the semantic cache's models are loaded; whether they came in time. `tick` is called meanwhile."""
    body = b'{"model": "trimtab-accurate", "input": "ready?"}'
    until = time.monotonic() + at_most_s
    while time.monotonic() < until:
        reply = await origin.request("POST", "/v1/embeddings", b"content-type: application/json\r\n", body, at_most_s)
        await reply.read(1 << 20)
        if reply.status == 200:
            return True
        tick()
        await asyncio.sleep(0.5)
    return False


async def _readyz(origin: Origin) -> str | None:
    """What keeps the gateway from being ready, None if nothing does; '' while nobody listens yet."""
    try:
        async with asyncio.timeout(5.0):
            reply = await origin.request("GET", "/readyz", b"", b"", 1.0)
            text = (await reply.read(1 << 16)).decode(errors="replace").strip()
            return None if reply.status == 200 else text
    except (TimeoutError, TrimtabError, OSError):
        return ""


def end_with_parent(parent_pid: int) -> None:
    """Have this process sent SIGTERM when the process that started it is gone, even by SIGKILL. Linux only."""
    if death_signal()() and os.getppid() != parent_pid:  # it was gone before we asked
        raise SystemExit(1)
