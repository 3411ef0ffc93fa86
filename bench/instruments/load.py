"""A load generator that costs little: saturates with N connections, or sends open-loop at a rate with Poisson arrivals.

    python bench/instruments/load.py --port 8088 --body body.json --duration-s 3 [--connections 32]            saturate
    python bench/instruments/load.py --port 8088 --body stream.json --duration-s 4 --rate 100 [--seed 1]       open loop

Twelve `#` in the body become a counter, so that every request is a new one. Prints one JSON object: requests sent and
answered whole, errors (status, broken reply, wrong content, chunks missing), latency and time to first token from the
*scheduled* time, one-way delay per chunk (the mock stamps each); microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

import httptools
import uvloop

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from instruments.timer import Timer, now_ns

_STAMP = re.compile(rb"@(\d{16})@")
_COUNTER = b"#" * 12
_MARK = b"lazy dog"  # in every buffered reply of the mock
_DRAIN_S = 20.0


def quantiles_us(values_ns: list[int]) -> dict[str, float]:
    """p50, p90, p99 and the largest of `values_ns`, in microseconds; empty when there are none."""
    if not values_ns:
        return {}
    ordered = sorted(values_ns)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(int(q * len(ordered)), len(ordered) - 1)] / 1e3, 1) for name, q in at.items()}


class Load:
    """What is sent, when, and what came back."""

    def __init__(self, args: argparse.Namespace) -> None:
        body: bytes = args.body.read_bytes().strip()
        self.streams = re.search(rb'"stream"\s*:\s*true', body) is not None
        self.chunks_expected: int = args.chunks
        lines = [
            f"POST {args.path} HTTP/1.1",
            f"host: 127.0.0.1:{args.port}",
            "content-type: application/json",
            "accept: */*",
            "user-agent: bench",
            *args.header,
            f"content-length: {len(body)}",
        ]
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self.head, self.counted, self.rest = request.partition(_COUNTER)
        self.counter = int(time.time() * 1000) % 10_000_000 * 100_000  # no two runs share one, however close they start
        self.port: int = args.port
        self.keep_ttft: bool = args.keep_ttft
        self.end_ns = 0
        self.saturate = args.rate == 0
        self.idle: list[Client] = []
        self.waiting: deque[int] = deque()
        self.open_count = 0
        self.sent = self.done = self.errors = self.reconnects = self.chunks = 0
        self.latency_ns: list[int] = []
        self.ttft_ns: list[int] = []
        self.delay_ns: list[int] = []
        self.first_error = ""
        self.drained = asyncio.get_running_loop().create_future()

    def next_request(self) -> bytes:
        if not self.counted:
            return self.head
        self.counter += 1
        return b"".join((self.head, b"%012d" % self.counter, self.rest))

    def fail(self, why: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or why

    def finished(self, client: Client) -> None:
        """A reply is complete: send the next one, or rest."""
        if self.waiting:
            client.send(self.waiting.popleft())
        elif self.saturate and (now := now_ns()) < self.end_ns:
            client.send(now)
        else:
            self.idle.append(client)
            if now_ns() >= self.end_ns:
                self.check_drained()

    def check_drained(self) -> None:
        if len(self.idle) == self.open_count and not self.waiting and not self.drained.done():
            self.drained.set_result(None)

    def report(self, start_ns: int, stop_ns: int) -> dict[str, object]:
        return {
            "sent": self.sent,
            "done": self.done,
            "errors": self.errors,
            "first_error": self.first_error,
            "reconnects": self.reconnects,
            "chunks": self.chunks,
            "wall_s": round((stop_ns - start_ns) / 1e9, 4),
            "rps": round(self.done / ((stop_ns - start_ns) / 1e9), 1),
            "latency_us": quantiles_us(self.latency_ns),
            "ttft_us": quantiles_us(self.ttft_ns),
            "chunk_delay_us": quantiles_us(self.delay_ns),
            "own_cpu_s": round(time.process_time(), 3),
            **({"ttft_all_us": [round(value / 1e3) for value in self.ttft_ns]} if self.keep_ttft else {}),
        }


class Client(asyncio.Protocol):
    """One connection with at most one request in flight."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.busy = False
        self.ok = False
        self.scheduled_ns = self.first_ns = 0
        self.seen = 0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.parser = httptools.HttpResponseParser(self)
        self.load.open_count += 1

    def connection_lost(self, exc: Exception | None) -> None:
        load = self.load
        load.open_count -= 1
        if self.busy:
            load.fail(f"connection closed in the middle of a reply: {exc}")
        elif self in load.idle:
            load.idle.remove(self)
        if now_ns() < load.end_ns:
            load.reconnects += 1
            task = asyncio.get_running_loop().create_task(connect(load))
            task.add_done_callback(lambda done: load.finished(done.result()))
        else:
            load.check_drained()

    def send(self, scheduled_ns: int) -> None:
        self.busy, self.ok, self.seen, self.tail, self.first_ns = True, False, 0, b"", 0
        self.scheduled_ns = scheduled_ns
        self.load.sent += 1
        self.transport.write(self.load.next_request())

    def data_received(self, data: bytes) -> None:
        self.now_ns = now_ns()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.load.fail(f"not HTTP: {error}")
            self.busy = False
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        load = self.load
        if not load.streams:
            self.ok = self.ok or _MARK in body
            if not self.ok and not load.first_error:
                self.tail += body
            return
        data = self.tail + body
        end, now = 0, self.now_ns
        for match in _STAMP.finditer(data):
            load.delay_ns.append(now - int(match[1]))
            self.seen += 1
            end = match.end()
        self.first_ns = self.first_ns or (now if end else 0)
        self.tail = data[max(end, len(data) - 32) :]
        self.ok = self.ok or b"[DONE]" in data

    def on_message_complete(self) -> None:
        load, now = self.load, self.now_ns
        status = self.parser.get_status_code()
        if status != 200:
            load.fail(f"status {status}: {self.tail[:300].decode(errors='replace')}")
        elif not self.ok:
            load.fail("the reply lacks what the mock sent")
        elif load.streams and self.seen != load.chunks_expected:
            load.fail(f"{self.seen} chunks of {load.chunks_expected}")
        else:
            load.done += 1
            load.latency_ns.append(now - self.scheduled_ns)
            if self.first_ns:
                load.ttft_ns.append(self.first_ns - self.scheduled_ns)
        load.chunks += self.seen
        self.busy = False
        load.finished(self)


