"""Answers a question from an earlier one that means the same, as long as few enough such answers are wrong.

The lever reads the request (`question.py`), asks the process that keeps the answers (`trimtab.similar`), and sends it
fresh answers to learn from: those of misses, and those of audits, which the model gives to a share of the hits after
the client has its answer. `docs/levers/semantic-cache.md` says what is promised and what it costs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from trimtab.levers.semantic_cache.question import Question, Rules, question_of, shares_users
from trimtab.ports import AskAside, AskJudge, Clock, SimilarAnswers
from trimtab.protocols.reuse import Whole, answered, stored_of
from trimtab.types import (
    Answer,
    Asked,
    Decision,
    Outcome,
    PersonNames,
    Plan,
    Purpose,
    Request,
    ReuseTerms,
    Scope,
    Slot,
    Target,
)  # fmt: skip

CHANGES_ANSWERS: Final = True
_NAME: Final = "semantic_cache"
_VERSION: Final = "1"

Share = Annotated[float, msgspec.Meta(gt=0, lt=1, description="a share above 0 and below 1")]
AuditShare = Annotated[float, msgspec.Meta(ge=0, le=1, description="a share from 0 to 1")]
Cosine = Annotated[float, msgspec.Meta(ge=-1, le=1, description="a cosine from -1 to 1")]
Ttl = Annotated[
    float, msgspec.Meta(gt=0, le=31_536_000, description="a number of seconds above 0, up to 31536000 (a year)")
]
Entries = Annotated[int, msgspec.Meta(ge=16, le=1_000_000, description="a whole number from 16 to 1000000")]
Milliseconds = Annotated[
    float, msgspec.Meta(gt=0, le=10_000, description="a number of milliseconds, more than 0 and at most 10000")
]
Mode = Literal["off", "shadow", "static", "promise"]
Embedder = Literal["accurate", "fast"]


class Config(Rules, frozen=True):
    """Settings, `Rules` included; all may differ by route. What a tenant's route has learned is its own."""

    mode: Mode = "off"
    tenant_modes: dict[str, Mode] = msgspec.field(default_factory=dict)  # for tenants that differ
    max_wrong_share: Share = 0.02  # of reused answers
    audit_share: AuditShare = 0.05  # of reused answers that the model gives as well, for a verdict
    strict: bool = False  # open on a proof only
    threshold: Cosine = 0.85  # mode "static"
    embedder: Embedder = "accurate"  # "fast" takes under a millisecond and finds less
    ttl_s: Ttl = 86_400.0
    max_entries: Entries = 20_000  # of each context
    person_names: PersonNames = "context"  # which of them in an answer identify somebody
    timeout_ms: Milliseconds = 100.0  # how long a request waits for a look-up
    judge_model: str = ""  # is asked where it cannot be read from two answers whether they are equivalent
    judge_share: AuditShare = 1.0  # of those pairs
    gate: Literal["required", "advisory"] = "required"  # whether "static" takes a verdict to answer
    verdict: str = ""  # the file that `trimtab gate` wrote


def in_use(settings: Config) -> bool:
    """Whether the lever may do anything under these settings."""
    return {settings.mode, *settings.tenant_modes.values()} != {"off"}


class Memo(msgspec.Struct, frozen=True):
    """From `decide` to `learn`."""

    token: int
    target: Target
    plan: Plan
    ttl_s: float
    private: bool  # the context is one user's own: an answer that identifies somebody reaches nobody else
    question: str


class Facts(NamedTuple):
    """What the lever asks about engines and answers; each as the exact cache's `build` takes it."""

    whole: Whole
    identity: Callable[[str], str]
    identifies: Callable[[bytes, PersonNames], str]
    no_verdict: Callable[[Scope, str], str]  # why none covers the settings for this scope and model, "" if one does


class Calls(NamedTuple):
    """How the lever asks models."""

    shadow: AskAside
    judge: AskJudge
    audited: Callable[[Request, str, bool | None], None]  # told the verdict of an audit, with the lever's name


def build(
    settings: Callable[[str], Config], answers: SimilarAnswers, clock: Clock, facts: Facts, calls: Calls
) -> SemanticCache:
    """The lever. `settings` gives a route's."""
    return SemanticCache(settings, answers, clock, facts, calls)


