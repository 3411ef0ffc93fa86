"""Anthropic message streams to neutral deltas and back."""

from __future__ import annotations

from typing import Any

from trimtab.errors import UpstreamInvalid
from trimtab.protocols.anthropic_chat import FINISH_OUT, neutral_finish
from trimtab.protocols.anthropic_stream import STOP, error_message
from trimtab.protocols.chat import (
    Delta,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    Start,
    StreamError,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    UsageDelta,
)
from trimtab.protocols.envelope import index_of, mapping, upstream_object
from trimtab.protocols.sse import EventReader, write_event
from trimtab.protocols.usage import anthropic_usage, anthropic_usage_object, merge_usage
from trimtab.types import NO_USAGE, Usage


class AnthropicStreamDecoder:
    """Decodes a message stream; blocks that cannot be translated raise UpstreamInvalid."""

    def __init__(self) -> None:
        self._reader = EventReader()
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, int] = {}  # block index to ordinal of the call

    def feed(self, piece: bytes) -> list[Delta]:
        """See `StreamDecoder.feed`."""
        return self._deltas(self._reader.feed(piece))

    def close(self) -> list[Delta]:
        """See `StreamDecoder.close`."""
        return self._deltas(self._reader.close())

    def _deltas(self, events: list[tuple[bytes, bytes]]) -> list[Delta]:
        deltas: list[Delta] = []
        for name, data in events:
            event = upstream_object(data, "an event")
            deltas += self._event(event.get("type") or name.decode(), event)
        return deltas

    def _event(self, kind: Any, event: dict[str, Any]) -> list[Delta]:
        if kind == "message_start":
            message = mapping(event.get("message"))
            start = Start(str(message.get("id") or ""), str(message.get("model") or ""))
            return [start, *self._count(message.get("usage"))]
        if kind == "content_block_start":
            return self._block(index_of(event), mapping(event.get("content_block")))
        if kind == "content_block_delta":
            return self._delta(index_of(event), mapping(event.get("delta")))
        if kind == "message_delta":
            delta = mapping(event.get("delta"))
            deltas = self._count(event.get("usage"))
            if delta.get("stop_reason"):
                finish = neutral_finish(str(delta["stop_reason"]))
                deltas.append(Finish(finish, str(delta.get("stop_sequence") or "")))
            return deltas
        if kind == "error":
            error = event.get("error")
            code = error.get("type") if isinstance(error, dict) else None
            return [StreamError(error_message(error), str(code or ""))]
        return []

    def _count(self, usage: Any) -> list[Delta]:
        if not isinstance(usage, dict) or not usage:
            return []
        merge_usage(self._usage, usage)
        return [UsageDelta(anthropic_usage(self._usage))]

    def _block(self, index: int, block: dict[str, Any]) -> list[Delta]:
        kind = block.get("type")
        if kind == "text":
            return [TextDelta(str(block["text"]))] if block.get("text") else []
        if kind == "thinking":
            return [ReasoningDelta(str(block["thinking"]))] if block.get("thinking") else []
        if kind == "redacted_thinking":
            return [ReasoningDelta(redacted=str(block.get("data") or ""))]
        if kind == "tool_use":
            ordinal = self._calls[index] = len(self._calls)
            return [ToolCallStart(ordinal, str(block.get("id") or ""), str(block.get("name") or ""))]
        raise UpstreamInvalid(f"the stream has a block that cannot be translated (type {kind!r})")

    def _delta(self, index: int, delta: dict[str, Any]) -> list[Delta]:
        kind = delta.get("type")
        if kind == "text_delta" and delta.get("text"):
            return [TextDelta(str(delta["text"]))]
        if kind == "thinking_delta" and delta.get("thinking"):
            return [ReasoningDelta(str(delta["thinking"]))]
        if kind == "signature_delta" and delta.get("signature"):
            return [ReasoningDelta(signature=str(delta["signature"]))]
        if kind == "input_json_delta" and delta.get("partial_json"):
            if index not in self._calls:
                raise UpstreamInvalid(f"the stream has tool input for block {index}, which is no tool call")
            return [ToolCallDelta(self._calls[index], str(delta["partial_json"]))]
        return []


