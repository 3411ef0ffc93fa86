"""Quality in production: a share of the answers that levers changed is compared with what the request would have got.

After the client has its answer, the reference (the first target of the plan before any lever changed it) is asked the
same, within a budget and never too often at once; the texts are compared, and the verdict goes to the journal. The
ingester watches the verdicts and switches a lever off; here a lever that is off is kept off.

Where a request samples (no temperature, or a high one), even an equal model answers otherwise each time. So there the
reference is asked twice, and the loss is how much more the lever's answer differs from the first than the second does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from trimtab.errors import TrimtabError
from trimtab.flight import Flight
from trimtab.ports import AskAside, AskJudge, Clock, Compare, Journal
from trimtab.protocols import CODECS, answer_text
from trimtab.protocols.chat import Text
from trimtab.protocols.reuse import side_obstacle, temperature_obstacle
from trimtab.types import Continue, End, Judged, Plan, Purpose, Record, Reply, Request

_log = logging.getLogger("trimtab.shadow")

_MOST_AT_ONCE: Final = 8  # comparisons under way in a worker
_COMPARE_S: Final = 20.0
TEXTS: Final = "texts"
"""The judge that reads it from the texts."""

Count = Callable[[str, str, str], None]
"""Told of a route, a lever, and what became of the comparison."""


class Terms(msgspec.Struct, frozen=True):
    """What holds on a route; `route` is the table that says so, the budget is this worker's, for a day."""

    route: str
    share: float
    margin: float
    budget_nusd: float
    judge_model: str = ""


class Calls(NamedTuple):
    """How others are asked."""

    ask: AskAside
    compare: Compare
    judge: AskJudge