async def connect(load: Load) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(load), "127.0.0.1", load.port)
    return client


async def _saturate(load: Load, connections: int, duration_s: float) -> int:
    clients = [await connect(load) for _ in range(connections)]
    start = now_ns()
    load.end_ns = start + int(duration_s * 1e9)
    for client in clients:
        client.send(now_ns())
    return start


async def _open_loop(load: Load, args: argparse.Namespace) -> int:
    """Poisson arrivals: `rate x duration` requests, each at its own time, whatever became of those before."""
    rng = random.Random(args.seed)
    gaps = [rng.expovariate(args.rate) for _ in range(max(int(args.rate * args.duration_s), 1))]
    load.idle = [await connect(load) for _ in range(args.connections)]
    start = now_ns()
    due: deque[int] = deque()
    at = float(start)
    for gap in gaps:
        at += gap * 1e9
        due.append(int(at))
    load.end_ns = due[-1] + 1_000_000
    loop = asyncio.get_running_loop()

    def fire() -> None:
        while due and due[0] <= now_ns():
            scheduled = due.popleft()
            if load.idle:
                load.idle.pop().send(scheduled)
            else:
                load.waiting.append(scheduled)
        if due:
            timer.at_ns(due[0])

    timer = Timer(loop, fire)
    timer.at_ns(due[0])
    return start


async def _run(args: argparse.Namespace) -> None:
    load = Load(args)
    gc.freeze()
    gc.disable()
    if load.saturate:
        start = await _saturate(load, args.connections, args.duration_s)
    else:
        start = await _open_loop(load, args)
    asyncio.get_running_loop().call_later((load.end_ns - start) / 1e9 + 0.002, load.check_drained)
    try:
        await asyncio.wait_for(load.drained, (load.end_ns - start) / 1e9 + _DRAIN_S)
    except TimeoutError:
        load.fail(f"{load.sent - load.done} requests without an answer {_DRAIN_S:.0f} s after the end")
    print(json.dumps(load.report(start, now_ns())))


def main() -> None:
    parser = argparse.ArgumentParser(description="A load generator for chat completions.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, open loop; 0 saturates")
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--chunks", type=int, default=20, help="content chunks that a whole stream has")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep-ttft", action="store_true", help="print every time to first token, to pool runs")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
