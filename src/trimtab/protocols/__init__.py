"""The dialects that clients and engines speak: pure codecs between bytes and values, without any I/O.

One file is one job: `codec` what a dialect provides, `chat` the neutral values and the table of what is translated,
`envelope` the top level of a request, `sse` framing, `usage` token classes, `timings` what engines clock, `openai*` and
`anthropic*` the dialects, `translate` from one into the other, `reuse` what a cache of answers must hold to. Adding a
dialect is adding its files and its entry in `CODECS`.
"""

from __future__ import annotations

from trimtab.protocols.codec import Codec, Parsed, ReplyFacts, Scanner, StreamDecoder, StreamEncoder
from trimtab.protocols.translate import (
    CODECS,
    StreamTranslator,
    answer_text,
    translate_error,
    translate_reply,
    translate_request,
)

__all__ = [
    "CODECS",
    "Codec",
    "Parsed",
    "ReplyFacts",
    "Scanner",
    "StreamDecoder",
    "StreamEncoder",
    "StreamTranslator",
    "answer_text",
    "translate_error",
    "translate_reply",
    "translate_request",
]
