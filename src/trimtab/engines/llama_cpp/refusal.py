"""What the embedded engine refuses: whatever llama.cpp's server would drop silently, or count wrongly.

Seen with xllamacpp 2026.10.11549 and the built-in model:

* Tool definitions, tool calls and results in the history, `functions`, `audio`, `web_search_options`,
  `reasoning_effort`, `verbosity` and the completion fields `suffix`, `echo`, `best_of` are dropped without a word.
* Images and audio parts come back as a 500, which would be retried though the client is at fault.
* Usage counts one answer only where `n`, or a list of prompts, asks for several: the ledger would lie.

Let pass, although ignored, since they cannot change the answer: `user`, `metadata`, `store`, `service_tier`,
`prediction`, `parallel_tool_calls`, `safety_identifier`, `prompt_cache_key`, unknown fields, the model's name.

Honoured: `logprobs`, `top_logprobs`, `logit_bias`, `seed`, `stop`, `temperature`, `top_p`, both penalties,
`max_tokens` (0 gives one token), `max_completion_tokens`, `response_format` (JSON schema as a grammar), the
`developer` role (as system), a last assistant message (continued). A malformed one is a 400 that names it. A prompt
beyond the context is a 400 before any work, for streams too: `{"error": {"code": 400, "message": "request (9031
tokens) exceeds the available context size (8192 tokens), ...", "type": "exceed_context_size_error",
"n_prompt_tokens": 9031, "n_ctx": 8192}}`; an answer that reaches the end of the context has `finish_reason: length`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from trimtab.errors import MalformedJson, TrimtabError, Unsupported
from trimtab.types import Request

_WAY_OUT: Final = "; send it to a model of another engine"
_NOTHING: Final = (b"null", b"[]", b"{}", b"false", b'""')

# Fields that would be dropped and could change the answer, and the values of each that change nothing.
_DROPPED: Final[dict[str, tuple[bytes, ...]]] = {
    "tools": (),
    "functions": (),
    "tool_choice": (b'"none"', b'{"type":"none"}'),
    "function_call": (b'"none"',),
    "audio": (),
    "modalities": (b'["text"]',),
    "web_search_options": (),
    "reasoning_effort": (b'"none"',),
    "reasoning": (),
    "thinking": (b'{"type":"disabled"}',),
    "verbosity": (b'"medium"',),
    "suffix": (),
    "echo": (),
    "best_of": (b"1",),
}
_ONE: Final = (b"1", b"null")

_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_EMPTY: Final = msgspec.Raw(b"null")


class _Message(msgspec.Struct):
    """What tells a message of text alone from one that holds more; the text itself is skipped."""

    role: Any = None
    content: msgspec.Raw = _EMPTY
    tool_calls: msgspec.Raw = _EMPTY
    function_call: msgspec.Raw = _EMPTY
    audio: msgspec.Raw = _EMPTY


class _Part(msgspec.Struct):
    type: Any = None


_messages: Final = msgspec.json.Decoder(list[_Message])
_parts: Final = msgspec.json.Decoder(list[_Part])


def refuse(request: Request) -> TrimtabError | None:
    """Why this engine cannot serve the request, or None. Reads the fields of either dialect, as the client sent them.

    It runs on the request path: a few look-ups, and one pass over the messages that skips their text.
    """
    fields = request.fields
    for name, harmless in _DROPPED.items():
        raw = fields.get(name)
        if raw is not None and not _is_one_of(raw, harmless):
            return Unsupported(f"{name}: the embedded model cannot do this{_WAY_OUT}", param=name)
    n = fields.get("n")
    if n is not None and bytes(n).strip() not in _ONE:
        return Unsupported("n: the embedded model counts the tokens of one answer only; ask once for each", param="n")
    try:
        return _refuse_prompts(fields.get("prompt")) or _refuse_messages(fields.get("messages"))
    except msgspec.ValidationError:  # not the shape of either dialect: the server says what is wrong
        return None
    except msgspec.DecodeError as error:
        return MalformedJson(f"the body is not valid JSON: {error}")


def _is_one_of(raw: msgspec.Raw, harmless: tuple[bytes, ...]) -> bool:
    squeezed = bytes(raw).translate(None, b" \t\r\n")
    return squeezed in _NOTHING or squeezed in harmless


def _refuse_prompts(raw: msgspec.Raw | None) -> TrimtabError | None:
    if raw is None or not bytes(raw).lstrip().startswith(b"["):
        return None
    prompts: Any = msgspec.json.decode(raw)
    if len(prompts) < 2 or all(isinstance(token, int) for token in prompts):
        return None
    message = "prompt: the embedded model counts the tokens of one prompt only; send them one by one"
    return Unsupported(message, param="prompt")


def _refuse_messages(raw: msgspec.Raw | None) -> TrimtabError | None:
    """Refuse tool calls and results, images, audio and files, wherever in the history they are."""
    for index, message in enumerate(_messages.decode(raw) if raw is not None else ()):
        found = _more_than_text(message)
        if found is not None:
            return _cannot(f"messages[{index}].{found[0]}", found[1])
    return None


def _more_than_text(message: _Message) -> tuple[str, str] | None:
    """The field of a message that holds more than text, and what it holds."""
    if message.role in ("tool", "function"):
        return "role", "a tool's result"
    for name, raw in (
        ("tool_calls", message.tool_calls),
        ("function_call", message.function_call),
        ("audio", message.audio),
    ):
        if not _is_one_of(raw, ()):
            return name, f"`{name}`"
    if bytes(memoryview(message.content)[:1]) == b"[":
        for number, part in enumerate(_parts.decode(message.content)):
            if isinstance(part.type, str) and part.type not in _TEXT_PARTS:
                return f"content[{number}]", f"`{part.type}`"
    return None


def _cannot(param: str, what: str) -> TrimtabError:
    return Unsupported(f"{param}: the embedded model reads text only, not {what}{_WAY_OUT}", param=param)
