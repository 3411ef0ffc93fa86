"""Redaction of a request's body: every text in it, wherever it stands, under numbers that hold for the request.

What was found becomes `[EMAIL_1]`, `[CARD_2]` and so on, numbered in order of appearance; the same value has the same
number, so that a conversation still makes sense. Objects, arrays and the names of the protocol's fields stay as they
are. A text that is JSON itself (arguments of a tool call, results of tools) is redacted inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.redact import custom
from trimtab.redact.rules import BUILT_IN, MEDIA, PLACEHOLDER, Rule, found, is_card

# Values of these are the protocol's own, in its own places; in the data of tools they are like all others.
STRUCTURAL: Final = frozenset(
    (
        "detail", "effort", "finish_reason", "format", "id", "media_type", "model", "name", "object",
        "reasoning_effort", "role", "service_tier", "stop_reason", "tool_call_id", "tool_use_id", "ttl", "type",
    )
)  # fmt: skip
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_./:-]{1,256}")
# What is below these has a form of the application's own, keys included.
DATA: Final = frozenset(("arguments", "input", "input_schema", "metadata", "parameters", "schema"))
_FILES: Final = frozenset(("b64_json", "data", "file_data"))
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]{64,}+={0,2}\s*")
_TAKEN: Final = re.compile(PLACEHOLDER.pattern.encode())
_ROUNDS: Final = 8  # a replacement may uncover something at its edges; two rounds are the rule
_LEAST_CARD: Final = 10**12


class Redactor:
    """Redacts bodies; holds no state of any one of them, so threads may share it. `patterns` are the user's own."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._rules = (*map(custom.rule, patterns), *BUILT_IN)

    def body(self, fields: Mapping[str, msgspec.Raw]) -> bytes:
        """The body without what was found. Fields in which nothing was found keep their bytes.

        Raises BadRequest for one that cannot be decoded (a lone surrogate, a number out of range): what cannot be read
        cannot be redacted.
        """
        walk = _Walk(self._rules, fields)
        kept: dict[str, Any] = {}
        try:
            for name, raw in fields.items():
                before = walk.made
                redacted = walk.value(msgspec.json.decode(raw), name, {}, data=name in DATA)
                kept[name] = raw if walk.made == before else redacted
            return msgspec.json.encode(kept)
        except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError) as error:
            raise BadRequest(f"the body cannot be read, so not redacted: {error}") from None

    def finding(self, answer: Any) -> str:
        """The label of what is found first in an answer, as `decoded` gives it, such as "EMAIL", or "".

        Raises BadRequest as `body` does.
        """
        walk = _Walk(self._rules, {})
        try:
            walk.value(answer, "", {}, data=False)
        except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError) as error:
            raise BadRequest(f"the body cannot be read: {error}") from None
        return walk.first

    def text(self, text: str) -> str:
        """One text on its own."""
        return _Walk(self._rules, {}).text(text)


def decoded(body: bytes) -> Any:
    """An answer's JSON body, without `logprobs`: they say the same text once more, token by token.

    Raises BadRequest for one that cannot be read.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError) as error:
        raise BadRequest(f"the body cannot be read: {error}") from None
    for choice in answer.get("choices") or () if isinstance(answer, dict) else ():
        if isinstance(choice, dict):
            choice.pop("logprobs", None)
    return answer


class _Walk:
    """One request: its numbers."""

    def __init__(self, rules: tuple[Rule, ...], fields: Mapping[str, msgspec.Raw]) -> None:
        self.made = 0  # replacements so far
        self.first = ""  # the label of the first
        self._rules = rules
        self._numbers: dict[str, int] = {}
        self._placeholders: dict[tuple[str, str], str] = {}
        # The client's own text may hold what looks like a placeholder: those numbers stay its own.
        self._taken = {mark.decode() for raw in fields.values() for mark in _TAKEN.findall(raw)}

    def value(self, value: Any, key: str, parent: Mapping[str, Any], *, data: bool) -> Any:
        """A JSON value that stands under `key` of `parent`; `data`: below a field with a form of its own."""
        kind = type(value)
        if kind is str:
            return self._string(value, key, parent, data=data)
        if kind is list:
            return [self.value(item, key, parent, data=data) for item in value]
        if kind is dict:
            return {
                self.text(name) if data else name: self.value(item, name, value, data=data or name in DATA)
                for name, item in value.items()
            }
        if kind is int and data and value >= _LEAST_CARD and is_card(str(value)):
            self.made += 1
            self.first = self.first or "CARD"
            return 0
        return value

    def _string(self, text: str, key: str, parent: Mapping[str, Any], *, data: bool) -> str:
        if not data and key in STRUCTURAL and _IDENTIFIER.fullmatch(text) and not (key == "name" and "role" in parent):
            return text
        if key in _FILES and _is_file(text, key, parent):
            return text if PLACEHOLDER.fullmatch(text) else self._placeholder(MEDIA.label, text)
        if text[:64].lstrip()[:1] in ("{", "["):
            try:
                inner = msgspec.json.decode(text)
            except (msgspec.MsgspecError, RecursionError, UnicodeError):
                return self.text(text)
            before = self.made
            redacted = self.value(inner, "", {}, data=True)
            return text if self.made == before else msgspec.json.encode(redacted).decode()
        return self.text(text)

    def text(self, text: str) -> str:
        """A text without what the rules find in it."""
        text = self._replaced(text, (MEDIA,))
        for _ in range(_ROUNDS):
            before = self.made
            text = self._replaced(text, self._rules)
            if self.made == before:
                break
        return text

    def _replaced(self, text: str, rules: tuple[Rule, ...]) -> str:
        spans = found(text, rules)
        if not spans:
            return text
        parts, at = [], 0
        for span in spans:
            parts += [text[at : span.start], self._placeholder(span.label, text[span.start : span.end])]
            at = span.end
        return "".join([*parts, text[at:]])

    def _placeholder(self, label: str, value: str) -> str:
        self.made += 1
        self.first = self.first or label
        placeholder = self._placeholders.get((label, value))
        while placeholder is None:
            number = self._numbers[label] = self._numbers.get(label, 0) + 1
            if f"[{label}_{number}]" not in self._taken:
                placeholder = self._placeholders[label, value] = f"[{label}_{number}]"
        return placeholder


def _is_file(text: str, key: str, parent: Mapping[str, Any]) -> bool:
    if parent.get("type") == "text":
        return False  # a document that is plain text
    named = parent.get("type") == "base64" or (key == "data" and "format" in parent)
    return named or _BASE64.fullmatch(text) is not None
