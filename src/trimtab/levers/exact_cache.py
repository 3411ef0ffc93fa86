"""Answers a request from an earlier, identical one.

The key is a hash over everything that can change the answer; a field that a provider invents tomorrow is in it too.
Left out on purpose, because they cannot change the answer: the fields `stream` and `stream_options` (a hit is replayed
in the form that is asked for), the scope's `session` and `workflow` (names for the ledger), those headers that only
describe the client (`Request.variant` holds the others), and the client's secret (the tenant stands for it).

A request with an Idempotency-Key is another matter: sent again with the same key it is the same request, so it gets the
same answer, whatever its temperature; the key is in the hash.

Used only where the same question has the same answer: a temperature of at most 0.1, or a route that says
`any_temperature`. Kept only if it is whole: ended ok, status 200, the model's own stop, and made by the very target
that the key names. `docs/levers/exact-cache.md` says what that costs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec

from trimtab.ports import AnswerStore, Clock
from trimtab.protocols.reuse import (
    NOT_IN_KEY,
    Whole,
    answered,
    as_planned,
    circumstances,
    is_chat,
    side_obstacle,
    stored_of,
    temperature_obstacle,
)
from trimtab.types import Answer, Decision, Outcome, PersonNames, Plan, Request, Slot, Target

CHANGES_ANSWERS: Final = False  # an identical request may have this very answer
KEY_FORMAT: Final = 1  # raise it whenever the meaning or the order of what is hashed changes
_NAME: Final = "exact_cache"
_VERSION: Final = "1"
_INLINE_BYTES: Final = 6144  # of an answer that is searched at once, in less than a millisecond; others in a thread

_ENCODE: Final = msgspec.msgpack.Encoder().encode


Ttl = Annotated[
    float, msgspec.Meta(gt=0, le=31_536_000, description="a number of seconds above 0, up to 31536000 (a year)")
]
Entries = Annotated[int, msgspec.Meta(ge=0, le=10_000_000, description="a whole number from 0 to 10000000")]
MemoryBytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 40, description="a whole number of bytes from 0")]
FileBytes = Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 44, description="a whole number of bytes from 1048576")]


Milliseconds = Annotated[
    float, msgspec.Meta(gt=0, le=1000, description="a number of milliseconds, more than 0 and at most 1000")
]


PER_ROUTE: Final = ("enabled", "ttl_s", "any_temperature", "share_users", "person_names", "coalesce")


class Config(msgspec.Struct, frozen=True):
    """Settings; those in `PER_ROUTE` may differ by route, the others belong to the one store and its start."""

    enabled: bool = True
    ttl_s: Ttl = 86_400.0
    max_entries: Entries = 10_000  # of each worker's memory
    max_memory_bytes: MemoryBytes = 32 << 20  # of each worker's memory
    max_bytes: FileBytes = 1 << 30  # of the file that all workers share; takes effect at a restart
    any_temperature: bool = False
    share_users: bool = False
    person_names: PersonNames = "context"  # which of them in an answer keep it from other users
    coalesce: bool = True  # identical requests in flight in one worker share an upstream call
    store: Literal["lmdb", "memory", "valkey"] = "lmdb"  # takes effect at a restart, as the three below
    url: str = ""  # of a Valkey or Redis server without a password
    url_env: str = ""  # the variable with the URL of one that has a password
    timeout_ms: Milliseconds = 20.0  # how long a request waits for that server


class Memo(msgspec.Struct, frozen=True, gc=False):
    """From `decide` to `learn`: under which key the answer goes, whose answer it must be, how long it lives.

    `own_key` is there if users share the key: where an answer goes that identifies somebody.
    """

    key: bytes
    target: Target
    ttl_s: float
    own_key: bytes = b""


def _unnamed(engine: str, route: str) -> str:
    return ""


def _identity_in(body: bytes, names: PersonNames) -> str:
    from trimtab.redact import identity_in  # its patterns take a moment, and few gateways share

    return identity_in(body, names)


def build(
    settings: Callable[[str], Config],
    store: AnswerStore,
    clock: Clock,
    whole: Whole,
    identity: Callable[[str, str], str] = _unnamed,
    identifies: Callable[[bytes, PersonNames], str] = _identity_in,
) -> ExactCache:
    """The lever. `settings` gives a route's; `whole` is the codec's `finish_is_whole`.

    `identity` says what is behind an engine's name (its URL, its weights) on a route, so that an engine that is pointed
    elsewhere, or a route that chooses models otherwise, does not answer with what the former one said. `identifies`
    says what identifies somebody in an answer, and which names do, "" if nothing: such an answer is never shared by
    users.
    """
    return ExactCache(settings, store, clock, whole, identity, identifies)


class ExactCache:
    """The lever in slot REUSE_EXACT."""

    name = _NAME
    version = _VERSION
    slot = Slot.REUSE_EXACT
    fails_open = True
    changes_answers = CHANGES_ANSWERS

    def __init__(
        self,
        settings: Callable[[str], Config],
        store: AnswerStore,
        clock: Clock,
        whole: Whole,
        identity: Callable[[str, str], str] = _unnamed,
        identifies: Callable[[bytes, PersonNames], str] = _identity_in,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._whole = whole
        self._identity = identity
        self._identifies = identifies
        self._warm: set[PersonNames] = set()  # the first search of a kind loads what it needs

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Answer from the store, or say why not; asks for the reply where it may be kept."""
        config = self._settings(request.scope.route)
        obstacle = _obstacle(request, plan, config)
        if obstacle:
            return _go_on(obstacle)
        target = plan.attempts[0].target
        share = _shared_by(request, config) if config.share_users or request.scope.cache == "public" else ""
        key = cache_key(request, target, self._identity(target.engine, request.scope.route), share_users=bool(share))
        memo = Memo(key, target, config.ttl_s, own_key(key, request.scope.user) if share else b"")
        if request.scope.cache == "refresh":
            return _go_on("client asked cache refresh", memo, share=config.coalesce)
        stored = await self._store.get(key)
        terms = f"; shared unless PII: {share}" if share else ""
        if share and stored is not None and stored.private:  # what is kept there says so, and is no answer
            terms = f"; not shared: {stored.private} in an answer"
            stored = await self._store.get(memo.own_key)
        if stored is None:
            return _go_on(f"miss{terms}", memo, share=config.coalesce)
        age_s = self._clock.wall() - stored.created
        if age_s >= config.ttl_s:  # the setting was lowered since
            return _go_on(f"stored answer is {age_s:.0f} s old, above ttl_s", memo, share=config.coalesce)
        return Decision(
            lever=_NAME,
            version=_VERSION,
            slot=Slot.REUSE_EXACT,
            step=Answer(stored),
            reason=f"hit age {max(0.0, age_s):.0f} s{terms}",
            saving_basis="stored usage",  # the ledger prices the usage in the step
        )

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Keep a whole answer of the target that the key names, or of the one that routing chose in its place."""
        memo, reply, request = decision.memo, outcome.reply, outcome.request
        if not isinstance(memo, Memo) or reply is None or not answered(outcome.record):
            return
        right = as_planned(outcome.record, reply, memo.target) and self._whole(
            request.dialect, reply.finish, request.fields
        )
        if not right and not request.idempotency:
            return
        stored = stored_of(request, reply, memo.ttl_s)
        found = await self._identity_of(reply.body, request.scope.route) if memo.own_key else ""
        if not found:
            self._store.put(memo.key, stored)
            return
        stored = msgspec.structs.replace(stored, private=found)
        if request.scope.user:  # without a name it is nobody's own
            self._store.put(memo.own_key, stored)
        self._store.put(memo.key, msgspec.structs.replace(stored, body=b""))

    async def _identity_of(self, body: bytes, route: str) -> str:
        names = self._settings(route).person_names
        if len(body) <= _INLINE_BYTES and names in self._warm:
            return self._identifies(body, names)
        found = await asyncio.to_thread(self._identifies, body, names)
        self._warm.add(names)
        return found


def cache_key(request: Request, target: Target, identity: str = "", *, share_users: bool) -> bytes:
    """SHA-256 over a msgpack array of all that can change the answer; values by their exact bytes.

    msgpack prefixes every item with its type and length, so two different requests never encode alike. Raises
    UnicodeEncodeError for text that is not Unicode.
    """
    return hashlib.sha256(
        _ENCODE(
            (
                KEY_FORMAT,
                *circumstances(request, target, identity, NOT_IN_KEY, share_users=share_users),
                *([request.idempotency] if request.idempotency else ()),
            )
        )
    ).digest()


def own_key(shared_key: bytes, user: str) -> bytes:
    """Where the answer of one user goes, to a question whose answers users share."""
    return hashlib.sha256(shared_key + user.encode()).digest()


def _shared_by(request: Request, config: Config) -> str:
    """Who wants users to share the answer, "" if nobody; a request that is sent again is always its sender's own."""
    if request.idempotency:
        return ""
    if request.scope.cache == "public":
        return "client asked public"
    return "share_users" if config.share_users else ""


def _obstacle(request: Request, plan: Plan, config: Config) -> str:
    """Why the lever neither reads nor writes, "" if it does."""
    if not config.enabled:
        return "off for this route"
    if not is_chat(request.path):
        return "not a chat request"
    if request.scope.cache == "off":
        return "client asked cache off"
    if not plan.attempts:
        return "no target"
    fields = request.fields
    if request.idempotency:  # the same request again: whatever it is, its answer is the one that was given
        return ""
    if not config.any_temperature and (obstacle := temperature_obstacle(fields)):
        return obstacle
    return side_obstacle(fields)


def _go_on(reason: str, memo: Memo | None = None, *, share: bool = False) -> Decision:
    return Decision(
        lever=_NAME,
        version=_VERSION,
        slot=Slot.REUSE_EXACT,
        step=None,
        reason=reason,
        wants_reply=memo is not None,
        # The call's own user's: what it will say of whom is not known while it is in flight.
        share_key=(memo.own_key or memo.key) if memo is not None and share else b"",
        memo=memo,
    )
