"""The gateway as a real process: `trimtab serve` on a free port, its ledger read from the outside."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai

from ports import free_port

TRIMTAB = Path(sys.executable).with_name("trimtab")
_OURS = ("TRIMTAB_", "OPENAI_", "ANTHROPIC_")


def hashed(key: str) -> str:
    """How the configuration stores a key."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def new_id(word: str = "wf") -> str:
    """A name that no other request has."""
    return f"{word}-{uuid.uuid4().hex[:16]}"


def _session(leader: int) -> list[int]:
    """The living processes of a session (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has just ended
        return ""


class Gateway:
    """One running gateway. `config` is the text of its trimtab.toml without host, port and data_dir."""

    def __init__(self, folder: Path, config: str, env: dict[str, str] | None = None, *, server: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data_dir = folder / "data"
        self.config_file = folder / "trimtab.toml"
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._server = server
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name == "TRIMTAB_CACHE_DIR" or not name.startswith(_OURS)
        }
        self._env = inherited | (env or {})
        self._log = folder / "stderr.txt"
        self.write_config(config)
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self, config: str) -> None:
        """Replace the file; a running gateway reads it on SIGHUP."""
        head = f'[server]\nhost = "127.0.0.1"\nport = {self.port}\ndata_dir = "{self.data_dir}"\n{self._server}\n'
        self.config_file.write_text(head + config)

    def start(self, ready_s: float = 30.0) -> Gateway:
        """Start it and wait until it takes requests."""
        command = [str(TRIMTAB), "serve", "--config", str(self.config_file)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._env, start_new_session=True
            )
        deadline = time.monotonic() + ready_s
        while not self.is_ready():
            assert self.process.poll() is None, f"trimtab serve ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"trimtab serve not ready after {ready_s} s:\n{self.log()}"
            time.sleep(0.05)
        return self

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.base_url + path, headers=headers or {}), timeout=10
            ) as r:
                return r.status, r.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9 of every process of it at once, as a machine that goes down would."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGSTOP)  # so that the supervisor neither restarts nor warns its children
        self._kill_session()
        self.process.wait(10)

    def children(self, name: str) -> list[int]:
        """The ids of its processes that bear a name, such as "trimtab-worker0"."""
        assert self.process is not None
        return [pid for pid in _session(self.process.pid) if _name(pid) == name and pid != self.process.pid]

    def _kill_session(self) -> None:
        """SIGKILL to all that is left of the session that the process leads, itself last; waits until it is gone."""
        assert self.process is not None
        leader = self.process.pid
        deadline = time.monotonic() + 10
        while members := [pid for pid in _session(leader) if pid != leader]:
            assert time.monotonic() < deadline, f"processes {members} survive SIGKILL"
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process.poll() is None:
                self.process.kill()
            time.sleep(0.002)
        if self.process.poll() is None:
            self.process.kill()

    def stop(self, grace_s: float = 15.0) -> int:
        """SIGTERM; returns the exit status. Idempotent. Leaves no process behind."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(grace_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not stop within {grace_s} s of SIGTERM:\n{self.log()}") from None
        finally:
            self._kill_session()
            process.wait(10)

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # clients

    def openai(self, key: str = "sk-client", **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=key, max_retries=0, **settings)

    def anthropic(self, key: str = "sk-client", **settings: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.base_url, api_key=key, max_retries=0, **settings)

    # command line

    def trimtab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `trimtab` command against this gateway's data."""
        env = self._env | {"TRIMTAB_DATA_DIR": str(self.data_dir), "TRIMTAB_CONFIG": str(self.config_file)}
        command = [str(TRIMTAB), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)

    # ledger

    def ledger(self, *, count: int = 1, timeout_s: float = 10.0, **where: str) -> list[dict[str, Any]]:
        """The rows whose columns equal `where`, with their attempts, once there are `count` of them."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = self._rows(where)
            if len(rows) >= count:
                return rows
            assert time.monotonic() < deadline, f"{len(rows)} ledger rows with {where}, wanted {count}:\n{self.log()}"
            time.sleep(0.05)

    def row(self, **where: str) -> dict[str, Any]:
        """The one row whose columns equal `where`."""
        rows = self.ledger(**where)
        assert len(rows) == 1, rows
        return rows[0]

    def _rows(self, where: dict[str, str]) -> list[dict[str, Any]]:
        path = self.data_dir / "ledger.sqlite"
        if not path.exists():
            return []
        condition = " AND ".join(f"{name} = ?" for name in where) or "1"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            connection.row_factory = sqlite3.Row
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchone():
                return []
            query = f"SELECT * FROM requests WHERE {condition} ORDER BY rowid"
            rows = [dict(row) for row in connection.execute(query, tuple(where.values()))]
            for row in rows:
                found = connection.execute("SELECT * FROM attempts WHERE request_id = ? ORDER BY n", (row["id"],))
                row["calls"] = [dict(call) for call in found]
            return rows
        except sqlite3.OperationalError as error:  # the ingester was killed while it created the file
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
                return []
            raise
        finally:
            connection.close()


MakeGateway = Callable[..., Gateway]
"""What the fixture `gateways` is: starts one and stops it when the module is done."""


def two_upstreams(port: int, *, models: str = "", extra: str = "") -> str:
    """A configuration with the scripted upstream as an OpenAI and as an Anthropic engine, a priced model on each."""
    price = (
        "price = { input_per_mtok = 2.0, output_per_mtok = 10.0, cache_read_per_mtok = 0.5, "
        "cache_write_5m_per_mtok = 2.5, cache_write_1h_per_mtok = 4.0 }"
    )
    return f"""
[engines.oai]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"

[engines.ant]
kind = "anthropic_http"
base_url = "http://127.0.0.1:{port}"

[models.gpt]
engine = "oai"
name = "gpt-4o-mini"
{price}

[models.claude]
engine = "ant"
name = "claude-sonnet-4-5"
{price}
{models}
{extra}
"""
