"""W3C Trace Context: what joins a request to the application's own trace. Pure.

A trace travels as the header's text, `00-<trace id>-<parent span id>-<flags>`, already checked; "" is none. Ids of our
own spans follow from the request's id, so that whoever sees a row (a worker, the ingester) names them alike without
anything being stored. Source: https://www.w3.org/TR/trace-context-2/
"""

from __future__ import annotations

import re
from hashlib import blake2b

_HEADER = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SERVER = "server"


def accept(header: bytes) -> str:
    """A `traceparent` as we keep it; "" for one that is not valid, which is to be treated as if it had not come."""
    match = _HEADER.fullmatch(header)
    if match is None or (match[4] is not None and header[:2] == b"00"):
        return ""
    trace_id, parent_id, flags = (part.decode() for part in match.groups()[:3])
    return f"00-{trace_id}-{parent_id}-{flags}" if int(trace_id, 16) and int(parent_id, 16) else ""


def trace_id(trace: str, request_id: str) -> str:
    """The trace's id (32 hex digits): the application's, or one of the request's own."""
    return trace[3:35] or _digest(request_id, 16)


def parent_id(trace: str) -> str:
    """The application's span that called us (16 hex digits), "" where there is none."""
    return trace[36:52]


def sampled(trace: str) -> bool | None:
    """What the application decided about keeping the trace; None where it did not say."""
    return bool(int(trace[53:55], 16) & 1) if trace else None


def span_id(request_id: str, n: int | None = None) -> str:
    """The id (16 hex digits) of a request's span, or of that of its upstream call `n`."""
    return _digest(f"{request_id}/{_SERVER if n is None else n}", 8)


def upstream(trace: str, request_id: str, n: int) -> bytes:
    """The `traceparent` for upstream call `n`: same trace, our span the parent."""
    return f"{trace[:36]}{span_id(request_id, n)}{trace[52:]}".encode()


def _digest(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()
