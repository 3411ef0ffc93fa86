"""What a provider answers, in its own shape: OpenAI chat completions and Anthropic messages, buffered and SSE.

The checks refuse what the providers refuse (unknown fields, tool results without their calls, ...), so that a gateway
that leaks its own fields or translates badly fails the tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

OPENAI_FIELDS = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
ANTHROPIC_FIELDS = set(MessageCreateParamsBase.__annotations__) | {"stream", "temperature", "top_p", "top_k"}
DEFAULT_TEXT = "Hello from the scripted upstream, told in several pieces."


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Disjoint token classes; each dialect adds them up its own way."""

    input: int = 20
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 7
    reasoning: int = 0


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool call that the model makes."""

    name: str
    arguments: dict[str, Any]
    id: str = "call_1"


@dataclass(frozen=True, kw_only=True)
class Act:
    """How the upstream treats one request. Streams break after `break_after` pieces of text."""

    text: str = DEFAULT_TEXT
    tools: tuple[Tool, ...] = ()
    tokens: Tokens = Tokens()
    stop: str = ""  # "length" and "filter" end an answer otherwise than by itself
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    head_after_s: float = 0.0
    body_after_s: float = 0.0
    gap_s: float = 0.0
    reset: bool = False  # RST in place of an answer
    break_after: int | None = None
    break_how: str = "fin"  # "fin", "rst", "clean" (a whole HTTP body without the end mark), "stall"
    raw: bytes | None = None  # a body in place of the right one
    raw_type: str = "application/json"
    endless: bool = False


# A piece of a stream, and whether it carries a token.
Event = tuple[bytes, bool]


def words(text: str) -> list[str]:
    """`text` in pieces which add up to it."""
    parts = text.split(" ")
    return [part if i == 0 else f" {part}" for i, part in enumerate(parts)]


def instance(schema: dict[str, Any]) -> Any:
    """The least value that a JSON schema allows, as far as the tests' schemas go."""
    if "$ref" in schema:
        raise ValueError("the scripted upstream resolves no $ref")
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(sub) for name, sub in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema["items"])]
    return {"string": "Ada", "integer": 36, "number": 1.5, "boolean": True, "null": None}[str(kind)]


# OpenAI ---------------------------------------------------------------------------------------------------------------


def openai_error(status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """An error body as OpenAI sends it."""
    kind = {401: "invalid_request_error", 429: "requests", 500: "server_error", 503: "server_error"}.get(
        status, "invalid_request_error"
    )
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def check_openai(body: dict[str, Any]) -> str:
    """Why OpenAI would refuse the body, or ""."""
    unknown = set(body) - OPENAI_FIELDS
    if unknown:
        return f"Unrecognized request argument supplied: {', '.join(sorted(unknown))}"
    for name in ("model", "messages"):
        if name not in body:
            return f"Missing required parameter: '{name}'."
    if "stream_options" in body and not body.get("stream"):
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled."
    if any(not isinstance(value, str) for value in (body.get("metadata") or {}).values()):
        return "Invalid type for 'metadata': expected strings."
    open_calls: set[str] = set()
    for i, message in enumerate(body["messages"]):
        role = message.get("role")
        if role not in {"system", "developer", "user", "assistant", "tool"}:
            return f"Invalid value: {role!r} for 'messages[{i}].role'."
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
            open_calls.discard(message["tool_call_id"])
            continue
        if open_calls:
            return "An assistant message with 'tool_calls' must be followed by tool messages."
        for call in message.get("tool_calls") or ():
            json.loads(call["function"]["arguments"])
            open_calls.add(call["id"])
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] not in {"text", "image_url", "input_audio", "file", "refusal"}:
                return f"Invalid value: {part['type']!r} for 'messages[{i}].content[].type'."
            if part["type"] == "image_url" and not isinstance(part["image_url"]["url"], str):
                return "Invalid image_url."
    if any(tool.get("type") != "function" or "name" not in tool["function"] for tool in body.get("tools") or ()):
        return "Invalid 'tools'."
    return ""


