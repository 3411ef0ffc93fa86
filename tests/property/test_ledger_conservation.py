"""Conservation: no token is counted twice, no nano-dollar appears or vanishes between attempts and their request."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

import genai_prices
import msgspec
from genai_prices import data_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.ledger import settle, sum_usage
from trimtab.prices import PriceOverride, Prices, library_usage
from trimtab.types import AttemptRecord, Record, Scope, Usage

CLASSES = Usage.__struct_fields__
MODELS = [(provider.id, model.id) for provider in data_snapshot.get_snapshot().providers for model in provider.models]
PRICES = Prices()

counts = st.one_of(st.just(0), st.integers(0, 2_000_000))
usages = st.builds(Usage, **dict.fromkeys(CLASSES, counts))
times = st.floats(1.6e9, 1.9e9)
attempts = st.builds(
    AttemptRecord,
    n=st.integers(0, 9),
    purpose=st.sampled_from(["serve", "retry", "fallback"]),
    engine=st.just("e"),
    model=st.sampled_from(["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-pro", "unheard-of"]),
    provider=st.just(""),
    end=st.sampled_from(["ok", "error", "timeout", "cut"]),
    start_s=st.just(0.0),
    end_s=st.just(1.0),
    status=st.sampled_from([0, 200, 429, 500]),
    usage=usages,
    usage_source=st.sampled_from(["reported", "estimated", "none"]),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(MODELS), usages, times)
def test_cost_equals_the_library_to_the_nano_dollar(model, usage, at):
    provider, name = model
    money = PRICES.price(provider, name, usage, at)
    try:
        price = genai_prices.calc_price(
            library_usage(usage),
            name,
            provider_id=provider,
            genai_request_timestamp=datetime.fromtimestamp(at, UTC),
        ).total_price
    except LookupError:  # some names of its own list do not match themselves
        assert money.nusd is None
        return
    if money.nusd is not None:
        assert money.nusd == int((price * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))
    else:
        assert money.reason


@settings(deadline=None, max_examples=200)
@given(usages)
def test_the_library_sees_every_token_once(usage):
    seen = library_usage(usage)
    assert seen.input_tokens + seen.output_tokens == usage.total == sum(msgspec.structs.astuple(usage))
    inside = seen.cache_read_tokens + seen.cache_write_5m_tokens + seen.cache_write_1h_tokens + seen.input_audio_tokens
    assert seen.input_tokens - inside == usage.input
    assert seen.cache_write_tokens == usage.cache_write_5m + usage.cache_write_1h


@settings(deadline=None, max_examples=200)
@given(usages)
def test_equal_prices_for_all_classes_make_the_cost_the_count(usage):
    prices = Prices({"m": PriceOverride(input_per_mtok=1.0, output_per_mtok=1.0)})
    assert prices.price("", "m", usage, 1.7e9).nusd == 1000 * usage.total


@settings(deadline=None, max_examples=200)
@given(st.lists(attempts, max_size=5), usages, times)
def test_a_request_is_the_sum_of_its_attempts(parts, baseline, at):
    record = Record(
        id="r", at=at, scope=Scope("t"), dialect="openai", path="/", model="m", stream=False, end="ok", status=200,
        total_s=1.0, attempts=tuple(parts), baseline_usage=baseline, baseline_model="gpt-4o",
    )  # fmt: skip
    entry = settle(record, PRICES)
    for name in CLASSES:
        assert getattr(entry.usage, name) == sum(getattr(part.usage, name) for part in parts)
    assert entry.usage == sum_usage([part.usage for part in parts])
    costs = [cost.nusd for cost in entry.attempts]
    assert len(costs) == len(parts)
    assert entry.cost_nusd == (None if None in costs else sum(costs))
    if entry.saved_nusd is not None:
        assert entry.saved_nusd + entry.cost_nusd == entry.baseline_nusd
    assert (entry.price_source == "unpriced") == (entry.cost_nusd is None) == bool(entry.price_reason)
