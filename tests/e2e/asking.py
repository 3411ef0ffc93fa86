"""Plain HTTP clients for both dialects: what the fault tests send, and how they read the answers."""

from __future__ import annotations

import functools
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
from gateway_process import Gateway, new_id
from upstream import Seen, wait_until

CANCEL_WITHIN_S = 0.5
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
END_MARKS = {"openai": b"[DONE]", "anthropic": b"message_stop"}


@dataclass(frozen=True)
class Pair:
    """A client's dialect, and the model whose upstream speaks the same or the other one."""

    dialect: str
    model: str

    def body(self, prompt: str, **more: Any) -> dict[str, Any]:
        """A deterministic request, so that its answer may be cached."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        return body | {"max_tokens": 99, "temperature": 0} | more


PAIRS = [Pair(dialect, model) for dialect in ("openai", "anthropic") for model in ("gpt", "claude")]
SAME = [Pair("openai", "gpt"), Pair("anthropic", "claude")]


def name_of(value: object) -> str | None:
    """Test ids."""
    return f"{value.dialect}-{value.model}" if isinstance(value, Pair) else None


@dataclass
class Got:
    """What a client saw: `broken` says that the reply ended in the middle."""

    status: int
    headers: httpx2.Headers
    body: bytes
    broken: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        return self.headers["x-trimtab-request-id"]


# A connection of its own for each request, so that workers take turns; TLS settings cost 50 ms, so one for all.
_HTTP = httpx2.Client(verify=False, trust_env=False, timeout=30, limits=httpx2.Limits(max_keepalive_connections=0))


def post(url: str, content: Any, headers: dict[str, str]) -> httpx2.Response:
    """POST and read the whole answer."""
    return _HTTP.post(url, content=content, headers=headers)


def send(gateway: Gateway, pair: Pair, body: Any, headers: dict[str, str] | None = None) -> Got:
    """POST a body (JSON, or bytes as they are) and read whatever comes back."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    all_headers = {"content-type": "application/json"}
    if pair.dialect == "anthropic":
        all_headers |= {"anthropic-version": "2023-06-01", "x-api-key": "sk-client"}
    else:
        all_headers |= {"authorization": "Bearer sk-client"}
    all_headers |= headers or {}
    received = b""
    with _HTTP.stream("POST", gateway.base_url + PATHS[pair.dialect], content=content, headers=all_headers) as reply:
        broken = False
        try:
            for piece in reply.iter_bytes():
                received += piece
        except httpx2.HTTPError:
            broken = True
        return Got(reply.status_code, reply.headers, received, broken)


def error_of(pair: Pair, got: Got) -> dict[str, Any]:
    """The error object, after checking that it has the shape of the client's protocol."""
    assert got.headers["content-type"].startswith("application/json")
    body = got.json
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    if pair.dialect == "anthropic":
        assert body["type"] == "error"
        assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    else:
        assert "code" in error
        assert "param" in error
    return error


def is_whole(pair: Pair, got: Got) -> bool:
    """Whether a client would take a stream for complete."""
    return not got.broken and END_MARKS[pair.dialect] in got.body and b"error" not in got.body


class TooSlow(AssertionError):
    """A cancellation came, but later than it should."""


def assert_cancelled(seen: Seen, since: float) -> None:
    """The upstream saw its connection close within the bound after `since`. Raises TooSlow beyond it."""
    wait_until(lambda: seen.dropped_at, 5, "the upstream call to be cancelled")
    assert seen.dropped_at is not None
    if seen.dropped_at - since >= CANCEL_WITHIN_S:
        raise TooSlow(f"cancelled after {seen.dropped_at - since:.2f} s, not within {CANCEL_WITHIN_S} s")


def once_more(test: Callable[..., None]) -> Callable[..., None]:
    """Repeat a test whose cancellation was too slow: a busy machine may delay one, not two."""

    @functools.wraps(test)
    def repeated(*args: Any, **kwargs: Any) -> None:
        try:
            test(*args, **kwargs)
        except TooSlow:
            test(*args, **kwargs)

    return repeated


class RawClient:
    """A client that leaves when it likes: one request on a socket of its own."""

    def __init__(self, gateway: Gateway, pair: Pair, body: dict[str, Any]) -> None:
        self.workflow = new_id()
        content = json.dumps(body).encode()
        key = "x-api-key: sk-client" if pair.dialect == "anthropic" else "authorization: Bearer sk-client"
        self._head = (
            f"POST {PATHS[pair.dialect]} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n{key}\r\n"
            f"x-trimtab-workflow: {self.workflow}\r\ncontent-length: {len(content)}\r\n\r\n"
        ).encode()
        self._content = content
        self._socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)

    def send(self, part: float = 1.0) -> None:
        """Send the head and a part of the body."""
        self._socket.sendall(self._head + self._content[: int(len(self._content) * part)])

    def read_until(self, mark: bytes, count: int = 1) -> bytes:
        got = b""
        while got.count(mark) < count:
            piece = self._socket.recv(65536)
            assert piece, f"closed before {count} of {mark!r}: {got!r}"
            got += piece
        return got

    def leave(self, how: str = "fin") -> None:
        if how == "rst":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
