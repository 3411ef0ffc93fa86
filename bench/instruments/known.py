"""A server whose latencies are known: it streams each answer at times that it was told, to the millisecond.

    python bench/instruments/known.py --port 9002 --mode constant|bimodal|stall

constant  first token after 300 ms, four more 100 ms apart
bimodal   every fifth answer's first token after 1,500 ms, the others' after 300 ms
stall     as constant, but nothing is answered from 3 s to 6 s after the first request; what waits is begun then
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket

import uvloop

from trimtab.wire.server import Exchange, Server

FIRST_S, SLOW_S, GAP_S, CHUNKS = 0.3, 1.5, 0.1, 5
STALL_S = (3.0, 6.0)
_EVENT = b'data: {"id":"k","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_LAST = (
    b'data: {"id":"k","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"k","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\ndata: [DONE]\n\n' % (CHUNKS, 10 + CHUNKS)
)


def first_token_s(mode: str, number: int, arrival_s: float) -> float:
    """Seconds from a request's arrival to its first token; `arrival_s` counts from the first request."""
    if mode == "bimodal" and number % 5 == 4:
        return SLOW_S
    if mode == "stall" and STALL_S[0] <= arrival_s < STALL_S[1]:
        return STALL_S[1] - arrival_s + FIRST_S
    return FIRST_S


class Known:
    """The application."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.numbers = itertools.count()
        self.began: float | None = None

    async def __call__(self, exchange: Exchange) -> None:
        """One answer."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        await exchange.body(1 << 20)
        if exchange.method != "POST":
            exchange.reply(404, [], b"")
            return
        if self.began is None:
            self.began = arrived
        exchange.start(200, [(b"content-type", b"text/event-stream")])
        due = arrived + first_token_s(self.mode, next(self.numbers), arrived - self.began)
        for _ in range(CHUNKS):
            await asyncio.sleep(max(0.0, due - loop.time()))
            await exchange.write(_EVENT)
            due += GAP_S
        exchange.finish(_LAST)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=["constant", "bimodal", "stall"], required=True)
    options = parser.parse_args()
    sock = socket.create_server(("127.0.0.1", options.port), backlog=2048)
    await Server(Known(options.mode)).serve(sock, asyncio.Event(), 1.0, lambda: None)


if __name__ == "__main__":
    uvloop.run(main())
