"""Chat requests of an eval: not streamed, tried again where that may help, marked as evals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from trimtab.errors import TrimtabError
from trimtab.transport import Origin, header_lines

_PATH: Final = "/chat/completions"
_CONNECT_S: Final = 5.0
_MOST_BYTES: Final = 64 << 20
_TRIES: Final = 3
_PAUSE_S: Final = 1.0
_REFUSALS: Final = (400, 413, 422)  # of this very request: an answer that is worth nothing. Others: the model is out
_SAID_CHARS: Final = 300


class Incomplete(TrimtabError):
    """The run stopped before all items were answered. What was answered is kept, and the same command goes on."""


class Refused(TrimtabError):
    """The model will not answer this very request, however often it is asked."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = body[:_SAID_CHARS].decode(errors="replace")
        super().__init__(f"status {status}: {said}")


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: tuple[_Call, ...] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt's."""
        return (self.prompt_tokens_details or _Details()).cached_tokens or 0


class Reply(msgspec.Struct):
    """What a chat completion says, as far as evals read it."""

    choices: tuple[_Choice, ...]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_REPLY: Final = msgspec.json.Decoder(Reply)


class Got(msgspec.Struct, frozen=True):
    """A reply, and what came with it."""

    reply: Reply
    cost_usd: float | None
    total_s: float
    cache: str
    request_id: str

    @property
    def text(self) -> str:
        """The first choice's."""
        message = self.reply.choices[0].message
        return message.content or message.refusal or ""


class Client:
    """Asks one gateway. Create it inside the event loop that uses it."""

    def __init__(self, url: str, headers: Sequence[tuple[bytes, bytes]], workflow: str, deadline_s: float) -> None:
        self._origin = Origin(url)
        ours = [(b"x-trimtab-purpose", b"eval"), (b"x-trimtab-workflow", workflow.encode())]
        self._head = header_lines([(b"content-type", b"application/json"), *ours, *headers])
        self._deadline_s = deadline_s

    async def ask(self, fields: dict[str, Any], what: str) -> Got:
        """Ask; `what` names the request in errors. Raises Refused, and Incomplete if there is no answer."""
        body = msgspec.json.encode(fields)
        said = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await self._once(body)
            except (TrimtabError, OSError, TimeoutError, msgspec.MsgspecError) as error:
                if isinstance(error, Refused) and error.status in _REFUSALS:
                    raise
                said = str(error) or type(error).__name__
        raise Incomplete(f"{what} was not answered: {said}")

    async def _once(self, body: bytes) -> Got:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await self._origin.request("POST", self._origin.base_path + _PATH, self._head, body, _CONNECT_S)
        try:
            data = await reply.read(_MOST_BYTES)
        finally:
            reply.abort()
        if reply.status != 200:
            raise Refused(reply.status, data)
        decoded = _REPLY.decode(data)
        if not decoded.choices:
            raise Refused(reply.status, data)
        cost = reply.header(b"x-trimtab-cost-usd")
        return Got(
            decoded,
            float(cost) if cost else None,
            loop.time() - began,
            reply.header(b"x-trimtab-cache"),
            reply.header(b"x-trimtab-request-id"),
        )

    async def close(self) -> None:
        """Drop the connections."""
        await self._origin.close()