def openai_usage(tokens: Tokens) -> dict[str, Any]:
    prompt = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
    completion = tokens.output + tokens.reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _openai_finish(act: Act) -> str:
    ends = {"length": "length", "filter": "content_filter"}
    return ends.get(act.stop, "tool_calls" if act.tools else "stop")


def openai_text(act: Act, body: dict[str, Any]) -> str:
    """The text to answer with: JSON when a schema was asked for."""
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema" and act.text == DEFAULT_TEXT:
        return json.dumps(instance(form["json_schema"]["schema"]))
    return act.text


def openai_buffered(act: Act, body: dict[str, Any], reply_id: str) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if act.tools:
        message["tool_calls"] = [
            {"id": t.id, "type": "function", "function": {"name": t.name, "arguments": json.dumps(t.arguments)}}
            for t in act.tools
        ]
    else:
        message["content"] = openai_text(act, body)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _openai_finish(act)}
    reply = {
        "id": f"chatcmpl-{reply_id}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": body["model"],
        "choices": [choice],
        "usage": openai_usage(act.tokens),
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }
    return json.dumps(reply).encode()


def openai_stream(act: Act, body: dict[str, Any], reply_id: str) -> list[Event]:
    usage_asked = bool((body.get("stream_options") or {}).get("include_usage"))

    def event(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {
            "id": f"chatcmpl-{reply_id}",
            "object": "chat.completion.chunk",
            "created": 1_790_000_000,
            "model": body["model"],
            "service_tier": "default",
            "system_fingerprint": "fp_scripted",
            "choices": choices,
        }
        if usage_asked:
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def delta(value: dict[str, Any], finish: str | None = None) -> bytes:
        return event([{"index": 0, "delta": value, "logprobs": None, "finish_reason": finish}])

    first: dict[str, Any] = {"role": "assistant", "content": None if act.tools else "", "refusal": None}
    events: list[Event] = [(delta(first), False)]
    if act.tools:
        for i, tool in enumerate(act.tools):
            head = {"index": i, "id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": ""}}
            events.append((delta({"tool_calls": [head]}), True))
            arguments = json.dumps(tool.arguments)
            for at in range(0, len(arguments), 5):
                part = {"index": i, "function": {"arguments": arguments[at : at + 5]}}
                events.append((delta({"tool_calls": [part]}), True))
    else:
        events += [(delta({"content": word}), True) for word in words(openai_text(act, body))]
    events.append((delta({}, _openai_finish(act)), False))
    if usage_asked:
        events.append((event([], openai_usage(act.tokens)), False))
    events.append((b"data: [DONE]\n\n", False))
    return events


# Anthropic ------------------------------------------------------------------------------------------------------------

_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}


def anthropic_error(status: int, message: str) -> bytes:
    """An error body as Anthropic sends it."""
    kind = _ANTHROPIC_ERRORS.get(status, "api_error")
    return json.dumps(
        {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}
    ).encode()


def check_anthropic(body: dict[str, Any], *, counting: bool = False) -> str:
    """Why Anthropic would refuse the body, or "". `counting` is for count_tokens, which wants no max_tokens."""
    unknown = set(body) - ANTHROPIC_FIELDS
    if unknown:
        return f"{sorted(unknown)[0]}: Extra inputs are not permitted"
    for name in ("model", "messages") if counting else ("model", "messages", "max_tokens"):
        if name not in body:
            return f"{name}: Field required"
    if set(body.get("metadata") or ()) - {"user_id"}:
        return "metadata: Extra inputs are not permitted"
    open_calls: set[str] = set()
    for i, message in enumerate(body["messages"]):
        if message.get("role") not in {"user", "assistant", "system"}:
            return f"messages.{i}.role: Input should be 'user', 'assistant' or 'system'"
        blocks = message["content"] if isinstance(message["content"], list) else []
        results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if message["role"] == "user" and results != open_calls:
            return f"messages.{i}: `tool_use` and `tool_result` blocks do not match"
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
        for block in blocks:
            if block["type"] == "text" and not block["text"]:
                return f"messages.{i}: text content blocks must be non-empty"
            if block["type"] == "tool_use" and not isinstance(block["input"], dict):
                return f"messages.{i}: tool_use.input: Input should be a valid dictionary"
            if block["type"] == "image" and block["source"]["type"] not in {"base64", "url", "file"}:
                return f"messages.{i}: image.source: Input should be base64, url or file"
    for tool in body.get("tools") or ():
        if "input_schema" not in tool and "type" not in tool:
            return "tools.0.custom.input_schema: Field required"
    return ""


