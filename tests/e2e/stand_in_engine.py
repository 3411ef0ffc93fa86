"""Stands in for vLLM's server: `... --served-model-name NAME --port PORT ...`; its answers say its process id."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def _after(flag: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        message = {"role": "assistant", "content": str(os.getpid())}
        self._answer(
            {
                "id": "x", "object": "chat.completion", "created": 1, "model": _after("--served-model-name"),
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
            }
        )  # fmt: skip

    def _answer(self, what: object) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    if "--fail" in sys.argv:
        sys.exit("no such flag: --fail")
    print(f"stand-in {os.getpid()}", flush=True)
    ThreadingHTTPServer(("127.0.0.1", int(_after("--port"))), Handler).serve_forever()
