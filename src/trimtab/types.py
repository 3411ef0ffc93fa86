"""The nouns of Trimtab: frozen values that every module shares, and nothing that does I/O.

A request's life, in these names: a `Request` (with its `Scope`) passes the levers in `Slot` order, each returns a
`Decision`; what is left is a `Plan` of `Attempt`s, each sent to a `Target`; what happened is a `Record` (one journal
line), which the ledger prices. Durations are seconds, money is integer nano-USD, tokens are counts. Those that hold
nothing but values cannot form cycles: `gc=False` spares the collector the look.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Literal

import msgspec

from trimtab.errors import TrimtabError


class Dialect(StrEnum):
    """The wire dialect of a client or of an engine."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Slot(IntEnum):
    """Where in the straight line a lever decides; lower runs first."""

    ADMIT = 10
    REUSE_EXACT = 20
    REUSE_SIMILAR = 30
    PACK = 40
    SHRINK = 50
    ROUTE = 60
    PLACE = 70
    BOUND = 80


class Purpose(StrEnum):
    """Why tokens were spent: the second axis of the ledger beside their type."""

    SERVE = "serve"
    RETRY = "retry"
    FALLBACK = "fallback"
    HEDGE = "hedge"
    CASCADE = "cascade"
    TOOL_CALL = "tool_call"
    SHADOW = "shadow"
    JUDGE = "judge"
    EVAL = "eval"


class End(StrEnum):
    """How a request or an attempt ended."""

    OK = "ok"  # answered whole
    REFUSED = "refused"  # we said no before any upstream call (bad input, limit, unknown model)
    ERROR = "error"  # the upstream answered with an error, could not be reached or broke its protocol
    TIMEOUT = "timeout"  # one of our deadlines passed
    CANCELLED = "cancelled"  # the client left
    CUT = "cut"  # the upstream ended a stream before its end mark
    INTERRUPTED = "interrupted"  # the gateway died with the call in flight; figures are estimates


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens by class; the classes are disjoint, so their sum counts no token twice.

    `input` excludes cache reads, cache writes and audio; `output` excludes reasoning and audio.
    """

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0

    @property
    def input_total(self) -> int:
        """All tokens that went in, cached ones included."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h + self.input_audio

    @property
    def output_total(self) -> int:
        """All tokens that came out, reasoning included."""
        return self.output + self.reasoning + self.output_audio

    @property
    def total(self) -> int:
        """Every token, each counted once."""
        return self.input_total + self.output_total


NO_USAGE = Usage()


