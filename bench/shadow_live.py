"""A candidate turns bad in the middle of a live A/B test: when does the gateway switch it off by itself?

    make bench-shadow-live     (or: .venv/bin/python bench/shadow_live.py [--seed 1] [--rate 100] [--out FILE])

A real gateway, real processes, a scripted upstream with a reference and two candidates. All users of either route are
sent to its candidate, and 10% of them are shadowed. Both candidates are right at first; then the one begins to be wrong
in 20% of its answers, the other never does. The embedders of the judges come from the package index, as always. Exit
code 1 if the first is not switched off within 1,200 affected requests, or the second is.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report

TARGET = 1200  # affected requests
GOOD = 1000  # before it turns bad
MOST = 4000
WRONG = 0.2
SHARE = 0.1
TRIMTAB = Path(sys.executable).with_name("trimtab")
CONFIG = """
[server]
port = {port}
data_dir = "{folder}/data"

[telemetry]
alert_webhook_env = "ALERTS"

[engines.up]
kind = "openai_http"
base_url = "http://127.0.0.1:{upstream}/v1"

[models.reference]
engine = "up"
price = {{ input_per_mtok = 1.0, output_per_mtok = 2.0 }}
[models.turning]
engine = "up"
price = {{ input_per_mtok = 0.1, output_per_mtok = 0.2 }}
[models.equal]
engine = "up"
price = {{ input_per_mtok = 0.1, output_per_mtok = 0.2 }}
"""
ROUTE = """
[routes.{name}]
model = "reference"
[routes.{name}.levers.ab]
model = "{name}"
share = 1.0
by = "request"
gate = "advisory"
[routes.{name}.shadow]
share = {share}
"""


class Upstream(http.server.ThreadingHTTPServer):
    """Adds numbers up; `turning` adds wrongly in a share of the questions once `bad` is set. Takes alarms, too."""

    daemon_threads = True

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.bad = False
        self.alarms: list[dict[str, Any]] = []
        self.seed = seed
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, model: str, number: int) -> str:
        wrong = self.bad and model == "turning" and random.Random(f"{self.seed}-{number}").random() < WRONG
        return f"{number} plus 1 is {number + (9 if wrong else 1)}."


class Desk(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/alarms":
            self.server.alarms.append(body)
            self.say(b"{}")
            return
        number = int(re.search(r"\d+", body["messages"][-1]["content"])[0])  # type: ignore[index]
        message = {"role": "assistant", "content": self.server.answer(body["model"], number)}
        reply = {
            "id": "c", "object": "chat.completion", "model": body["model"], "created": 1,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }  # fmt: skip
        self.say(json.dumps(reply).encode())

    def say(self, data: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def log_message(self, *_: object) -> None:
        pass


class Client:
    """Asks at an even rate over one connection."""

    def __init__(self, port: int, rate: float) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._pause_s = 1 / rate
        self._next = time.monotonic()
        self._number = 0

    def ask(self, route: str) -> tuple[bool, bool]:
        """Whether the lever changed the request, and whether it is switched off."""
        self._next = max(self._next + self._pause_s, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._number += 1
        body = {
            "model": "reference",
            "messages": [{"role": "user", "content": f"What is {self._number} plus 1?"}],
            "temperature": 0,
        }
        headers = {"content-type": "application/json", "x-trimtab-route": route}
        self._http.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = self._http.getresponse()
        reply.read()
        decision = reply.headers["x-trimtab-decision"]
        return "arm B" in decision, "switched off" in decision


class Gateway:
    """The gateway, as a user starts it."""

    def __init__(self, folder: Path, upstream: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        text = CONFIG.format(port=self.port, folder=folder, upstream=upstream)
        text += "".join(ROUTE.format(name=name, share=SHARE) for name in ("turning", "equal"))
        (folder / "trimtab.toml").write_text(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_DATA")}
        self._env = kept | {
            "ALERTS": f"http://127.0.0.1:{upstream}/alarms",
            "TRIMTAB_CONFIG": str(folder / "trimtab.toml"),
        }
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([TRIMTAB, "serve"], env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        http_ = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            http_.request("GET", "/readyz")
            return http_.getresponse().status == 200
        except OSError:
            return False

    def tell(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command says as JSON."""
        done = subprocess.run([TRIMTAB, *arguments, "--json"], env=self._env, capture_output=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def lever(self, route: str) -> dict[str, Any]:
        return next(row for row in self.tell("levers", "status") if row["route"] == route and row["lever"] == "ab")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def run(gateway: Gateway, upstream: Upstream, client: Client) -> dict[str, Any]:
    """Both routes, one after the other; what happened to each."""
    while not gateway.lever("equal")["pairs"]:  # the process that compares comes up after the workers
        client.ask("equal")
    equal = {"affected": 0}
    for _ in range(GOOD):
        client.ask("turning")
    before = gateway.lever("turning")
    say(f"{GOOD} requests with equal quality: {before['pairs']} pairs, loss {before['loss']:+.3f}, on: {before['on']}")
    upstream.bad, began, affected = True, time.monotonic(), 0
    while affected < MOST:
        changed, off = client.ask("turning")
        affected += changed
        if off:
            break
    took_s = time.monotonic() - began
    after = gateway.lever("turning")
    state = "off" if not after["on"] else "STILL ON"
    say(f"then wrong in {WRONG:.0%}: {state} after {affected} affected requests, {took_s:.1f} s")
    say(f"  {after['why']}; {after['pairs']} pairs, loss {after['loss']:+.3f}")
    for _ in range(100):
        changed, off = client.ask("turning")
        if changed or not off:
            raise SystemExit("a request went to a candidate that is off")
    for _ in range(GOOD + affected):
        equal["affected"] += client.ask("equal")[0]
    time.sleep(2)
    steady = gateway.lever("equal")
    state = f"{steady['pairs']} pairs, loss {steady['loss']:+.3f}, on: {steady['on']}"
    say(f"the equal one after {equal['affected']} requests: {state}")
    gateway.tell("levers", "on", "ab", "--route", "turning", "--reason", "mended")
    upstream.bad, deadline = False, time.monotonic() + 10
    while not client.ask("turning")[0] and time.monotonic() < deadline:
        pass
    back = gateway.lever("turning")
    say(f"after `trimtab levers on`: on: {back['on']}, by a person")
    return {
        "switched_off": not after["on"],
        "affected_until_off": affected,
        "seconds_until_off": round(took_s, 1),
        "pairs_before": before["pairs"],
        "turning": after,
        "equal": {**steady, **equal},
        "back_on": back["on"],
        "alarms": [alarm["text"] for alarm in upstream.alarms],
        "by_purpose": gateway.tell("ledger", "summary", "--by", "purpose"),
    }


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--out", type=Path, help="write the result there")
    options = parser.parse_args()
    upstream = Upstream(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder), upstream.server_address[1])
        try:
            found = run(gateway, upstream, Client(gateway.port, options.rate))
        finally:
            gateway.stop()
    purposes = [{name: row[name] for name in ("purpose", "requests", "cost_nusd")} for row in found.pop("by_purpose")]
    result = {
        "what": "affected requests until a candidate that turned bad was switched off, live, one run",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": report.commit(),
        "machine": report.machine(),
        "seed": options.seed,
        "rate_per_s": options.rate,
        "share_shadowed": SHARE,
        "share_wrong": WRONG,
        "margin": 0.05,
        "limit_affected": TARGET,
        **found,
        "by_purpose": purposes,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    within = found["switched_off"] and found["affected_until_off"] <= TARGET
    return int(not within or not found["equal"]["on"] or not found["back_on"])


if __name__ == "__main__":
    sys.exit(main())