class AnthropicStreamEncoder:
    """Writes message events, one block open at a time.

    Parallel tool calls whose arguments interleave are put in order: the first call streams, the others wait until text
    follows or the stream ends. The stop reason waits for `end`, since usage comes with it.
    """

    def __init__(self, *, model: str, created: int = 0) -> None:
        self._model = model
        self._started = False
        self._blocks = 0  # blocks begun
        self._open = ""  # kind of the open block: "", "text", "thinking" or "tool_use"
        self._live = -1  # the tool call whose arguments stream
        self._waiting: dict[int, tuple[ToolCallStart, list[str]]] = {}
        self._usage: Usage | None = None
        self._finish = Finish("")
        self._refused = False

    def encode(self, delta: Delta) -> bytes:
        """See `StreamEncoder.encode`. Raises UpstreamInvalid for arguments of a call that is already closed."""
        if isinstance(delta, Start):
            return self._begin(delta)
        if isinstance(delta, UsageDelta):
            self._usage = delta.usage
            return b""
        if isinstance(delta, Finish):
            self._finish = delta
            return self._begin()
        if isinstance(delta, StreamError):
            error = {"type": "api_error", "message": delta.message}
            return write_event("error", {"type": "error", "error": error})
        return self._begin() + self._content(delta)

    def _begin(self, start: Start | None = None) -> bytes:
        if self._started:
            return b""
        self._started = True
        start = start or Start("", "")
        message: dict[str, Any] = {
            "id": start.id,
            "type": "message",
            "role": "assistant",
            "model": self._model or start.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": anthropic_usage_object(self._usage or NO_USAGE) | {"output_tokens": 0},
        }
        return write_event("message_start", {"type": "message_start", "message": message})

    def _content(self, delta: Delta) -> bytes:
        if isinstance(delta, TextDelta | RefusalDelta):
            self._refused = self._refused or isinstance(delta, RefusalDelta)
            opening = {"type": "text", "text": ""}
            return self._switch("text", opening) + self._delta({"type": "text_delta", "text": delta.text})
        if isinstance(delta, ReasoningDelta):
            return self._reasoning(delta)
        if isinstance(delta, ToolCallStart):
            if self._open == "tool_use":
                self._waiting[delta.index] = (delta, [])
                return b""
            return self._call(delta)
        if isinstance(delta, ToolCallDelta):
            if delta.index == self._live:
                return self._delta({"type": "input_json_delta", "partial_json": delta.arguments})
            if delta.index not in self._waiting:
                raise UpstreamInvalid("the stream has arguments for a tool call that is not open")
            self._waiting[delta.index][1].append(delta.arguments)
        return b""

    def _reasoning(self, delta: ReasoningDelta) -> bytes:
        if delta.redacted:
            return self._close() + self._start({"type": "redacted_thinking", "data": delta.redacted}) + self._stop()
        out = self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if delta.text:
            out += self._delta({"type": "thinking_delta", "thinking": delta.text})
        if delta.signature:
            out += self._delta({"type": "signature_delta", "signature": delta.signature}) + self._close()
        return out

    def _call(self, start: ToolCallStart) -> bytes:
        opening = {"type": "tool_use", "id": start.id, "name": start.name, "input": {}}
        out = self._close() + self._start(opening)
        self._open = "tool_use"
        self._live = start.index
        return out

    def _switch(self, kind: str, opening: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        out = self._close() + self._start(opening)
        self._open = kind
        return out

    def _close(self) -> bytes:
        """Close the open block; after a tool call write out those that waited behind it."""
        if not self._open:
            return b""
        out = self._stop()
        self._open, self._live = "", -1
        waiting, self._waiting = self._waiting, {}
        for start, arguments in waiting.values():
            opening = {"type": "tool_use", "id": start.id, "name": start.name, "input": {}}
            out += self._start(opening)
            if arguments:
                out += self._delta({"type": "input_json_delta", "partial_json": "".join(arguments)})
            out += self._stop()
        return out

    def _start(self, opening: dict[str, Any]) -> bytes:
        event = {"type": "content_block_start", "index": self._blocks, "content_block": opening}
        self._blocks += 1
        return write_event("content_block_start", event)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        event = {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}
        return write_event("content_block_delta", event)

    def _stop(self) -> bytes:
        return write_event("content_block_stop", {"type": "content_block_stop", "index": self._blocks - 1})

    def end(self) -> bytes:
        """See `StreamEncoder.end`."""
        finish = self._finish.finish
        delta = {
            "stop_reason": "refusal" if self._refused else FINISH_OUT.get(finish, finish) or None,
            "stop_sequence": self._finish.stop_sequence or None,
        }
        usage = anthropic_usage_object(self._usage or NO_USAGE)
        event = {"type": "message_delta", "delta": delta, "usage": usage}
        return self._begin() + self._close() + write_event("message_delta", event) + STOP
