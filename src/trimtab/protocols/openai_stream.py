"""OpenAI chat-completion streams: the watcher, a stream to a buffered body, and a buffered body to a stream."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.protocols.envelope import index_of, objects, upstream_object
from trimtab.protocols.sse import BaseScanner, parse_event, read_events, write_event
from trimtab.protocols.timings import ABSENT, read_timings
from trimtab.protocols.usage import openai_usage, openai_usage_object
from trimtab.types import Usage

DONE = b"data: [DONE]\n\n"
WHOLE = frozenset({"stop", "tool_calls", "function_call"})

# Keys of JSON objects cannot be mistaken for text: inside a JSON string every quote is escaped.
_DECODE_ME = re.compile(rb'"error"\s*:|:\s*"error"|"usage"\s*:\s*\{|"finish_reason"\s*:\s*"')
_CONTENT = re.compile(rb'"(?:content|reasoning_content|reasoning|refusal|arguments|name|text|transcript)"\s*:\s*"[^"]')
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,')
_PROBES = 8  # first events that are decoded to learn the model and which choices there are


_BACKSLASH = 0x5C


class _ChunkChoice(msgspec.Struct):
    index: Any = 0
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    model: Any = None
    choices: list[_ChunkChoice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None
    timings: msgspec.Raw = ABSENT


_CHUNK = msgspec.json.Decoder(_Chunk)


def worst_finish(finishes: list[str]) -> str:
    """The stop reason that speaks most against reusing the answer: an odd one, then "length", then a whole one."""
    odd = [finish for finish in finishes if finish not in WHOLE and finish != "length"]
    return (odd or [f for f in finishes if f == "length"] or finishes or [""])[0]


def error_message(error: Any) -> str:
    """The message of a decoded `error` value, never empty."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error.get("type")
    return str(error) if error else "the upstream reported an error"


class OpenAIScanner(BaseScanner):
    """Watches a chat-completion stream. Only events that carry usage, a stop reason, an error or news are decoded."""

    __slots__ = ("_finishes", "_forwarded", "_prefix", "_probes", "_seen", "_strip_usage", "_suffix")

    def __init__(self, *, strip_usage: bool) -> None:
        super().__init__()
        self._strip_usage = strip_usage
        self._finishes: dict[int, str] = {}
        self._seen: set[int] = set()
        self._probes = 0
        # The last common event around its text: most events of a stream differ in nothing else.
        self._prefix = b"\0"
        self._suffix = b""
        self._forwarded: bytes | None = None  # the suffix without its null usage

    def _event(self, event: bytes) -> bytes:
        if event.startswith(self._prefix) and event.endswith(self._suffix):
            text = event[len(self._prefix) : -len(self._suffix)]
            if text and b'"' not in text and b"\n" not in text:
                self.tokens_seen += 1
                return event if self._forwarded is None else self._prefix + text + self._forwarded
        usages = event.count(b'"usage"')
        if (
            b'"error"' in event
            or b"[DONE]" in event
            or event.count(b'"finish_reason"') != event.count(b'"finish_reason":null')
            or (usages and usages != event.count(b'"usage":null'))
            or (self._probes < _PROBES and (not self.model or b'"role"' in event))
            or not event.startswith(b"data:")
            or event.count(b"\n") != 2
        ):
            return self._odd_event(event)
        match = _CONTENT.search(event, max(event.find(b'"delta"'), 0))
        if match:
            self.tokens_seen += 1
            self._learn(event, match.end() - 1)
        return _strip_null_usage(event) if usages and self._strip_usage else event

    def _learn(self, event: bytes, start: int) -> None:
        """Remember what surrounds the text that begins at `start`."""
        end = event.find(b'"', start)
        usage_before = self._strip_usage and event.find(b'"usage"', 0, start) >= 0
        if end > start and event[end - 1] != _BACKSLASH and not usage_before:
            self._prefix, self._suffix = event[:start], event[end:]
            stripped = _strip_null_usage(self._suffix) if self._strip_usage else self._suffix
            self._forwarded = None if stripped == self._suffix else stripped

    def _odd_event(self, event: bytes) -> bytes:
        """An event that is not the common one: it may need decoding, or it only looks odd."""
        data = parse_event(event)[1]
        if not data:
            return event
        if data.startswith(b"[DONE]"):
            self.ended = True
            self.tail = event
            return b""
        usage_only = False
        match = _CONTENT.search(event, max(event.find(b'"delta"'), 0))
        if match:
            self.tokens_seen += 1
        probe = self._probes < _PROBES and (not self.model or b'"role"' in data)
        if probe or b"\n" in data or _DECODE_ME.search(data):
            self._probes += probe
            usage_only = self._absorb(data)
        elif match and event.startswith(b"data:") and event.count(b"\n") == 2:
            self._learn(event, match.end() - 1)
        if self._strip_usage:
            return b"" if usage_only else _strip_null_usage(event)
        return event

    def _absorb(self, data: bytes) -> bool:
        """Learn from a decoded chunk; returns whether it carries nothing but usage."""
        try:
            chunk = _CHUNK.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamInvalid(f"the upstream sent an event that is no chat-completion chunk: {error}") from None
        if not self.model and isinstance(chunk.model, str):
            self.model = chunk.model
        if (chunk.error or chunk.object == "error") and not self.error:
            self.error = error_message(chunk.error or {"message": chunk.message})
        for choice in chunk.choices or ():
            index = choice.index if isinstance(choice.index, int) else 0
            self._seen.add(index)
            if isinstance(choice.finish_reason, str) and choice.finish_reason:
                self._finishes[index] = choice.finish_reason
                self.finish = worst_finish(list(self._finishes.values()))
        if chunk.timings is not ABSENT:
            self.work = read_timings(chunk.timings)
        if not isinstance(chunk.usage, dict) or not chunk.usage:
            return False
        self.usage = openai_usage(chunk.usage)
        return chunk.choices == []

    def _whole(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]") or super()._whole(data)

    def _complete(self) -> bool:
        if self.error or not self._finishes or not self._seen <= self._finishes.keys():
            return False
        self.ended = True
        self.tail = DONE
        return True


