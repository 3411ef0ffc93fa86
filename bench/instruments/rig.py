"""The mock, its certificate, and one measured run of load against one stack."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instruments import proc

HERE = Path(__file__).resolve().parent
DISTURBED = 0.10  # share of one core that others may use during a run before it is repeated
SATURATED = 0.97  # a gateway core that is busier than this was the bottleneck

_TEXT = "The quick brown fox jumps over the lazy dog while the cat watches from the window sill. "
_SYSTEM = "You are a helpful assistant that answers briefly and precisely. Use short sentences and no lists."


def body(model: str, *, stream: bool = False, unique: bool = True, size_bytes: int = 512) -> bytes:
    """A chat request of about `size_bytes`; a `unique` one holds the counter's place, near its beginning."""
    counter = "#" * 12 if unique else "0" * 12
    question = f"Question {counter}: summarise the following text in one line. "
    message: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 128,
    }
    if stream:
        message["stream"] = True
    short = size_bytes - len(json.dumps(message, separators=(",", ":")))
    message["messages"][1]["content"] += (_TEXT * (short // len(_TEXT) + 1))[: max(short, 0)].rstrip()
    return json.dumps(message, separators=(",", ":")).encode()


@dataclass
class Load:
    """What one run sends."""

    body: bytes
    port: int
    path: str
    headers: list[str]
    duration_s: float
    rate: float = 0.0  # 0 saturates
    connections: int = 32
    seed: int = 1


@dataclass
class Sample:
    """One run: what was answered, and what the gateway's processes used for it."""

    scenario: str
    rep: int
    done: int = 0
    chunks: int = 0
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)  # by role
    at_mock: int = 0
    latency_us: dict[str, float] = field(default_factory=dict)
    ttft_us: dict[str, float] = field(default_factory=dict)
    chunk_delay_us: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0  # share of its core that the gateway's processes used
    others: float = 0.0  # share of one core that other processes used
    stolen: float = 0.0  # share of one core that the hypervisor took
    instruments: float = 0.0  # share of one core that the mock and the generator used
    tries: int = 1
    problem: str = ""
    ttft_all_us: list[int] = field(default_factory=list)

    def per(self, what: str, count: int) -> float:
        """Microseconds of role `what` for each of `count`."""
        return self.cpu_s.get(what, 0.0) / count * 1e6 if count else 0.0

    def public(self) -> dict[str, object]:
        kept = asdict(self)
        kept.pop("ttft_all_us")
        return kept


def make_certificate(work: Path) -> tuple[str, str, str]:
    """A throw-away CA and a certificate for 127.0.0.1: paths of CA, chain and key. Raises OSError if openssl fails."""
    ca, ca_key = work / "ca.pem", work / "ca.key"
    chain, key, request = work / "mock.pem", work / "mock.key", work / "mock.csr"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE"]
    signer = ["-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial", "-days", "30", "-copy_extensions", "copyall"]
    commands = (
        ["req", "-x509", *curve, "-keyout", str(ca_key), "-out", str(ca), "-subj", "/CN=bench CA", *authority],
        ["req", *curve, "-keyout", str(key), "-out", str(request), "-subj", "/CN=localhost", *names],
        ["x509", "-req", "-in", str(request), "-out", str(chain), *signer],
    )
    for command in commands:
        done = subprocess.run(["openssl", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"openssl {command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1][:160]}")
    return str(ca), str(chain), str(key)


class Rig:
    """The running mock, and how to send load; instruments stay off the gateway's core."""

    def __init__(self, work: Path, ports: tuple[int, int], certificate: tuple[str, str] | None) -> None:
        self.work, self.port, self.tls_port = work, ports[0], ports[1]
        cores = sorted(os.sched_getaffinity(0))
        self.gateway_core = cores[0]
        self.mock_core = cores[1 % len(cores)]
        self.load_core = cores[2 % len(cores)] if len(cores) > 2 else self.mock_core
        command = [sys.executable, str(HERE / "mock.py"), "--port", str(self.port)]
        if certificate is not None:
            command += ["--tls-port", str(self.tls_port), "--cert", certificate[0], "--key", certificate[1]]
        self.mock = subprocess.Popen(["taskset", "-c", str(self.mock_core), *command])

    def wait(self) -> None:
        for _ in range(400):
            with contextlib.suppress(OSError):
                self.counts()
                return
            if self.mock.poll() is not None:
                break
            time.sleep(0.02)
        raise OSError("the mock upstream did not start")

    def counts(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counts", timeout=5) as reply:
            counts: dict[str, int] = json.loads(reply.read())
            return counts

    def stop(self) -> None:
        self.mock.send_signal(signal.SIGKILL)
        self.mock.wait()

    def send(self, load: Load) -> dict[str, Any]:
        """Run the generator once; its report. Raises OSError when it failed."""
        path = self.work / "body.json"
        path.write_bytes(load.body)
        command = ["taskset", "-c", str(self.load_core), sys.executable, str(HERE / "load.py")]
        command += ["--port", str(load.port), "--path", load.path, "--body", str(path), "--rate", str(load.rate)]
        command += ["--duration-s", str(load.duration_s), "--connections", str(load.connections)]
        command += ["--seed", str(load.seed), "--keep-ttft"]
        for header in load.headers:
            command += ["--header", header]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"load generator: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def measure(self, load: Load, sample: Sample, pid: int | None) -> Sample:
        """Send `load` and fill in `sample`: CPU of the tree under `pid` (none: straight to the mock), and sanity."""
        with self._watched(sample, pid):
            before = self.counts()["requests"]
            report = self.send(load)
            sample.at_mock = self.counts()["requests"] - before
        sample.done, sample.chunks, sample.wall_s = report["done"], report["chunks"], report["wall_s"]
        sample.latency_us, sample.ttft_us = report["latency_us"], report["ttft_us"]
        sample.chunk_delay_us, sample.ttft_all_us = report["chunk_delay_us"], report["ttft_all_us"]
        sample.busy = round(sum(sample.cpu_s.values()) / sample.wall_s, 3)
        if report["errors"] or sample.done != report["sent"]:
            sample.problem = f"{report['errors']} errors in {report['sent']}: {report['first_error'][:160]}"
        return sample

    @contextlib.contextmanager
    def _watched(self, sample: Sample, pid: int | None) -> Iterator[None]:
        """Around a run: CPU by role, what the instruments and everybody else used, and what was stolen."""
        ours = {*(proc.tree(pid) if pid else []), self.mock.pid, os.getpid()}
        start, stolen = time.monotonic(), proc.stolen_s()
        used = proc.cpu_by_role_s(pid) if pid else {}
        instruments = proc.whole_cpu_s((self.mock.pid, os.getpid()))
        others = proc.whole_cpu_s(proc.everybody()) - proc.whole_cpu_s(ours)
        yield
        after = proc.cpu_by_role_s(pid) if pid else {}
        instruments = proc.whole_cpu_s((self.mock.pid, os.getpid())) - instruments
        ours |= set(proc.tree(pid) if pid else [])
        others = proc.whole_cpu_s(proc.everybody()) - proc.whole_cpu_s(ours) - others
        wall = time.monotonic() - start
        sample.cpu_s = {name: round(after[name] - used.get(name, 0.0), 4) for name in after}
        sample.others = round(max(others, 0.0) / wall, 3)
        sample.stolen = round((proc.stolen_s() - stolen) / wall, 3)
        sample.instruments = round(instruments / wall, 3)
