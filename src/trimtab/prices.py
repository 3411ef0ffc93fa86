"""Token classes to money: integer nano-USD, rounded once, and "unpriced" (never 0) where no price is known.

An override from the configuration wins; else the genai-prices library decides, to the nano-dollar. The library takes
about 100 us a call, so each of its price cards is turned once into exact integer rates (per price window and per tier)
and multiplied from then on. The library is imported at the first look-up, not at the gateway's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from trimtab.types import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

UNPRICED = "unpriced"
OVERRIDE = "override"
MACHINE_HOUR = "machine-hour"

_MEMO_MAX = 4096  # model names come from clients, so the memo must not grow with them
_NAME_MAX_CHARS = 200
_NUSD = Decimal(1_000_000_000)
_CLASSES = Usage.__struct_fields__
# One token of each class, and none at all: what the library is asked to learn a card's rates.
_PROBES = tuple(Usage(**{name: 1}) for name in _CLASSES)
_INPUT_CLASSES = frozenset(("input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio"))


class Money(msgspec.Struct, frozen=True, gc=False):
    """An amount and where its price came from.

    `source` is "genai-prices VERSION", "override", "machine-hour" or "unpriced"; then `nusd` is None and
    `reason` says why.
    """

    nusd: int | None
    source: str
    reason: str = ""


class PriceOverride(msgspec.Struct, frozen=True):
    """A price of your own: USD per million tokens by class, or USD per busy machine-hour (which then wins).

    Cache classes and input audio left out cost what input costs; output audio and reasoning cost what output does.
    """

    input_per_mtok: float | None = None
    output_per_mtok: float | None = None
    cache_read_per_mtok: float | None = None
    cache_write_5m_per_mtok: float | None = None
    cache_write_1h_per_mtok: float | None = None
    input_audio_per_mtok: float | None = None
    output_audio_per_mtok: float | None = None
    machine_hour: float | None = None


class ModelOverride(msgspec.Struct, frozen=True):
    """The override of one configured model: it holds for `upstream_model` behind `engine`."""

    engine: str
    upstream_model: str
    price: PriceOverride


class _Rates(msgspec.Struct, frozen=True):
    """Exact linear prices: integers in nano-USD / `scale` per token of each class, `base` per call."""

    base: int
    by_class: tuple[int, ...]
    scale: int
    missing: frozenset[str]  # classes without any price of their direction

    def cost_nusd(self, usage: Usage) -> int:
        """Price of disjoint classes in nano-USD, rounded half-even once."""
        r = self.by_class
        total = (
            self.base
            + usage.input * r[0]
            + usage.cache_read * r[1]
            + usage.cache_write_5m * r[2]
            + usage.cache_write_1h * r[3]
            + usage.input_audio * r[4]
            + usage.output * r[5]
            + usage.reasoning * r[6]
            + usage.output_audio * r[7]
        )
        if self.scale == 1:
            return total
        whole, rest = divmod(total, self.scale)
        twice = 2 * rest
        return whole + (1 if twice > self.scale or (twice == self.scale and whole & 1) else 0)


class _Card(msgspec.Struct, frozen=True):
    """One price list: rates by tier, each valid above its count of input tokens, ascending; `reason` when unusable."""

    tiers: tuple[tuple[int, _Rates], ...]
    reason: str = ""

    def rates(self, input_tokens: int) -> _Rates:
        """The rates for a call with that much input; crossing a threshold moves all tokens to the next tier."""
        tiers = self.tiers
        chosen = tiers[0][1]
        for above, rates in tiers[1:]:
            if input_tokens <= above:
                break
            chosen = rates
        return chosen


class _Known(msgspec.Struct):
    """What the library knows of a (provider, model): one card, or cards by price window, or a reason for neither."""

    card: _Card | None = None
    model: Any = None  # ModelInfo, when its price depends on the time
    cards: dict[int, _Card] = {}  # by id() of the library's ModelPrice, which `model` keeps alive
    reason: str = ""


class Prices:
    """Prices of every model, overrides first.

    `overrides` is keyed "provider/model" (or just "model") by upstream name; `models` by the client's name.
    """

    def __init__(
        self,
        overrides: Mapping[str, PriceOverride] | None = None,
        models: Mapping[str, ModelOverride] | None = None,
    ) -> None:
        self._memo: dict[tuple[str, str], _Known] = {}
        self._source = ""
        self._by_upstream = {name: _compile(price) for name, price in (overrides or {}).items()}
        self._by_engine: dict[tuple[str, str], _Rates | Decimal] = {}
        for entry in (models or {}).values():
            self._by_engine.setdefault((entry.engine, entry.upstream_model), _compile(entry.price))

    @classmethod
    def of_tables(cls, prices: Mapping[str, Any], models: Mapping[str, Any]) -> Prices:
        """Prices of a configuration: its tables [prices] and [models], as `config.Config` holds them."""
        return cls(
            {name: _override_of(table) for name, table in prices.items()},
            {
                name: ModelOverride(model.engine, model.name or name, _override_of(model.price))
                for name, model in models.items()
                if model.price is not None
            },
        )

    def price(
        self,
        provider: str,
        model: str,
        usage: Usage,
        at: float,
        *,
        engine: str = "",
        machine_s: float | None = None,
    ) -> Money:
        """Price `usage` of `model` (upstream name) at unix time `at`; never raises.

        `engine` finds the override of a configured model; `machine_s` is the busy time, where known.
        """
        if (override := self._override(provider, model, engine)) is not None:
            return _price_override(override, usage, machine_s)
        return self._price_known(self._known(provider, model), usage, at)

    def quick(
        self,
        provider: str,
        model: str,
        usage: Usage,
        at: float,
        *,
        engine: str = "",
        machine_s: float | None = None,
    ) -> Money | None:
        """As `price`, but None when the model was not looked up before (see `warm`): it never blocks on the library."""
        if (override := self._override(provider, model, engine)) is not None:
            return _price_override(override, usage, machine_s)
        known = self._memo.get((provider, model))
        return None if known is None else self._price_known(known, usage, at)

    def warm(self, models: Iterable[tuple[str, str]]) -> None:
        """Look up (provider, upstream model) pairs, so that `quick` knows them; may run in another thread."""
        for provider, model in models:
            self._known(provider, model)

    def _override(self, provider: str, model: str, engine: str) -> _Rates | Decimal | None:
        if engine and self._by_engine and (found := self._by_engine.get((engine, model))) is not None:
            return found
        if self._by_upstream:
            found = self._by_upstream.get(f"{provider}/{model}")
            return self._by_upstream.get(model) if found is None else found
        return None

    def _price_known(self, known: _Known, usage: Usage, at: float) -> Money:
        if known.reason:
            return Money(None, UNPRICED, known.reason)
        card = known.card
        if card is None:
            try:
                window = known.model.get_prices(datetime.fromtimestamp(at, UTC))
            except (OverflowError, ValueError, OSError):
                return Money(None, UNPRICED, f"no price at unix time {at}")
            card = known.cards[id(window)]
        if card.reason:
            return Money(None, UNPRICED, card.reason)
        if reason := _invalid(usage):
            return Money(None, UNPRICED, reason)
        rates = card.rates(usage.input_total)
        if rates.missing and (lacking := _lacking(rates.missing, usage)):
            return Money(None, UNPRICED, f"genai-prices has no price for {lacking} tokens of this model")
        return Money(rates.cost_nusd(usage), self._source)

    def _known(self, provider: str, model: str) -> _Known:
        known = self._memo.get((provider, model))
        if known is None:
            if len(self._memo) >= _MEMO_MAX:
                self._forget()
            known = self._memo[provider, model] = self._look_up(provider, model)
        return known

    def _look_up(self, provider: str, model: str) -> _Known:
        if not model:
            return _Known(reason="no model named")
        if len(model) > _NAME_MAX_CHARS:
            return _Known(reason="model name too long")
        import genai_prices

        self._source = f"genai-prices {genai_prices.__version__}"
        found = _find(provider, model)
        if found is None:
            where = f"provider {provider!r}" if provider else "any provider (set `provider` on the engine)"
            return _Known(reason=f"genai-prices does not know model {model!r} of {where}")
        prices = found.prices
        if not isinstance(prices, list):
            return _Known(card=_card(prices, found.id))
        return _Known(model=found, cards={id(entry.prices): _card(entry.prices, found.id) for entry in prices})

    def _forget(self) -> None:
        """Drop the memo, and the library's own, which grows with every name it was ever asked for."""
        from genai_prices import data_snapshot

        self._memo.clear()
        snapshot = data_snapshot.get_snapshot()
        for name in ("_lookup_cache", "_provider_cache", "_provider_misses"):
            getattr(snapshot, name, set()).clear()