class Scope(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Who asks, for what, under which versions.

    All is in every cache key, but session, workflow, cache, purpose and priority.
    """

    tenant: str
    route: str = "default"
    user: str = ""
    permission: str = ""
    session: str = ""
    workflow: str = ""
    prompt_version: str = ""
    corpus_version: str = ""
    policy_version: str = ""
    cache: str = ""  # "", "off", "refresh" or "public": what the client asks of the caches
    purpose: str = ""  # "eval" of a client, "shadow" or "judge" of ours: on nobody's bill. "" is serving
    priority: str = ""  # "batch" where no user waits


class Request(msgspec.Struct, frozen=True, gc=False):
    """One call as the client made it, our own metadata and headers removed.

    `fields` maps each top-level JSON field to its bytes exactly as received (the last one where a key came twice):
    what is hashed is what is sent. `headers` holds those that go upstream, names in lower case.
    """

    id: str
    dialect: Dialect
    path: str
    scope: Scope
    model: str
    fields: dict[str, msgspec.Raw]
    stream: bool
    wants_usage: bool
    body_bytes: int
    at: float  # unix seconds
    start: float  # monotonic seconds
    client_key: str = ""  # the secret that the client sent; never stored
    headers: tuple[tuple[bytes, bytes], ...] = ()
    variant: bytes = (
        b""  # those of `headers` that may change the answer (API version, betas, organisation), for cache keys
    )
    trace: str = ""  # the client's W3C trace context (see `trace_context`)
    idempotency: str = ""  # the client's name for this very request, the same when it tries again


class Target(msgspec.Struct, frozen=True, gc=False):
    """A model behind an engine: `model` is the name that we expose, `upstream_model` the one that the engine knows."""

    model: str
    engine: str
    upstream_model: str
    provider: str = ""  # genai-prices provider id, "" when it must be guessed from the model's name


class Timeouts(msgspec.Struct, frozen=True, gc=False):
    """Deadlines of one attempt, in seconds.

    `first_token_s` and `idle_s` are for streams: from the send to the first token, and between two pieces after it.
    """

    connect_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 600.0


DEFAULT_TIMEOUTS = Timeouts()


class Aside(msgspec.Struct, frozen=True, gc=False):
    """A call that only helps to judge an answer; `fields` stand in place of the request's own of the same name."""

    target: Target
    fields: dict[str, msgspec.Raw] = {}
    timeouts: Timeouts = DEFAULT_TIMEOUTS


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One planned upstream call. It is made only if those before it failed in a way that it may mend.

    A `held` one's answer is kept back until the lever that planned it has read it; if it is not good enough the next
    attempt follows. Those `beside` it are asked at the same time.
    """

    target: Target
    purpose: Purpose = Purpose.SERVE
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    backoff_s: float = 0.0  # waited before it, longer if the failed one's Retry-After says so
    held: bool = False
    beside: tuple[Aside, ...] = ()


class Plan(msgspec.Struct, frozen=True, gc=False):
    """Attempts in order. Retry, fallback and cascade are plans: [A, A again, B]."""

    attempts: tuple[Attempt, ...]
    retry_after_max_s: float = 20.0  # a longer Retry-After skips the target's other attempts
    pinned: str = ""  # why no lever may choose another model, "" if it may


PersonNames = Literal["off", "context", "any"]
"""Which names of persons make an answer its user's own: none, those told of as private persons, or all."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An answer that a cache holds: the buffered reply body in the client's dialect, and what it cost to make."""

    dialect: Dialect
    body: bytes
    model: str  # as the reply names it
    target: Target
    usage: Usage
    request_id: str  # of the request that paid for it
    created: float  # unix seconds
    expires: float  # unix seconds
    machine_s: float = 0.0  # the engine's busy seconds that it took
    scope: Scope | None = None  # whose it is, under which versions, so that it can be purged by them; user left out
    asked_model: str = ""  # as the client named it
    private: str = ""  # what identifies somebody in it, such as "EMAIL"; without a body, it says so of others


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A question that may have been asked before in other words; only those of one `context` (32 bytes) ever meet."""

    tenant: str
    route: str
    context: bytes
    text: str


class ReuseTerms(msgspec.Struct, frozen=True, gc=False):
    """On which terms answers to similar questions are reused: `levers.semantic_cache.Config` says what each means."""

    mode: str
    max_wrong: float
    audit: float
    strict: bool
    threshold: float
    max_entries: int
    embedder: str


class Similar(msgspec.Struct, frozen=True, gc=False):
    """What is known of a question: `stored` may answer it.

    `token` names the question when its fresh answer comes; `p_wrong` is the estimated chance that the reuse is wrong
    (None while nothing is known), `limit` what it may be (-1: closed), `why` both in words; with `audit` the model is
    asked all the same.
    """

    token: int
    audit: bool
    p_wrong: float | None
    limit: float
    why: str
    stored: Stored | None = None


class Embedded(msgspec.Struct, frozen=True, gc=False):
    """Texts as unit vectors: float32, little-endian, one after the other; `tokens` is what was read of the texts."""

    vectors: bytes
    tokens: int


class Selector(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Which stored answers a purge means: those for which everything holds that is not None; none given means all."""

    tenant: str | None = None
    route: str | None = None
    model: str | None = None  # as the client, the configuration, the engine or the reply names it
    prompt_version: str | None = None
    corpus_version: str | None = None
    policy_version: str | None = None
    request: str | None = None  # the id of the request that paid for the answer

    def matches(self, stored: Any) -> bool:
        """Whether the purge means a `Stored` (or what names the same). One that lacks its scope is taken to match."""
        if self.request not in (None, stored.request_id):
            return False
        target = stored.target
        names = (None, stored.asked_model, stored.model, target.model, target.upstream_model)
        if self.model not in names:
            return False
        scope = stored.scope
        return scope is None or (
            self.tenant in (None, scope.tenant)
            and self.route in (None, scope.route)
            and self.prompt_version in (None, scope.prompt_version)
            and self.corpus_version in (None, scope.corpus_version)
            and self.policy_version in (None, scope.policy_version)
        )


EVERYTHING = Selector()


class Continue(msgspec.Struct, frozen=True):
    """Go on, with this request and plan in place of the former."""

    request: Request
    plan: Plan


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Answer from `stored`; no upstream call."""

    stored: Stored


class Join(msgspec.Struct, frozen=True, gc=False):
    """Answered by the upstream call that another request, in flight, is making."""

    request_id: str


class Refuse(msgspec.Struct, frozen=True):
    """Refuse with `error`; no upstream call."""

    error: TrimtabError


Step = Continue | Answer | Join | Refuse


class Decision(msgspec.Struct, frozen=True):
    """What one lever decided about one request, as a value that can be stored, shown and replayed.

    `step` None means: go on unchanged. `memo` is the lever's own note from `decide` to `learn` and is never stored.
    """

    lever: str
    version: str
    slot: Slot
    step: Step | None
    reason: str
    score: float | None = None
    threshold: float | None = None
    saving_nusd: int | None = None  # predicted
    saving_basis: str = ""
    wants_reply: bool = False  # keep the reply for `learn`
    wants_record: bool = False  # `learn` wants to know how it went, without the reply
    share_key: bytes = b""  # requests with the same one may share an upstream call
    memo: Any = None


class DecisionRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A decision as the ledger stores it."""

    lever: str
    version: str
    slot: str
    step: str  # "continue", "change", "answer", "refuse", "failed"
    reason: str
    score: float | None = None
    threshold: float | None = None
    saving_nusd: int | None = None
    saving_basis: str = ""
    took_s: float = 0.0


class EngineWork(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What an engine says of its own work on one call; None where it says nothing."""

    prefill_s: float | None = None  # reading the prompt, as far as it was not cached
    decode_s: float | None = None  # writing the answer
    drafted_tokens: int | None = None  # guessed by speculation, and how many of them were right
    accepted_tokens: int | None = None


NO_WORK = EngineWork()


class AttemptRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One upstream call as it went. Times are seconds after the request's arrival."""

    n: int
    purpose: str
    engine: str
    model: str  # the name sent upstream
    provider: str
    end: str
    start_s: float
    end_s: float
    first_token_s: float | None = None
    status: int = 0  # the upstream's, 0 when it never answered
    error: str = ""
    response_model: str = ""
    finish: str = ""
    usage: Usage = NO_USAGE
    usage_source: str = "none"  # "reported", "estimated" or "none"
    upstream_id: str = ""  # the provider's own request id
    machine_s: float = 0.0  # its share of the engine's busy seconds, for hardware priced by the hour
    queue_s: float | None = None  # waited for a place at the engine before `start_s`; None where no queue is
    work: EngineWork = NO_WORK


class Intent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="intent", tag_field="k"):
    """Written before an upstream call. One without its `Record` becomes an `interrupted` row with an estimate."""

    id: str
    n: int
    at: float
    purpose: str
    engine: str
    model: str
    provider: str
    client_model: str
    dialect: str
    path: str
    stream: bool
    scope: Scope
    input_estimate: int  # tokens


CACHED = ("hit", "semantic")
"""The cache words of requests that got a stored answer."""


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="row", tag_field="k"):
    """One request, settled: the journal's line and the ledger's source. It holds no prompt and no answer."""

    id: str
    at: float
    scope: Scope
    dialect: str
    path: str
    model: str  # as the client named it
    stream: bool
    end: str
    status: int  # sent to the client, 0 when it left first
    total_s: float
    ttft_s: float | None = None  # arrival to first non-empty token, as the client saw it
    chunks: int = 0
    error: str = ""
    # What the response header said: "", "hit", "semantic", "miss", "coalesced", "off", "refresh", "bypass".
    cache: str = ""
    stages: dict[str, float] = {}
    app_stages: dict[str, float] = {}  # the application's own, before the request came
    decisions: tuple[DecisionRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    baseline_usage: Usage = NO_USAGE  # tokens the request would have had without the levers
    baseline_model: str = ""  # upstream name
    baseline_provider: str = ""
    baseline_engine: str = ""
    baseline_machine_s: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    trace: str = ""


class Stages(msgspec.Struct, frozen=True, gc=False, tag="stages", tag_field="k"):
    """What the application did with an answer after it had it (validation, a tool's run): seconds by stage."""

    id: str  # the request's
    tenant: str  # who says so; it counts for a request of the same tenant
    at: float
    stages: dict[str, float]


class Judged(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="judged", tag_field="k"):
    """An answer that a lever changed, compared with the reference's. It holds neither."""

    id: str  # the request's
    tenant: str
    route: str  # the table that its settings are in
    lever: str
    model: str  # that the lever sent it to, "" if it changed something else
    margin: float  # the loss that is allowed
    loss: float | None  # 1 worse, 0 as good, -1 better than the reference; None if nobody could tell
    judge: str  # who said so, "" if nobody could
    at: float  # when the request came


class Switched(msgspec.Struct, frozen=True, gc=False, tag="switch", tag_field="k"):
    """A person switched a lever on a route."""

    route: str
    lever: str
    on: bool
    by: str
    reason: str
    at: float


class Feedback(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="feedback", tag_field="k"):
    """What a user thought of an answer: 0 bad, 1 good."""

    id: str  # the request's
    tenant: str  # who says so; it counts for a request of the same tenant
    at: float
    score: float
    comment: str = ""


Note = Stages | Judged | Switched | Feedback
"""What is said of requests and levers beside their rows."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole answer in the client's dialect, for a lever's `learn`; streams are assembled into their buffered form."""

    body: bytes
    model: str
    usage: Usage
    finish: str  # the dialect's own stop reason
    target: Target
    machine_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True):
    """What `learn` sees after the request was settled."""

    request: Request
    record: Record
    reply: Reply | None
