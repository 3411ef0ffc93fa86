"""A conversation stays with its model: by what it is known again, when it may change, what that would cost. Pure."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from trimtab.levers.route.settings import TAKEN_OUTPUT
from trimtab.ports import Thread, Threads
from trimtab.protocols.conversation import Conversation
from trimtab.types import Scope, Target, Usage

_SHORT_WORDS: Final = 5  # a turn of so few words leans on the one before it
_NODS: Final = re.compile(
    r"\W*(?:yes|yeah|yep|no|nope|ok(?:ay)?|sure|please|go(?: on| ahead)?|continue|proceed|do (?:it|that|so)|"
    r"(?:commit|merge|push|ship|run|apply|send|book|confirm) (?:it|that|this|them)|thanks?(?: you)?|good|correct|"
    r"right|exactly|again|more|next|the (?:first|second|third|last) one)\b",
    re.IGNORECASE,
)
_ENCODE: Final = msgspec.msgpack.Encoder().encode


class Found(NamedTuple):
    """A conversation that is known, and whether the weak model serves it."""

    thread: Thread
    weak: bool


def number(model: str) -> int:
    """A model's name as the table of conversations keeps it."""
    return zlib.crc32(model.encode())


def keys(scope: Scope, talk: Conversation) -> tuple[bytes, ...]:
    """By what the conversation will be known when it goes on: the client's name for it, or what was said in it."""
    found = [_key(scope, b"said", talk.whole), _key(scope, b"root", talk.root)]
    return (_key(scope, b"session", b""), *found) if scope.session else tuple(found)


def find(threads: Threads, scope: Scope, talk: Conversation, weak: Target) -> Found | None:
    """What is known of it; None for a new one, and for one that was forgotten."""
    for key in _known_by(scope, talk):
        if (thread := threads.find(key)) is not None:
            return Found(thread, thread.model == number(weak.model))
    return None


def stays(talk: Conversation, found: Found | None, *, sticky: bool) -> str:
    """Why the model may not change now, "" if it may. One that is not known is taken to be the strong model's."""
    if not talk.begun:
        return ""
    if talk.tool_loop:
        return "in a tool loop"
    if talk.signed:
        return "it holds reasoning that only its author can read"
    if found is not None and sticky:
        return "a conversation stays with its model"
    return ""


def prompt(talk: Conversation) -> str:
    """What is hard or easy about a request: its last user turn, or the one before if that only nods."""
    turns = (talk.text, *talk.earlier) if talk.text else talk.earlier
    return next((turn for turn in turns if not leans(turn)), turns[0] if turns else "")


def leans(text: str) -> bool:
    """Whether a turn means nothing without the one before it."""
    words = text.split()
    return not words or (len(words) <= _SHORT_WORDS and _NODS.match(text) is not None)


def too_warm(
    talk: Conversation,
    found: Found,
    towards: tuple[Target, Target],
    cost: Callable[[Target, Usage], int | None],
) -> str:
    """Why a change from the first model to the second does not pay, "" if it does.

    The first has what it read of the conversation at hand, as its provider counted; the second would read all of it
    anew.
    """
    warm = min(found.thread.tokens, talk.tokens)
    staying = cost(towards[0], Usage(input=talk.fresh, cache_read=warm, output=TAKEN_OUTPUT))
    going = cost(towards[1], Usage(input=talk.fresh + warm, output=TAKEN_OUTPUT))
    if staying is None or going is None:
        return "stays: its prefix is warm, prices unknown"
    if going < staying:
        return ""
    return f"stays: its prefix is warm (${going / 1e9:.6f} against ${staying / 1e9:.6f})"


def _known_by(scope: Scope, talk: Conversation) -> Iterator[bytes]:
    if scope.session:
        yield _key(scope, b"session", b"")
    if talk.begun:
        for one in talk.before:
            yield _key(scope, b"said", one)
        yield _key(scope, b"root", talk.root)


def _key(scope: Scope, kind: bytes, name: bytes) -> bytes:
    whose = _ENCODE((kind, name, scope.tenant, scope.route, scope.user, scope.permission, scope.session))
    return hashlib.blake2b(whose, digest_size=16).digest()
