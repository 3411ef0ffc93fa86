"""An upstream in OpenAI's dialect, streamed or not, whose models say what a test has written for them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Gone(Exception):
    """Raised by `say` to answer with a 503 and these words."""


class Scripted(ThreadingHTTPServer):
    """Serves on a free port until its context ends. A subclass has `say`, and `usage` if another one is wanted."""

    daemon_threads = True
    usage: ClassVar = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def say(self, model: str, messages: list[dict[str, Any]]) -> str:
        """What a model says. Raises Gone."""
        raise NotImplementedError


class _Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            text = self.server.say(body["model"], body["messages"])
        except Gone as gone:
            self._send(503, "application/json", json.dumps({"error": {"message": str(gone), "type": "server_error"}}))
            return
        reply = {"id": "c", "model": body["model"], "created": 1}
        message, end = {"role": "assistant", "content": text}, {"index": 0, "finish_reason": "stop"}
        if body.get("stream"):
            pieces: list[dict[str, Any]] = [
                {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                {"choices": [end | {"delta": {}}]},
                {"choices": [], "usage": self.server.usage},
            ]
            chunk = reply | {"object": "chat.completion.chunk"}
            events = [f"data: {json.dumps(chunk | piece)}\n\n" for piece in pieces]
            self._send(200, "text/event-stream", "".join(events) + "data: [DONE]\n\n")
            return
        whole = {"object": "chat.completion", "choices": [end | {"message": message}], "usage": self.server.usage}
        self._send(200, "application/json", json.dumps(reply | whole))

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
