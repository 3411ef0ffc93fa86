"""Prices: equal to the library to the nano-dollar, overrides first, and never 0 where nothing is known."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from types import SimpleNamespace

import genai_prices
import pytest
from genai_prices import data_snapshot
from genai_prices.types import TieredPrices

import trimtab
from trimtab.prices import MACHINE_HOUR, OVERRIDE, UNPRICED, PriceOverride, Prices, library_usage
from trimtab.types import Usage

NOV_2026 = 1795219200.0
SOURCE = f"genai-prices {genai_prices.__version__}"
CLASSES = Usage.__struct_fields__


def library_nusd(provider: str | None, model: str, usage: Usage, at: float) -> int:
    price = genai_prices.calc_price(
        library_usage(usage),
        model,
        provider_id=provider,
        genai_request_timestamp=datetime.fromtimestamp(at, UTC),
    ).total_price
    return int((price * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


def test_every_model_costs_what_the_library_says():
    rng = random.Random(7)
    prices = Prices()
    priced = 0
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            most = 10 ** rng.randint(0, 6)
            usage = Usage(**{name: rng.randint(0, most) for name in CLASSES if rng.random() < 0.7})
            at = rng.uniform(1.70e9, 1.80e9)
            money = prices.price(provider.id, model.id, usage, at)
            if money.nusd is None:
                assert money.source == UNPRICED
                assert money.reason
            else:
                assert money.nusd == library_nusd(provider.id, model.id, usage, at), (provider.id, model.id, usage, at)
                priced += 1
    assert priced > 2000


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_a_known_model(name):
    usage = Usage(**{name: 1_234_567})
    for provider, model in (
        ("openai", "gpt-4o"),
        ("anthropic", "claude-sonnet-4-5"),
        ("openai", "gpt-4o-audio-preview"),
    ):
        assert Prices().price(provider, model, usage, NOV_2026).nusd == library_nusd(provider, model, usage, NOV_2026)


def test_cache_writes_of_five_minutes_and_one_hour_differ():
    prices = Prices()
    short = prices.price("anthropic", "claude-sonnet-4-5", Usage(cache_write_5m=1000), NOV_2026)
    long = prices.price("anthropic", "claude-sonnet-4-5", Usage(cache_write_1h=1000), NOV_2026)
    assert (short.nusd, long.nusd) == (3_750_000, 6_000_000)
    assert short.source == SOURCE


def test_tiers_change_at_the_library_s_own_threshold():
    prices = Prices()
    tiered = 0
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            if isinstance(model.prices, list):
                continue
            for value in vars(model.prices).values():
                if isinstance(value, TieredPrices):
                    for tier in value.tiers:
                        for tokens in (tier.start, tier.start + 1):
                            usage = Usage(input=tokens - 7, cache_read=7, output=11)
                            got = prices.price(provider.id, model.id, usage, NOV_2026).nusd
                            if got is not None:  # some names of its own list do not match themselves
                                assert got == library_nusd(provider.id, model.id, usage, NOV_2026)
                                tiered += 1
    assert tiered > 20


def test_prices_depend_on_the_date_and_the_hour():
    prices = Prices()
    dated = 0
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            if isinstance(model.prices, list):
                seen = set()
                for hour in range(0, 24, 3):
                    for day in (1_700_000_000 // 86400, int(NOV_2026) // 86400):
                        at = day * 86400 + hour * 3600 + 60.0
                        usage = Usage(input=1_000_000, output=10)
                        money = prices.price(provider.id, model.id, usage, at)
                        if money.nusd is not None:
                            assert money.nusd == library_nusd(provider.id, model.id, usage, at)
                            seen.add(money.nusd)
                dated += len(seen) > 1
    assert dated > 10


def test_provider_is_guessed_from_the_model_when_none_is_named():
    prices = Prices()
    usage = Usage(input=1000, output=100)
    expected = library_nusd("openai", "gpt-4o", usage, NOV_2026)
    for provider, model in (("", "gpt-4o"), ("", "openai/gpt-4o"), ("openai", "openai/gpt-4o"), ("OpenAI", "GPT-4o")):
        assert prices.price(provider, model, usage, NOV_2026).nusd == expected
    assert prices.price("openrouter", "openai/gpt-4o", usage, NOV_2026).nusd == library_nusd(
        "openrouter", "openai/gpt-4o", usage, NOV_2026
    )


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("", "smollm2-135m-instruct"),
        ("local", "gpt-4o"),  # a provider of one's own is not the one that the name suggests
        ("openai", "no-such-model"),
        ("openai", ""),
        ("", ""),
        ("", "/"),
        ("", "meta-llama/Llama-3.1-8B-Instruct"),
        ("openai", "x" * 100_000),
        ("github-copilot", "gpt-4o"),  # listed, without a price
        ("groq", "whisper-large-v3"),  # priced by the hour of audio, not by tokens
        ("voyageai", "voyage-4-large"),  # no price for output
    ],
)
def test_unknown_is_unpriced_and_says_why(provider, model):
    money = Prices().price(provider, model, Usage(input=10, output=5), NOV_2026)
    assert money.nusd is None
    assert money.source == UNPRICED
    assert money.reason


def test_a_model_that_is_free_by_name_costs_nothing():
    assert Prices().price("mistral", "mistral-nemo:free", Usage(input=10, output=5), NOV_2026).nusd == 0


@pytest.mark.parametrize("override", [None, PriceOverride(input_per_mtok=1.0, output_per_mtok=1.0)])
def test_invalid_usage_is_unpriced_not_clamped(override):
    prices = Prices({"gpt-4o": override} if override else None)
    money = prices.price("openai", "gpt-4o", Usage(input=-5, cache_read=20), NOV_2026)
    assert money.nusd is None
    assert "exceeds" in money.reason


def test_an_impossible_time_is_unpriced():
    assert Prices().price("deepseek", "deepseek-chat", Usage(input=1), 1e18).nusd is None


def test_overrides_by_upstream_name():
    prices = Prices(
        {
            "openai/gpt-4o": PriceOverride(input_per_mtok=0.15, output_per_mtok=0.6),
            "mine": PriceOverride(
                input_per_mtok=1.0,
                output_per_mtok=2.0,
                cache_read_per_mtok=0.1,
                cache_write_5m_per_mtok=1.25,
                cache_write_1h_per_mtok=2.0,
            ),
        }
    )
    usage = Usage(input=1000, cache_read=100, output=10, reasoning=10)
    money = prices.price("openai", "gpt-4o", usage, NOV_2026)
    assert money.source == OVERRIDE
    assert money.nusd == 1100 * 150 + 20 * 600
    every = Usage(input=1, cache_read=1, cache_write_5m=1, cache_write_1h=1, output=1, reasoning=1)
    assert prices.price("any", "mine", every, NOV_2026).nusd == 1000 + 100 + 1250 + 2000 + 2000 + 2000
    assert prices.price("openai", "gpt-4o-mini", usage, NOV_2026).source == SOURCE


def test_override_rounds_half_even_once():
    prices = Prices({"m": PriceOverride(input_per_mtok=0.0005, output_per_mtok=0.0005)})  # half a nano-dollar a token
    assert [prices.price("", "m", Usage(input=n), NOV_2026).nusd for n in (1, 2, 3, 5, 7)] == [0, 1, 2, 2, 4]


def test_override_without_output_price_leaves_output_unpriced():
    prices = Prices({"m": PriceOverride(input_per_mtok=1.0)})
    assert prices.price("", "m", Usage(input=5), NOV_2026).nusd == 5000
    assert "output" in prices.price("", "m", Usage(input=5, output=1), NOV_2026).reason


def test_overrides_of_configured_models_belong_to_their_engine():
    table = SimpleNamespace(input_per_mtok=2.0, output_per_mtok=2.0, machine_hour=None)
    models = {
        "fast": SimpleNamespace(engine="box", name="llama", price=table),
        "plain": SimpleNamespace(engine="box", name="", price=None),
        "named": SimpleNamespace(engine="other", name="", price=SimpleNamespace(machine_hour=3.6)),
    }
    prices = Prices.of_tables({}, models)
    assert prices.price("", "llama", Usage(input=3), NOV_2026, engine="box").nusd == 6000
    assert prices.price("", "llama", Usage(input=3), NOV_2026, engine="other").nusd is None
    hour = prices.price("", "named", Usage(input=3), NOV_2026, engine="other", machine_s=2.5)
    assert (hour.nusd, hour.source) == (2_500_000, MACHINE_HOUR)
    assert prices.price("", "named", Usage(input=3), NOV_2026, engine="other").nusd is None


def test_quick_knows_only_what_was_looked_up():
    prices = Prices({"mine": PriceOverride(input_per_mtok=1.0, output_per_mtok=1.0)})
    usage = Usage(input=1000)
    assert prices.quick("openai", "gpt-4o", usage, NOV_2026) is None
    assert prices.quick("", "mine", usage, NOV_2026).nusd == 1_000_000
    prices.warm([("openai", "gpt-4o"), ("", "unheard-of")])
    assert prices.quick("openai", "gpt-4o", usage, NOV_2026) == prices.price("openai", "gpt-4o", usage, NOV_2026)
    assert prices.quick("", "unheard-of", usage, NOV_2026).nusd is None


def test_names_from_clients_do_not_fill_the_memory():
    prices = Prices()
    for number in range(5000):
        prices.price("openai", f"no-such-{number}", Usage(input=1), NOV_2026)
    assert len(prices._memo) <= 4096
    assert prices.price("openai", "gpt-4o", Usage(input=1000), NOV_2026).nusd == 2_500_000


def test_the_library_is_not_imported_before_it_is_needed():
    code = (
        "import sys, trimtab.prices as p, trimtab.ledger, trimtab.stores.journal;"
        "p.Prices().quick('openai', 'gpt-4o', p.Usage(), 1.0);"
        "sys.exit('genai_prices' in sys.modules or 'sqlite3' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(trimtab.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
