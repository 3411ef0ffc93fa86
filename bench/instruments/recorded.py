"""An OpenAI-compatible upstream whose answers are known: recorded ones, or as long ones as an agent's trace says.

    python bench/instruments/recorded.py --port 9004 --speed 2000 [--answers FILE]

FILE is JSON, {model: {question: answer}}: a model in it answers the last user turn with what was recorded. `grader`
grades a request from a hash of it, so that half are easy. Any other model is an agent's: it answers as many tokens as
`max_tokens` says, with a tool call where `tool_choice` is "required", and remembers prefixes as providers do. Tokens
are characters by four; an answer takes its tokens at `--speed`. `POST /forget` forgets all prefixes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import uvloop

from trimtab.wire.server import Exchange, Server

CHARS_A_TOKEN = 4
GRADER = "grader"
_GRADES = (1, 2, 4, 5)  # the middle one would be neither easy nor hard
_MOST_BYTES = 8 << 20
_PIECE_CHARS = 80
_JSON = [(b"content-type", b"application/json")]


def tokens(text: str) -> int:
    """About so many tokens, at least one."""
    return max(1, round(len(text) / CHARS_A_TOKEN))


def grade(request: str) -> int:
    """How hard the grader says that a request is, from 1 to 5."""
    return _GRADES[hashlib.blake2b(request.encode(), digest_size=1).digest()[0] % len(_GRADES)]


def said(message: dict[str, Any]) -> str:
    """All text of a message, the arguments of its tool calls included."""
    calls = "".join(call["function"]["arguments"] for call in message.get("tool_calls") or ())
    return (message.get("content") or "") + calls


class Prefixes:
    """What a provider has at hand of prompts that it read, by model, to the message."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def read(self, model: str, messages: list[dict[str, Any]], answer_tokens: int) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them were read before; from now on it is known, with its answer."""
        running, counts, marks = hashlib.blake2b(model.encode(), digest_size=16), 0, []
        for message in messages:
            running.update(json.dumps(message, sort_keys=True).encode())
            counts += tokens(said(message))
            marks.append((running.copy().digest(), counts))
        cached = next((self._known[mark] for mark, _ in reversed(marks) if mark in self._known), 0)
        for mark, count in marks[:1]:  # the instructions, which other conversations share
            self._known.setdefault(mark, count)
        self._known[marks[-1][0]] = counts + answer_tokens
        return counts, min(cached, counts)


class Recorded:
    """The application."""

    def __init__(self, answers: dict[str, dict[str, str]], speed: float) -> None:
        self._answers = answers
        self._speed = speed
        self._prefixes = Prefixes()

    async def __call__(self, exchange: Exchange) -> None:
        """One answer."""
        body = await exchange.body(_MOST_BYTES)
        if exchange.path == "/forget":
            self._prefixes = Prefixes()
            exchange.reply(200, _JSON, b"{}")
            return
        if exchange.method != "POST":
            exchange.reply(404, _JSON, b"{}")
            return
        asked = json.loads(body)
        message = self._message(asked)
        if message is None:
            exchange.reply(404, _JSON, b'{"error": {"message": "nothing is recorded of this question"}}')
            return
        out = tokens(said(message))
        read, cached = self._prefixes.read(asked["model"], asked["messages"], out)
        counts = {"prompt_tokens": read, "completion_tokens": out, "total_tokens": read + out}
        usage = counts | {"prompt_tokens_details": {"cached_tokens": cached}}
        if asked.get("stream"):
            await self._stream(exchange, asked, message, usage)
            return
        await asyncio.sleep(out / self._speed)
        finish = "tool_calls" if "tool_calls" in message else "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        reply = {"id": "r", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice]}
        exchange.reply(200, _JSON, json.dumps(reply | {"usage": usage}).encode())

    def _message(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if a recorded model was never asked this."""
        model, last = asked["model"], asked["messages"][-1]["content"]
        if model == GRADER:
            text: str | None = json.dumps({"complexity": grade(json.loads(last)["request"])})
        elif model in self._answers:
            text = self._answers[model].get(last)
        else:
            text = "so on and " * asked["max_tokens"]
            text = text[: CHARS_A_TOKEN * asked["max_tokens"]]
            if asked.get("tool_choice") == "required":
                call = {"name": asked["tools"][0]["function"]["name"], "arguments": text}
                called = [{"id": "call_0", "type": "function", "function": call}]
                return {"role": "assistant", "content": None, "tool_calls": called}
        return None if text is None else {"role": "assistant", "content": text}

    async def _stream(
        self, exchange: Exchange, asked: dict[str, Any], message: dict[str, Any], usage: dict[str, Any]
    ) -> None:
        exchange.start(200, [(b"content-type", b"text/event-stream")])
        text = message["content"]
        await exchange.write(_event(asked, {"role": "assistant", "content": ""}))
        for at in range(0, len(text), _PIECE_CHARS):
            piece = text[at : at + _PIECE_CHARS]
            await asyncio.sleep(len(piece) / CHARS_A_TOKEN / self._speed)
            await exchange.write(_event(asked, {"content": piece}))
        last = _event(asked, {}, "stop")
        if (asked.get("stream_options") or {}).get("include_usage"):
            last += _event(asked, None, usage=usage)
        exchange.finish(last + b"data: [DONE]\n\n")


def _event(asked: dict[str, Any], delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "r", "object": "chat.completion.chunk", "created": 1, "model": asked["model"], "choices": choices}
    return f"data: {json.dumps(chunk | more)}\n\n".encode()


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--speed", type=float, required=True, help="output tokens a second")
    parser.add_argument("--answers", type=Path)
    options = parser.parse_args()
    answers = json.loads(options.answers.read_text()) if options.answers else {}
    sock = socket.create_server(("127.0.0.1", options.port), backlog=512)
    await Server(Recorded(answers, options.speed)).serve(sock, asyncio.Event(), 1.0, lambda: None)


if __name__ == "__main__":
    uvloop.run(main())
