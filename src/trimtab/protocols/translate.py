"""From one dialect into another: requests, replies, streams and errors, through the neutral values of `chat`."""

from __future__ import annotations

import msgspec

from trimtab.protocols.anthropic import AnthropicCodec
from trimtab.protocols.codec import Codec, Scanner
from trimtab.protocols.openai import OpenAICodec
from trimtab.types import Dialect, EngineWork, Usage

CODECS: dict[Dialect, Codec] = {Dialect.OPENAI: OpenAICodec(), Dialect.ANTHROPIC: AnthropicCodec()}
"""The codec of each dialect; they hold no state."""


def translate_request(
    parsed_fields: dict[str, msgspec.Raw], source: Dialect, target: Dialect, *, model: str, stream: bool
) -> bytes:
    """A client's request (source) to the body for an engine (target). Raises BadRequest or Unsupported with `param`."""
    return CODECS[target].encode_request(CODECS[source].decode_request(parsed_fields), model=model, stream=stream)


def translate_reply(body: bytes, source: Dialect, target: Dialect, *, created: int = 0) -> bytes:
    """An engine's buffered reply (source) to the client's dialect (target); `created` in unix seconds.

    Raises UpstreamInvalid.
    """
    return CODECS[target].encode_reply(CODECS[source].decode_reply(body), model="", created=created)


def answer_text(body: bytes, dialect: Dialect) -> str | None:
    """The words of a buffered reply that is nothing but text, else None: see `Codec.answer_text`."""
    return CODECS[dialect].answer_text(body)


def translate_error(body: bytes, source: Dialect, target: Dialect, status: int, request_id: str) -> bytes:
    """An engine's error body (source) to the client's dialect (target); one without a message gets a plain one."""
    message, code, param = CODECS[source].read_error(body) or (
        f"the upstream answered with HTTP status {status}",
        "upstream_status",
        "",
    )
    return CODECS[target].error(status, code, message, param, request_id)


class StreamTranslator:
    """A `codec.Scanner` whose output is in another dialect than its input; `finish` is in the client's words.

    `source` is the engine's dialect, `target` the client's. Since the stop reason waits for usage in Anthropic's
    dialect, `tail` holds all that must come last.
    """

    def __init__(self, source: Dialect, target: Dialect, *, include_usage: bool, created: int = 0) -> None:
        self._scanner: Scanner = CODECS[source].scanner(strip_usage=False)
        self._source = CODECS[source]
        self._target = CODECS[target]
        self._decoder = self._source.stream_decoder()
        self._encoder = self._target.stream_encoder(model="", include_usage=include_usage, created=created)
        self.tail = b""

    @property
    def first_token(self) -> bool:
        """See `codec.Scanner`."""
        return self._scanner.first_token

    @property
    def tokens_seen(self) -> int:
        """See `codec.Scanner`."""
        return self._scanner.tokens_seen

    @property
    def ended(self) -> bool:
        """See `codec.Scanner`."""
        return self._scanner.ended

    @property
    def finish(self) -> str:
        """The stop reason in the client's dialect; a word foreign to it stays as it is."""
        finish = self._scanner.finish
        return self._target.finish_word(self._source.neutral_finish(finish))

    @property
    def model(self) -> str:
        """See `codec.Scanner`."""
        return self._scanner.model

    @property
    def usage(self) -> Usage | None:
        """See `codec.Scanner`."""
        return self._scanner.usage

    @property
    def work(self) -> EngineWork:
        """See `codec.Scanner`."""
        return self._scanner.work

    @property
    def error(self) -> str:
        """See `codec.Scanner`."""
        return self._scanner.error

    def feed(self, piece: bytes) -> bytes:
        """See `codec.Scanner.feed`."""
        return self._translate(self._scanner.feed(piece))

    def close(self) -> bytes:
        """See `codec.Scanner.close`."""
        return self._translate(self._scanner.close())

    def _translate(self, events: bytes) -> bytes:
        out = b"".join([self._encoder.encode(delta) for delta in self._decoder.feed(events)]) if events else b""
        if self._scanner.ended and not self.tail:
            self.tail = self._encoder.end()
        return out
