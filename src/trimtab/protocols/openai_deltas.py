"""OpenAI chat-completion streams to neutral deltas and back."""

from __future__ import annotations

from typing import Any

import msgspec

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
from trimtab.protocols.envelope import index_of, objects, upstream_object
from trimtab.protocols.openai_chat import FINISH_OUT, neutral_finish
from trimtab.protocols.openai_stream import DONE, error_message
from trimtab.protocols.sse import EventReader, write_event
from trimtab.protocols.usage import openai_usage, openai_usage_object
from trimtab.types import Usage


class _Call:
    """A tool call in the making; arguments wait until its name is known."""

    __slots__ = ("call_id", "name", "ordinal", "started", "waiting")

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.call_id = ""
        self.name = ""
        self.waiting = ""
        self.started = False


class OpenAIStreamDecoder:
    """Decodes the first choice of a stream."""

    def __init__(self) -> None:
        self._reader = EventReader()
        self._started = False
        self._id = ""
        self._calls: dict[int, _Call] = {}
        self._count = 0

    def feed(self, piece: bytes) -> list[Delta]:
        """See `StreamDecoder.feed`."""
        return self._deltas(self._reader.feed(piece))

    def close(self) -> list[Delta]:
        """See `StreamDecoder.close`."""
        return self._deltas(self._reader.close())

    def _deltas(self, events: list[tuple[bytes, bytes]]) -> list[Delta]:
        deltas: list[Delta] = []
        for _, data in events:
            if not data.startswith(b"[DONE]"):
                self._chunk(upstream_object(data, "an event"), deltas)
        return deltas

    def _chunk(self, chunk: dict[str, Any], deltas: list[Delta]) -> None:
        error = chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
        if error:
            code = error.get("code") or error.get("type") if isinstance(error, dict) else None
            deltas.append(StreamError(error_message(error), str(code or "")))
            return
        choice = next(iter(objects(chunk.get("choices"))), {})
        if not self._started and (choice or chunk.get("model")):
            self._started = True
            self._id = str(chunk.get("id") or "")
            deltas.append(Start(self._id, str(chunk.get("model") or "")))
        if index_of(choice) == 0:
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._delta(delta, deltas)
            if choice.get("finish_reason"):
                deltas.append(Finish(neutral_finish(str(choice["finish_reason"]))))
        usage = chunk.get("usage")
        if isinstance(usage, dict) and usage:
            deltas.append(UsageDelta(openai_usage(usage)))

    def _delta(self, delta: dict[str, Any], deltas: list[Delta]) -> None:
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            deltas.append(ReasoningDelta(reasoning))
        for entry in objects(delta.get("reasoning_details")):
            if entry.get("signature"):
                deltas.append(ReasoningDelta(signature=str(entry["signature"])))
            elif entry.get("type") == "reasoning.encrypted" and entry.get("data"):
                deltas.append(ReasoningDelta(redacted=str(entry["data"])))
        if isinstance(delta.get("content"), str) and delta["content"]:
            deltas.append(TextDelta(delta["content"]))
        if isinstance(delta.get("refusal"), str) and delta["refusal"]:
            deltas.append(RefusalDelta(delta["refusal"]))
        for call in objects(delta.get("tool_calls")):
            self._call(call, deltas)

    def _call(self, obj: dict[str, Any], deltas: list[Delta]) -> None:
        index = obj.get("index")
        call_id = str(obj.get("id") or "")
        key = index if isinstance(index, int) else max(self._calls, default=0)
        call = self._calls.get(key)
        if call is None or (call_id and call.call_id and call_id != call.call_id):
            key = key if call is None else max(self._calls) + 1 if index is None else key
            call = self._calls[key] = _Call(self._count)
            self._count += 1
        call.call_id = call.call_id or call_id
        function = obj.get("function")
        if not isinstance(function, dict):
            return
        call.name = call.name or str(function.get("name") or "")
        call.waiting += str(function.get("arguments") or "")
        if not call.started and call.name:
            call.started = True
            call.call_id = call.call_id or f"call_{self._id}_{call.ordinal}"
            deltas.append(ToolCallStart(call.ordinal, call.call_id, call.name))
        if call.started and call.waiting:
            deltas.append(ToolCallDelta(call.ordinal, call.waiting))
            call.waiting = ""


class OpenAIStreamEncoder:
    """Writes chat-completion chunks. A signature follows its thinking text in an entry of `reasoning_details`."""

    def __init__(self, *, model: str, include_usage: bool, created: int = 0) -> None:
        self._model = model
        self._include_usage = include_usage
        self._head: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._started = False
        self._usage: Usage | None = None
        self._thought = ""
        self._details = 0

    def encode(self, delta: Delta) -> bytes:
        """See `StreamEncoder.encode`."""
        if isinstance(delta, Start):
            self._head |= {"id": delta.id, "model": self._model or delta.model}
            return self._begin()
        if isinstance(delta, UsageDelta):
            self._usage = delta.usage
            return b""
        if isinstance(delta, StreamError):
            error = {"message": delta.message, "type": "server_error", "param": None, "code": delta.code or None}
            return write_event("", {"error": error})
        if isinstance(delta, Finish):
            return self._begin() + self._chunk({}, FINISH_OUT.get(delta.finish, delta.finish) or None)
        return self._begin() + self._chunk(self._delta(delta))

    def end(self) -> bytes:
        """See `StreamEncoder.end`."""
        if not self._include_usage or self._usage is None:
            return DONE
        return write_event("", self._head | {"choices": [], "usage": openai_usage_object(self._usage)}) + DONE

    def _begin(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = self._head | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _delta(self, delta: Delta) -> dict[str, Any]:
        if isinstance(delta, TextDelta):
            return {"content": delta.text}
        if isinstance(delta, RefusalDelta):
            return {"refusal": delta.text}
        if isinstance(delta, ToolCallStart):
            function = {"name": delta.name, "arguments": ""}
            return {"tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]}
        if isinstance(delta, ToolCallDelta):
            return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.arguments}}]}
        if isinstance(delta, ReasoningDelta):
            return self._reasoning(delta)
        return {}

    def _reasoning(self, delta: ReasoningDelta) -> dict[str, Any]:
        self._thought += delta.text
        fields: dict[str, Any] = {"reasoning_content": delta.text} if delta.text else {}
        if delta.redacted:
            fields["reasoning_details"] = [self._detail(type="reasoning.encrypted", data=delta.redacted)]
        elif delta.signature:
            entry = self._detail(type="reasoning.text", text=self._thought, signature=delta.signature)
            fields["reasoning_details"] = [entry]
            self._thought = ""
        return fields

    def _detail(self, **entry: str) -> dict[str, Any]:
        self._details += 1
        return {"index": self._details - 1} | entry  # the openai SDK merges entries by index
