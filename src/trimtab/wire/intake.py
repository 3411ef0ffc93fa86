"""From headers and metadata to what a Request needs: headers sorted once, our own removed, the scope built."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import count

import msgspec

from trimtab import trace_context
from trimtab.errors import BadRequest
from trimtab.types import Scope

_OURS = b"x-trimtab-"
_STAGES = b"x-trimtab-stages"
_STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_STAGE = re.compile(rf"({_STAGE_NAME.pattern})\s*;\s*dur\s*=\s*(\d+(?:\.\d+)?)")
_MOST_STAGES = 20
_LONGEST_STAGE_MS = 86_400_000.0
_RATINGS = {"up": 1.0, "down": 0.0}
_LONGEST_COMMENT = 1000  # characters
_FIELD = re.compile(r"(?:field `|`\$\.)(\w+)`")
_REQUEST_ID = re.compile(r"tt-[0-9a-f]{20,32}")
_FEEDBACK_LIKE = 'send {"request_id": "tt-...", "score": 0.8} or "rating": "up", and a "comment" if there is one'
_SCOPE_FIELDS = (
    "route", "user", "permission", "session", "workflow", "prompt_version", "corpus_version", "policy_version", "cache",
    "purpose", "priority",
)  # fmt: skip
_OUR_HEADERS = {(_OURS.decode() + name.replace("_", "-")).encode(): name for name in _SCOPE_FIELDS}
_PURPOSES = ("", "eval")
_PRIORITIES = ("", "interactive", "batch")
_USUAL = ("priority", "interactive")
_CACHE_WORDS = ("", "off", "refresh", "public")
_MAX_VALUE = 256  # characters of one scope field: they are stored with every row

# Headers that stay here: hop by hop, rewritten by the engine, or private to the client and the gateway.
_DROPPED = frozenset(
    (
        b"host", b"content-length", b"content-type", b"transfer-encoding", b"connection", b"keep-alive", b"te",
        b"trailer", b"upgrade", b"expect", b"accept-encoding", b"cookie", b"proxy-authorization", b"proxy-connection",
        b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"traceparent",
    )
)  # fmt: skip
_VARIANT = (b"anthropic-", b"openai-")  # headers that may change the answer


class _SaidStage(msgspec.Struct):
    name: str
    duration_ms: float


class _Said(msgspec.Struct):
    stages: list[_SaidStage]


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    score: float | None = None
    rating: str | None = None
    comment: str = ""


class Ids:
    """Request ids: a random prefix per process and a counter (0.2 us, where a UUID costs 2)."""

    def __init__(self) -> None:
        self._prefix = "tt-" + os.urandom(6).hex()
        self._count = count()

    def next(self) -> str:
        """A new id, unique across processes and restarts."""
        return f"{self._prefix}{next(self._count):08x}"


class Head:
    """A request's headers, sorted into those for upstream, the client's secret and our own."""

    __slots__ = (
        "app_stages", "content_length", "content_type", "forward", "idempotency", "ours", "secret", "trace",
        "variant",
    )  # fmt: skip

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.forward: list[tuple[bytes, bytes]] = []
        self.ours: dict[str, str] = {}
        self.app_stages: dict[str, float] = {}
        self.secret = ""
        self.trace = ""
        self.idempotency = ""
        self.content_length = 0
        self.content_type = b""
        self.variant = b""
        for header in headers:
            name, value = header
            if name in _DROPPED:
                if name == b"content-length":
                    self.content_length = int(value)
                elif name == b"content-type":
                    self.content_type = value
                elif name == b"traceparent":
                    self.trace = trace_context.accept(value)
            elif name == b"authorization":
                if value[:7].lower() == b"bearer ":
                    self.secret = value[7:].strip().decode("latin-1")
            elif name == b"x-api-key":
                self.secret = value.strip().decode("latin-1")
            elif name.startswith(_OURS):
                field = _OUR_HEADERS.get(name)
                if name == _STAGES:
                    self.app_stages = stages_in(value.decode("latin-1"))
                    continue
                if field is None:
                    raise BadRequest(
                        f"the header {name.decode('latin-1')} is none of ours; known: "
                        + ", ".join(sorted(h.decode() for h in (*_OUR_HEADERS, _STAGES))),
                        param=name.decode("latin-1"),
                    )
                self.ours[field] = value.decode("latin-1")
            else:
                if name == b"idempotency-key":
                    self.idempotency = _idempotency_key(value)
                self.forward.append(header)
                if name.startswith(_VARIANT):
                    self.variant += b"%b:%b\n" % header


def _idempotency_key(value: bytes) -> str:
    key = value.decode("latin-1").strip()
    if not key or len(key) > _MAX_VALUE or not (key.isascii() and key.isprintable()):
        raise BadRequest(
            f"must be 1 to {_MAX_VALUE} printable ASCII characters, the same when the request is sent again",
            param="idempotency-key",
        )
    return key


def stages_in(text: str) -> dict[str, float]:
    """The application's stages in seconds, written as Server-Timing writes them. Raises BadRequest."""
    found: dict[str, float] = {}
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None or len(found) >= _MOST_STAGES or float(match[2]) > _LONGEST_STAGE_MS:
            raise BadRequest(
                f"write stages as 'retrieval;dur=120.5, rerank;dur=40', milliseconds, at most {_MOST_STAGES}; "
                f"{part.strip()[:60]!r} is none",
                param=_STAGES.decode(),
            )
        found[match[1]] = found.get(match[1], 0.0) + float(match[2]) / 1000
    return found


