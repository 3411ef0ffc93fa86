"""One class per stack: install it in the bench's own folder, write its configuration, start it, address it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from instruments import proc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".bench"


def install_python_peer(package: str, *more: str) -> str:
    """Have `package` in an environment of its own, with `more`, on the Python that runs Trimtab; the version installed.

    One that another Python made is made anew: how an interpreter was built changes every figure by a fifth. So is one
    that was pinned to another version.
    """
    name, _, pin = package.partition("==")
    name = name.partition("[")[0]
    venv = CACHE / name
    mark = venv / "made-by"
    made_by = " ".join(filter(None, (os.path.realpath(sys.executable), pin)))
    if not mark.exists() or mark.read_text() != made_by:
        quiet([sys.executable, "-m", "venv", "--clear", str(venv)])
        quiet([str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", package, *more])
        mark.write_text(made_by)
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return quiet([str(venv / "bin" / "python"), "-c", code]).strip()


class Unavailable(Exception):
    """A stack cannot be installed or started here; the message says why, and goes into the table."""


class Ports:
    """Where the mock listens, and the CA that signed its certificate ("" without TLS)."""

    def __init__(self, mock: int, mock_tls: int, ca: str) -> None:
        self.mock, self.mock_tls, self.ca = mock, mock_tls, ca


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quiet(command: list[str], cwd: Path | None = None, timeout_s: float = 900.0) -> str:
    """Run an installer; its output. Raises Unavailable with the last line that it printed."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
        raise Unavailable(f"{' '.join(command[:3])}: {lines[-1][:160]}")
    return done.stdout


