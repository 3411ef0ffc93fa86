"""A server with so many slots: each request waits for one, first come, first served, then prefill, then token by token.

    python bench/instruments/slots.py --port 9003 --slots 32

That is how an engine with continuous batching looks from outside once its batch is full. Prefill takes `PREFILL_S` for
each word of the prompt, every further token `TOKEN_S`; an answer has as many as `max_tokens` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time

import uvloop

from trimtab.wire.server import Exchange, Server

PREFILL_S, TOKEN_S = 0.001, 0.050
_CHUNK = '{"id":"s","object":"chat.completion.chunk","choices":[{"index":0,"delta":%s,"finish_reason":%s}]%s}'


def service_s(words: int, tokens: int) -> float:
    """How long a request keeps its slot."""
    return words * PREFILL_S + (tokens - 1) * TOKEN_S


def _event(delta: str, finish: str = "null", usage: str = "") -> bytes:
    return f"data: {_CHUNK % (delta, finish, usage)}\n\n".encode()


_TOKEN = _event('{"content":" so"}')


class Slots:
    """The application."""

    def __init__(self, slots: int) -> None:
        self._free = asyncio.Semaphore(slots)

    async def __call__(self, exchange: Exchange) -> None:
        """One streamed answer."""
        if exchange.method != "POST":
            exchange.reply(200, [], b"")
            return
        asked = json.loads(await exchange.body(1 << 20))
        tokens, words = asked["max_tokens"], len(asked["messages"][-1]["content"].split())
        exchange.watch()
        async with self._free:
            began = time.monotonic()
            exchange.start(200, [(b"content-type", b"text/event-stream")])
            for number in range(tokens):
                due = began + words * PREFILL_S + number * TOKEN_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await exchange.write(_TOKEN)
        usage = json.dumps({"prompt_tokens": words, "completion_tokens": tokens, "total_tokens": words + tokens})
        exchange.finish(_event("{}", '"length"', f',"usage":{usage}') + b"data: [DONE]\n\n")


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    options = parser.parse_args()
    sock = socket.create_server(("127.0.0.1", options.port), backlog=4096)
    await Server(Slots(options.slots)).serve(sock, asyncio.Event(), 1.0, lambda: None)


if __name__ == "__main__":
    uvloop.run(main())
