"""Anthropic message requests and buffered replies to neutral values and back."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.errors import BadRequest, UpstreamInvalid
from trimtab.protocols.chat import (
    DEFAULT_MAX_TOKENS,
    ChatReply,
    ChatRequest,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    ResponseFormat,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    arguments_object,
    refuse_extra,
    unsupported,
)
from trimtab.protocols.envelope import (
    decode_field,
    only,
    upstream_object,
    want_bool,
    want_int,
    want_list,
    want_number,
    want_object,
    want_str,
)
from trimtab.protocols.usage import anthropic_usage, anthropic_usage_object
from trimtab.types import NO_USAGE, Dialect

_HERE = Dialect.ANTHROPIC
_KNOWN = frozenset(
    [
        "model",
        "messages",
        "stream",
        "system",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "output_config",
        "thinking",
    ]
)
_HINTS = frozenset({"cache_control"})
_BLOCK_KEYS = {
    "text": frozenset({"type", "text", "citations"}) | _HINTS,
    "image": frozenset({"type", "source"}) | _HINTS,
    "thinking": frozenset({"type", "thinking", "signature"}) | _HINTS,
    "redacted_thinking": frozenset({"type", "data"}) | _HINTS,
    "tool_use": frozenset({"type", "id", "name", "input", "caller"}) | _HINTS,
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}) | _HINTS,
}
_ROLE_BLOCKS = {
    "user": frozenset({"text", "image", "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    "system": frozenset({"text"}),
    "tool_result": frozenset({"text", "image"}),
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}
_CHOICE_WORDS = {neutral: word for word, neutral in _CHOICES.items()}
_FINISH_IN = {
    "end_turn": "stop",
    "stop_sequence": "stop_sequence",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
FINISH_OUT = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def decode_request(fields: dict[str, msgspec.Raw]) -> ChatRequest:
    """See `Codec.decode_request`."""
    messages: list[Message] = []
    for n, item in enumerate(want_list(decode_field(fields, "messages"), "messages")):
        messages += _messages(want_object(item, f"messages[{n}]"), f"messages[{n}]")
    system = _parts(decode_field(fields, "system"), "system", "system")
    config = want_object(decode_field(fields, "output_config") or {}, "output_config")
    only(config, frozenset({"effort", "format"}), "output_config", _HERE)
    thinking, budget = _thinking(decode_field(fields, "thinking"))
    metadata = want_object(decode_field(fields, "metadata") or {}, "metadata")
    stop = want_list(decode_field(fields, "stop_sequences") or [], "stop_sequences")
    return ChatRequest(
        source=_HERE,
        messages=tuple(messages),
        system=tuple(part for part in system if isinstance(part, Text)),
        tools=_tools(decode_field(fields, "tools")),
        tool_choice=_tool_choice(decode_field(fields, "tool_choice")),
        max_tokens=want_int(decode_field(fields, "max_tokens"), "max_tokens"),
        temperature=want_number(decode_field(fields, "temperature"), "temperature"),
        top_p=want_number(decode_field(fields, "top_p"), "top_p"),
        top_k=want_int(decode_field(fields, "top_k"), "top_k"),
        stop=tuple(want_str(item, f"stop_sequences[{n}]") for n, item in enumerate(stop)),
        response_format=_response_format(config.get("format")),
        user=want_str(metadata.get("user_id") or "", "metadata.user_id"),
        thinking=thinking,
        thinking_budget=budget,
        effort=want_str(config.get("effort") or "", "output_config.effort"),
        extra={name: raw for name, raw in fields.items() if name not in _KNOWN},
    )


def _messages(obj: dict[str, Any], param: str) -> list[Message]:
    """One message; tool results become a message of their own, before the rest."""
    role = want_str(obj.get("role"), f"{param}.role")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(f"{param}.role must be user, assistant or system", param=f"{param}.role")
    only(obj, frozenset({"role", "content"}), param, _HERE)
    parts = _parts(obj.get("content"), f"{param}.content", role)
    results = tuple(part for part in parts if isinstance(part, ToolResult))
    rest = tuple(part for part in parts if not isinstance(part, ToolResult))
    messages = [Message("tool", results)] if results else []
    if rest or not results:
        messages.append(Message(role, rest))
    return messages


def _parts(content: Any, param: str, place: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    parts: list[Part] = []
    for n, item in enumerate(want_list(content, param)):
        obj = want_object(item, f"{param}[{n}]")
        kind = want_str(obj.get("type"), f"{param}[{n}].type")
        if kind not in _ROLE_BLOCKS[place]:
            raise unsupported(f"{param}[{n}]", _HERE, value=f"of type {kind!r}")
        only(obj, _BLOCK_KEYS[kind], f"{param}[{n}]", _HERE)
        parts.append(_block(obj, kind, f"{param}[{n}]"))
    return parts


def _block(obj: dict[str, Any], kind: str, param: str) -> Part:
    if kind == "text":
        return Text(want_str(obj.get("text"), f"{param}.text"))
    if kind == "image":
        return _image(want_object(obj.get("source"), f"{param}.source"), f"{param}.source")
    if kind == "thinking":
        text = want_str(obj.get("thinking"), f"{param}.thinking")
        return Reasoning(text, want_str(obj.get("signature") or "", f"{param}.signature"))
    if kind == "redacted_thinking":
        return Reasoning(redacted=want_str(obj.get("data"), f"{param}.data"))
    if kind == "tool_use":
        arguments = msgspec.json.encode(want_object(obj.get("input"), f"{param}.input")).decode()
        return ToolCall(want_str(obj.get("id"), f"{param}.id"), want_str(obj.get("name"), f"{param}.name"), arguments)
    content = _parts(obj.get("content"), f"{param}.content", "tool_result")
    return ToolResult(
        want_str(obj.get("tool_use_id"), f"{param}.tool_use_id"),
        tuple(part for part in content if isinstance(part, Text | Image)),
        bool(want_bool(obj.get("is_error"), f"{param}.is_error")),
    )


def _image(source: dict[str, Any], param: str) -> Image:
    kind = source.get("type")
    if kind == "base64":
        media_type = want_str(source.get("media_type"), f"{param}.media_type")
        return Image(media_type=media_type, data=want_str(source.get("data"), f"{param}.data"))
    if kind == "url":
        return Image(url=want_str(source.get("url"), f"{param}.url"))
    raise unsupported(f"{param}.type", _HERE, "send the image as base64 or by its URL")


def _tools(value: Any) -> tuple[Tool, ...]:
    tools = []
    for n, item in enumerate(want_list(value, "tools") if value is not None else ()):
        param = f"tools[{n}]"
        obj = want_object(item, param)
        if obj.get("type") not in (None, "custom"):
            raise unsupported(f"{param}.type", _HERE, "describe the tool with an input_schema of your own")
        known = {"type", "name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming"}
        known |= {"defer_loading"} if not obj.get("defer_loading") else set()
        known |= {"allowed_callers"} if obj.get("allowed_callers") == ["direct"] else set()
        only(obj, frozenset(known), param, _HERE)
        tools.append(
            Tool(
                name=want_str(obj.get("name"), f"{param}.name"),
                description=want_str(obj.get("description") or "", f"{param}.description"),
                schema=want_object(obj.get("input_schema"), f"{param}.input_schema"),
                strict=want_bool(obj.get("strict"), f"{param}.strict"),
            )
        )
    return tuple(tools)


def _tool_choice(value: Any) -> ToolChoice | None:
    if value is None:
        return None
    obj = want_object(value, "tool_choice")
    mode = _CHOICES.get(want_str(obj.get("type"), "tool_choice.type"))
    if mode is None:
        raise BadRequest("tool_choice.type must be auto, any, tool or none", param="tool_choice.type")
    single = want_bool(obj.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use")
    name = want_str(obj.get("name"), "tool_choice.name") if mode == "named" else ""
    return ToolChoice(mode, name, None if single is None else not single)


def _thinking(value: Any) -> tuple[str, int | None]:
    if value is None:
        return "", None
    obj = want_object(value, "thinking")
    kind = want_str(obj.get("type"), "thinking.type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise unsupported("thinking.type", _HERE, "use enabled, adaptive or disabled")
    return kind, want_int(obj.get("budget_tokens"), "thinking.budget_tokens")


def _response_format(value: Any) -> ResponseFormat | None:
    if value is None:
        return None
    obj = want_object(value, "output_config.format")
    if obj.get("type") != "json_schema":
        raise unsupported("output_config.format.type", _HERE, "use json_schema")
    return ResponseFormat("json_schema", schema=want_object(obj.get("schema"), "output_config.format.schema"))


# --- neutral to Anthropic ---


def encode_request(chat: ChatRequest, *, model: str, stream: bool) -> bytes:
    """See `Codec.encode_request`."""
    refuse_extra(chat, _HERE)
    if chat.seed is not None:
        raise unsupported("seed", chat.source)
    if chat.temperature is not None and chat.temperature > 1 and chat.source is not _HERE:
        raise unsupported("temperature", chat.source, "lower it to 1 or less", value="above 1")
    if chat.response_format is not None and chat.response_format.kind != "json_schema":
        raise unsupported("response_format", chat.source, "use json_schema", value="json_object")
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": DEFAULT_MAX_TOKENS if chat.max_tokens is None else chat.max_tokens,
        "messages": _encode_messages(chat),
    }
    if stream:
        body["stream"] = True
    optional = {
        "system": _encode_system(chat.system),
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "top_k": chat.top_k,
        "stop_sequences": list(chat.stop) or None,
        "metadata": {"user_id": chat.user} if chat.user else None,
        "tools": [_encode_tool(tool) for tool in chat.tools] or None,
        "tool_choice": _encode_choice(chat.tool_choice) if chat.tools else None,
        "thinking": _encode_thinking(chat),
        "output_config": _encode_output(chat) or None,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if chat.source is _HERE:
        body = dict(chat.extra) | body
    return msgspec.json.encode(body)


def _encode_system(system: tuple[Text, ...]) -> Any:
    texts = [text.text for text in system if text.text]
    if len(texts) < 2:
        return texts[0] if texts else None
    return [{"type": "text", "text": text} for text in texts]


def _encode_messages(chat: ChatRequest) -> list[dict[str, Any]]:
    """Messages; tool results open the user turn that follows them, as Anthropic demands."""
    messages: list[dict[str, Any]] = []
    after_results = False
    for n, message in enumerate(chat.messages):
        content = _encode_parts(message, f"messages[{n}]", chat.source)
        is_result = message.role == "tool"
        if after_results and message.role in ("tool", "user"):
            messages[-1]["content"] += content
        else:
            texts = [block.get("text") for block in content]
            plain = len(content) == 1 and content[0]["type"] == "text"
            role = "user" if is_result else message.role
            messages.append({"role": role, "content": texts[0] if plain else content})
        after_results = is_result
    return messages


def _encode_parts(message: Message, param: str, source: Dialect) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text | Refusal):
            if part.text or len(message.parts) == 1:  # empty blocks are refused by the API
                blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            blocks.append(_encode_image(part))
        elif isinstance(part, ToolCall):
            given = arguments_object(part.arguments, f"{param}.tool_calls.arguments")
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": given})
        elif isinstance(part, ToolResult):
            blocks.append(_encode_result(part))
        elif part.redacted:
            blocks.append({"type": "redacted_thinking", "data": part.redacted})
        elif part.signature or source is _HERE:
            blocks.append({"type": "thinking", "thinking": part.text, "signature": part.signature})
    return blocks


def _encode_image(image: Image) -> dict[str, Any]:
    if image.url:
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    source = {"type": "base64", "media_type": image.media_type, "data": image.data}
    return {"type": "image", "source": source}


def _encode_result(result: ToolResult) -> dict[str, Any]:
    content: Any = [
        {"type": "text", "text": part.text} if isinstance(part, Text) else _encode_image(part)
        for part in result.content
    ]
    if len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    block = {"type": "tool_result", "tool_use_id": result.tool_call_id, "content": content}
    return block | {"is_error": True} if result.is_error else block


def _encode_tool(tool: Tool) -> dict[str, Any]:
    obj: dict[str, Any] = {"name": tool.name}
    if tool.description:
        obj["description"] = tool.description
    obj["input_schema"] = {"type": "object", "properties": {}} if tool.schema is None else tool.schema
    if tool.strict is not None:
        obj["strict"] = tool.strict
    return obj


def _encode_choice(choice: ToolChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    obj: dict[str, Any] = {"type": _CHOICE_WORDS[choice.mode]}
    if choice.mode == "named":
        obj["name"] = choice.name
    if choice.parallel is not None and choice.mode != "none":
        obj["disable_parallel_tool_use"] = not choice.parallel
    return obj


def _encode_thinking(chat: ChatRequest) -> dict[str, Any] | None:
    if not chat.thinking:
        return None
    if chat.thinking == "enabled":
        return {"type": "enabled", "budget_tokens": chat.thinking_budget}
    return {"type": chat.thinking}


def _encode_output(chat: ChatRequest) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if chat.effort:
        config["effort"] = "low" if chat.effort == "minimal" else chat.effort
    if chat.response_format is not None:
        config["format"] = {"type": "json_schema", "schema": chat.response_format.schema}
    return config


# --- replies ---


def decode_reply(body: bytes) -> ChatReply:
    """See `Codec.decode_reply`."""
    message = upstream_object(body, "a reply")
    content = message.get("content")
    if message.get("type") != "message" or not isinstance(content, list):
        raise UpstreamInvalid("the upstream's reply is no Anthropic message")
    usage = message.get("usage")
    return ChatReply(
        id=str(message.get("id") or ""),
        model=str(message.get("model") or ""),
        parts=tuple(_reply_part(block) for block in content),
        finish=neutral_finish(str(message.get("stop_reason") or "")),
        usage=anthropic_usage(usage) if isinstance(usage, dict) else None,
        stop_sequence=str(message.get("stop_sequence") or ""),
    )


def _reply_part(block: Any) -> Part:
    kind = str(block.get("type")) if isinstance(block, dict) else ""
    if kind not in _ROLE_BLOCKS["assistant"]:
        raise UpstreamInvalid(f"the upstream's reply has a block that cannot be translated (type {kind!r})")
    try:
        return _block(block, kind, "content")
    except BadRequest as error:
        raise UpstreamInvalid(f"the upstream's reply is wrong: {error.message}") from None


def neutral_finish(finish: str) -> str:
    """See `Codec.neutral_finish`."""
    return _FINISH_IN.get(finish, finish)


def encode_reply(reply: ChatReply, *, model: str, created: int = 0) -> bytes:
    """See `Codec.encode_reply`; Anthropic's messages carry no time."""
    content: list[dict[str, Any]] = []
    for part in reply.parts:
        if isinstance(part, Text | Refusal):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ToolCall):
            try:
                given = arguments_object(part.arguments, f"the arguments of {part.name}")
            except BadRequest as error:
                raise UpstreamInvalid(f"the upstream's tool call is wrong: {error.message}") from None
            content.append({"type": "tool_use", "id": part.id, "name": part.name, "input": given})
        elif isinstance(part, Reasoning) and part.redacted:
            content.append({"type": "redacted_thinking", "data": part.redacted})
        elif isinstance(part, Reasoning):
            content.append({"type": "thinking", "thinking": part.text, "signature": part.signature})
    refused = any(isinstance(part, Refusal) for part in reply.parts)
    body = {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": model or reply.model,
        "content": content,
        "stop_reason": "refusal" if refused else FINISH_OUT.get(reply.finish, reply.finish) or None,
        "stop_sequence": reply.stop_sequence or None,
        "usage": anthropic_usage_object(reply.usage or NO_USAGE),
    }
    return msgspec.json.encode(body)
