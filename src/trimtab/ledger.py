"""The books, without I/O: a `Record` and prices make a `LedgerEntry`; an intent without its row becomes a `Record`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trimtab.prices import UNPRICED, Money, Prices
from trimtab.types import NO_USAGE, AttemptRecord, End, Intent, Record, Usage

NOT_BILLED = "not-billed"  # the upstream refused the call or could not be reached
NO_CALL = "none"  # no upstream call was made

_FREE = Money(0, NOT_BILLED)


class LedgerEntry(msgspec.Struct, frozen=True):
    """A record with its money; what the ledger keeps of one request. Amounts are nano-USD, None means unpriced."""

    record: Record
    usage: Usage  # sum over the attempts
    usage_source: str  # "estimated" if any attempt's is, else "reported", or "none"
    attempts: tuple[Money, ...]  # one per attempt, in the record's order
    cost_nusd: int | None  # sum over the attempts, None if one of them is unpriced
    price_source: str  # those of the attempts joined by "+"; "unpriced" if one is; "none" without a call
    price_reason: str  # why it is unpriced
    baseline_nusd: int | None  # what the request would have cost without the levers
    baseline_source: str
    saved_nusd: int | None  # baseline minus cost, where both are known; below zero when retries cost more


def settle(record: Record, prices: Prices) -> LedgerEntry:
    """Price one request: each attempt once, their sum, and what it would have cost without the levers; never raises."""
    attempts = record.attempts
    costs = tuple(price_attempt(attempt, record.at, prices) for attempt in attempts)
    cost_nusd, source, reason = _sum(costs)
    baseline = _baseline(record, prices, costs)
    return LedgerEntry(
        record=record,
        usage=attempts[0].usage if len(attempts) == 1 else sum_usage([attempt.usage for attempt in attempts]),
        usage_source=_usage_source(attempts),
        attempts=costs,
        cost_nusd=cost_nusd,
        price_source=source,
        price_reason=reason,
        baseline_nusd=baseline.nusd,
        baseline_source=baseline.source,
        saved_nusd=None if cost_nusd is None or baseline.nusd is None else baseline.nusd - cost_nusd,
    )


def price_attempt(attempt: AttemptRecord, at: float, prices: Prices) -> Money:
    """Price one upstream call made at unix time `at`.

    A call that the upstream refused, or that never reached it, is not billed. One whose tokens nobody reported or
    estimated is unpriced. A name that no price list knows (a deployment of Azure) is priced as the model that answered.
    """
    money = prices.price(
        attempt.provider,
        attempt.model,
        attempt.usage,
        at,
        engine=attempt.engine,
        machine_s=attempt.machine_s,
    )
    if money.source == "machine-hour":
        return money
    if attempt.usage_source == "none" and not attempt.usage.total:
        if _refused(attempt):
            return _FREE
        return Money(None, UNPRICED, "the upstream reported no token usage")
    if money.nusd is None and attempt.response_model and attempt.response_model != attempt.model:
        answered = prices.price(attempt.provider, attempt.response_model, attempt.usage, at)
        return money if answered.nusd is None else answered
    return money


def per_token_s(record: Record) -> float | None:
    """Seconds per output token after the first, of a stream that a model made and that ended well; else None."""
    if not record.stream or not record.attempts or record.end != End.OK:
        return None
    last = record.attempts[-1]
    if last.first_token_s is None or last.usage.output_total < 2:
        return None
    return (last.end_s - last.first_token_s) / (last.usage.output_total - 1)


def sum_usage(usages: Sequence[Usage]) -> Usage:
    """Add token counts class by class."""
    if not usages:
        return NO_USAGE
    return Usage(
        input=sum(usage.input for usage in usages),
        cache_read=sum(usage.cache_read for usage in usages),
        cache_write_5m=sum(usage.cache_write_5m for usage in usages),
        cache_write_1h=sum(usage.cache_write_1h for usage in usages),
        input_audio=sum(usage.input_audio for usage in usages),
        output=sum(usage.output for usage in usages),
        reasoning=sum(usage.reasoning for usage in usages),
        output_audio=sum(usage.output_audio for usage in usages),
    )


def interrupted(intents: Sequence[Intent]) -> Record:
    """The row of a request whose process died in flight: one attempt per intent, its input estimated.

    What the provider generated meanwhile is unknown, so the cost is a lower estimate. `intents` is not empty, and all
    are of one request.
    """
    ordered = sorted(intents, key=lambda intent: intent.n)
    first = ordered[0]
    attempts = tuple(
        AttemptRecord(
            n=intent.n,
            purpose=intent.purpose,
            engine=intent.engine,
            model=intent.model,
            provider=intent.provider,
            end=End.INTERRUPTED.value,
            start_s=intent.at - first.at,
            end_s=intent.at - first.at,
            usage=Usage(input=intent.input_estimate),
            usage_source="estimated",
        )
        for intent in ordered
    )
    return Record(
        id=first.id,
        at=first.at,
        scope=first.scope,
        dialect=first.dialect,
        path=first.path,
        model=first.client_model,
        stream=first.stream,
        end=End.INTERRUPTED.value,
        status=0,
        total_s=0.0,
        error="the gateway stopped while the call was in flight; its tokens are estimated",
        attempts=attempts,
        baseline_usage=attempts[0].usage,
        baseline_model=first.model,
        baseline_provider=first.provider,
        baseline_engine=first.engine,
    )


def _sum(costs: tuple[Money, ...]) -> tuple[int | None, str, str]:
    """Total, source and reason over the attempts; one unpriced attempt makes the total unknown."""
    if not costs:
        return 0, NO_CALL, ""
    if len(costs) == 1:
        return costs[0].nusd, costs[0].source, costs[0].reason
    total = 0
    sources: dict[str, None] = {}
    for cost in costs:
        if cost.nusd is None:
            return None, UNPRICED, cost.reason
        total += cost.nusd
        sources[cost.source] = None
    if len(sources) > 1:
        sources.pop(NOT_BILLED, None)
    return total, "+".join(sources), ""


def _baseline(record: Record, prices: Prices, costs: tuple[Money, ...]) -> Money:
    """The price of the one call that would have been made without the levers: of the very call, where it was made."""
    if not record.baseline_model:
        return Money(None, UNPRICED, "no baseline model")
    for attempt, cost in zip(record.attempts, costs, strict=True):
        same = attempt.model == record.baseline_model and attempt.provider == record.baseline_provider
        if same and attempt.usage == record.baseline_usage and cost.source != NOT_BILLED:
            return cost
    if not record.baseline_usage.total:
        return Money(None, UNPRICED, "no baseline usage")
    return prices.price(
        record.baseline_provider,
        record.baseline_model,
        record.baseline_usage,
        record.at,
        engine=record.baseline_engine,
        machine_s=record.baseline_machine_s,
    )


def _usage_source(attempts: Sequence[AttemptRecord]) -> str:
    sources = {attempt.usage_source for attempt in attempts}
    for source in ("estimated", "reported"):
        if source in sources:
            return source
    return "none"


def _refused(attempt: AttemptRecord) -> bool:
    """Whether the upstream answered with an error status, or never answered because it could not be reached."""
    if attempt.end not in (End.ERROR, End.REFUSED):
        return False
    return attempt.status >= 400 or (attempt.status == 0 and attempt.first_token_s is None)