def stages_after(body: bytes) -> dict[str, float]:
    """The stages in seconds of `{"stages": [{"name": "validation", "duration_ms": 12.5}]}`. Raises BadRequest."""
    try:
        said = msgspec.json.decode(body, type=_Said).stages
    except msgspec.DecodeError as error:
        raise BadRequest(
            f'{error}; send {{"stages": [{{"name": "validation", "duration_ms": 12.5}}]}}', param="stages"
        ) from None
    if not 0 < len(said) <= _MOST_STAGES:
        raise BadRequest(f"send 1 to {_MOST_STAGES} stages at once, not {len(said)}", param="stages")
    found: dict[str, float] = {}
    for n, stage in enumerate(said):
        if not _STAGE_NAME.fullmatch(stage.name):
            raise BadRequest(
                f"{stage.name[:60]!r} is no name: a letter, then up to 39 letters, digits and ._-",
                param=f"stages[{n}].name",
            )
        if not 0 <= stage.duration_ms <= _LONGEST_STAGE_MS:
            raise BadRequest(
                f"{stage.duration_ms:g} is no duration: milliseconds from 0 to {_LONGEST_STAGE_MS:.0f}",
                param=f"stages[{n}].duration_ms",
            )
        found[stage.name] = found.get(stage.name, 0.0) + stage.duration_ms / 1000
    return found


def feedback_in(body: bytes) -> tuple[str, float, str]:
    """Request id, score from 0 to 1, and comment of what a user thought of an answer. Raises BadRequest."""
    try:
        said = msgspec.json.decode(body, type=_Feedback)
    except msgspec.DecodeError as error:
        named = _FIELD.findall(str(error))
        raise BadRequest(f"{error}; {_FEEDBACK_LIKE}", param=named[-1] if named else "body") from None
    if not _REQUEST_ID.fullmatch(said.request_id):
        raise BadRequest(
            f"{said.request_id[:60]!r} is no request's id; it is in the header x-trimtab-request-id of its answer",
            param="request_id",
        )
    if said.rating is not None and said.score is not None:
        raise BadRequest("send a score or a rating, not both", param="rating")
    score = said.score
    if said.rating is not None:
        score = _RATINGS.get(said.rating)
        if score is None:
            raise BadRequest(f'must be "up" or "down", not {said.rating[:60]!r}', param="rating")
    if score is None:
        raise BadRequest(f"there is neither a score nor a rating; {_FEEDBACK_LIKE}", param="score")
    if not 0 <= score <= 1:
        raise BadRequest(f"must be from 0 (bad) to 1 (good), not {score:g}", param="score")
    if len(said.comment) > _LONGEST_COMMENT:
        message = f"may have {_LONGEST_COMMENT} characters at most, not {len(said.comment)}"
        raise BadRequest(message, param="comment")
    return said.request_id, score, said.comment


def scope_of(tenant: str, said: Mapping[str, str]) -> Scope:
    """The scope from what the client said in headers or metadata. Raises BadRequest naming the field."""
    if not said:
        return Scope(tenant)
    for name, value in said.items():
        if len(value) > _MAX_VALUE or not value.isprintable():
            raise BadRequest(
                f"{name} must be printable text of at most {_MAX_VALUE} characters", param=f"metadata.trimtab.{name}"
            )
    cache = said.get("cache", "")
    if cache not in _CACHE_WORDS:
        raise BadRequest(f"cache must be one of off, refresh, public; not {cache!r}", param="x-trimtab-cache")
    if said.get("purpose", "") not in _PURPOSES:
        raise BadRequest(f"purpose must be eval, or be left out; not {said['purpose']!r}", param="x-trimtab-purpose")
    if said.get("priority", "") not in _PRIORITIES:
        message = f"priority must be interactive or batch, not {said['priority']!r}"
        raise BadRequest(message, param="x-trimtab-priority")
    unknown = set(said) - set(_SCOPE_FIELDS)
    if unknown:
        raise BadRequest(
            f"unknown field {min(unknown)!r}; known: {', '.join(_SCOPE_FIELDS)}",
            param=f"metadata.trimtab.{min(unknown)}",
        )
    fields = {name: value for name, value in said.items() if value and (name, value) != _USUAL}
    return Scope(tenant, **fields)
