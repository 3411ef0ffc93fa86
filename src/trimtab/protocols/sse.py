"""Server-sent events without I/O: framing, and the part of a stream watcher that both dialects share.

Lines end in \\n or \\r\\n; an event ends at its first empty line. Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import re

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.types import NO_WORK, Usage

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""A longer event is taken for a broken upstream, so that holding it back cannot fill the memory."""

_END_OF_EVENT = re.compile(rb"\n\r?\n")


def parse_event(event: bytes) -> tuple[bytes, bytes]:
    """Name and data of one event; both b"" for a comment."""
    name = b""
    data: list[bytes] = []
    for line in event.splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, data[0] if len(data) == 1 else b"\n".join(data)


def write_event(name: str, payload: object) -> bytes:
    """One event; no `event:` line when the name is ""."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + msgspec.json.encode(payload) + b"\n\n"


class EventReader:
    """Cuts bytes into events: name and data of each complete one."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes]]:
        """The events that are complete now, comments left out. Raises UpstreamInvalid beyond MAX_EVENT_BYTES."""
        piece = self._held + piece
        start = 0
        events = []
        for match in _END_OF_EVENT.finditer(piece):
            event = parse_event(piece[start : match.end()])
            start = match.end()
            if event[1]:
                events.append(event)
        self._held = piece[start:]
        check_event_size(self._held)
        return events

    def close(self) -> list[tuple[bytes, bytes]]:
        """The last event, if its empty line is missing."""
        event = parse_event(self._held)
        self._held = b""
        return [event] if event[1] else []


def read_events(sse: bytes) -> list[tuple[bytes, bytes]]:
    """All events of a whole stream."""
    reader = EventReader()
    return reader.feed(sse) + reader.close()


def check_event_size(held: bytes) -> None:
    """Raise UpstreamInvalid when an unfinished event is beyond MAX_EVENT_BYTES."""
    if len(held) > MAX_EVENT_BYTES:
        raise UpstreamInvalid(f"the upstream sent an event longer than {MAX_EVENT_BYTES} bytes")


class BaseScanner:
    """Framing and hold-back of `codec.Scanner`; a dialect adds `_event`, `_whole` and `_complete`.

    `_event` gets one event with its empty line and returns what to forward. It must depend on the events before and on
    the event's bytes alone, never on how they were cut into pieces. At the end mark it sets `ended` and `tail`.
    """

    __slots__ = ("_held", "ended", "error", "finish", "model", "tail", "tokens_seen", "usage", "work")
    _lines = 2  # line ends of the common event, whose piece needs no cutting

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.ended = False
        self.finish = ""
        self.model = ""
        self.usage: Usage | None = None
        self.work = NO_WORK
        self.error = ""
        self.tail = b""
        self._held = b""

    @property
    def first_token(self) -> bool:
        """Whether a non-empty text, reasoning or tool delta was seen."""
        return self.tokens_seen > 0

    def feed(self, piece: bytes) -> bytes:
        """See `codec.Scanner.feed`."""
        if self.ended:
            self.tail += piece
            return b""
        if self._held:
            piece = self._held + piece
            self._held = b""
        if piece.count(b"\n") == self._lines and piece.endswith(b"\n\n"):
            return self._event(piece)
        return self._cut(piece)

    def _cut(self, piece: bytes) -> bytes:
        start = 0
        out = []
        for match in _END_OF_EVENT.finditer(piece):
            end = match.end()
            out.append(self._event(piece[start:end]))
            start = end
            if self.ended:
                self.tail += piece[end:]
                return b"".join(out)
        self._held = piece[start:]
        check_event_size(self._held)
        return b"".join(out)

    def close(self) -> bytes:
        """See `codec.Scanner.close`."""
        rest, self._held = self._held, b""
        if self.ended:
            return b""
        out = b""
        data = parse_event(rest)[1]
        if data:
            if not self._whole(data):
                return b""
            out = self._event(rest.rstrip(b"\r\n") + b"\n\n")
        if self.ended or self._complete():
            return out
        return b""

    def _event(self, event: bytes) -> bytes:
        raise NotImplementedError

    def _whole(self, data: bytes) -> bool:
        """Whether the data of an unterminated event is all there."""
        try:
            msgspec.json.decode(data, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            return False
        return True

    def _complete(self) -> bool:
        """Whether the stream is whole without its end mark; sets `ended` and `tail` if so."""
        return False
