"""Anthropic message streams: the watcher, a stream to a buffered body, and a buffered body to a stream."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.protocols.envelope import index_of, mapping, objects, upstream_object
from trimtab.protocols.sse import BaseScanner, parse_event, read_events, write_event
from trimtab.protocols.usage import anthropic_usage, merge_usage

WHOLE = frozenset({"end_turn", "tool_use", "stop_sequence"})

# Keys of JSON objects cannot be mistaken for text: inside a JSON string every quote is escaped.
_CONTENT = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"[^"]|"type"\s*:\s*"(?:server_|mcp_)?tool_use"')
_DECODED = frozenset({b"message_start", b"message_delta", b"error"})


class _Kind(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    model: Any = None
    usage: Any = None


class _Delta(msgspec.Struct):
    stop_reason: Any = None


class _Event(msgspec.Struct):
    message: _Message | None = None
    delta: _Delta | None = None
    usage: Any = None
    error: Any = None


_KIND = msgspec.json.Decoder(_Kind)
_EVENT = msgspec.json.Decoder(_Event)


def error_message(error: Any) -> str:
    """The message of a decoded `error` value, never empty."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("type")
    return str(error) if error else "the upstream reported an error"


class AnthropicScanner(BaseScanner):
    """Watches a message stream. Only message_start, message_delta and error events are decoded."""

    __slots__ = ("_raw_usage",)
    _lines = 3

    def __init__(self) -> None:
        super().__init__()
        self._raw_usage: dict[str, Any] = {}

    def _event(self, event: bytes) -> bytes:
        if event.startswith(b"event: content_block_delta\n"):
            if (b'text":"' in event and b'text":""' not in event) or _CONTENT.search(event):
                self.tokens_seen += 1
            return event
        name, data = parse_event(event)
        if not data:
            return event
        if not name:
            name = self._decode(_KIND, data).type.encode()
        if name in _DECODED:
            self._absorb(self._decode(_EVENT, data), name)
        elif name == b"message_stop":
            self.ended = True
            self.tail = event
            return b""
        elif name in (b"content_block_delta", b"content_block_start") and (
            (b'text":"' in event and b'text":""' not in event) or _CONTENT.search(data)
        ):
            self.tokens_seen += 1
        return event

    @staticmethod
    def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamInvalid(f"the upstream sent an event that is no message event: {error}") from None

    def _absorb(self, event: _Event, name: bytes) -> None:
        usage = event.usage
        if event.message is not None:
            usage = event.message.usage
            if isinstance(event.message.model, str):
                self.model = event.message.model
        if event.delta is not None and isinstance(event.delta.stop_reason, str):
            self.finish = event.delta.stop_reason
        if isinstance(usage, dict) and usage:
            merge_usage(self._raw_usage, usage)
            self.usage = anthropic_usage(self._raw_usage)
        if name == b"error" and not self.error:
            self.error = error_message(event.error)


def assemble(sse: bytes) -> bytes:
    """A whole stream to the buffered message: blocks joined, tool input parsed, usage merged."""
    message: dict[str, Any] | None = None
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for name, data in read_events(sse):
        event = upstream_object(data, "an event")
        kind = event.get("type") or name.decode()
        if kind == "message_start":
            message = _object(event, "message")
        elif kind == "error":
            raise UpstreamInvalid(f"the stream holds an error: {error_message(event.get('error'))}")
        elif kind == "content_block_start":
            blocks[index_of(event)] = _object(event, "content_block")
        elif kind == "content_block_delta":
            index = index_of(event)
            if index not in blocks:
                raise UpstreamInvalid(f"the stream has a delta for block {index}, which was not started")
            _merge_block(blocks[index], _object(event, "delta"), inputs, index)
        elif kind == "message_delta" and message is not None:
            message |= {key: value for key, value in _object(event, "delta").items() if value is not None}
            usage = dict(mapping(message.get("usage")))
            merge_usage(usage, mapping(event.get("usage")))
            message["usage"] = usage
    if message is None:
        raise UpstreamInvalid("the stream has no message_start")
    for index, text in inputs.items():
        blocks[index]["input"] = _input(text)
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return msgspec.json.encode(message)