class Spending:
    """What a worker's calls that no client waits for cost, by route, since midnight UTC."""

    def __init__(self, clock: Clock, before: Mapping[str, float] | None = None) -> None:
        self._clock = clock
        self._day = self._today()
        self._nusd = dict(before or {})  # since midnight, before this worker began

    def add(self, route: str, nusd: int) -> None:
        """Count one call's cost."""
        self._nusd[route] = self.spent(route) + nusd

    def spent(self, route: str) -> float:
        """Nano-USD on a route today."""
        if (today := self._today()) != self._day:
            self._day, self._nusd = today, {}
        return self._nusd.get(route, 0.0)

    def _today(self) -> int:
        return int(self._clock.wall() // 86_400)


class _Pair(NamedTuple):
    asked: Request
    plan: Plan
    served: str | None
    terms: Terms
    lever: str
    model: str


class Watch:
    """Watches levers on behalf of one configuration; see `pipeline.Watch`. Belongs to one event loop."""

    def __init__(
        self,
        terms: Callable[[str], Terms | None],
        off: Callable[[str, str], str],
        calls: Calls,
        spending: Spending,
        journal: Journal,
        count: Count,
    ) -> None:
        self._terms = terms
        self.off = off
        self._calls = calls
        self._spending = spending
        self._journal = journal
        self._count = count
        self._running: set[asyncio.Task[None]] = set()

    def wants(self, flight: Flight) -> bool:
        """Whether the answer is to be compared: one lever sent the request elsewhere, and the sample hits it.

        Where several levers changed it nobody could say whose loss it is. Requests that reach beyond themselves (web
        search, stored conversations) are not sent twice.
        """
        request = flight.request
        terms = self._terms(request.scope.route)
        return (
            terms is not None
            and len(flight.changed) == 1
            and type(flight.changed[0].step) is Continue
            and not request.scope.purpose
            and sampled(request.id, terms.share)
            and not side_obstacle(flight.asked.fields)
        )

    def settled(self, flight: Flight, record: Record, reply: Reply | None) -> None:
        """Begin the comparison of a request that the client has the answer to, if it is wanted; returns at once."""
        terms = self._terms(flight.request.scope.route)
        if terms is None or flight.plan is None or flight.joined is not None or not self.wants(flight):
            return
        if record.end != End.OK or (flight.stored is None and reply is None):
            return
        if reply is not None and reply.target == flight.plan.attempts[0].target:
            return  # the lever's choice failed, and the reference itself answered
        (decision,) = flight.changed
        assert isinstance(decision.step, Continue)
        busy, spent = len(self._running) >= _MOST_AT_ONCE, self._spending.spent(terms.route)
        if busy or spent >= terms.budget_nusd:
            self._count(terms.route, decision.lever, "busy" if busy else "budget")
            return
        served = None
        if flight.stored is not None:
            served = answer_text(flight.stored.body, flight.stored.dialect)
        elif reply is not None:
            served = answer_text(reply.body, flight.request.dialect)
        model = decision.step.plan.attempts[0].target.model
        pair = _Pair(flight.asked, flight.plan, served, terms, decision.lever, model)
        task = asyncio.get_running_loop().create_task(self._judge(pair))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def audited(self, request: Request, lever: str, same: bool | None) -> None:
        """Take the verdict of a lever that compares its answers itself; None if nobody could tell."""
        terms = self._terms(request.scope.route)
        if terms is not None and not request.scope.purpose:
            loss = None if same is None else float(not same)
            self._say(request, terms, (lever, ""), loss, "" if same is None else "audit")

    async def close(self) -> None:
        """Break off what is under way."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def running(self) -> int:
        """Comparisons under way."""
        return len(self._running)

    async def _judge(self, pair: _Pair) -> None:
        loss, judge = None, ""
        try:
            if pair.served is not None:  # nothing but text can be compared
                texts = await self._references(pair)
                if texts is None:
                    self._count(pair.terms.route, pair.lever, "unanswered")
                    return
                loss, judge = await self._loss(pair, texts)
        except Exception:
            _log.exception("request %s could not be compared with its reference", pair.asked.id)
        self._say(pair.asked, pair.terms, (pair.lever, pair.model), loss, judge)

    async def _references(self, pair: _Pair) -> list[str | None] | None:
        """What the reference says, twice where it may say this and that; None if it does not answer."""
        asked = [pair.asked]
        if temperature_obstacle(pair.asked.fields):
            asked.append(structs.replace(pair.asked, id=f"{pair.asked.id}-again"))
        texts = []
        for request in asked:
            reply = await self._calls.ask(request, pair.plan, Purpose.SHADOW)
            if reply is None:
                return None
            texts.append(answer_text(reply.body, request.dialect))
        return texts

    async def _loss(self, pair: _Pair, texts: list[str | None]) -> tuple[float | None, str]:
        """By how much more the served answer differs from the reference than the reference from itself, and by whom."""
        others = [pair.served, *texts[1:]]
        known = [text for text in others if text is not None]
        if texts[0] is None or len(known) < len(others):
            return None, ""
        verdicts = await self._calls.compare(texts[0], known, _COMPARE_S) or [None] * len(known)
        judge = TEXTS
        for n, verdict in enumerate(verdicts):
            if verdict is None and pair.terms.judge_model:
                judge = pair.terms.judge_model
                verdicts[n] = await self._ask_judge(pair, texts[0], known[n], n)
        if None in verdicts:
            return None, ""
        differs = [float(not same) for same in verdicts]
        return differs[0] - sum(differs[1:]), judge

    async def _ask_judge(self, pair: _Pair, reference: str, other: str, n: int) -> bool | None:
        asked = structs.replace(pair.asked, id=f"{pair.asked.id}-{'again' if n else 'shadow'}")
        return await self._calls.judge(asked, pair.terms.judge_model, _question(pair.asked), reference, other)

    def _say(self, asked: Request, terms: Terms, whose: tuple[str, str], loss: float | None, judge: str) -> None:
        lever, model = whose
        word = Judged(asked.id, asked.scope.tenant, terms.route, lever, model, terms.margin, loss, judge, asked.at)
        try:
            self._journal.note(word)
        except TrimtabError as error:  # the disk is full: one verdict less
            _log.warning("a verdict on request %s is lost: %s", asked.id, error)
        self._count(terms.route, lever, "unknown" if loss is None else "judged")


def sampled(request_id: str, share: float) -> bool:
    """Whether a share of all requests holds this one: always the same answer for one id."""
    place = int.from_bytes(hashlib.blake2b(b"shadow" + request_id.encode(), digest_size=8).digest())
    return place < share * 2**64


def _question(request: Request) -> str:
    """What the user said last, as far as it is text."""
    try:
        messages = CODECS[request.dialect].decode_request(request.fields).messages
    except (TrimtabError, msgspec.MsgspecError):
        return ""
    said = next((one for one in reversed(messages) if one.role == "user"), None)
    return "" if said is None else "\n".join([part.text for part in said.parts if isinstance(part, Text)])
