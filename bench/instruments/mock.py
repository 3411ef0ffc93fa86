"""A mock OpenAI upstream that costs little: buffered replies, paced SSE, optional TLS, and counters to check a run by.

    python bench/instruments/mock.py --port 9001 [--chunks 20] [--interval-us 5000] [--cert chain.pem --key key.pem]

Every SSE chunk carries `@<16 digits>@`, the monotonic nanoseconds at which it was written, so that the load generator
can tell how long it took through a gateway. `GET /counts` answers the requests and chunks served so far.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import itertools
import re
import ssl
import sys
from pathlib import Path
from typing import cast

import httptools
import uvloop

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from instruments.timer import Timer, now_ns

_WANTS_STREAM = re.compile(rb'"stream"\s*:\s*true')
_FOX = "The quick brown fox jumps over the lazy dog. "
_REPLY_BODY = (
    '{"id":"chatcmpl-bench","object":"chat.completion","created":1741569952,"model":"gpt-4o-mini","choices":[{"index":0,'
    f'"message":{{"role":"assistant","content":"{_FOX * 4}","refusal":null,"annotations":[]}},"logprobs":null,'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":119,"completion_tokens":40,"total_tokens":159,'
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default",'
    '"system_fingerprint":"fp_bench"}'
).encode()
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_REPLY = _OK % len(_REPLY_BODY) + _REPLY_BODY
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"cache-control: no-cache\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_bench","choices":[{"index":0,"delta":{"role":"assistant","content":"@%016d@ fox"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n" % len(_EVENT % 0) + _EVENT + b"\r\n"
_LAST = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_bench","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_bench","choices":[],"usage":{"prompt_tokens":119,"completion_tokens":20,'
    b'"total_tokens":139,"prompt_tokens_details":{"cached_tokens":0}}}\n\ndata: [DONE]\n\n'
)
_TAIL = b"%x\r\n" % len(_LAST) + _LAST + b"\r\n0\r\n\r\n"


class Upstream:
    """Counters, pacing and settings that all connections share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chunks: int, interval_ns: int) -> None:
        self.chunks = chunks
        self.interval_ns = interval_ns
        self.requests = 0
        self.streams = 0
        self.sent_chunks = 0
        self._due: list[tuple[int, int, Connection, int]] = []
        self._order = itertools.count()
        self._timer = Timer(loop, self._fire)

    def schedule(self, when_ns: int, connection: Connection, left: int) -> None:
        """Write the next event of `connection` at `when_ns`, with `left` events to go."""
        heapq.heappush(self._due, (when_ns, next(self._order), connection, left))
        if self._due[0][0] == when_ns:
            self._timer.at_ns(when_ns)

    def _fire(self) -> None:
        due = self._due
        now = now_ns()
        while due and due[0][0] <= now:
            when, _, connection, left = heapq.heappop(due)
            connection.event(when, left)
        if due:
            self._timer.at_ns(due[0][0])


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.parser = httptools.HttpRequestParser(self)
        self.pieces: list[bytes] = []
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        upstream, pieces = self.upstream, self.pieces
        if self.parser.get_method() == b"GET":
            counts = b'{"requests":%d,"streams":%d,"chunks":%d}' % (
                upstream.requests,
                upstream.streams,
                upstream.sent_chunks,
            )
            self.transport.write(_OK % len(counts) + counts)
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.pieces = []
        upstream.requests += 1
        if _WANTS_STREAM.search(body) is None:
            self.transport.write(_REPLY)
            return
        upstream.streams += 1
        self.transport.write(_STREAM_HEAD)
        self.event(now_ns(), upstream.chunks)

    def event(self, when_ns: int, left: int) -> None:
        """Write the next event; the last one carries finish reason, usage and the end mark."""
        if not self.open:
            return
        if left == 0:
            self.transport.write(_TAIL)
            return
        self.transport.write(_CHUNK % now_ns())
        self.upstream.sent_chunks += 1
        self.upstream.schedule(when_ns + self.upstream.interval_ns, self, left - 1)


async def _serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    upstream = Upstream(loop, args.chunks, args.interval_us * 1000)
    await loop.create_server(lambda: Connection(upstream), "127.0.0.1", args.port, backlog=1024)
    if args.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(args.cert, args.key)
        await loop.create_server(lambda: Connection(upstream), "127.0.0.1", args.tls_port, ssl=context, backlog=1024)
    gc.freeze()
    gc.disable()
    await loop.create_future()


def main() -> None:
    parser = argparse.ArgumentParser(description="A mock OpenAI upstream.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-port", type=int, default=0)
    parser.add_argument("--cert", default="", help="PEM chain; serves TLS on --tls-port beside plain HTTP on --port")
    parser.add_argument("--key", default="")
    parser.add_argument("--chunks", type=int, default=20, help="content chunks in a stream")
    parser.add_argument("--interval-us", type=int, default=5000, help="time between two chunks")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
