"""An upstream with three models that add numbers up: `good` always right, `equal` too, `other` as `wrong` says."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scripted import Scripted

_NUMBERS = re.compile(r"(\d+) plus (\d+)")


def question(number: int) -> str:
    return f"What is {number} plus 1?"


def answer(number: int) -> str:
    return f"{number} plus 1 is {number + 1}."


class Abacus(Scripted):
    """With `every` n, `other` is wrong in each n-th question; 0 is never.

    `asked` counts calls by model, `heard` by model and question.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.heard: Counter[tuple[str, int]] = Counter()
        self.every = 0

    def say(self, model: str, messages: list[dict[str, Any]]) -> str:
        self.asked[model] += 1
        found = _NUMBERS.search(messages[-1]["content"])
        if found is None:
            return "I add numbers up."
        one, two = int(found[1]), int(found[2])
        self.heard[model, one] += 1
        off = 100 if model == "other" and self.every and one % self.every == 0 else 0
        return f"{one} plus {two} is {one + two + off}."


class Alarms(ThreadingHTTPServer):
    """A webhook that keeps what it was told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.told: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Hook(BaseHTTPRequestHandler):
    server: Alarms

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
