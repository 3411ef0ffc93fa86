"""Serves a request by the cheap model where that is likely to be as good, and by the one that was asked where not.

Before the call a predictor (a trained router, or a cheap model that grades the request) says what the strong model
would gain; a cascade reads the cheap model's answer as well, before anybody sees it. A conversation stays with its
model. It decides after the caches, whose keys therefore name how routing chooses (`identity`).
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from trimtab.levers.route import budgets, questions, thread
from trimtab.levers.route.cascade import Cascade, Case
from trimtab.levers.route.settings import CLASSIFIER, TAKEN_OUTPUT, Config, Facts, Means, cascades, router_file
from trimtab.levers.route.thread import Found
from trimtab.ports import Thread
from trimtab.protocols import conversation
from trimtab.protocols.conversation import Conversation
from trimtab.protocols.reuse import is_chat
from trimtab.types import (
    Aside,
    Attempt,
    AttemptRecord,
    Continue,
    Decision,
    Outcome,
    Plan,
    Purpose,
    Reply,
    Request,
    Slot,
    Target,
    Usage,
)

__all__ = ["CLASSIFIER", "Config", "Facts", "Means", "RouteByGain", "build", "in_use", "router_file"]

CHANGES_ANSWERS: Final = True
_NAME: Final = "route"
_VERSION: Final = "1"
_EASY: Final = 0.5  # of a classifier's five grades the middle one, without a budget


class Memo(msgspec.Struct, frozen=True):
    """From `decide` to `accept` and `learn`."""

    weak: Target
    strong: Target
    keys: tuple[bytes, ...]  # by which the conversation is known from now on
    prompt: str
    json: bool  # is demanded
    tokens: int  # about so many go in
    gain: float  # of the strong model, expected
    dialled: bool = False  # the budget's dial chose


class _Choice(NamedTuple):
    """`weak`: the cheap model serves, if `held` only after its answer was read."""

    weak: bool
    held: bool
    reason: str
    gain: float | None = None
    threshold: float | None = None
    dialled: bool = False


def in_use(settings: Config) -> bool:
    """Whether the lever may do anything under these settings."""
    return settings.mode != "off" and bool(settings.weak)


def build(facts: Facts, means: Means) -> RouteByGain:
    """The lever."""
    return RouteByGain(facts, means)


class RouteByGain:
    """The lever in slot ROUTE."""

    name = _NAME
    version = _VERSION
    slot = Slot.ROUTE
    fails_open = True
    changes_answers = CHANGES_ANSWERS

    def __init__(self, facts: Facts, means: Means) -> None:
        self._facts = facts
        self._means = means
        self._cascade = Cascade(facts, means)

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Choose the model. `score` is the strong model's expected gain; above `threshold` it is asked."""
        config = self._facts.settings(request.scope.route)
        if obstacle := _obstacle(request, plan, config):
            return _decided(obstacle)
        talk = conversation.read(request)
        if talk is None:
            return _decided("messages cannot be read")
        if obstacle := _unfit(talk, config):
            return _decided(obstacle)
        strong, weak = plan.attempts[0].target, self._facts.target(config.weak, request.dialect)
        found = thread.find(self._means.threads, request.scope, talk, weak)
        choice = await self._choose(request, config, talk, found, (weak, strong))
        gain = choice.gain if choice.gain is not None else found.thread.score if found is not None else 0.0
        memo = Memo(
            weak, strong, thread.keys(request.scope, talk), thread.prompt(talk), talk.json, talk.tokens, gain,
            choice.dialled,
        )  # fmt: skip
        unproven = "" if config.mode == "shadow" else self._facts.no_verdict(request.scope, strong.model)
        if config.mode == "shadow" or (unproven and config.gate == "required"):
            said = f"shadow ({unproven})" if config.mode == "on" else "shadow"
            would = f"{said}, would ask {(weak if choice.weak else strong).model}: {choice.reason}"
            return _decided(would, score=choice.gain, threshold=choice.threshold)
        words = choice.reason + ", gate advisory" * bool(unproven)
        self._note(memo, weak if choice.weak and not choice.held else strong)
        if not choice.weak:
            return _decided(f"{strong.model}: {words}", None, memo, choice.gain, choice.threshold)
        asides = self._cascade.beside(config, request, weak) if choice.held else None
        step, saving = Continue(request, _routed(plan, weak, asides)), self._saving(memo)
        return structs.replace(
            _decided(f"{weak.model}{' first' * choice.held}: {words}", step, memo, choice.gain, choice.threshold),
            saving_nusd=saving,
            saving_basis="" if saving is None else f"prices; {talk.tokens} tokens in, {TAKEN_OUTPUT} out taken",
        )

    async def accept(
        self, request: Request, decision: Decision, reply: Reply, beside: list[Reply | None]
    ) -> tuple[bool, Decision]:
        """Whether the weak model's answer may go out; the time that it was held back is in the reason."""
        config, memo = self._facts.settings(request.scope.route), decision.memo
        assert isinstance(memo, Memo)
        case = Case(request, config, memo.prompt, memo.json, memo.gain)
        verdict = await self._cascade.read(case, reply, beside)
        held_s = self._means.clock.mono() - request.start
        what = f"escalated after {held_s:.2f} s: {verdict.wrong}" if verdict.wrong else f"accepted after {held_s:.2f} s"
        gain = memo.gain if verdict.score is None else verdict.score
        self._note(memo, memo.strong if verdict.wrong else memo.weak)
        told = structs.replace(
            decision,
            reason=f"{decision.reason}; {what}",
            score=gain,
            threshold=decision.threshold if verdict.score is None else verdict.threshold,
            memo=structs.replace(memo, gain=gain, dialled=verdict.dialled),
        )
        return not verdict.wrong, told

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Remember who serves the conversation, and what was spent."""
        memo, record = decision.memo, outcome.record
        if not isinstance(memo, Memo) or not record.attempts:
            return
        last = record.attempts[-1]
        by_weak = _by_weak(decision, last)
        if record.status == 200:
            self._note(memo, memo.weak if by_weak else memo.strong, last.usage.input_total + last.usage.output_total)
        route = outcome.request.scope.route
        config = self._facts.settings(route)
        escalated = last.purpose == Purpose.CASCADE
        self._means.served(self._facts.table(route), "weak" if by_weak else "escalated" if escalated else "strong")
        dial = budgets.dial_of(route, config, self._facts, self._means)
        if dial is not None:
            if not memo.dialled:
                dial.passed(strong=not by_weak)
            served_by = budgets.Served(by_weak, memo.gain, memo.weak, memo.strong)
            budgets.spend(dial, config, record, self._facts, served_by)

    def identity(self, route: str) -> str:
        """What a cache's key must name: how the model of this route's answers is chosen now, "" if it is not."""
        config = self._facts.settings(route)
        if config.mode != "on" or not config.weak or self._facts.off(route):
            return ""
        named = [getattr(config, name) for name in config.__struct_fields__ if name not in ("gate", "verdict")]
        found = self._facts.head(config)
        router = "" if found is None else found[1]
        return " routed " + hashlib.sha256(msgspec.json.encode([*named, router])).hexdigest()[:16]

    async def _choose(
        self, request: Request, config: Config, talk: Conversation, found: Found | None, pair: tuple[Target, Target]
    ) -> _Choice:
        weak_now = found is not None and found.weak
        if why := thread.stays(talk, found, sticky=config.sticky == "session"):
            return _Choice(weak_now, False, why)
        choice = await self._by_gain(request, config, talk, found)
        if found is None or not talk.begun or choice.weak == weak_now:
            return choice
        if self._means.clock.wall() - found.thread.at > config.cache_life_s:
            return choice
        why = thread.too_warm(talk, found, pair if weak_now else (pair[1], pair[0]), self._facts.cost)
        return choice._replace(weak=weak_now, held=False, reason=f"{choice.reason}, but {why}") if why else choice

    async def _by_gain(self, request: Request, config: Config, talk: Conversation, found: Found | None) -> _Choice:
        """By the predictor, and the budget's dial or the router's own setting."""
        if found is not None and thread.leans(talk.text):
            gain, why = found.thread.score, f"gain {found.thread.score:+.2f} of its conversation"
        else:
            known = await self._gain(request, config, thread.prompt(talk))
            if known is None:
                return _Choice(False, False, "no grade" if config.predictor == CLASSIFIER else "no score in time")
            gain, far = known
            if far:
                return _Choice(False, False, "far from all that the router learned from", gain)
            why = f"gain {gain:+.2f}"
        router = self._facts.head(config)
        head = None if router is None else router[0]
        if cascades(config, head):
            if request.stream and not config.hold_streams:
                return _Choice(False, False, f"{why}, a stream is not held here", gain)
            skip = None if head is None else head.skip
            hopeless = skip is not None and gain > skip
            return _Choice(not hopeless, not hopeless, why + ", hopeless" * hopeless, gain, skip)
        dial = budgets.dial_of(request.scope.route, config, self._facts, self._means)
        if dial is not None:
            threshold = dial.threshold
            return _Choice(not dial.choose(gain), False, why, gain, threshold, dialled=True)
        if head is None:
            return _Choice(gain <= _EASY, False, why, gain, _EASY)
        if head.kind in ("always weak", "always strong"):
            return _Choice(head.kind == "always weak", False, head.reason, gain)
        return _Choice(head.skip is not None and gain <= head.skip, False, why, gain, head.skip)

    async def _gain(self, request: Request, config: Config, prompt: str) -> tuple[float, bool] | None:
        if config.predictor != CLASSIFIER:
            return await self._means.gains.gain(self._facts.path(config), prompt, config.timeout_ms / 1000)
        model, timeout_s = config.classifier_model, config.classifier_timeout_ms / 1000
        fields = questions.complexity_fields(prompt, model)
        level = questions.complexity_in(await self._cascade.ask(request, model, fields, timeout_s))
        return None if level is None else ((level - 1) / (questions.LEVELS - 1), False)

    def _note(self, memo: Memo, served: Target, tokens: int = 0) -> None:
        """Who serves the conversation: noted before the answer is out, for its next request may be quick."""
        now = self._means.clock.wall()
        for key in memo.keys:
            self._means.threads.keep(key, Thread(thread.number(served.model), memo.gain, tokens or memo.tokens, now))

    def _saving(self, memo: Memo) -> int | None:
        usage = Usage(input=memo.tokens, output=TAKEN_OUTPUT)
        weak, strong = self._facts.cost(memo.weak, usage), self._facts.cost(memo.strong, usage)
        return None if weak is None or strong is None else strong - weak


def _obstacle(request: Request, plan: Plan, config: Config) -> str:
    """Why the request is not routed, whatever it says; "" if it may be."""
    if config.mode == "off" or not config.weak:
        return "off for this route"
    if not is_chat(request.path):
        return "not a chat request"
    if not plan.attempts:
        return "no target"
    if plan.pinned:
        return f"the model is pinned by the rule {plan.pinned}"
    asked = plan.attempts[0].target.model
    if asked == config.weak:
        return "asked for the weak model itself"
    return f"{asked} is not routed here" if config.strong and asked != config.strong else ""


def _unfit(talk: Conversation, config: Config) -> str:
    """Why nobody can say how hard the request is; "" if somebody can."""
    if talk.tools and config.tools == "strong":
        return "offers tools"
    if talk.kinds:
        return f"carries {', '.join(sorted(talk.kinds))}"
    return "" if talk.text or talk.earlier else "no user turn"


def _routed(plan: Plan, weak: Target, beside: tuple[Aside, ...] | None) -> Plan:
    """The weak model, then the plan as it was; `beside` not None: its answer is held."""
    first = plan.attempts[0]
    own = [structs.replace(one, target=weak) for one in plan.attempts if one.target == first.target]
    rest: list[Attempt] = list(plan.attempts)
    if beside is None:
        rest = [structs.replace(one, purpose=Purpose.FALLBACK) for one in rest]
    else:
        own = [structs.replace(own[0], held=True, beside=beside)]  # one try: what follows is better, not worse
        rest[0] = structs.replace(first, purpose=Purpose.CASCADE)
    return structs.replace(plan, attempts=(*own, *rest))


def _by_weak(decision: Decision, last: AttemptRecord) -> bool:
    """Whether the weak model gave the answer: what follows its attempts has another purpose, or follows a held one."""
    step = decision.step
    if not isinstance(step, Continue):
        return False
    first = (Purpose.SERVE,) if step.plan.attempts[0].held else (Purpose.SERVE, Purpose.RETRY)
    return last.purpose in first


def _decided(
    reason: str,
    step: Continue | None = None,
    memo: Memo | None = None,
    score: float | None = None,
    threshold: float | None = None,
) -> Decision:
    return Decision(
        _NAME, _VERSION, Slot.ROUTE, step, reason, score, threshold, wants_record=memo is not None, memo=memo
    )
