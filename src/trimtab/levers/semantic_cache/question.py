"""What of a request is the question, and what is its context: pure, without any I/O.

Two requests may share an answer only if their contexts are equal, byte for byte; how near their texts are is for others
to weigh. So the context is a hash over everything that can change the answer but the text of the last user turn, as the
exact cache's key is, and a field that a provider invents tomorrow is in it too. Of `messages`, the bytes are taken as
they came, with the text's literals cut out: a key that came twice, whatever a parser makes of it, is in it too.

Everything whose answer should not be given to a similar question is excluded with a reason: where more than the request
decides the answer, where a turn leans on earlier ones, where the text alone says too little.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from trimtab.protocols.reuse import NOT_IN_KEY, circumstances, is_chat, side_obstacle, temperature_obstacle
from trimtab.types import Request, Target

CONTEXT_FORMAT: Final = 1  # raise it whenever the meaning or the order of what is hashed changes

_NOT_AS_THEY_ARE: Final = NOT_IN_KEY | {"messages"}
_TOOLS: Final = ("tools", "functions", "tool_choice", "function_call")
_FORMS: Final = frozenset({"n", "logprobs", "top_logprobs", *_TOOLS})
_NOTHING: Final = frozenset({b"null", b"[]", b'"none"'})
_ONE: Final = frozenset({b"null", b"1"})
_NO_LOGPROBS: Final = frozenset({b"null", b"false", b"0"})
_INSTRUCTS: Final = frozenset({"system", "developer"})
_RESULTS: Final = frozenset({"tool", "function"})
_CALLS: Final = frozenset({"tool_use", "tool_result", "server_tool_use", "mcp_tool_use", "mcp_tool_result"})
_SILENT: Final = frozenset({"refusal", "thinking", "redacted_thinking"})  # blocks of an assistant, without a question
_KINDS: Final = frozenset({"image", "image_url", "input_audio", "audio", "video_url", "file", "document"})
_TOOL_TURN: Final = "tool calls or results among the messages"

Characters = Annotated[int, msgspec.Meta(ge=1, le=8192, description="a whole number from 1 to 8192")]


class Rules(msgspec.Struct, frozen=True):
    """What a route takes for a question whose answer may be given to a similar one."""

    history: Literal["none", "exact"] = "none"  # "exact": earlier turns may be there, and are part of the context
    tools: bool = False  # tools may be offered, and are part of the context; what a tool said never is
    time_sensitive: bool = False  # questions whose answer depends on when they are asked are taken too
    personal: bool = False  # questions whose answer depends on who asks are taken too
    max_chars: Characters = 2000  # of the last user turn
    any_temperature: bool = False
    share_users: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A text that may have the answer of a similar one with the same context."""

    text: str  # of the last user turn, in NFC, without the white space around it
    context: bytes  # 32 bytes: SHA-256 over all else that can change the answer


class _Message(msgspec.Struct, gc=False):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b"null")
    tool_calls: msgspec.Raw = msgspec.Raw(b"null")
    function_call: msgspec.Raw = msgspec.Raw(b"null")


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: msgspec.Raw = msgspec.Raw(b"null")


class _Said(msgspec.Struct, frozen=True, gc=False):
    """What a message says, and the JSON literals that hold it, in order."""

    text: str
    literals: tuple[bytes, ...]


_MESSAGES: Final = msgspec.json.Decoder(list[_Message])
_BLOCKS: Final = msgspec.json.Decoder(list[_Block])
_STRING: Final = msgspec.json.Decoder(str)
_ENCODE: Final = msgspec.msgpack.Encoder().encode


def question_of(request: Request, target: Target | None, identity: str, rules: Rules) -> Question | str:
    """The question, or why the request is none whose answer may be given again.

    `target` is the one that the request is to go to, None if there is none; `identity` says what is behind its engine's
    name. A reason names kinds and never quotes the text. Raises UnicodeEncodeError for a scope that is not Unicode.
    """
    shared = shares_users(request, rules)
    obstacle = _obstacle(request, target, rules)
    if obstacle or target is None:
        return obstacle
    # A context with a user in it is that user's own: there, a question about them is like any other.
    if not rules.personal and not shared and request.scope.user:
        rules = msgspec.structs.replace(rules, personal=True)
    try:
        raw = bytes(request.fields["messages"])
        said = _last_said(_MESSAGES.decode(raw), rules)
    except (KeyError, msgspec.MsgspecError, RecursionError):
        return "messages cannot be read"
    if isinstance(said, str):
        return said
    text = said.text.strip()
    if not text:
        return "empty text"
    if obstacle := _too_long(text, rules):
        return obstacle
    text = unicodedata.normalize("NFC", text)
    about = _about(text, rules) or _identified(text, rules)
    return about or Question(text, _context(request, target, identity, _around(raw, said), share_users=shared))


