"""Reads a cheap model's answer before anybody else does: may it go out, or is the strong model asked?"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from trimtab.levers.route import budgets, checks, questions
from trimtab.levers.route.settings import CLASSIFIER, Config, Facts, Means
from trimtab.ports import Answered
from trimtab.protocols import answer_text, aside
from trimtab.types import Aside, Dialect, Reply, Request, Target, Timeouts

_VERIFIER_S: Final = 30.0
_SAMPLED: Final = {"temperature": msgspec.Raw(b"0.7")}


class Verdict(NamedTuple):
    """`wrong` says why the answer may not go out, "" if it may; by the dial or not."""

    wrong: str
    score: float | None = None  # the strong model's expected gain over the answer
    threshold: float | None = None
    dialled: bool = False


class Case(NamedTuple):
    """A request whose answer is read: what it asks, whether as JSON, and the gain that was expected before."""

    request: Request
    config: Config
    prompt: str
    json: bool
    gain: float


class Cascade:
    """Asks, and reads what was answered."""

    def __init__(self, facts: Facts, means: Means) -> None:
        self._facts = facts
        self._means = means

    def beside(self, config: Config, request: Request, weak: Target) -> tuple[Aside, ...]:
        """Who is asked at the same time as the weak model: the second one, then the weak one again."""
        second = [Aside(self._facts.target(config.second, request.dialect))] if config.second else []
        return (*second, *[Aside(weak, _SAMPLED)] * config.samples)

    async def ask(self, request: Request, model: str, fields: dict[str, Any], timeout_s: float) -> str | None:
        """What a model says to a question of ours; None if it does not answer in time."""
        limits = Timeouts(connect_s=min(5.0, timeout_s), first_token_s=timeout_s, total_s=timeout_s)
        target = self._facts.target(model, Dialect.OPENAI)
        reply = await self._means.ask(aside.question(request, model, fields), Aside(target, {}, limits))
        return None if reply is None else answer_text(reply.body, Dialect.OPENAI)

    async def read(self, case: Case, reply: Reply, others: list[Reply | None]) -> Verdict:
        """Judge an answer, by the cheap checks first. `others` are those that were asked beside it."""
        config, request = case.config, case.request
        text = answer_text(reply.body, request.dialect)
        wrong = checks.problem(config.checks, request, reply, text, self._facts.whole, json=case.json)
        wrong = wrong or _doubts(config, reply)
        if wrong or text is None:
            return Verdict(wrong)
        texts = [None if one is None else answer_text(one.body, request.dialect) for one in others]
        if wrong := _disagreement(config, text, texts):
            return Verdict(wrong)
        verdict = await self._expected(case, text, texts[0] if config.second else None)
        if verdict.wrong or not config.verifier_model:
            return verdict
        fields = questions.verifying_fields(case.prompt, text, config.verifier_model)
        said = questions.verdict_in(await self.ask(request, config.verifier_model, fields, _VERIFIER_S))
        if said:
            return verdict
        return verdict._replace(wrong="the verifier does not say" if said is None else "the verifier says no")

    async def _expected(self, case: Case, text: str, second: str | None) -> Verdict:
        config = case.config
        if config.predictor == CLASSIFIER:
            return Verdict("", case.gain)
        path, timeout_s = self._facts.path(config), config.timeout_ms / 1000
        after = await self._means.gains.gain_after(path, Answered(case.prompt, text, case.gain, second), timeout_s)
        if after is None:
            return Verdict("no score of the answer in time")
        dial = budgets.dial_of(case.request.scope.route, config, self._facts, self._means)
        if dial is not None:
            threshold = dial.threshold
            return Verdict("a gain is expected" * dial.choose(after), after, threshold, dialled=True)
        found = self._facts.head(config)
        accept = None if found is None else found[0].accept
        return Verdict("a gain is expected" * (accept is not None and after > accept), after, accept)


def _doubts(config: Config, reply: Reply) -> str:
    if config.min_logprob is None:
        return ""
    mean = checks.mean_logprob(reply.body)
    if mean is None or mean >= config.min_logprob:
        return ""
    return f"mean log probability {mean:.2f} below {config.min_logprob:g}"


def _disagreement(config: Config, text: str, texts: list[str | None]) -> str:
    """What the weak model's further answers say against it; of the second model a router judges, if there is one."""
    samples = texts[bool(config.second) :]
    agreeing = sum(one is not None and checks.agree(text, one) for one in samples)
    if 2 * agreeing < len(samples):
        return f"{agreeing} of {len(samples)} further answers of its own agree"
    if not config.second:
        return ""
    if texts[0] is None:
        return "the second model did not answer"
    if config.predictor == CLASSIFIER and not checks.agree(text, texts[0]):
        return "the second model says otherwise"
    return ""