def library_usage(usage: Usage) -> Any:
    """`usage` as genai-prices counts it, where totals include their cached, audio and reasoning parts."""
    import genai_prices

    return genai_prices.Usage(
        input_tokens=usage.input_total,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
        cache_write_5m_tokens=usage.cache_write_5m,
        cache_write_1h_tokens=usage.cache_write_1h,
        input_audio_tokens=usage.input_audio,
        # Our classes are disjoint: the library refuses audio beside caching unless told that nothing is both.
        cache_audio_read_tokens=0,
        cache_audio_write_tokens=0,
        cache_audio_write_5m_tokens=0,
        cache_audio_write_1h_tokens=0,
        output_audio_reasoning_tokens=0,
        output_tokens=usage.output_total,
        output_reasoning_tokens=usage.reasoning,
        output_audio_tokens=usage.output_audio,
    )


def _find(provider: str, model: str) -> ModelInfo | None:
    """The library's model; "openai/gpt-4o" without a provider (or with provider "openai") means its gpt-4o."""
    from genai_prices import data_snapshot

    snapshot = data_snapshot.get_snapshot()
    attempts = [(model, provider or None)]
    prefix, slash, rest = model.partition("/")
    if slash and prefix.lower() == provider.lower():
        attempts.append((rest, provider))
    elif slash and not provider and any(known.id == prefix.lower() for known in snapshot.providers):
        attempts.append((rest, prefix))
    for name, provider_id in attempts:
        try:
            return snapshot.find_provider_model(name, None, provider_id, None)[1]
        except LookupError:
            continue
    return None