class SemanticCache:
    """The lever in slot REUSE_SIMILAR."""

    name = _NAME
    version = _VERSION
    slot = Slot.REUSE_SIMILAR
    fails_open = True
    changes_answers = CHANGES_ANSWERS

    def __init__(
        self,
        settings: Callable[[str], Config],
        answers: SimilarAnswers,
        clock: Clock,
        facts: Facts,
        calls: Calls,
    ) -> None:
        self._settings = settings
        self._answers = answers
        self._clock = clock
        self._facts = facts
        self._calls = calls

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Answer from an earlier question, or say why not."""
        scope = request.scope
        config = self._settings(scope.route)
        mode = config.tenant_modes.get(scope.tenant, config.mode)
        if mode == "off":
            return _go_on("off for this route" if config.mode == "off" else "off for this tenant")
        if not plan.attempts:
            return _go_on("no target")
        target = plan.attempts[0].target
        question = question_of(request, target, self._facts.identity(target.engine), config)
        if not isinstance(question, Question):
            return _go_on(question)
        held = self._facts.no_verdict(scope, target.model) if mode == "static" else ""
        found = await self._answers.look(
            Asked(scope.tenant, scope.route, question.context, question.text),
            ReuseTerms(
                mode,
                config.max_wrong_share,
                config.audit_share,
                config.strict,
                config.threshold,
                config.max_entries,
                config.embedder,
            ),
            config.timeout_ms / 1000,
        )
        if found is None:
            return _go_on(f"no answer from the cache within {config.timeout_ms:g} ms")
        own = bool(scope.user) and not shares_users(request, config)
        memo = Memo(found.token, target, plan, config.ttl_s, own, question.text)
        stored, why = found.stored, found.why
        if stored is None:
            return _go_on(why, memo, found.p_wrong, found.limit)
        age_s = self._clock.wall() - stored.created
        if mode == "shadow" or (held and config.gate == "required"):
            said = f"shadow ({held})" if held else "shadow"
            return _go_on(f"{said}, would answer: {why}", memo, found.p_wrong, found.limit)
        if scope.cache == "refresh" or age_s >= config.ttl_s:
            return _go_on("client asked cache refresh" if scope.cache == "refresh" else "older than ttl_s", memo)
        return Decision(
            lever=_NAME,
            version=_VERSION,
            slot=Slot.REUSE_SIMILAR,
            step=Answer(stored),
            reason=f"{why}, age {max(0.0, age_s):.0f} s{', audited' * found.audit}{', gate advisory' * bool(held)}",
            score=found.p_wrong,
            threshold=found.limit,
            saving_basis="stored usage",
            wants_reply=found.audit,
            memo=memo,
        )

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Tell the process what the model answers: of a miss, or, by a call of our own, of a hit that is audited."""
        memo, reply, request = decision.memo, outcome.reply, outcome.request
        if not isinstance(memo, Memo):
            return
        if isinstance(decision.step, Answer):
            reply = await self._calls.shadow(request, memo.plan, Purpose.SHADOW)
        elif not answered(outcome.record):
            return
        if reply is None or reply.target != memo.target:
            return
        if not self._facts.whole(request.dialect, reply.finish, request.fields):
            return
        config = self._settings(request.scope.route)
        found = "" if memo.private else await asyncio.to_thread(self._facts.identifies, reply.body, config.person_names)
        if found:
            return
        judge = None
        if config.judge_model and random.random() < config.judge_share:
            judge = partial(self._calls.judge, request, config.judge_model, memo.question)
        heard = None
        if isinstance(decision.step, Answer):
            heard = partial(self._calls.audited, request, _NAME)
        self._answers.learn(memo.token, stored_of(request, reply, memo.ttl_s), judge, heard)


def _go_on(
    reason: str, memo: Memo | None = None, score: float | None = None, threshold: float | None = None
) -> Decision:
    return Decision(
        lever=_NAME,
        version=_VERSION,
        slot=Slot.REUSE_SIMILAR,
        step=None,
        reason=reason,
        score=score,
        threshold=threshold,
        wants_reply=memo is not None,
        memo=memo,
    )
