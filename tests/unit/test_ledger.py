"""Settling: one row's money, its baseline, and rows of calls that a dead process left behind."""

from __future__ import annotations

import genai_prices
import pytest

from trimtab.ledger import NO_CALL, NOT_BILLED, interrupted, price_attempt, settle
from trimtab.prices import UNPRICED, ModelOverride, PriceOverride, Prices
from trimtab.types import AttemptRecord, Intent, Record, Scope, Usage

SOURCE = f"genai-prices {genai_prices.__version__}"
AT = 1795219200.0
PRICES = Prices(
    {
        "m": PriceOverride(input_per_mtok=1.0, output_per_mtok=2.0),
        "big": PriceOverride(input_per_mtok=10.0, output_per_mtok=20.0),
    }
)


def attempt(**changes):
    fields = {
        "n": 0, "purpose": "serve", "engine": "e", "model": "m", "provider": "p", "end": "ok", "start_s": 0.0,
        "end_s": 1.0, "status": 200, "usage": Usage(input=100, output=10), "usage_source": "reported",
    }  # fmt: skip
    return AttemptRecord(**(fields | changes))


def record(*attempts, **changes):
    fields = {
        "id": "r1", "at": AT, "scope": Scope("acme"), "dialect": "openai", "path": "/v1/chat/completions",
        "model": "client-name", "stream": False, "end": "ok", "status": 200, "total_s": 1.0,
        "baseline_usage": Usage(input=100, output=10), "baseline_model": "m", "baseline_provider": "p",
    }  # fmt: skip
    return Record(attempts=attempts, **(fields | changes))


def test_a_plain_call_costs_its_tokens_and_saves_nothing():
    entry = settle(record(attempt()), PRICES)
    assert entry.cost_nusd == entry.baseline_nusd == 100 * 1000 + 10 * 2000
    assert entry.saved_nusd == 0
    assert entry.price_source == "override"
    assert entry.usage == Usage(input=100, output=10)
    assert entry.usage_source == "reported"


def test_a_cache_hit_costs_nothing_and_saves_its_baseline():
    entry = settle(record(cache="hit"), PRICES)
    assert (entry.cost_nusd, entry.price_source, entry.attempts) == (0, NO_CALL, ())
    assert entry.saved_nusd == 120_000
    assert entry.usage.total == 0


def test_a_retry_is_paid_on_top_and_a_refused_call_is_free():
    failed = attempt(end="error", status=429, usage=Usage(), usage_source="none")
    entry = settle(record(failed, attempt(n=1, purpose="retry")), PRICES)
    assert [cost.nusd for cost in entry.attempts] == [0, 120_000]
    assert entry.attempts[0].source == NOT_BILLED
    assert (entry.cost_nusd, entry.price_source, entry.saved_nusd) == (120_000, "override", 0)
    lost = attempt(end="cut", usage=Usage(input=100), usage_source="estimated")
    entry = settle(record(lost, attempt(n=1, purpose="retry")), PRICES)
    assert (entry.cost_nusd, entry.saved_nusd) == (220_000, -100_000)
    assert entry.usage_source == "estimated"


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"end": "error", "status": 500}, True),
        ({"end": "error", "status": 0}, True),
        ({"end": "error", "status": 200}, False),  # it answered, then broke its protocol
        ({"end": "timeout", "status": 0}, False),  # it may have read the prompt
        ({"end": "cancelled", "status": 200}, False),
        ({"end": "ok", "status": 200}, False),  # audio and other calls that report no tokens
        ({"end": "error", "status": 0, "first_token_s": 0.1}, False),
    ],
)
def test_unknown_usage_is_unpriced_unless_the_call_was_refused(changes, free):
    money = price_attempt(attempt(usage=Usage(), usage_source="none", **changes), AT, PRICES)
    assert (money.nusd == 0) is free
    assert (money.source == UNPRICED) is not free


