"""A server that is to be measured: whether it is there, what it counts, and the requests that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from trimtab.errors import TrimtabError
from trimtab.measure.load import Call, chat_path
from trimtab.measure.prompts import PromptMaker
from trimtab.measure.traces import Traced
from trimtab.transport import HttpReply, Origin, header_lines

_CONNECT_S: Final = 5.0
_SAID_CHARS: Final = 300
_READ_BYTES: Final = 1 << 20


class Unfit(TrimtabError):
    """The target cannot be measured as asked; the message says why and what to do."""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str = ""
    max_model_len: int | None = None
    context_length: int | None = None


class _Models(msgspec.Struct):
    data: tuple[_Model, ...] = ()


class Shape(msgspec.Struct, frozen=True):
    """How requests are made: the model, whether they stream, and what goes into every body beside."""

    model: str
    stream: bool = True
    extra: dict[str, Any] = {}


class Target:
    """An OpenAI-compatible URL. Create it inside the event loop that uses it."""

    def __init__(self, url: str, headers: Sequence[tuple[bytes, bytes]], shape: Shape) -> None:
        self.origin = Origin(url)
        self.head = header_lines([(b"content-type", b"application/json"), *headers])
        self.shape = shape
        self._url = url

    async def check(self) -> None:
        """Send one short request as the replay would. Raises Unfit if it is not answered in that form."""
        body = self._body({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}, self.shape.stream)
        reply = await self._ask(body)
        said = await reply.read(_READ_BYTES)
        if self.shape.stream and reply.content_type != "text/event-stream":
            raise Unfit(
                f"{self._url} was asked for a stream and answered {reply.content_type or 'no content type'}; "
                "measure it with --no-stream"
            )
        if self.shape.stream and b'"usage":{' not in said.replace(b" ", b""):
            raise Unfit(
                f"{self._url} reports no usage at the end of a stream (stream_options.include_usage), so tokens cannot "
                "be counted; measure it with --no-stream, or through the gateway"
            )

    async def count(self, text: str) -> int:
        """How many prompt tokens a user message makes, by the target's own usage. Raises Unfit."""
        body = self._body({"messages": [{"role": "user", "content": text}], "max_tokens": 1}, stream=False)
        said = await (await self._ask(body)).read(_READ_BYTES)
        try:
            usage = msgspec.json.decode(said, type=_Answer).usage
        except msgspec.DecodeError:
            usage = None
        if usage is None or not usage.prompt_tokens:
            raise Unfit(
                f"{self._url} reports no usage.prompt_tokens, so prompts of a given length cannot be made for it; "
                "replay a trace with bodies"
            )
        return usage.prompt_tokens

    async def context_tokens(self) -> int | None:
        """What /v1/models says of the model's context; None where it says nothing."""
        path = self.origin.base_path.removesuffix("/v1") + "/v1/models"
        try:
            reply = await self.origin.request("GET", path, self.head, b"", _CONNECT_S)
            models = msgspec.json.decode(await reply.read(_READ_BYTES), type=_Models).data
        except (TrimtabError, msgspec.DecodeError):
            return None
        for model in models:
            if model.id == self.shape.model:
                return model.max_model_len or model.context_length
        return None

    def call(self, request: Traced, number: int, speed: float, maker: PromptMaker | None) -> Call:
        """The request to send for one of a trace; `maker` is needed where the trace has lengths only."""
        at_s = request.at_s / speed
        if request.body is not None:
            body = self._body(msgspec.json.decode(request.body), None)
            return Call(at_s, number, body, request.session)
        assert maker is not None
        text = maker.text(request, number)
        fields = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max(1, request.output_tokens),
        }
        body = self._body(fields, self.shape.stream)
        return Call(at_s, number, body, request.session, request.input_tokens, request.output_tokens)

    async def close(self) -> None:
        """Drop its connections."""
        await self.origin.close()

    def _body(self, fields: dict[str, Any], stream: bool | None) -> bytes:
        """A body; `stream` None leaves that as it is."""
        if self.shape.model:
            fields["model"] = self.shape.model
        fields |= self.shape.extra
        if stream is not None:
            fields["stream"] = stream
        if fields.get("stream"):
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return msgspec.json.encode(fields)

    async def _ask(self, body: bytes) -> HttpReply:
        try:
            reply = await self.origin.request("POST", chat_path(self.origin), self.head, body, _CONNECT_S)
            if reply.status == 200:
                return reply
            said = (await reply.read(_READ_BYTES)).decode(errors="replace")[:_SAID_CHARS]
        except TrimtabError as error:
            raise Unfit(f"{error.message}; is the target running, and is --url right?") from None
        hint = {401: "; name the variable with its key: --api-key-env", 404: "; is --model right, and --url?"}
        raise Unfit(f"{self._url} answered {reply.status}: {said}{hint.get(reply.status, '')}")


def fits(request: Traced, context_tokens: int | None) -> bool:
    """Whether prompt and answer fit the context; a body of unknown length always does."""
    return context_tokens is None or request.input_tokens + request.output_tokens <= context_tokens
