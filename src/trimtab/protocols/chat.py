"""Neutral values between the dialects: what a chat request, its reply and its stream mean, whoever spoke them.

`decode_*` of a codec makes these values, `encode_*` writes them in its own dialect. A field that the other dialect has
no word for raises `Unsupported` with its name; nothing that could change the answer is dropped silently.

Towards another dialect (a call inside one dialect passes its bytes untouched and never comes here):

    field                                          becomes
    ---------------------------------------------  -----------------------------------------------------------------
    openai max_tokens, max_completion_tokens       anthropic max_tokens; 8192 when absent (`DEFAULT_MAX_TOKENS`)
    anthropic max_tokens                           openai max_completion_tokens (the name that reasoning models take)
    stop / stop_sequences, temperature, top_p      each other; temperature above 1 is refused towards Anthropic
    top_k                                          passed by its name (OpenAI-compatible servers know it)
    response_format json_schema                    output_config.format (name, strict, description are left out)
    response_format json_object                    refused towards Anthropic (it has schemas only)
    tools, tool_choice, parallel_tool_calls        each other; built-in and custom (grammar) tools are refused
    reasoning_effort                               thinking adaptive + output_config.effort; "none": thinking disabled
    thinking enabled + budget_tokens               reasoning_effort: below 4096 low, below 16384 medium, else high
    thinking adaptive / disabled                   effort if one was given / left out, the default of plain models
    user, safety_identifier / metadata.user_id     each other
    system, developer messages                     leading ones: `system`; later ones keep their place as role system
    images                                         data URL and base64 source, URL and URL source; `detail` is dropped
    images in a tool result                        refused towards OpenAI (its tool messages are text)
    tool_result is_error                           the text is prefixed with "Error: " towards OpenAI
    past reasoning                                 signed: thinking block; unsigned, or towards OpenAI: dropped (models
                                                   of that dialect are not given past reasoning)
    an assistant message at the end                refused from Anthropic to OpenAI (no prefill there)
    name of a message                              refused (put it into the content)
    seed, n > 1, logprobs, logit_bias, penalties,  refused
    audio, files, documents, citations, web search,
    moderation, verbosity, functions, unknown ones
    metadata, store, service_tier, prediction,     dropped: they label, speed up or price a call and leave the answer
    prompt_cache_*, stream_options, cache_control, as it is (prefix caching then follows the provider's own rules)
    diagnostics, thinking.display

Replies: reasoning travels to OpenAI clients as `reasoning_content`, its signatures as `reasoning_details` (entries
`reasoning.text` with a signature, `reasoning.encrypted`), and is understood when they send it back.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.errors import BadRequest, Unsupported
from trimtab.types import NO_USAGE, Dialect, Usage

DEFAULT_MAX_TOKENS = 8192
"""Sent to Anthropic, which demands a limit, when the client named none; every current model allows it."""


class Text(msgspec.Struct, frozen=True):
    """Plain text."""

    text: str


class Refusal(msgspec.Struct, frozen=True):
    """The model's words when it declines."""

    text: str


class Image(msgspec.Struct, frozen=True):
    """An image: either `url`, or `data` (base64) with its `media_type`."""

    url: str = ""
    media_type: str = ""
    data: str = ""


