"""A gateway and an upstream of known answers as real processes, clients, and what the ledger says afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TRIMTAB = Path(sys.executable).with_name("trimtab")
_RECORDED = Path(__file__).with_name("recorded.py")
_UP_S = 120.0
_LEDGER_S = 60.0
_SHOWN_CHARS = 3000
_KEPT = ("TRIMTAB_CACHE_DIR",)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Got(NamedTuple):
    """What a client got; times in seconds from the request on. `headers` have lower-case names."""

    headers: dict[str, str]
    body: bytes
    first_s: float
    total_s: float

    @property
    def id(self) -> str:
        """The request's, in the ledger."""
        return self.headers["x-trimtab-request-id"]


class Client:
    """Asks over one connection for each thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._own = threading.local()

    def ask(self, body: dict[str, Any], headers: dict[str, str]) -> Got:
        """POST to chat completions. Raises SystemExit for anything but 200."""
        data, named = json.dumps(body), {"content-type": "application/json", **headers}
        if not hasattr(self._own, "http"):
            self._own.http = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            self._own.http.connect()
            self._own.http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        self._own.http.request("POST", "/v1/chat/completions", data, named)
        reply = self._own.http.getresponse()
        first = reply.read(1)
        first_s = time.monotonic() - began
        whole = first + reply.read()
        if reply.status != 200:
            raise SystemExit(f"status {reply.status}: {whole.decode(errors='replace')}")
        told = {name.lower(): value for name, value in reply.headers.items()}
        return Got(told, whole, first_s, time.monotonic() - began)


class Gateway:
    """The gateway as a user starts it; `config` without its server table."""

    def __init__(self, folder: Path, config: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._file = folder / "trimtab.toml"
        self._file.write_text(f'[server]\nport = {self.port}\ndata_dir = "{folder}/data"\n{config}')
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith("TRIMTAB_")}
        self._env = kept | {"TRIMTAB_CONFIG": str(self._file)}
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([TRIMTAB, "serve"], env=self._env, stdout=log, stderr=log)
        try:
            _until(self._is_ready, _UP_S, self.log)
        except BaseException:
            self.stop()
            raise

    def log(self) -> str:
        """The end of what it said."""
        return (self._folder / "log").read_text(errors="replace")[-_SHOWN_CHARS:]

    def requests(self, count: int, *routes: str) -> dict[str, dict[str, Any]]:
        """The ledger's rows of some routes by id, once there are `count`.

        `detail` is decoded, `decision` is that of the lever `route` (empty without one), `calls` are the attempts.
        """
        found: dict[str, dict[str, Any]] = {}

        def whole() -> bool:
            rows = [row for row in self._export() if row["route"] in routes]
            found.update({row["id"]: _decoded(row) for row in rows})
            return len(found) >= count

        _until(whole, _LEDGER_S, lambda: f"{len(found)} of {count} rows are in the ledger\n{self.log()}")
        for call in self._export("--attempts"):
            if call["request_id"] in found:
                found[call["request_id"]]["calls"].append(call)
        return found

    def _export(self, *options: str) -> list[dict[str, Any]]:
        command = [TRIMTAB, "ledger", "export", "--format", "jsonl", *options]
        done = subprocess.run(command, env=self._env, capture_output=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit(self.log())
        return _answers(self.port, "GET", "/readyz")

    def stop(self) -> None:
        """End it, and wait."""
        self._process.terminate()
        self._process.wait(60)


class Upstream:
    """`recorded.py` in a process of its own."""

    def __init__(self, folder: Path, speed: float, answers: dict[str, dict[str, str]] | None = None) -> None:
        self.port = free_port()
        command = [sys.executable, str(_RECORDED), "--port", str(self.port), "--speed", str(speed)]
        if answers is not None:
            (folder / "answers.json").write_text(json.dumps(answers))
            command += ["--answers", str(folder / "answers.json")]
        self._process = subprocess.Popen(command)
        try:
            _until(self.forget, _UP_S, lambda: "the upstream did not start")
        except BaseException:
            self.stop()
            raise

    def forget(self) -> bool:
        """Have it forget the prefixes that it read; whether it is there."""
        return _answers(self.port, "POST", "/forget")

    def stop(self) -> None:
        """End it, and wait."""
        self._process.terminate()
        self._process.wait(60)


@contextlib.contextmanager
def stopped(*running: Gateway | Upstream) -> Iterator[None]:
    """Whatever happens, they are ended."""
    try:
        yield
    finally:
        for one in running:
            one.stop()


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    detail = json.loads(row["detail"])
    decision = next((one for one in detail.get("decisions", ()) if one["lever"] == "route"), {})
    return row | {"detail": detail, "decision": decision, "calls": []}


def _answers(port: int, method: str, path: str) -> bool:
    http_ = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        http_.request(method, path)
        return http_.getresponse().status == 200
    except OSError:
        return False
    finally:
        http_.close()


def _until(done: Any, timeout_s: float, why: Any) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(why())
        time.sleep(0.1)