def _strip_null_usage(event: bytes) -> bytes:
    stripped = event.replace(b',"usage":null', b"")
    return _NULL_USAGE.sub(b"", stripped) if b'"usage"' in stripped else stripped


def assemble(sse: bytes, stripped: Usage | None = None) -> bytes:
    """A whole stream to the buffered reply: texts joined, tool calls merged by index, logprobs and usage kept."""
    reply: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for _, data in read_events(sse):
        if data.startswith(b"[DONE]"):
            break
        chunk = upstream_object(data, "an event")
        if chunk.get("error"):
            raise UpstreamInvalid(f"the stream holds an error: {error_message(chunk['error'])}")
        reply |= {k: v for k, v in chunk.items() if k not in ("choices", "object", "obfuscation") and v is not None}
        for choice in objects(chunk.get("choices")):
            _merge_choice(choices.setdefault(index_of(choice), {"message": {}}), choice)
    if not choices:
        raise UpstreamInvalid("the stream holds no choices")
    usage = reply.pop("usage", None)
    if usage is None and stripped is not None:
        usage = openai_usage_object(stripped)
    whole = {"id": "", "object": "chat.completion", "created": 0, "model": ""} | reply
    whole["choices"] = [_finish_choice(index, choices[index]) for index in sorted(choices)]
    if usage is not None:
        whole["usage"] = usage
    return msgspec.json.encode(whole)


