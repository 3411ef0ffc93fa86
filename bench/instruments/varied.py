"""A server whose latencies differ from request to request, and are known: they follow from the tokens asked for.

    python bench/instruments/varied.py --port 9003

An answer has as many tokens as `max_tokens` (or `max_completion_tokens`) allows, one an event; `plan` says when. Two
programs that replay one trace send different texts but ask for the same numbers of tokens, so both get the same
latencies. As real servers do, it opens a stream with an event without text, which is no token. `GET /arrivals` answers
when each streamed request was read whole, [monotonic seconds, tokens asked for], and forgets them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import time

import uvloop

from trimtab.wire.server import Exchange, Server

_TEMPLATE_TOKENS = 9
_MOST_BYTES = 1 << 20
_CHUNK = '{"id":"v","object":"chat.completion.chunk","choices":[{"index":0,"delta":%s,"finish_reason":%s}]%s}'


def plan(tokens: int) -> tuple[float, float]:
    """Seconds from a request's arrival to its first token, and from each token to the next."""
    rng = random.Random(tokens)
    return min(1.5, rng.lognormvariate(-1.4, 0.5)), rng.uniform(0.010, 0.030)


def _event(delta: str, finish: str = "null", usage: str = "") -> bytes:
    return f"data: {_CHUNK % (delta, finish, usage)}\n\n".encode()


_ROLE, _TOKEN = _event('{"role":"assistant","content":""}'), _event('{"content":" so"}')


class Varied:
    """The application."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, int]] = []

    async def __call__(self, exchange: Exchange) -> None:
        """One answer."""
        body = await exchange.body(_MOST_BYTES)
        arrived = time.monotonic()
        if exchange.method != "POST":
            known = exchange.path == "/arrivals"
            exchange.reply(200 if known else 404, [], json.dumps(self.arrivals).encode() if known else b"")
            if known:
                self.arrivals = []
            return
        asked = json.loads(body)
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or 1
        words = sum(len(str(message["content"]).split()) for message in asked["messages"])
        counts = {"prompt_tokens": _TEMPLATE_TOKENS + words, "completion_tokens": tokens}
        usage = json.dumps(counts | {"total_tokens": sum(counts.values())})
        if not asked.get("stream"):
            message = '{"role":"assistant","content":"so"}'
            answer = f'{{"choices":[{{"index":0,"message":{message},"finish_reason":"length"}}],"usage":{usage}}}'
            exchange.reply(200, [(b"content-type", b"application/json")], answer.encode())
            return
        self.arrivals.append((arrived, tokens))
        first_s, gap_s = plan(tokens)
        exchange.start(200, [(b"content-type", b"text/event-stream")])
        await exchange.write(_ROLE)
        for number in range(tokens):
            await asyncio.sleep(max(0.0, arrived + first_s + number * gap_s - time.monotonic()))
            await exchange.write(_TOKEN)
        exchange.finish(_event("{}", '"length"', f',"usage":{usage}') + b"data: [DONE]\n\n")


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    sock = socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=2048)
    await Server(Varied()).serve(sock, asyncio.Event(), 1.0, lambda: None)


if __name__ == "__main__":
    uvloop.run(main())
