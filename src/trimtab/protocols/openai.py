"""The OpenAI chat-completions dialect, which most engines speak."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.protocols import openai_chat, openai_stream
from trimtab.protocols.chat import ChatReply, ChatRequest
from trimtab.protocols.codec import Parsed, ReplyFacts
from trimtab.protocols.envelope import (
    check_messages,
    decode_fields,
    given,
    joined_text,
    take_metadata,
    take_model,
    take_stream,
    with_usage_option,
)
from trimtab.protocols.openai_deltas import OpenAIStreamDecoder, OpenAIStreamEncoder
from trimtab.protocols.timings import ABSENT, read_timings
from trimtab.protocols.usage import openai_usage, read_openai_usage
from trimtab.types import Dialect, Usage


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None


class _Function(msgspec.Struct):
    name: Any = ""
    arguments: Any = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    timings: msgspec.Raw = ABSENT


_STREAM_OPTIONS = msgspec.json.Decoder(_StreamOptions)
_REPLY = msgspec.json.Decoder(_Reply)


def _chars(message: _Message) -> int:
    reasoning = message.reasoning_content or message.reasoning
    texts = [message.content, message.refusal, reasoning]
    texts += [call.function.arguments for call in message.tool_calls or () if call.function is not None]
    return sum(len(text) for text in texts if isinstance(text, str))


def error_type(status: int) -> str:
    """OpenAI's `error.type` for an HTTP status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


class OpenAICodec:
    """See `codec.Codec`."""

    dialect = Dialect.OPENAI

    def parse(self, body: bytes) -> Parsed:
        """See `Codec.parse`."""
        fields = decode_fields(body)
        model = take_model(fields)
        check_messages(fields)
        stream = take_stream(fields)
        wants_usage = False
        if stream and "stream_options" in fields:
            try:
                wants_usage = _STREAM_OPTIONS.decode(fields["stream_options"]).include_usage is True
            except msgspec.ValidationError:
                wants_usage = False  # null, or nonsense that the upstream answers
        return Parsed(model, stream, wants_usage, fields, take_metadata(fields) if "metadata" in fields else {})

    def body(self, fields: dict[str, msgspec.Raw], *, model: str | None, stream_usage: bool) -> bytes:
        """See `Codec.body`."""
        sent: dict[str, Any] = dict(fields)
        if model is not None:
            sent["model"] = model
        if stream_usage:
            sent["stream_options"] = with_usage_option(fields)
        return msgspec.json.encode(sent)

    def scanner(self, *, strip_usage: bool) -> openai_stream.OpenAIScanner:
        """See `Codec.scanner`."""
        return openai_stream.OpenAIScanner(strip_usage=strip_usage)

    def usage(self, obj: dict[str, Any]) -> Usage:
        """See `Codec.usage`."""
        return openai_usage(obj)

    def read_reply(self, body: bytes) -> ReplyFacts:
        """See `Codec.read_reply`."""
        try:
            reply = _REPLY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamInvalid(f"the upstream's reply is no chat completion: {error}") from None
        usage = read_openai_usage(reply.usage)
        finishes = [choice.finish_reason or "" for choice in reply.choices]
        return ReplyFacts(
            model=reply.model or "",
            finish=openai_stream.worst_finish(finishes),
            usage=usage,
            ok=bool(finishes) and all(finishes),
            text_chars=0 if usage is not None else sum([_chars(choice.message) for choice in reply.choices]),
            work=read_timings(reply.timings),
        )

    def answer_text(self, body: bytes) -> str | None:
        """See `Codec.answer_text`; content in parts, as some servers send it, is joined."""
        try:
            reply = _REPLY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if len(reply.choices) != 1:
            return None
        message = reply.choices[0].message
        other = message.refusal or message.tool_calls or message.function_call or message.audio
        if other or reply.choices[0].finish_reason == "content_filter":
            return None
        return joined_text(message.content)

    def assemble(self, sse: bytes, *, usage: Usage | None = None) -> bytes:
        """See `Codec.assemble`."""
        return openai_stream.assemble(sse, usage)

    def replay(self, body: bytes, *, include_usage: bool) -> bytes:
        """See `Codec.replay`."""
        return openai_stream.replay(body, include_usage=include_usage)

    def error(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """See `Codec.error`; the request id has no place in this shape (send it as the header x-request-id)."""
        error = {"message": message, "type": error_type(status), "param": param or None, "code": code or None}
        return msgspec.json.encode({"error": error})

    def error_event(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """See `Codec.error_event`."""
        return b"data: " + self.error(status, code, message, param, request_id) + b"\n\n"

    def read_error(self, body: bytes) -> tuple[str, str, str] | None:
        """See `Codec.read_error`."""
        try:
            error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return None
        code = error.get("code") or error.get("type") or ""
        return error["message"], str(code), str(error.get("param") or "")

    def is_error_body(self, body: bytes) -> bool:
        """See `Codec.is_error_body`."""
        return self.read_error(body) is not None

    def models(self, names: list[str], created: int) -> bytes:
        """See `Codec.models`."""
        data = [{"id": name, "object": "model", "created": created, "owned_by": "trimtab"} for name in names]
        return msgspec.json.encode({"object": "list", "data": data})

    def finish_is_whole(self, finish: str, fields: dict[str, msgspec.Raw]) -> bool:
        """See `Codec.finish_is_whole`."""
        if finish == "length":
            return given(fields, "max_tokens", "max_completion_tokens")
        return finish in openai_stream.WHOLE

    def finish_word(self, finish: str) -> str:
        """See `Codec.finish_word`."""
        return openai_chat.FINISH_OUT.get(finish, finish)

    def neutral_finish(self, finish: str) -> str:
        """See `Codec.neutral_finish`."""
        return openai_chat.neutral_finish(finish)

    def decode_request(self, fields: dict[str, msgspec.Raw]) -> ChatRequest:
        """See `Codec.decode_request`."""
        return openai_chat.decode_request(fields)

    def encode_request(self, chat: ChatRequest, *, model: str, stream: bool) -> bytes:
        """See `Codec.encode_request`."""
        return openai_chat.encode_request(chat, model=model, stream=stream)

    def decode_reply(self, body: bytes) -> ChatReply:
        """See `Codec.decode_reply`."""
        return openai_chat.decode_reply(body)

    def encode_reply(self, reply: ChatReply, *, model: str, created: int = 0) -> bytes:
        """See `Codec.encode_reply`."""
        return openai_chat.encode_reply(reply, model=model, created=created)

    def stream_decoder(self) -> OpenAIStreamDecoder:
        """See `Codec.stream_decoder`."""
        return OpenAIStreamDecoder()

    def stream_encoder(self, *, model: str, include_usage: bool, created: int = 0) -> OpenAIStreamEncoder:
        """See `Codec.stream_encoder`."""
        return OpenAIStreamEncoder(model=model, include_usage=include_usage, created=created)
