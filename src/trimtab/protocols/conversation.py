"""What a chat request shows of the conversation it belongs to, read once for the levers that choose models. Pure.

Only what such a choice needs is decoded, from either dialect's messages. A conversation has no id of its own unless the
client gives it one, so it is known by what was said: `before` are hashes of its messages up to each of the last few,
`whole` of all of them. The next request of the same conversation has this one's `whole` among its `before`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from trimtab.types import Request

_MOST_BEFORE: Final = 12  # one agent's turn may add some tool results and a question
_KINDS: Final = {
    "image": "image", "image_url": "image", "input_image": "image", "input_audio": "audio", "audio": "audio",
    "video_url": "video", "file": "file", "document": "file",
}  # fmt: skip
_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_RESULTS: Final = frozenset({"tool_result", "web_search_tool_result", "mcp_tool_result"})
_RESULT_ROLES: Final = frozenset({"tool", "function"})
_INSTRUCTIONS: Final = frozenset({"system", "developer"})
# What only the model that thought it can read again.
_SIGNED: Final = re.compile(
    rb'"(?:signature|thought_signature|encrypted_content)"\s*:\s*"[^"]|"(?:redacted_thinking|reasoning\.encrypted)"'
)
_NOTHING: Final = frozenset({b"null", b"[]"})
_JSON_KINDS: Final = re.compile(rb'"type"\s*:\s*"json_(?:schema|object)"')
_FORMATS: Final = ("response_format", "output_config", "output_format")


class _Message(msgspec.Struct, gc=False):
    role: str = ""
    content: Any = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"null")
    function_call: msgspec.Raw = msgspec.Raw(b"null")


_RAW: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGE: Final = msgspec.json.Decoder(_Message)


class Conversation(msgspec.Struct, frozen=True):
    """What is known of a request's messages."""

    text: str  # the last user turn's, "" if it has none
    earlier: tuple[str, ...]  # the user turns before it, newest first
    begun: bool  # a model has answered in it before
    tool_loop: bool  # the last message is a tool's result: the model is in the midst of a task
    signed: bool  # it holds reasoning that only its author can read
    tools: bool  # tools are offered
    json: bool  # the answer has to be JSON
    kinds: frozenset[str]  # beside text: "image", "audio", "video", "file"
    tokens: int  # about so many go in
    fresh: int  # about so many of them after the last answer
    root: bytes  # hash of the first user turn, 16 bytes
    before: tuple[bytes, ...]  # hashes of the messages but the last, but the last two, ...; 16 bytes each
    whole: bytes  # hash of all of them, 16 bytes


def read(request: Request, bytes_per_token: int = 4) -> Conversation | None:
    """The conversation; None for messages that cannot be read (whoever is asked will say what is wrong with them)."""
    try:
        raws = _RAW.decode(request.fields["messages"])
        messages = [_MESSAGE.decode(raw) for raw in raws]
    except (KeyError, msgspec.MsgspecError, RecursionError):
        return None
    if not messages:
        return None
    users = [n for n, one in enumerate(messages) if one.role == "user" and not _results(one)]
    texts = tuple([_text(messages[n].content) for n in reversed(users)])
    asks = bool(users) and users[-1] == len(messages) - 1
    hashes = _hashes(raws, messages)
    fields = request.fields
    last = messages[-1]
    answered = max((n for n, one in enumerate(messages) if one.role == "assistant"), default=-1)
    return Conversation(
        text=texts[0] if asks else "",
        earlier=texts[1:] if asks else texts,
        begun=answered >= 0,
        tool_loop=last.role in _RESULT_ROLES or _results(last) or _calls(last),
        signed=any(one.role == "assistant" and _SIGNED.search(raw) for one, raw in zip(messages, raws, strict=True)),
        tools=any(bytes(fields.get(name, b"null")) not in _NOTHING for name in ("tools", "functions")),
        json=any(_JSON_KINDS.search(bytes(fields[name])) for name in _FORMATS if name in fields),
        kinds=frozenset(kind for one in messages for kind in _kinds(one.content)),
        tokens=request.body_bytes // bytes_per_token,
        fresh=sum([len(bytes(raw)) for raw in raws[answered + 1 :]]) // bytes_per_token,
        root=_hash(bytes(raws[users[0]])) if users else hashes[0],
        before=tuple(hashes[-2 : -2 - _MOST_BEFORE : -1]),
        whole=hashes[-1],
    )


def last_turn(messages: bytes) -> str:
    """The text of the last message of a chat (JSON) if it is a user's; "" for another's, and for what a tool said."""
    try:
        last = _MESSAGE.decode(_RAW.decode(messages)[-1])
    except (IndexError, msgspec.MsgspecError, RecursionError):
        return ""
    return "" if last.role != "user" or _results(last) else _text(last.content)


def _hashes(raws: list[msgspec.Raw], messages: list[_Message]) -> list[bytes]:
    """Of the messages up to each, instructions left out: they may well have the time of day in them."""
    found, running = [], hashlib.blake2b(digest_size=16)
    for raw, message in zip(raws, messages, strict=True):
        if message.role in _INSTRUCTIONS:
            found.append(running.copy().digest())
            continue
        text = bytes(raw)
        running.update(len(text).to_bytes(8, "little"))
        running.update(text)
        found.append(running.copy().digest())
    return found


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, list):
        yield from (block for block in content if isinstance(block, dict))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    said = [block.get("text") for block in _blocks(content) if block.get("type") in ("text", "input_text")]
    return "\n".join([one for one in said if isinstance(one, str)]).strip()


def _kinds(content: Any) -> Iterator[str]:
    for block in _blocks(content):
        kind = _KINDS.get(str(block.get("type")))
        if kind is not None:
            yield kind


def _results(one: _Message) -> bool:
    """Whether a user's message only brings what tools said, as one dialect has it."""
    found = [str(block.get("type")) for block in _blocks(one.content)]
    return any(kind in _RESULTS for kind in found)


def _calls(one: _Message) -> bool:
    """Whether the model asked for a tool in it."""
    if bytes(one.tool_calls) not in _NOTHING or bytes(one.function_call) not in _NOTHING:
        return True
    return any(str(block.get("type")) in _CALLS for block in _blocks(one.content))