def _merge_choice(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    for key, value in choice.items():
        if key in ("index", "delta") or value is None:
            continue
        if key == "logprobs" and isinstance(value, dict):
            if not isinstance(whole.get("logprobs"), dict):
                whole["logprobs"] = {}
            _merge(whole["logprobs"], value)
        else:
            whole[key] = value
    delta = choice.get("delta")
    if isinstance(delta, dict):
        calls = delta.get("tool_calls")
        _merge(whole["message"], {key: value for key, value in delta.items() if key != "tool_calls"})
        for call in objects(calls):
            _merge_call(whole["message"].setdefault("tool_calls", []), call)


def _merge(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """Join strings, extend arrays, merge objects; names and ids are set once, other values last."""
    for key, value in delta.items():
        old = whole.get(key)
        if value is None:
            whole.setdefault(key, None)
        elif old is None or key in ("role", "id", "type", "name", "format") or type(old) is not type(value):
            whole[key] = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        elif isinstance(value, list):
            _merge_list(old, value)
        elif isinstance(value, str):
            whole[key] = old + value
        elif isinstance(value, dict):
            _merge(old, value)
        else:
            whole[key] = value


def _merge_list(whole: list[Any], more: list[Any]) -> None:
    """Merge entries that share an index (parts of one), append the others."""
    for entry in more:
        index = entry.get("index") if isinstance(entry, dict) else None
        same = (old for old in whole if index is not None and isinstance(old, dict) and old.get("index") == index)
        if (old := next(same, None)) is None:
            whole.append(entry)
        else:
            _merge(old, {key: value for key, value in entry.items() if key != "index"})


def _merge_call(calls: list[dict[str, Any]], delta: dict[str, Any]) -> None:
    """Find the call that a delta belongs to: by index, by a new id where servers send no index or repeat one."""
    new_id = delta.get("id")
    index = index_of(delta, -1)
    call = next((c for c in reversed(calls) if index in (-1, c["index"])), None)
    if call is None or (new_id and call.get("id") and new_id != call["id"]):
        call = {"index": index, "id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(call)
    delta = {key: value for key, value in delta.items() if key != "index" and value not in (None, "")}
    function = delta.pop("function", None)
    _merge(call, delta)
    if isinstance(function, dict):
        _merge(call["function"], {key: value for key, value in function.items() if value not in (None, "")})


def _finish_choice(index: int, choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.pop("message")
    for call in message.get("tool_calls", []):
        del call["index"]
    content = message.pop("content", None)
    if not content:
        content = None if "tool_calls" in message or message.get("refusal") or "audio" in message else ""
    message.pop("role", None)
    refusal = message.pop("refusal", None)
    whole = {"role": "assistant", "content": content, "refusal": refusal} | message
    finish = choice.pop("finish_reason", None)
    logprobs = choice.pop("logprobs", None)
    return {"index": index, "message": whole, "logprobs": logprobs, "finish_reason": finish} | choice


def replay(body: bytes, *, include_usage: bool) -> bytes:
    """A buffered reply to a whole stream: role, texts, tool calls and stop reason per choice; usage; the end mark."""
    reply = upstream_object(body, "a reply")
    choices = objects(reply.pop("choices", None))
    if not choices:
        raise UpstreamInvalid("the reply holds no choices")
    usage = reply.pop("usage", None)
    reply.pop("object", None)
    head = {"id": reply.pop("id", ""), "object": "chat.completion.chunk"} | reply
    out: list[bytes] = []

    def chunk(choice: dict[str, Any] | None) -> None:
        event = head | {"choices": [] if choice is None else [choice]}
        if include_usage:
            event["usage"] = usage if choice is None else None
        out.append(write_event("", event))

    for number, choice in enumerate(choices):
        if not isinstance(choice.get("message"), dict):
            raise UpstreamInvalid(f"the reply's choices[{number}] holds no message")
        deltas = _deltas(choice["message"])
        carrier = next(
            (n for n, delta in enumerate(deltas) if delta.get("content") or delta.get("refusal")), len(deltas)
        )
        for n, delta in enumerate([*deltas, {}]):
            last = n == len(deltas)
            event = {
                "index": index_of(choice, number),
                "delta": delta,
                "logprobs": choice.get("logprobs") if n == carrier else None,
                "finish_reason": choice.get("finish_reason") if last else None,
            }
            chunk({key: value for key, value in choice.items() if key != "message"} | event if last else event)
    if include_usage and usage is not None:
        chunk(None)
    return b"".join(out) + DONE


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A whole message as deltas."""
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    if not message.get("tool_calls") or message.get("content"):
        deltas[0]["content"] = ""
    skip = ("role", "content", "tool_calls", "refusal")
    rest = {key: value for key, value in message.items() if key not in skip and value is not None}
    if rest:
        deltas.append(rest)
    deltas += [{key: message[key]} for key in ("content", "refusal") if message.get(key)]
    for index, call in enumerate(objects(message.get("tool_calls"))):
        function = call.get("function") if isinstance(call.get("function"), dict) else None
        if function is None:
            deltas.append({"tool_calls": [{"index": index} | call]})
            continue
        arguments = function.get("arguments")
        start = call | {"function": function | {"arguments": ""}}
        deltas.append({"tool_calls": [{"index": index} | start]})
        if arguments:
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
    return deltas