def shares_users(request: Request, rules: Rules) -> bool:
    """Whether the context is that of all users, by the route's word or the client's."""
    return rules.share_users or request.scope.cache == "public"


def _obstacle(request: Request, target: Target | None, rules: Rules) -> str:
    """Why the request is none, whatever its messages say; "" if they decide."""
    fields = request.fields
    if not is_chat(request.path):
        return "not a chat request"
    if request.scope.cache == "off":
        return "client asked cache off"
    if target is None:
        return "no target"
    if request.idempotency:
        return "an Idempotency-Key asks for an answer of its own"
    if not rules.any_temperature and (obstacle := temperature_obstacle(fields)):
        return obstacle
    if obstacle := side_obstacle(fields):
        return obstacle
    return "" if _FORMS.isdisjoint(fields) else _form_obstacle(fields, rules)


def _form_obstacle(fields: dict[str, msgspec.Raw], rules: Rules) -> str:
    if bytes(fields.get("n", b"1")) not in _ONE:
        return "n asks for several answers"
    for name in ("logprobs", "top_logprobs"):
        if bytes(fields.get(name, b"null")) not in _NO_LOGPROBS:
            return "logprobs belong to one very text"
    if not rules.tools:
        for name in _TOOLS:
            if bytes(fields.get(name, b"null")) not in _NOTHING:
                return f"tools offered ({name})"
    return ""


def _last_said(messages: list[_Message], rules: Rules) -> _Said | str:
    """What the last user turn says, or why it cannot stand for the request."""
    last: _Said | None = None
    for message in messages:
        if message.role == "user":
            if last is not None:
                if rules.history == "none":
                    return "multi-turn (several user turns)"
                # "And in Paris?" asks again what was asked before.
                if about := _too_long(last.text, rules) or _about(last.text, rules):
                    return f"{about}, earlier"
            said = _said(message.content)
            if isinstance(said, str):
                return said
            last = said
        elif message.role in _INSTRUCTS:
            continue
        elif message.role in _RESULTS or not _is_null(message.tool_calls) or not _is_null(message.function_call):
            return _TOOL_TURN
        elif message.role != "assistant":
            return "a role that is not known"
        elif (said := _said(message.content)) == _TOOL_TURN:
            return _TOOL_TURN
        elif rules.history == "none":
            return "multi-turn (an assistant's turn)"
        elif isinstance(said, str):
            return said
    return "no user turn" if last is None else last


def _said(content: msgspec.Raw) -> _Said | str:
    """The texts of a message, or why it is more than text. Raises MsgspecError for what no dialect has."""
    raw = bytes(content)
    if raw[:1] == b'"':
        return _Said(_STRING.decode(raw), (raw,))
    if raw == b"null":
        return _Said("", ())
    texts: list[str] = []
    literals: list[bytes] = []
    for block in _BLOCKS.decode(raw):
        if block.type in _CALLS:
            return _TOOL_TURN
        if block.type in _SILENT:
            continue
        if block.type != "text":
            return f"content that is not text ({block.type if block.type in _KINDS else 'of another type'})"
        literals.append(bytes(block.text))
        texts.append(_STRING.decode(literals[-1]))
    return _Said("\n".join(texts), tuple(literals))


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) in _NOTHING


def _too_long(text: str, rules: Rules) -> str:
    return f"text longer than max_chars ({rules.max_chars})" if len(text) > rules.max_chars else ""


def _about(text: str, rules: Rules) -> str:
    if rules.time_sensitive and rules.personal:
        return ""
    from trimtab.levers.semantic_cache import topics  # its patterns take a moment, and few gateways need them

    time, person = topics.about(text, time=not rules.time_sensitive, person=not rules.personal)
    if time:
        return f"time-sensitive question ({time})"
    return f"personal question ({person})" if person else ""


def _identified(text: str, rules: Rules) -> str:
    if rules.personal:
        return ""
    from trimtab.redact import identity_in_text

    label = identity_in_text(text)
    return f"personal question ({label})" if label else ""


def _around(raw: bytes, said: _Said) -> list[bytes]:
    """The bytes of `messages` around the text's literals, found from the end, where they are.

    A literal may stand again behind its own place, as a name does: then the wrong one is cut, and the same one whenever
    the same is asked. That parts such a text from others and joins it to none, for what stays still says it.
    """
    around: list[bytes] = []
    end = len(raw)
    for literal in reversed(said.literals):
        at = raw.rfind(literal, 0, end)
        around.append(raw[at + len(literal) : end])
        end = at
    around.append(raw[:end])
    return around


def _context(request: Request, target: Target, identity: str, around: list[bytes], *, share_users: bool) -> bytes:
    told = circumstances(request, target, identity, _NOT_AS_THEY_ARE, share_users=share_users)
    return hashlib.sha256(_ENCODE((CONTEXT_FORMAT, *told, around))).digest()