def _card(prices: ModelPrice, model_id: str) -> _Card:
    """Turn a price list of the library into exact rates, one set per tier."""
    from genai_prices.types import ModelPrice, TieredPrices

    listed = {key: value for key, value in vars(prices).items() if value is not None}
    if not listed:
        # The library says 0 for a list without prices; that is only true of the models that are free by name.
        if model_id.endswith(":free"):
            return _Card(((-1, _Rates(0, (0,) * len(_CLASSES), 1, frozenset())),))
        return _Card((), reason=f"genai-prices lists {model_id!r} without a price")
    starts = {tier.start for value in listed.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    tiers = []
    for above in (-1, *sorted(starts)):
        flat = {
            key: _tier_price(value, above) if isinstance(value, TieredPrices) else value
            for key, value in listed.items()
        }
        try:
            tiers.append((above, _probe(ModelPrice(**flat), listed)))
        except (ValueError, ArithmeticError) as error:
            return _Card((), reason=f"genai-prices cannot price {model_id!r}: {error}")
    return _Card(tuple(tiers))


def _tier_price(tiered: Any, above: int) -> Decimal:
    price: Decimal = tiered.base
    for tier in tiered.tiers:  # ascending by start
        if tier.start <= above:
            price = tier.price
    return price


def _probe(prices: ModelPrice, listed: Mapping[str, object]) -> _Rates:
    """Ask the library for one token of each class: without tiers its prices are linear in our disjoint classes."""
    base = prices.calc_price(library_usage(Usage()))["total_price"] * _NUSD
    each = [prices.calc_price(library_usage(probe))["total_price"] * _NUSD - base for probe in _PROBES]
    token_keys = [key for key in listed if key.endswith("_mtok")]
    priced_input = any(not key.startswith("output") for key in token_keys)
    priced_output = any(key.startswith("output") for key in token_keys)
    missing = frozenset(
        name for name in _CLASSES if not (priced_input if name in _INPUT_CLASSES else priced_output) and not base
    )
    return _exact(base, each, missing)


def _exact(base: Decimal, each: list[Decimal], missing: frozenset[str] = frozenset()) -> _Rates:
    """Rates in nano-USD as integers over the smallest power of ten that holds them exactly."""
    decimals = max(0, *(-_exponent(rate) for rate in (base, *each)))
    scale = 10**decimals
    return _Rates(int(base * scale), tuple(int(rate * scale) for rate in each), scale, missing)


def _exponent(rate: Decimal) -> int:
    exponent = rate.normalize().as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def _compile(price: PriceOverride) -> _Rates | Decimal:
    """Rates of a token price, or the price of a machine-hour in nano-USD a second."""
    if price.machine_hour is not None:
        return Decimal(repr(price.machine_hour)) * _NUSD / 3600
    listed = {
        "input": price.input_per_mtok,
        "cache_read": _first(price.cache_read_per_mtok, price.input_per_mtok),
        "cache_write_5m": _first(price.cache_write_5m_per_mtok, price.input_per_mtok),
        "cache_write_1h": _first(price.cache_write_1h_per_mtok, price.cache_write_5m_per_mtok, price.input_per_mtok),
        "input_audio": _first(price.input_audio_per_mtok, price.input_per_mtok),
        "output": price.output_per_mtok,
        "reasoning": price.output_per_mtok,
        "output_audio": _first(price.output_audio_per_mtok, price.output_per_mtok),
    }
    each = [Decimal(repr(listed[name] or 0.0)) * 1000 for name in _CLASSES]
    return _exact(Decimal(0), each, frozenset(name for name, value in listed.items() if value is None))


def _override_of(table: Any) -> PriceOverride:
    return PriceOverride(**{name: getattr(table, name, None) for name in PriceOverride.__struct_fields__})


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _price_override(override: _Rates | Decimal, usage: Usage, machine_s: float | None) -> Money:
    if isinstance(override, Decimal):
        if not machine_s:
            return Money(None, UNPRICED, "priced by the machine-hour, but its busy time is unknown")
        amount = Decimal(repr(machine_s)) * override
        return Money(int(amount.quantize(Decimal(1), ROUND_HALF_EVEN)), MACHINE_HOUR)
    if reason := _invalid(usage):
        return Money(None, UNPRICED, reason)
    if override.missing and (lacking := _lacking(override.missing, usage)):
        return Money(None, UNPRICED, f"the price override has no price for {lacking} tokens")
    return Money(override.cost_nusd(usage), OVERRIDE)


def _invalid(usage: Usage) -> str:
    """Counts below zero come from a provider whose parts exceed their total; clamping them would hide it."""
    if min(msgspec.structs.astuple(usage)) < 0:
        return "invalid usage: a token class exceeds the total that contains it"
    return ""


def _lacking(missing: frozenset[str], usage: Usage) -> str:
    return ", ".join(name for name in _CLASSES if name in missing and getattr(usage, name))
