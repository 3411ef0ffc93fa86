"""What every cache of answers must hold to: which requests have an answer that may be given again, and to whom.

The caches differ in what they compare; what the answer depends on beside the question, and what makes it depend on the
world or on chance, is the same for all of them and stands here once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import structs

from trimtab.types import Dialect, End, Purpose, Record, Reply, Request, Scope, Slot, Stored, Target

NOT_IN_KEY: Final = frozenset({"stream", "stream_options"})
"""Fields that change the answer's form and never the answer."""

_MAX_TEMPERATURE: Final = 0.1
_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/messages"})
# Fields whose answer depends on more than the request: the web, a container's files, a remote tool.
_LIVE_FIELDS: Final = ("web_search_options", "mcp_servers", "container")
_SIDE_FIELDS: Final = frozenset({*_LIVE_FIELDS, "tools", "store", "audio"})
_LIVE_TOOL: Final = re.compile(rb'"type"\s*:\s*"(?:web_search|web_fetch|code_execution|mcp)')


Whole = Callable[[Dialect, str, "dict[str, msgspec.Raw]"], bool]
"""Whether a dialect's stop reason means a whole answer to these fields: not cut by a limit, not filtered."""


def circumstances(
    request: Request, target: Target, identity: str, without: frozenset[str], *, share_users: bool
) -> tuple[Any, ...]:
    """What an answer depends on beside the fields in `without`, in an order that stored keys rely on.

    `identity` says what is behind the engine's name. With `share_users` the user is left out. `bytes()` around each
    value matters: a `Raw` would be spliced into what is encoded as it is.
    """
    scope, fields = request.scope, request.fields
    names = sorted(fields.keys() - without)
    return (
        request.dialect,
        request.path,
        scope.tenant,
        scope.route,
        scope.permission,
        None if share_users else scope.user,
        scope.prompt_version,
        scope.corpus_version,
        scope.policy_version,
        target.engine,
        identity,
        target.provider,
        target.upstream_model,
        request.model,
        request.variant,
        names,
        [bytes(fields[name]) for name in names],
    )


def is_chat(path: str) -> bool:
    """Whether requests to this path are chats, whose answers may be kept at all."""
    return path in _PATHS or path.partition("?")[0] in _PATHS


def temperature_obstacle(fields: dict[str, msgspec.Raw]) -> str:
    """Why chance has too much to say in the answer, "" if it has not."""
    raw = fields.get("temperature")
    if raw is None or (text := bytes(raw)) == b"null":
        return "temperature not set"
    try:
        temperature = float(text)
    except ValueError:
        return "temperature is not a number"
    if temperature > _MAX_TEMPERATURE:
        return f"temperature {temperature:g} above {_MAX_TEMPERATURE:g}"
    return ""


def side_obstacle(fields: dict[str, msgspec.Raw]) -> str:
    """Why the answer depends on the world, or what the request asks to be kept for it; "" if neither."""
    if _SIDE_FIELDS.isdisjoint(fields):
        return ""
    for name in _LIVE_FIELDS:
        if name in fields:
            return f"{name} looks outside the request"
    tools = fields.get("tools")
    if tools is not None and _LIVE_TOOL.search(bytes(tools)):
        return "a tool that the provider runs looks outside the request"
    if "store" in fields and bytes(fields["store"]) == b"true":
        return "store asks the provider to keep the answer"
    if "audio" in fields and bytes(fields["audio"]) != b"null":
        return "audio answers expire at the provider"
    return ""


def answered(record: Record) -> bool:
    """Whether the model's call came to its end, with an answer.

    The call's end and not the request's: whose client left may still have an answer, made for others who waited.
    """
    return record.status == 200 and bool(record.attempts) and record.attempts[-1].end == End.OK


def as_planned(record: Record, reply: Reply, target: Target) -> bool:
    """Whether an answer is of the target's model, or of the one that routing chose instead of it: no fallback's."""
    if reply.target.model == target.model:
        return True
    routed = any(one.slot == Slot.ROUTE.name and one.step == "change" for one in record.decisions)
    return routed and bool(record.attempts) and record.attempts[-1].purpose == Purpose.SERVE


def stored_of(request: Request, reply: Reply, ttl_s: float) -> Stored:
    """The answer as a cache keeps it, for `ttl_s` seconds after its question came."""
    return Stored(
        dialect=request.dialect,
        body=reply.body,
        model=reply.model,
        target=reply.target,
        usage=reply.usage,
        request_id=request.id,
        # The arrival and not now: the answer is as old as its question, and a purge while it was made rejects it.
        created=request.at,
        expires=request.at + ttl_s,
        machine_s=reply.machine_s,
        scope=_of_purges(request.scope),
        asked_model=request.model,
    )


def _of_purges(scope: Scope) -> Scope:
    """The scope without what no purge names: most have none of it, and are kept as they are."""
    if not (scope.user or scope.permission or scope.session or scope.workflow or scope.cache or scope.purpose) and (
        not scope.priority
    ):
        return scope
    return structs.replace(scope, user="", permission="", session="", workflow="", cache="", purpose="", priority="")