def test_one_unpriced_attempt_makes_the_request_unpriced():
    entry = settle(record(attempt(), attempt(n=1, model="unheard-of")), PRICES)
    assert (entry.cost_nusd, entry.price_source, entry.saved_nusd) == (None, UNPRICED, None)
    assert "unheard-of" in entry.price_reason
    assert entry.attempts[0].nusd == 120_000
    assert entry.baseline_nusd == 120_000


def test_a_route_to_a_cheaper_model_saves_the_difference():
    entry = settle(record(attempt(), baseline_model="big"), PRICES)
    assert entry.saved_nusd == 1_200_000 - 120_000


def test_sources_of_several_attempts_are_joined():
    entry = settle(record(attempt(), attempt(n=1, model="gpt-4o", provider="openai")), PRICES)
    assert entry.price_source == f"override+{SOURCE}"


def test_a_deployment_s_own_name_is_priced_as_the_model_that_answered():
    deployed = attempt(model="our-deployment", provider="openai", response_model="gpt-4o-2024-08-06")
    entry = settle(record(deployed, baseline_model="our-deployment", baseline_provider="openai"), PRICES)
    assert entry.cost_nusd == 350_000
    assert entry.price_source == entry.baseline_source == SOURCE
    assert entry.saved_nusd == 0


def test_without_a_baseline_nothing_is_claimed():
    for changes in ({"baseline_model": ""}, {"baseline_usage": Usage(), "baseline_model": "big"}):
        entry = settle(record(attempt(), **changes), PRICES)
        assert (entry.baseline_nusd, entry.saved_nusd) == (None, None)
        assert entry.cost_nusd == 120_000


def test_a_machine_hour_prices_the_call_that_was_made_and_claims_no_saving_for_a_hit():
    prices = Prices({}, {"client-name": ModelOverride("e", "m", PriceOverride(machine_hour=3.6))})
    entry = settle(record(attempt(machine_s=0.5, usage=Usage(), usage_source="none"), baseline_usage=Usage()), prices)
    assert (entry.cost_nusd, entry.price_source) == (500_000, "machine-hour")
    assert entry.saved_nusd == 0
    assert settle(record(cache="hit"), prices).saved_nusd is None


def test_the_price_of_a_configured_model_is_found_for_the_baseline_of_a_hit():
    prices = Prices(
        {}, {"client-name": ModelOverride("e", "m", PriceOverride(input_per_mtok=1.0, output_per_mtok=1.0))}
    )
    assert settle(record(cache="hit", baseline_engine="e"), prices).saved_nusd == 110_000


def test_a_hit_saves_the_machine_time_that_the_stored_answer_took():
    prices = Prices({}, {"client-name": ModelOverride("e", "m", PriceOverride(machine_hour=3.6))})
    hit = record(cache="hit", baseline_engine="e", baseline_machine_s=2.0)
    assert settle(hit, prices).saved_nusd == 2_000_000


def test_an_interrupted_request_is_one_row_with_an_attempt_per_intent():
    scope = Scope("acme", workflow="w")
    intents = [
        Intent(
            id="r9", n=n, at=AT + n, purpose=purpose, engine="e", model="m", provider="p", client_model="c",
            dialect="anthropic", path="/v1/messages", stream=True, scope=scope, input_estimate=1000 * (n + 1),
        )
        for n, purpose in ((1, "retry"), (0, "serve"))
    ]  # fmt: skip
    row = interrupted(intents)
    assert (row.id, row.at, row.end, row.status, row.model, row.scope) == ("r9", AT, "interrupted", 0, "c", scope)
    assert [(a.n, a.purpose, a.start_s, a.usage.input) for a in row.attempts] == [
        (0, "serve", 0.0, 1000),
        (1, "retry", 1.0, 2000),
    ]
    entry = settle(row, PRICES)
    assert entry.cost_nusd == 3_000_000
    assert entry.usage_source == "estimated"
    assert entry.baseline_nusd == 1_000_000
