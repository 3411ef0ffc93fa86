"""What every dialect provides: the Codec Protocol, and the small values that it returns."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from trimtab.protocols.chat import ChatReply, ChatRequest, Delta
from trimtab.types import NO_WORK, Dialect, EngineWork, Usage


class Parsed(msgspec.Struct, frozen=True, gc=False):
    """A request body, decoded at its top level only.

    `fields` maps each field to its bytes as received, the last one where a key came twice, our own metadata removed.
    """

    model: str
    stream: bool
    wants_usage: bool  # the client asked for usage on the stream (always true in Anthropic's dialect)
    fields: dict[str, msgspec.Raw]
    metadata: dict[str, str]  # what stood under metadata.trimtab


class ReplyFacts(msgspec.Struct, frozen=True, gc=False):
    """What settling needs of a buffered reply.

    `text_chars` counts all that the model wrote, for estimates; it may be 0 where `usage` is known.
    """

    model: str
    finish: str  # the dialect's own word; the worst one of several choices
    usage: Usage | None
    ok: bool  # every choice has a stop reason
    text_chars: int
    work: EngineWork = NO_WORK


class Scanner(Protocol):
    """A watcher of an upstream SSE stream; `feed` returns what may be forwarded.

    `tail` is the end mark, held back so that the row can be settled before it is sent. Events must be at most
    `sse.MAX_EVENT_BYTES`. `feed` and `close` raise UpstreamInvalid for an event that is not the dialect's JSON.
    """

    @property
    def first_token(self) -> bool:
        """Whether a non-empty text, reasoning or tool delta was seen."""
        ...

    @property
    def tokens_seen(self) -> int:
        """Events that carried one, for estimates."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the stream is whole."""
        ...

    @property
    def finish(self) -> str:
        """The stop reason, "" while unknown; the worst one of several choices."""
        ...

    @property
    def model(self) -> str:
        """The model as the upstream names it."""
        ...

    @property
    def usage(self) -> Usage | None:
        """Usage so far."""
        ...

    @property
    def work(self) -> EngineWork:
        """What the engine says of its own work so far."""
        ...

    @property
    def error(self) -> str:
        """Message of an error event inside the stream; the event itself was forwarded."""
        ...

    @property
    def tail(self) -> bytes:
        """The end mark and whatever followed it, to be sent last."""
        ...

    def feed(self, piece: bytes) -> bytes:
        """Take bytes of the upstream, return the bytes for the client."""
        ...

    def close(self) -> bytes:
        """The upstream's body ended: return what is left. `ended` still False means that the stream was cut."""
        ...


class StreamDecoder(Protocol):
    """SSE bytes of a dialect to neutral deltas."""

    def feed(self, piece: bytes) -> list[Delta]:
        """Deltas of the events that are complete now. Raises UpstreamInvalid."""
        ...

    def close(self) -> list[Delta]:
        """Deltas of an unterminated last event."""
        ...


class StreamEncoder(Protocol):
    """Neutral deltas to SSE bytes of a dialect."""

    def encode(self, delta: Delta) -> bytes:
        """The events of one delta, b"" when they must wait."""
        ...

    def end(self) -> bytes:
        """The events that end the stream, usage included."""
        ...


class Codec(Protocol):
    """One dialect, as pure functions over bytes."""

    dialect: Dialect

    def parse(self, body: bytes) -> Parsed:
        """Decode a request's top level. Raises MalformedJson, or BadRequest with `param`."""
        ...

    def body(self, fields: dict[str, msgspec.Raw], *, model: str | None, stream_usage: bool) -> bytes:
        """The request to send upstream: each field's bytes untouched but for `model`; usage asked for on a stream."""
        ...

    def scanner(self, *, strip_usage: bool) -> Scanner:
        """A watcher of one upstream stream; `strip_usage` removes the usage that the client did not ask for."""
        ...

    def usage(self, obj: dict[str, Any]) -> Usage:
        """Token classes of a decoded usage object; never negative, never counted twice."""
        ...

    def read_reply(self, body: bytes) -> ReplyFacts:
        """Facts of a buffered 200 body. Raises UpstreamInvalid when it is no reply of this dialect."""
        ...

    def answer_text(self, body: bytes) -> str | None:
        """The words of a buffered 200 body, if plain text is all there is to the answer; reasoning is left out.

        None for tool calls, refusals and filtered answers, several choices, other kinds of content, no text at all, and
        a body that is no reply of this dialect.
        """
        ...

    def assemble(self, sse: bytes, *, usage: Usage | None = None) -> bytes:
        """A whole stream to the buffered reply's body; `usage` is put in where the stream's was stripped.

        Raises UpstreamInvalid.
        """
        ...

    def replay(self, body: bytes, *, include_usage: bool) -> bytes:
        """A buffered reply's body to a whole stream, end mark included. Raises UpstreamInvalid."""
        ...

    def error(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """An error body."""
        ...

    def error_event(self, status: int, code: str, message: str, param: str, request_id: str) -> bytes:
        """An error as an event inside a running stream, so that the official SDKs raise."""
        ...

    def read_error(self, body: bytes) -> tuple[str, str, str] | None:
        """Message, code and param of an error body in this dialect, None when it is none."""
        ...

    def is_error_body(self, body: bytes) -> bool:
        """Whether the bytes are an error in this dialect's shape."""
        ...

    def models(self, names: list[str], created: int) -> bytes:
        """The body of GET /v1/models; `created` in unix seconds."""
        ...

    def finish_is_whole(self, finish: str, fields: dict[str, msgspec.Raw]) -> bool:
        """Whether an answer that stopped so may be cached: whole, or cut by the client's own limit in `fields`."""
        ...

    def finish_word(self, finish: str) -> str:
        """A neutral stop reason in this dialect's word; one that is foreign to both stays as it is."""
        ...

    def neutral_finish(self, finish: str) -> str:
        """This dialect's stop reason as a neutral one."""
        ...

    def decode_request(self, fields: dict[str, msgspec.Raw]) -> ChatRequest:
        """Raises BadRequest or Unsupported, naming the field."""
        ...

    def encode_request(self, chat: ChatRequest, *, model: str, stream: bool) -> bytes:
        """A request body; streams ask for usage. Raises Unsupported for what this dialect cannot say."""
        ...

    def decode_reply(self, body: bytes) -> ChatReply:
        """Raises UpstreamInvalid."""
        ...

    def encode_reply(self, reply: ChatReply, *, model: str, created: int = 0) -> bytes:
        """A buffered reply; `model` "" keeps the upstream's; `created` in unix seconds. Raises UpstreamInvalid."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one stream."""
        ...

    def stream_encoder(self, *, model: str, include_usage: bool, created: int = 0) -> StreamEncoder:
        """An encoder for one stream; `model` "" keeps the upstream's."""
        ...