def anthropic_usage(tokens: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": tokens.input,
        "cache_creation_input_tokens": tokens.cache_write_5m + tokens.cache_write_1h,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.cache_write_5m,
            "ephemeral_1h_input_tokens": tokens.cache_write_1h,
        },
        "output_tokens": tokens.output + tokens.reasoning,
        "service_tier": "standard",
    }


def _anthropic_stop(act: Act) -> str:
    return {"length": "max_tokens", "filter": "refusal"}.get(act.stop, "tool_use" if act.tools else "end_turn")


def anthropic_text(act: Act, body: dict[str, Any]) -> str:
    """The text to answer with: JSON when a schema was asked for."""
    form = (body.get("output_config") or {}).get("format") or {}
    if form.get("type") == "json_schema" and act.text == DEFAULT_TEXT:
        return json.dumps(instance(form["schema"]))
    return act.text


def _forced(act: Act, body: dict[str, Any]) -> Act:
    """`act`, but a tool that the request forces is called."""
    choice = body.get("tool_choice") or {}
    if choice.get("type") != "tool" or act.tools:
        return act
    tool = next(t for t in body["tools"] if t["name"] == choice["name"])
    return replace(act, tools=(Tool(name=tool["name"], arguments=instance(tool["input_schema"]), id="toolu_forced"),))


def anthropic_buffered(act: Act, body: dict[str, Any], reply_id: str) -> bytes:
    content: list[dict[str, Any]]
    act = _forced(act, body)
    if act.tools:
        content = [{"type": "tool_use", "id": t.id, "name": t.name, "input": t.arguments} for t in act.tools]
    else:
        content = [{"type": "text", "text": anthropic_text(act, body)}]
    reply = {
        "id": f"msg_{reply_id}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": _anthropic_stop(act),
        "stop_sequence": None,
        "usage": anthropic_usage(act.tokens),
    }
    return json.dumps(reply).encode()


def anthropic_stream(act: Act, body: dict[str, Any], reply_id: str) -> list[Event]:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}).encode() + b"\n\n"

    def block_delta(index: int, value: dict[str, Any]) -> Event:
        return event("content_block_delta", index=index, delta=value), True

    act = _forced(act, body)
    message = {
        "id": f"msg_{reply_id}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**anthropic_usage(act.tokens), "output_tokens": 1},
    }
    events: list[Event] = [(event("message_start", message=message), False)]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for tool in act.tools:
        arguments = json.dumps(tool.arguments)
        parts = ["", *(arguments[at : at + 5] for at in range(0, len(arguments), 5))]
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
        blocks.append(({"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}}, deltas))
    if not act.tools:
        deltas = [{"type": "text_delta", "text": word} for word in words(anthropic_text(act, body))]
        blocks.append(({"type": "text", "text": ""}, deltas))
    for index, (block, deltas) in enumerate(blocks):
        events.append((event("content_block_start", index=index, content_block=block), False))
        if index == 0:
            events.append((event("ping"), False))
        events += [block_delta(index, value) for value in deltas]
        events.append((event("content_block_stop", index=index), False))
    usage = {"output_tokens": act.tokens.output + act.tokens.reasoning}
    stop = {"stop_reason": _anthropic_stop(act), "stop_sequence": None}
    events.append((event("message_delta", delta=stop, usage=usage), False))
    events.append((event("message_stop"), False))
    return events
