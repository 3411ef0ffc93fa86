"""OpenAI chat-completion requests and buffered replies to neutral values and back."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.protocols.chat import (
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
    refuse_extra,
    unsupported,
)
from trimtab.protocols.envelope import (
    decode_field,
    objects,
    only,
    upstream_object,
    want_bool,
    want_int,
    want_list,
    want_number,
    want_object,
    want_str,
)
from trimtab.protocols.usage import openai_usage, openai_usage_object
from trimtab.types import Dialect

_HERE = Dialect.OPENAI
_KNOWN = frozenset(
    [
        "model",
        "messages",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "seed",
        "user",
        "safety_identifier",
        "reasoning_effort",
    ]
)
_HINTS = {"cache_control", "prompt_cache_breakpoint"}
_MESSAGE_KEYS = {
    "system": frozenset({"role", "content"}),
    "developer": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset(
        [
            "role",
            "content",
            "refusal",
            "tool_calls",
            "reasoning",
            "reasoning_content",
            "reasoning_details",
            "annotations",
        ]
    ),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
}
_FINISH_IN = {"function_call": "tool_calls"}
FINISH_OUT = {"stop_sequence": "stop"}


def decode_request(fields: dict[str, msgspec.Raw]) -> ChatRequest:
    """See `Codec.decode_request`."""
    messages = [
        _message(want_object(item, f"messages[{n}]"), f"messages[{n}]")
        for n, item in enumerate(want_list(decode_field(fields, "messages"), "messages"))
    ]
    leading = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    system = tuple(part for message in messages[:leading] for part in message.parts if isinstance(part, Text))
    limit = decode_field(fields, "max_completion_tokens")
    user = decode_field(fields, "user") or decode_field(fields, "safety_identifier") or ""
    effort = want_str(decode_field(fields, "reasoning_effort") or "", "reasoning_effort")
    return ChatRequest(
        source=_HERE,
        messages=tuple(messages[leading:]),
        system=system,
        tools=_tools(decode_field(fields, "tools")),
        tool_choice=_tool_choice(decode_field(fields, "tool_choice"), decode_field(fields, "parallel_tool_calls")),
        max_tokens=want_int(decode_field(fields, "max_tokens") if limit is None else limit, "max_tokens"),
        temperature=want_number(decode_field(fields, "temperature"), "temperature"),
        top_p=want_number(decode_field(fields, "top_p"), "top_p"),
        top_k=want_int(decode_field(fields, "top_k"), "top_k"),
        stop=_stop(decode_field(fields, "stop")),
        response_format=_response_format(decode_field(fields, "response_format")),
        seed=want_int(decode_field(fields, "seed"), "seed"),
        user=want_str(user, "user"),
        thinking="" if not effort else "disabled" if effort == "none" else "adaptive",
        effort="" if effort == "none" else effort,
        extra={name: raw for name, raw in fields.items() if name not in _KNOWN | {"safety_identifier"}},
    )


def _message(obj: dict[str, Any], param: str) -> Message:
    role = want_str(obj.get("role"), f"{param}.role")
    if role not in _MESSAGE_KEYS:
        raise unsupported(f"{param}.role", _HERE, "use the roles system, developer, user, assistant and tool")
    only(obj, _MESSAGE_KEYS[role] | _HINTS, param, _HERE)
    parts: list[Part] = []
    if role == "assistant":
        parts += decode_reasoning(obj)
    parts += _content(obj.get("content"), f"{param}.content", images=role == "user")
    if role == "tool":
        texts = tuple(part for part in parts if isinstance(part, Text))
        return Message("tool", (ToolResult(want_str(obj.get("tool_call_id"), f"{param}.tool_call_id"), texts),))
    if role == "assistant":
        if obj.get("refusal"):
            parts.append(Refusal(want_str(obj["refusal"], f"{param}.refusal")))
        for n, call in enumerate(want_list(obj.get("tool_calls") or [], f"{param}.tool_calls")):
            parts.append(_tool_call(want_object(call, f"{param}.tool_calls[{n}]"), f"{param}.tool_calls[{n}]"))
    return Message("system" if role == "developer" else role, tuple(parts))


def _content(content: Any, param: str, *, images: bool) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    parts: list[Part] = []
    for n, item in enumerate(want_list(content, param)):
        where = f"{param}[{n}]"
        obj = want_object(item, where)
        kind = want_str(obj.get("type"), f"{where}.type")
        only(obj, frozenset({"type", kind} | _HINTS), where, _HERE)
        if kind == "text":
            parts.append(Text(want_str(obj.get("text"), f"{where}.text")))
        elif kind == "refusal":
            parts.append(Refusal(want_str(obj.get("refusal"), f"{where}.refusal")))
        elif kind == "image_url" and images:
            image = want_object(obj.get("image_url"), f"{where}.image_url")
            only(image, frozenset({"url", "detail"}), f"{where}.image_url", _HERE)
            parts.append(_image(want_str(image.get("url"), f"{where}.image_url.url"), f"{where}.image_url.url"))
        else:
            raise unsupported(f"{where}.type", _HERE, "send text or image parts", value=repr(kind))
    return parts


def _image(url: str, param: str) -> Image:
    if not url.startswith("data:"):
        return Image(url=url)
    head, _, data = url[5:].partition(",")
    media_type, _, encoding = head.partition(";")
    if encoding != "base64" or not media_type:
        raise unsupported(param, _HERE, "send a data URL of the form data:image/png;base64,...")
    return Image(media_type=media_type, data=data)


def _tool_call(obj: dict[str, Any], param: str) -> ToolCall:
    if obj.get("type", "function") != "function":
        raise unsupported(f"{param}.type", _HERE, "use function tools")
    function = want_object(obj.get("function"), f"{param}.function")
    return ToolCall(
        want_str(obj.get("id"), f"{param}.id"),
        want_str(function.get("name"), f"{param}.function.name"),
        want_str(function.get("arguments", ""), f"{param}.function.arguments"),
    )


def decode_reasoning(message: dict[str, Any]) -> list[Reasoning]:
    """Thinking of a message: signed or redacted `reasoning_details` if there are any, else the plain text."""
    signed = []
    for entry in objects(message.get("reasoning_details")):
        if entry.get("signature"):
            signed.append(Reasoning(str(entry.get("text") or ""), str(entry["signature"])))
        elif entry.get("type") == "reasoning.encrypted" and entry.get("data"):
            signed.append(Reasoning(redacted=str(entry["data"])))
    text = message.get("reasoning_content") or message.get("reasoning")
    return signed or ([Reasoning(text)] if isinstance(text, str) and text else [])


def _tools(value: Any) -> tuple[Tool, ...]:
    tools = []
    for n, item in enumerate(want_list(value, "tools") if value is not None else ()):
        param = f"tools[{n}]"
        obj = want_object(item, param)
        if obj.get("type", "function") != "function":
            raise unsupported(f"{param}.type", _HERE, "use function tools")
        only(obj, frozenset({"type", "function"} | _HINTS), param, _HERE)
        function = want_object(obj.get("function"), f"{param}.function")
        only(function, frozenset({"name", "description", "parameters", "strict"}), f"{param}.function", _HERE)
        schema = function.get("parameters")
        tools.append(
            Tool(
                name=want_str(function.get("name"), f"{param}.function.name"),
                description=want_str(function.get("description") or "", f"{param}.function.description"),
                schema=None if schema is None else want_object(schema, f"{param}.function.parameters"),
                strict=want_bool(function.get("strict"), f"{param}.function.strict"),
            )
        )
    return tuple(tools)


def _tool_choice(value: Any, parallel: Any) -> ToolChoice | None:
    allowed = want_bool(parallel, "parallel_tool_calls")
    if value is None:
        return None if allowed is None else ToolChoice(parallel=allowed)
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise unsupported("tool_choice", _HERE, "use none, auto, required or a named function")
        return ToolChoice(value, parallel=allowed)
    obj = want_object(value, "tool_choice")
    if obj.get("type") != "function":
        raise unsupported("tool_choice.type", _HERE, "use none, auto, required or a named function")
    function = want_object(obj.get("function"), "tool_choice.function")
    return ToolChoice("named", want_str(function.get("name"), "tool_choice.function.name"), allowed)


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(want_str(item, f"stop[{n}]") for n, item in enumerate(want_list(value, "stop")))


def _response_format(value: Any) -> ResponseFormat | None:
    if value is None:
        return None
    obj = want_object(value, "response_format")
    kind = want_str(obj.get("type"), "response_format.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat(kind)
    if kind != "json_schema":
        raise unsupported("response_format.type", _HERE, "use text, json_object or json_schema")
    given = want_object(obj.get("json_schema"), "response_format.json_schema")
    return ResponseFormat(
        kind,
        name=want_str(given.get("name") or "", "response_format.json_schema.name"),
        schema=want_object(given.get("schema"), "response_format.json_schema.schema"),
        strict=want_bool(given.get("strict"), "response_format.json_schema.strict"),
    )


# --- neutral to OpenAI ---


def encode_request(chat: ChatRequest, *, model: str, stream: bool) -> bytes:
    """See `Codec.encode_request`."""
    refuse_extra(chat, _HERE)
    if chat.source is not _HERE and chat.messages and chat.messages[-1].role == "assistant":
        raise unsupported(f"messages[{len(chat.messages) - 1}]", chat.source, "end with a user message (no prefill)")
    messages: list[dict[str, Any]] = []
    if chat.system:
        messages.append({"role": "system", "content": "\n\n".join(text.text for text in chat.system)})
    for n, message in enumerate(chat.messages):
        messages += _encode_message(message, f"messages[{n}]", chat.source)
    body: dict[str, Any] = {"model": model, "messages": messages}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    optional = {
        "max_completion_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "top_k": chat.top_k,
        "stop": list(chat.stop) or None,
        "seed": chat.seed,
        "user": chat.user or None,
        "reasoning_effort": _effort(chat) or None,
        "tools": [_encode_tool(tool) for tool in chat.tools] or None,
        "response_format": _encode_format(chat.response_format),
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if chat.tool_choice is not None and chat.tools:
        named = {"type": "function", "function": {"name": chat.tool_choice.name}}
        body["tool_choice"] = named if chat.tool_choice.mode == "named" else chat.tool_choice.mode
        if chat.tool_choice.parallel is not None:
            body["parallel_tool_calls"] = chat.tool_choice.parallel
    if chat.source is _HERE:
        body = dict(chat.extra) | body
    return msgspec.json.encode(body)


def _effort(chat: ChatRequest) -> str:
    if chat.effort:
        return chat.effort
    if chat.thinking == "disabled" and chat.source is _HERE:
        return "none"
    if chat.thinking != "enabled" or chat.thinking_budget is None:
        return ""
    return "low" if chat.thinking_budget < 4096 else "medium" if chat.thinking_budget < 16384 else "high"


def _encode_message(message: Message, param: str, source: Dialect) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [_encode_result(part, param, source) for part in message.parts if isinstance(part, ToolResult)]
    if message.role == "assistant":
        return [{"role": "assistant"} | _encode_answer(message.parts)]
    if message.role == "system":
        return [{"role": "system", "content": "\n\n".join(p.text for p in message.parts if isinstance(p, Text))}]
    if len(message.parts) == 1 and isinstance(message.parts[0], Text):
        return [{"role": "user", "content": message.parts[0].text}]
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


def _encode_result(result: ToolResult, param: str, source: Dialect) -> dict[str, Any]:
    if any(isinstance(part, Image) for part in result.content):
        raise unsupported(param, source, "send the image in a user message", value="(an image in a tool result)")
    text = "\n".join(part.text for part in result.content if isinstance(part, Text))
    if result.is_error:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": result.tool_call_id, "content": text}


def _encode_answer(parts: tuple[Part, ...]) -> dict[str, Any]:
    """Content, refusal and tool calls of an assistant message; reasoning is left to the caller."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    refusal = "".join(part.text for part in parts if isinstance(part, Refusal))
    calls = [
        {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
        for part in parts
        if isinstance(part, ToolCall)
    ]
    message: dict[str, Any] = {"content": text if text or not (calls or refusal) else None}
    if refusal:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = calls
    return message


def _encode_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.schema is not None:
        function["parameters"] = tool.schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _encode_format(given: ResponseFormat | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.kind == "json_object":
        return {"type": "json_object"}
    strict = True if given.strict is None else given.strict
    schema = {"name": given.name or "response", "schema": given.schema, "strict": strict}
    return {"type": "json_schema", "json_schema": schema}


# --- replies ---


def decode_reply(body: bytes) -> ChatReply:
    """See `Codec.decode_reply`; the first choice counts."""
    reply = upstream_object(body, "a reply")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise UpstreamInvalid("the upstream's reply has no choices[0].message")
    parts: list[Part] = [*decode_reasoning(message)]
    for key, kind in (("content", Text), ("refusal", Refusal)):
        if isinstance(message.get(key), str) and message[key]:
            parts.append(kind(message[key]))
    for n, call in enumerate(objects(message.get("tool_calls"))):
        function = call.get("function")
        if not isinstance(function, dict):
            raise UpstreamInvalid(f"the upstream's reply has a tool call that is no function (choices[0], call {n})")
        call_id = str(call.get("id") or f"call_{reply.get('id')}_{n}")
        parts.append(ToolCall(call_id, str(function.get("name") or ""), str(function.get("arguments") or "")))
    usage = reply.get("usage")
    return ChatReply(
        id=str(reply.get("id") or ""),
        model=str(reply.get("model") or ""),
        parts=tuple(parts),
        finish=neutral_finish(str(choice.get("finish_reason") or "")),
        usage=openai_usage(usage) if isinstance(usage, dict) else None,
    )


def neutral_finish(finish: str) -> str:
    """See `Codec.neutral_finish`."""
    return _FINISH_IN.get(finish, finish)


def encode_reasoning(parts: list[Reasoning]) -> dict[str, Any]:
    """`reasoning_content` and, where signed or redacted, `reasoning_details`."""
    fields: dict[str, Any] = {}
    if text := "".join(part.text for part in parts):
        fields["reasoning_content"] = text
    details: list[dict[str, Any]] = []
    for part in parts:
        if part.redacted:
            details.append({"index": len(details), "type": "reasoning.encrypted", "data": part.redacted})
        elif part.signature:
            entry = {"index": len(details), "type": "reasoning.text", "text": part.text, "signature": part.signature}
            details.append(entry)
    if details:
        fields["reasoning_details"] = details
    return fields


def encode_reply(reply: ChatReply, *, model: str, created: int = 0) -> bytes:
    """See `Codec.encode_reply`."""
    message = {"role": "assistant", "content": None, "refusal": None} | _encode_answer(reply.parts)
    message |= encode_reasoning([part for part in reply.parts if isinstance(part, Reasoning)])
    body: dict[str, Any] = {
        "id": reply.id,
        "object": "chat.completion",
        "created": created,
        "model": model or reply.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": FINISH_OUT.get(reply.finish, reply.finish) or None,
            }
        ],
    }
    if reply.usage is not None:
        body["usage"] = openai_usage_object(reply.usage)
    return msgspec.json.encode(body)
