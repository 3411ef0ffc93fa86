"""The Anthropic messages dialect."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from trimtab.errors import BadRequest, UpstreamInvalid
from trimtab.protocols import anthropic_chat, anthropic_stream
from trimtab.protocols.anthropic_deltas import AnthropicStreamDecoder, AnthropicStreamEncoder
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
)
from trimtab.protocols.sse import write_event
from trimtab.protocols.usage import anthropic_usage
from trimtab.types import Dialect, Usage

_INT = msgspec.json.Decoder(int)
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _Block(msgspec.Struct):
    text: Any = None
    thinking: Any = None
    input: msgspec.Raw = msgspec.Raw()


class _Reply(msgspec.Struct, tag_field="type", tag="message"):
    content: list[_Block]
    model: str | None = None
    stop_reason: str | None = None
    usage: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


def _chars(block: _Block) -> int:
    chars = sum(len(text) for text in (block.text, block.thinking) if isinstance(text, str))
    return chars + len(memoryview(block.input))


def error_type(status: int) -> str:
    """Anthropic's `error.type` for an HTTP status."""
    return _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _error(status: int, code: str, message: str, request_id: str) -> dict[str, Any]:
    error: dict[str, Any] = {"type": error_type(status), "message": message}
    if code:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": request_id or None}


class AnthropicCodec:
    """See `codec.Codec`."""

    dialect = Dialect.ANTHROPIC

    def parse(self, body: bytes) -> Parsed:
        """See `Codec.parse`; `max_tokens` must be given (0 only warms the provider's prompt cache)."""
        fields = decode_fields(body)
        model = take_model(fields)
        check_messages(fields)
        stream = take_stream(fields)
        raw = fields.get("max_tokens")
        if raw is None:
            raise BadRequest("max_tokens is missing; say how many tokens the answer may have", param="max_tokens")
        try:
            limit = _INT.decode(raw)
        except msgspec.ValidationError:
            limit = -1
        if limit < 0:
            raise BadRequest("max_tokens must be an integer of 0 or more", param="max_tokens")
        return Parsed(model, stream, True, fields, take_metadata(fields) if "metadata" in fields else {})

    def body(self, fields: dict[str, msgspec.Raw], *, model: str | None, stream_usage: bool) -> bytes:
        """See `Codec.body`; streams always carry usage here."""
        sent: dict[str, Any] = fields if model is None else {**fields, "model": model}
        return msgspec.json.encode(sent)

    def scanner(self, *, strip_usage: bool) -> anthropic_stream.AnthropicScanner:
        """See `Codec.scanner`; usage is part of this dialect and never stripped."""
        return anthropic_stream.AnthropicScanner()

    def usage(self, obj: dict[str, Any]) -> Usage:
        """See `Codec.usage`."""
        return anthropic_usage(obj)

    def read_reply(self, body: bytes) -> ReplyFacts:
        """See `Codec.read_reply`."""
        try:
            reply = _REPLY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamInvalid(f"the upstream's reply is no Anthropic message: {error}") from None
        return ReplyFacts(
            model=reply.model or "",
            finish=reply.stop_reason or "",
            usage=anthropic_usage(reply.usage) if isinstance(reply.usage, dict) and reply.usage else None,
            ok=bool(reply.stop_reason),
            text_chars=sum(_chars(block) for block in reply.content),
        )

    def answer_text(self, body: bytes) -> str | None:
        """See `Codec.answer_text`; thinking blocks are reasoning."""
        try:
            reply = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        content = reply.get("content")
        if reply.get("type") != "message" or reply.get("stop_reason") == "refusal" or not isinstance(content, list):
            return None
        thoughts = ("thinking", "redacted_thinking")
        return joined_text([b for b in content if not (isinstance(b, dict) and b.get("type") in thoughts)])

    def assemble(self, sse: bytes, *, usage: Usage | None = None) -> bytes:
        """See `Codec.assemble`; streams always carry usage here."""
        return anthropic_stream.assemble(sse)

    def replay(self, body: bytes, *, include_usage: bool) -> bytes:
        """See `Codec.replay`; usage is part of this dialect."""
        return anthropic_stream.replay(body)

    def error(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """See `Codec.error`; `code` goes where the SDK looks for it, `param` has no place but the message."""
        return msgspec.json.encode(_error(status, code, message, request_id))

    def error_event(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """See `Codec.error_event`."""
        return write_event("error", _error(status, code, message, request_id))

    def read_error(self, body: bytes) -> tuple[str, str, str] | None:
        """See `Codec.read_error`; the code is the most exact one given."""
        try:
            obj = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        error = obj.get("error")
        if obj.get("type") != "error" or not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return None
        details = error.get("details")
        code = details.get("error_code") if isinstance(details, dict) else None
        return error["message"], str(code or error.get("type") or ""), ""

    def is_error_body(self, body: bytes) -> bool:
        """See `Codec.is_error_body`."""
        return self.read_error(body) is not None

    def models(self, names: list[str], created: int) -> bytes:
        """See `Codec.models`."""
        at = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": at, "lifecycle": "active"}
            for name in names
        ]
        first, last = (names[0], names[-1]) if names else (None, None)
        return msgspec.json.encode({"data": data, "has_more": False, "first_id": first, "last_id": last})

    def finish_is_whole(self, finish: str, fields: dict[str, msgspec.Raw]) -> bool:
        """See `Codec.finish_is_whole`."""
        if finish == "max_tokens":
            return given(fields, "max_tokens")
        return finish in anthropic_stream.WHOLE

    def finish_word(self, finish: str) -> str:
        """See `Codec.finish_word`."""
        return anthropic_chat.FINISH_OUT.get(finish, finish)

    def neutral_finish(self, finish: str) -> str:
        """See `Codec.neutral_finish`."""
        return anthropic_chat.neutral_finish(finish)

    def decode_request(self, fields: dict[str, msgspec.Raw]) -> ChatRequest:
        """See `Codec.decode_request`."""
        return anthropic_chat.decode_request(fields)

    def encode_request(self, chat: ChatRequest, *, model: str, stream: bool) -> bytes:
        """See `Codec.encode_request`."""
        return anthropic_chat.encode_request(chat, model=model, stream=stream)

    def decode_reply(self, body: bytes) -> ChatReply:
        """See `Codec.decode_reply`."""
        return anthropic_chat.decode_reply(body)

    def encode_reply(self, reply: ChatReply, *, model: str, created: int = 0) -> bytes:
        """See `Codec.encode_reply`."""
        return anthropic_chat.encode_reply(reply, model=model, created=created)

    def stream_decoder(self) -> AnthropicStreamDecoder:
        """See `Codec.stream_decoder`."""
        return AnthropicStreamDecoder()

    def stream_encoder(self, *, model: str, include_usage: bool, created: int = 0) -> AnthropicStreamEncoder:
        """See `Codec.stream_encoder`."""
        return AnthropicStreamEncoder(model=model, created=created)
