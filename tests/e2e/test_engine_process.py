"""`trimtab engine start|stop|logs` and `trimtab serve` beside it, with a stand-in for vLLM and the embedded engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import TRIMTAB, Gateway

from processes import is_alive

STAND_IN = Path(__file__).with_name("stand_in_engine.py")
BIG = f'[engines.big]\nkind = "vllm"\nmodel = "acme/m"\ncommand = ["{sys.executable}", "{STAND_IN}", "serve"]\n'
SMALL = """[engines.small]
kind = "llama_cpp"
context_tokens = 512
parallel = 2
batch_tokens = 64
kv_cache_type = "q8_0"
"""
AWAY = '[engines.away]\nkind = "openai_http"\nbase_url = "http://127.0.0.1:9/v1"\n'


class Engines:
    """The commands, on a configuration and its data folder."""

    def __init__(self, config: Path, data_dir: Path) -> None:
        self.config = config
        self.data_dir = data_dir

    def write(self, extra: str) -> None:
        self.config.write_text(f'[server]\ndata_dir = "{self.data_dir}"\n{BIG}{extra}{SMALL}{AWAY}')

    def command(self, *arguments: str) -> list[str]:
        command, *rest = arguments
        return [str(TRIMTAB), "engine", command, "--config", str(self.config), *rest]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)

    def did(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def record(self, name: str = "big") -> dict[str, Any]:
        try:
            return json.loads((self.data_dir / "engines" / name / "run.json").read_text())
        except FileNotFoundError:
            return {}


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    made = Engines(tmp_path / "trimtab.toml", tmp_path / "data")
    made.write("")
    yield made
    for name in ("big", "small"):
        made.run("stop", name)


def wait_until(met: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def asked(url: str) -> int:
    """The process id that answers."""
    request = urllib.request.Request(f"{url}/v1/chat/completions", b"{}", {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return int(json.loads(reply.read())["choices"][0]["message"]["content"])


def test_a_detached_engine_lives_until_it_is_stopped(engines: Engines) -> None:
    started = json.loads(engines.did("start", "big", "--detach", "--json"))
    pid = asked(started["url"])
    assert (started["engine"], started["kind"]) == ("big", "vllm")
    assert f"already (pid {started['pid']}, {started['url']})" in engines.refused("start", "big")
    stopped = json.loads(engines.did("stop", "big", "--json"))
    assert (stopped["pid"], stopped["stopped"], stopped["killed"]) == (started["pid"], True, False)
    assert not is_alive(pid) and not is_alive(started["pid"])
    assert "is not running; start it: trimtab engine start big" in engines.refused("stop", "big")
    log = engines.did("logs", "big", "-n", "100")
    assert f"stand-in {pid}\n" in log and "--max-num-seqs 256" in log and "SIGTERM: stopping" in log
    (line,) = engines.did("logs", "big", "-n", "1", "--json").splitlines()
    assert json.loads(line)["engine"] == "big"
    again = json.loads(engines.did("start", "big", "--detach", "--json"))
    assert again["url"] == started["url"]  # so that a gateway that knows it finds it again


def test_kill_9_of_the_engine_and_of_the_process_that_watches_it(engines: Engines) -> None:
    url = json.loads(engines.did("start", "big", "--detach", "--json"))["url"]
    first = asked(url)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: engines.record()["starts"] == 2 and engines.record()["ready"])
    second = asked(url)
    watching = int(Path(f"/proc/{second}/stat").read_text().rpartition(")")[2].split()[1])
    assert watching != engines.record()["pid"]
    os.kill(watching, signal.SIGKILL)
    wait_until(lambda: engines.record()["starts"] >= 3 and engines.record()["ready"])
    assert asked(url) not in (first, second)
    assert not is_alive(second)
    assert "ended with signal 9" in engines.did("logs", "big")


def test_kill_9_of_the_supervisor_leaves_nothing(engines: Engines) -> None:
    started = json.loads(engines.did("start", "big", "--detach", "--json"))
    pid = asked(started["url"])
    os.kill(started["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: "is not running" in engines.run("stop", "big").stderr)
    engines.did("start", "big", "--detach")


def test_ctrl_c_ends_an_engine_in_the_foreground(engines: Engines) -> None:
    command = engines.command("start", "big")
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    line = running.stdout.readline()
    assert line.startswith(f"engine big (pid {running.pid}): http://127.0.0.1:"), running.communicate()
    pid = asked(line.split()[4].removesuffix("/v1;"))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0
    assert f"stand-in {pid}\n" in said and "SIGINT: stopping" in said
    assert not is_alive(pid)


def test_a_log_is_followed(engines: Engines) -> None:
    pid = asked(json.loads(engines.did("start", "big", "--detach", "--json"))["url"])
    following = subprocess.Popen(engines.command("logs", "big", "-f"), stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    lines = iter(following.stdout.readline, "")
    assert any(line == f"stand-in {pid}\n" for line in lines)
    engines.did("stop", "big")
    assert any("SIGTERM: stopping" in line for line in lines)
    following.send_signal(signal.SIGINT)
    assert following.wait(60) == 0


def test_of_two_starts_at_once_one_wins(engines: Engines) -> None:
    command = [*engines.command("start", "big", "--detach")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 1]
    assert "engine big" in "".join(said)


def test_an_engine_that_cannot_start_says_why(engines: Engines) -> None:
    engines.write('extra = ["--fail"]\n')
    said = engines.refused("start", "big", "--detach")
    assert "did not start; the end of" in said and "no such flag: --fail" in said
    assert not engines.record()["ready"]
    foreground = engines.run("start", "big")
    assert foreground.returncode == 78 and "no such flag: --fail" in foreground.stderr


def test_mistakes_name_the_way_out(engines: Engines) -> None:
    assert "of those that Trimtab starts there are: big, small" in engines.refused("start", "nobody")
    assert "engine away (openai_http) is not started by Trimtab" in engines.refused("stop", "away")
    assert "no engine ../big" in engines.refused("logs", "../big")
    assert "was never started on its own" in engines.refused("logs", "big")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        engines.write(f"port = {port}\n")
        assert f"engines.big.port: {port} is taken" in engines.refused("start", "big")


def test_a_command_that_is_missing(engines: Engines) -> None:
    engines.config.write_text(engines.config.read_text().replace(sys.executable, "/no-such-vllm"))
    said = engines.refused("start", "big", "--detach")
    assert "/no-such-vllm cannot be run" in said and "pip install vllm" in said and "openai_http" in said


def test_the_embedded_engine_by_itself(engines: Engines) -> None:
    started = json.loads(engines.did("start", "small", "--detach", "--json"))
    long = " ".join(f"word{n}" for n in range(40))  # more than one step of `batch_tokens`
    body = {"messages": [{"role": "user", "content": long}], "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(f"{started['url']}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as reply:
        assert json.loads(reply.read())["usage"]["completion_tokens"] == 4
    (line,) = [json.loads(line) for line in engines.did("status", "--window", "0.5", "--json").splitlines()]
    assert (line["engine"], line["state"], line["rates"]["slots"]) == ("small", "idle", 2)
    engines.did("stop", "small")


def test_the_gateway_attaches_to_an_engine_that_runs_and_starts_one_that_does_not(engines: Engines) -> None:
    gateway = Gateway(engines.data_dir.parent, BIG)  # on the same data folder
    started = json.loads(engines.did("start", "big", "--detach", "--json"))
    with gateway:
        pid = asked(started["url"])
        assert chat(gateway) == pid
        assert f"engine big runs already (pid {started['pid']}" in gateway.log()
        engines.did("stop", "big")
        engines.did("start", "big", "--detach")
        assert chat(gateway) not in (None, pid)
    engines.did("stop", "big")
    with gateway:
        pid = chat(gateway)
        assert pid is not None
        assert "already as a part of `trimtab serve`" in engines.refused("start", "big")
        assert "end that" in engines.refused("stop", "big")
        assert f"stand-in {pid}" in engines.did("logs", "big")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: chat(gateway) not in (None, pid))
    assert "is not running" in engines.refused("stop", "big")


def chat(gateway: Gateway) -> int | None:
    """The process id that answers through the gateway; None while nobody does."""
    messages: Any = [{"role": "user", "content": os.urandom(4).hex()}]
    with contextlib.suppress(Exception):
        reply = gateway.openai().chat.completions.create(model="acme/m", messages=messages)
        return int(reply.choices[0].message.content or "")
    return None