def _object(event: dict[str, Any], key: str) -> dict[str, Any]:
    value = event.get(key)
    if not isinstance(value, dict):
        raise UpstreamInvalid(f"the stream has a {event.get('type')} event without its {key}")
    return value


def _merge_block(block: dict[str, Any], delta: dict[str, Any], inputs: dict[int, str], index: int) -> None:
    kind = delta.get("type")
    if kind == "input_json_delta":
        inputs[index] = inputs.get(index, "") + str(delta.get("partial_json") or "")
    elif kind == "text_delta":
        block["text"] = str(block.get("text") or "") + str(delta.get("text") or "")
    elif kind == "thinking_delta":
        block["thinking"] = str(block.get("thinking") or "") + str(delta.get("thinking") or "")
    elif kind == "signature_delta":
        block["signature"] = str(block.get("signature") or "") + str(delta.get("signature") or "")
    elif kind == "citations_delta":
        known = block.get("citations")
        block["citations"] = [*(known if isinstance(known, list) else []), delta.get("citation")]
    else:
        raise UpstreamInvalid(f"the stream has a delta of an unknown type, {kind}")


def _input(text: str) -> msgspec.Raw:
    try:
        msgspec.json.decode(text or "{}", type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamInvalid("the stream has tool input that is not a JSON object") from None
    return msgspec.Raw((text or "{}").encode())


def replay(body: bytes) -> bytes:
    """A buffered message to a whole stream; usage comes in message_start, the output's count at the end."""
    message = upstream_object(body, "a reply")
    content = message.get("content")
    if message.get("type") != "message" or not isinstance(content, list):
        raise UpstreamInvalid("the reply is no Anthropic message")
    usage = mapping(message.get("usage"))
    end = {key: message.get(key) for key in ("stop_reason", "stop_sequence")}
    end |= {key: message[key] for key in ("stop_details", "container") if message.get(key) is not None}
    start = {key: value for key, value in message.items() if key not in end}
    start |= {"content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = {"input_tokens": 0} | {key: val for key, val in usage.items() if key != "output_tokens_details"}
    start["usage"]["output_tokens"] = 0
    out = [write_event("message_start", {"type": "message_start", "message": start})]
    for index, block in enumerate(content):
        opening, deltas = _open(mapping(block))
        started = {"type": "content_block_start", "index": index, "content_block": opening}
        out.append(write_event("content_block_start", started))
        for delta in deltas:
            event = {"type": "content_block_delta", "index": index, "delta": delta}
            out.append(write_event("content_block_delta", event))
        out.append(write_event("content_block_stop", {"type": "content_block_stop", "index": index}))
    last = {key: value for key, value in usage.items() if key in _DELTA_USAGE and value is not None}
    end_event = {"type": "message_delta", "delta": end, "usage": {"output_tokens": 0} | last}
    out.append(write_event("message_delta", end_event))
    return b"".join(out) + STOP


STOP = write_event("message_stop", {"type": "message_stop"})
_DELTA_USAGE = frozenset(
    [
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
        "output_tokens_details",
        "server_tool_use",
    ]
)


def _open(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as its opening and its deltas; kinds that are not streamed come whole in the opening."""
    kind = block.get("type")
    deltas: list[dict[str, Any]] = []
    if kind == "text":
        deltas += [{"type": "citations_delta", "citation": item} for item in objects(block.get("citations"))]
        if block.get("text"):
            deltas.append({"type": "text_delta", "text": block["text"]})
        opening = block | {"text": ""}
        if block.get("citations"):
            opening["citations"] = []
        return opening, deltas
    if kind == "thinking":
        if block.get("thinking"):
            deltas.append({"type": "thinking_delta", "thinking": block["thinking"]})
        if block.get("signature"):
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return block | {"thinking": "", "signature": ""}, deltas
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        if block.get("input"):
            partial = msgspec.json.encode(block["input"]).decode()
            deltas.append({"type": "input_json_delta", "partial_json": partial})
        return block | {"input": {}}, deltas
    return block, deltas
