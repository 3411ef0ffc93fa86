"""A stand-in for `trimtab serve`: answers the demo's streams at once, and repeats "from the cache".

Run as a program: scripted_gateway.py PORT [hang | die | stubborn | slow] [FILE that gets a line per request].
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, str], dict[str, Any]], Awaitable[bytes]]


def stream(*texts: str, tokens: int = 3, finish: str = "stop", end: bool = True) -> bytes:
    """An OpenAI event stream with these pieces of text."""
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    events += [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}})
    data = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    return data + b"data: [DONE]\n\n" if end else data


def response(body: bytes, *, status: int = 200, cache: str = "off") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: text/event-stream\r\nx-trimtab-cache: {cache}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def serve(answer: Answer, port: int = 0) -> asyncio.Server:
    """Serve HTTP/1.1 with keep-alive on loopback; `answer` gets headers and JSON body and returns the raw response."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = head.split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                headers["path"] = lines[0].split()[1]
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                data = await answer(headers, json.loads(body) if body else {})
                writer.write(data)
                await writer.drain()
                if b"content-length: 99999" in data:  # a response that stays unfinished
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port)


async def _main(port: int, mode: str, log: Path | None) -> None:
    seen: set[str] = set()
    asked = 0

    async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
        nonlocal asked
        if headers["path"] == "/readyz":
            asked += 1
            ready = asked > 2 and mode != "hang"
            return response(b"ready" if ready else b"local: loading", status=200 if ready else 503)
        if headers["path"] == "/v1/embeddings":
            return response(b"{}")
        if log is not None:
            with log.open("a") as file:
                file.write(headers["x-trimtab-workflow"] + "\n")
        question = body["messages"][-1]["content"]
        caching = headers.get("x-trimtab-cache") != "off"
        hit = caching and question in seen
        if caching:
            seen.add(question)
        if mode == "slow":
            await asyncio.sleep(0.2)
        return response(stream("An ", question), cache="hit" if hit else "miss" if caching else "off")

    server = await serve(answer, port)
    print("scripted gateway listens", file=sys.stderr, flush=True)
    async with server:
        await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[2] == "die":
        sys.exit("no weights: the index said no")
    if sys.argv[2] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None))