class Stack:
    """A gateway under test. Subclasses say what differs."""

    name = ""
    title = ""
    health = "/healthz"
    path = "/v1/chat/completions"
    caches = False  # has a hit figure
    hit_instance = False  # hits are measured on an instance of its own, with its cache on
    sse_rate = 100.0  # streams a second that it can carry on one core
    ttft_rate = 50.0
    warm_s = 1.0
    settings: str = ""  # one line for the table's foot
    idle_cpu_s = 0.0  # what its ingester had used before any load

    def __init__(self, ports: Ports, work: Path, cache_on: bool = False) -> None:
        self.ports, self.cache_on = ports, cache_on
        self.dir = work / (self.name + ("-cache" if cache_on else ""))
        self.dir.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def install(self) -> str:
        """Make it runnable; its version."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def model(self, tls: bool) -> str:
        return "gpt-4o-mini-tls" if tls else "gpt-4o-mini"

    def path_for(self, tls: bool) -> str:
        return self.path

    def headers(self, tls: bool) -> list[str]:
        return ["authorization: Bearer sk-bench"]

    def template(self, name: str, target: str, **more: str) -> Path:
        """A configuration file with @PLACES@ filled in."""
        text = (HERE / name).read_text()
        places = {
            "PORT": str(self.port),
            "MOCK": str(self.ports.mock),
            "MOCK_TLS": str(self.ports.mock_tls),
            "CA": self.ports.ca,
            "DIR": str(self.dir),
            **more,
        }
        for place, value in places.items():
            text = text.replace(f"@{place}@", value)
        path = self.dir / target
        path.write_text(text)
        return path

    def answers(self) -> bool:
        """Whether a GET of the health path answers 200 now."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as link:
                link.sendall(f"GET {self.health} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                return link.recv(64).split(b" ")[1:2] == [b"200"]
        except (OSError, IndexError):
            return False

    def start(self, core: int, limit_s: float = 90.0) -> float:
        """Start it on `core` alone; seconds until it answered its health path. Raises Unavailable."""
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "NO_PROXY": "127.0.0.1", **self.environment()}
        log = (self.dir / "log").open("wb")
        begin = time.monotonic()
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *self.command()],
            cwd=self.dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() - begin > limit_s:
                self.stop()
                lines = (self.dir / "log").read_text(errors="replace").strip().splitlines() or ["no output"]
                raise Unavailable(f"did not start: {lines[-1][:160]}")
            time.sleep(0.004)
        return time.monotonic() - begin

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """Ask it to end, then make it; nothing of its tree is left."""
        if self.process is None:
            return
        pids = proc.tree(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            proc.send(self.process.pid, signal.SIGCONT)
            os.kill(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    @property
    def caches_here(self) -> bool:
        """Whether this very instance answers from a cache."""
        return self.caches and (self.cache_on or not self.hit_instance)

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def pause(self) -> None:
        """Hold it still, so that it costs nothing while others are measured."""
        proc.send(self.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let it run inside the block and hold it still (SIGSTOP) outside."""
        proc.send(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()


class Nginx(Stack):
    name, title = "nginx", "nginx (floor)"
    settings = "reverse proxy, 1 worker, upstream keepalive, no buffering, no access log"

    def install(self) -> str:
        if shutil.which("nginx") is None:
            if os.geteuid() != 0 or shutil.which("apt-get") is None:
                raise Unavailable("nginx is not on the PATH (install it, or run as root on Debian)")
            quiet(["apt-get", "update", "-qq"])
            quiet(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"])
        done = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
        return done.stderr.strip().rpartition("/")[2]

    def command(self) -> list[str]:
        user = "user root;" if os.geteuid() == 0 else ""
        return ["nginx", "-p", str(self.dir), "-c", str(self.template("nginx.conf", "nginx.conf", USER=user))]

    def path_for(self, tls: bool) -> str:
        return "/tls" + self.path if tls else self.path


class Trimtab(Stack):
    name, title, caches = "trimtab", "Trimtab", True
    settings = "1 worker, journal, ledger, metrics, exact cache (LRU + LMDB) on"

    def install(self) -> str:
        if not (Path(sys.executable).parent / "trimtab").exists():
            raise Unavailable("no `trimtab` program beside this Python: run `make bench-overhead`")
        return quiet([sys.executable, "-c", "import trimtab; print(trimtab.__version__)"]).strip()

    def command(self) -> list[str]:
        config = self.template("trimtab.toml", "trimtab.toml")
        return [str(Path(sys.executable).parent / "trimtab"), "serve", "--config", str(config)]

    def environment(self) -> dict[str, str]:
        return {"TRIMTAB_DATA_DIR": str(self.dir / "data"), "TRIMTAB_CACHE_DIR": str(self.dir / "cache")}


class LiteLLM(Stack):
    name, title, caches, hit_instance = "litellm", "LiteLLM", True, True
    health = "/health/liveliness"
    sse_rate, ttft_rate = 15.0, 10.0
    settings = "1 worker, no database, callbacks and logging off; hits: a second instance with its in-memory cache"

    def install(self) -> str:
        return install_python_peer("litellm[proxy]")

    def command(self) -> list[str]:
        config = self.template("litellm.yaml", "litellm.yaml", CACHE="true" if self.cache_on else "false")
        program = str(CACHE / "litellm" / "bin" / "litellm")
        return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"]

    def environment(self) -> dict[str, str]:
        return {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            "DISABLE_ADMIN_UI": "True",
            "NO_DOCS": "True",
            **({"SSL_CERT_FILE": self.ports.ca} if self.ports.ca else {}),
        }


class Portkey(Stack):
    name, title, health = "portkey", "Portkey", "/"
    warm_s = 3.0  # V8 compiles as it goes
    settings = "open-source gateway on Node, --headless, NODE_ENV=production; no cache without its cloud"

    def install(self) -> str:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Unavailable("needs node and npm on the PATH")
        home = CACHE / "portkey"
        package = home / "node_modules" / "@portkey-ai" / "gateway"
        if not package.exists():
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / "portkey.json", home / "package.json")
            quiet(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=home)
        found = quiet(["node", "-p", f"require({str(package / 'package.json')!r}).version"]).strip()
        node = quiet(["node", "--version"]).strip()
        return f"{found} on node {node}"

    def command(self) -> list[str]:
        script = CACHE / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", str(script), f"--port={self.port}", "--headless"]

    def environment(self) -> dict[str, str]:
        return {"NODE_ENV": "production", **({"NODE_EXTRA_CA_CERTS": self.ports.ca} if self.ports.ca else {})}

    def model(self, tls: bool) -> str:
        return "gpt-4o-mini"

    def headers(self, tls: bool) -> list[str]:
        base = f"https://127.0.0.1:{self.ports.mock_tls}" if tls else f"http://127.0.0.1:{self.ports.mock}"
        return [*super().headers(tls), "x-portkey-provider: openai", f"x-portkey-custom-host: {base}/v1"]


class TensorZero(Stack):
    name, title, path = "tensorzero", "TensorZero", "/openai/v1/chat/completions"
    settings = "its HTTP gateway in its Python package, no database (so no observability rows and no cache)"

    def install(self) -> str:
        return install_python_peer("tensorzero")

    def command(self) -> list[str]:
        config = self.template("tensorzero.toml", "tensorzero.toml")
        (self.dir / "address").unlink(missing_ok=True)
        program = str(CACHE / "tensorzero" / "bin" / "python")
        return [program, str(HERE / "tensorzero_serve.py"), str(config), str(self.dir / "address")]

    def environment(self) -> dict[str, str]:
        return {"SSL_CERT_FILE": self.ports.ca} if self.ports.ca else {}

    def answers(self) -> bool:
        """It picks its port itself and writes its address when it serves."""
        with contextlib.suppress(OSError, ValueError, IndexError):  # not there yet, or not written to its end
            self.port = int((self.dir / "address").read_text().split(":")[2].split("/")[0])
            return True
        return False

    def model(self, tls: bool) -> str:
        return "tensorzero::model_name::" + super().model(tls)


STACKS: dict[str, Callable[..., Stack]] = {
    stack.name: stack for stack in (Nginx, Trimtab, LiteLLM, Portkey, TensorZero)
}