class Reasoning(msgspec.Struct, frozen=True):
    """Thinking text with the provider's signature, or `redacted` data that only the provider can read."""

    text: str = ""
    signature: str = ""
    redacted: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model wants made; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool answered."""

    tool_call_id: str
    content: tuple[Text | Image, ...]
    is_error: bool = False


Part = Text | Refusal | Image | Reasoning | ToolCall | ToolResult


class Message(msgspec.Struct, frozen=True):
    """One turn; `role` is "system" (inside the conversation), "user", "assistant" or "tool" (ToolResults only)."""

    role: str
    parts: tuple[Part, ...]


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; `schema` is its parameters' JSON schema, None when it takes none."""

    name: str
    description: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`mode` is "auto", "none", "required" or "named" (then `name`); `parallel` None leaves it to the provider."""

    mode: str = "auto"
    name: str = ""
    parallel: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`kind` is "json_schema" (with `schema`) or "json_object"."""

    kind: str
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat request without its model. `extra` holds the fields of `source`'s dialect that have no neutral meaning."""

    source: Dialect
    messages: tuple[Message, ...]
    system: tuple[Text, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    response_format: ResponseFormat | None = None
    seed: int | None = None
    user: str = ""
    thinking: str = ""  # "", "disabled", "adaptive" or "enabled"
    thinking_budget: int | None = None  # tokens, with "enabled"
    effort: str = ""  # "", "minimal", "low", "medium", "high", "xhigh" or "max"
    extra: dict[str, msgspec.Raw] = {}


class ChatReply(msgspec.Struct, frozen=True):
    """A whole answer. `finish`: "stop", "stop_sequence", "length", "tool_calls", "content_filter" or a foreign word."""

    id: str
    model: str
    parts: tuple[Part, ...]
    finish: str
    usage: Usage | None = None
    stop_sequence: str = ""


class Start(msgspec.Struct, frozen=True):
    """The stream began."""

    id: str
    model: str


class TextDelta(msgspec.Struct, frozen=True):
    """More text."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    """More of a refusal."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """More thinking text, or the signature that ends it, or a redacted block as a whole."""

    text: str = ""
    signature: str = ""
    redacted: str = ""


class ToolCallStart(msgspec.Struct, frozen=True):
    """A tool call begins; `index` counts the calls of the reply from 0."""

    index: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """More of a call's arguments (JSON text)."""

    index: int
    arguments: str


class Finish(msgspec.Struct, frozen=True):
    """Why the model stopped, in `ChatReply.finish`'s words."""

    finish: str
    stop_sequence: str = ""


class UsageDelta(msgspec.Struct, frozen=True):
    """Usage so far; the last one counts."""

    usage: Usage = NO_USAGE


class StreamError(msgspec.Struct, frozen=True):
    """The upstream reported an error inside the stream."""

    message: str
    code: str = ""


Delta = (
    Start
    | TextDelta
    | RefusalDelta
    | ReasoningDelta
    | ToolCallStart
    | ToolCallDelta
    | Finish
    | UsageDelta
    | StreamError
)

HARMLESS: dict[Dialect, frozenset[str]] = {
    Dialect.OPENAI: frozenset(
        [
            "metadata",
            "store",
            "service_tier",
            "stream_options",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "prediction",
        ]
    ),
    Dialect.ANTHROPIC: frozenset(["metadata", "service_tier", "cache_control", "diagnostics"]),
}
"""Fields that may be dropped on the way into another dialect: the answer is the same without them."""

DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "speed": ("standard",),
    "inference_geo": ("global",),
    "mcp_servers": ([],),
}
"""Values that say what the other dialect does anyway, so that the field may go."""

WAYS_OUT: dict[str, str] = {
    "n": "send one request per answer",
    "functions": "use tools",
    "function_call": "use tool_choice",
}


def unsupported(param: str, source: Dialect, way_out: str = "", *, value: str = "") -> Unsupported:
    """The error for a field, or only for `value` of it, that has no word in the other dialect."""
    way_out = way_out or f"leave {param} out"
    return Unsupported(
        f"{param} {value}".rstrip() + " cannot be translated for the engine that serves this model; "
        f"{way_out}, "
        f"or choose a model whose engine speaks the {source.value} dialect",
        param=param,
    )


def refuse_extra(chat: ChatRequest, target: Dialect) -> None:
    """Raise Unsupported for the first extra field that would change the answer if it were dropped."""
    if chat.source is target:
        return
    for name, raw in chat.extra.items():
        if name in HARMLESS[chat.source] or bytes(raw) == b"null":
            continue
        if name in DEFAULTS and msgspec.json.decode(raw) in DEFAULTS[name]:
            continue
        raise unsupported(name, chat.source, WAYS_OUT.get(name, ""))


def arguments_object(text: str, param: str) -> msgspec.Raw:
    """Tool-call arguments as a raw JSON object; empty text is {}. Raises BadRequest when it is no object."""
    if not text.strip():
        return msgspec.Raw(b"{}")
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise BadRequest(f"{param} must be the text of a JSON object", param=param) from None
    return msgspec.Raw(text.encode())
