"""Counts and histograms of settled requests, as OpenTelemetry names them; added up here, encoded elsewhere.

The SDK's own instruments cost 3 to 6 us a measurement and would be most of a row's price. These cost under one: a
dictionary of numbers per set of attributes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import msgspec

from trimtab.ledger import LedgerEntry, per_token_s
from trimtab.telemetry import otel_names as names
from trimtab.types import End

_MOST_SERIES = 2000  # clients choose models, routes and tenants; what is beyond shares one series, as the SDKs do
OVERFLOW: Final = "otel.metric.overflow"

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(float(4**n) for n in range(14))

# Histograms are not split by tenant: each set of attributes costs their backend, and `trimtab latency` has it.
_SERVER = (names.OPERATION, names.REQUEST_MODEL, "trimtab.route", "trimtab.cache", names.ERROR)
_CLIENT = (
    names.OPERATION, names.PROVIDER, names.REQUEST_MODEL, names.RESPONSE_MODEL, "trimtab.purpose", "trimtab.route",
    names.ERROR,
)  # fmt: skip
_PAYER = ("trimtab.tenant", "trimtab.route")


class Instrument(msgspec.Struct, frozen=True, eq=False):
    """A metric: its attributes by position, and its buckets' upper bounds (none for a sum)."""

    name: str
    unit: str
    text: str
    attributes: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    monotonic: bool = True


_REQUESTS: Final = Instrument(names.SERVER_DURATION, "s", "Arrival to the last byte.", _SERVER, _SECONDS)
_FIRST: Final = Instrument(names.SERVER_FIRST_TOKEN, "s", "Arrival to a stream's first token.", _SERVER, _FIRST_TOKEN_S)
_EACH: Final = Instrument(names.SERVER_PER_TOKEN, "s", "Per output token after the first.", _SERVER, _PER_TOKEN_S)
_SAVED: Final = Instrument(
    "trimtab.saved", "{USD}", "Baseline minus cost, where both are known.", _PAYER, monotonic=False
)
_CALLS: Final = Instrument(names.CLIENT_DURATION, "s", "An upstream call, sent to ended.", _CLIENT, _SECONDS)
_CHUNK: Final = Instrument(names.CLIENT_FIRST_CHUNK, "s", "Sent to a stream's first token.", _CLIENT, _FIRST_TOKEN_S)
_USED: Final = Instrument(
    names.CLIENT_TOKENS, "{token}", "Tokens of an upstream call, cached ones included.",
    (*_CLIENT, names.TOKEN_TYPE), _TOKENS,
)  # fmt: skip
_COST: Final = Instrument(
    "trimtab.cost",
    "{USD}",
    "What upstream calls cost, where a price is known.",
    (*_PAYER, names.PROVIDER, names.REQUEST_MODEL, "trimtab.purpose"),
)

# What one set of attributes has together, so that a row needs one look-up and not one for each: instrument, and the
# values of the attributes that it has beyond the set.
_Part = tuple[Instrument, tuple[str, ...]]
_OF_REQUEST: Final[tuple[_Part, ...]] = ((_REQUESTS, ()), (_FIRST, ()), (_EACH, ()))
_OF_CALL: Final[tuple[_Part, ...]] = (
    (_CALLS, ()), (_CHUNK, ()), (_USED, ("input",)), (_USED, ("output",)),
)  # fmt: skip
_OF_COST: Final[tuple[_Part, ...]] = ((_COST, ()),)
_OF_SAVED: Final[tuple[_Part, ...]] = ((_SAVED, ()),)
_PARTS: Final = (_OF_REQUEST, _OF_CALL, _OF_COST, _OF_SAVED)


class Series:
    """One set of attributes of one instrument, since the start."""

    __slots__ = ("_bounds", "buckets", "count", "largest", "least", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.count = 0
        self.total = 0.0
        self.least = float("inf")
        self.largest = float("-inf")
        self.buckets = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        """Take in a measurement."""
        self.count += 1
        self.total += value
        if value < self.least:  # noqa: PLR1730 - a call of min() costs more than all of this
            self.least = value
        if value > self.largest:  # noqa: PLR1730
            self.largest = value
        if self._bounds:
            self.buckets[bisect_left(self._bounds, value)] += 1


_Known = dict[tuple[str, ...], tuple[Series, ...]]


class OtelMetrics:
    """What happened since this was made. Not thread-safe: `add` and `series` take turns."""

    def __init__(self) -> None:
        self._known: tuple[_Known, ...] = ({}, {}, {}, {})  # as `_PARTS`

    def add(self, entries: Iterable[LedgerEntry]) -> None:
        """Count settled requests and their upstream calls."""
        for entry in entries:
            self._add(entry)

    def series(self) -> dict[Instrument, dict[tuple[str, ...], Series]]:
        """Everything measured, by instrument and attribute values: in the instrument's order, "" where there is none.

        What had no place of its own has `OVERFLOW` first, and after it the last of the attributes, if any.
        """
        found: dict[Instrument, dict[tuple[str, ...], Series]] = {}
        for known, parts in zip(self._known, _PARTS, strict=True):
            for values, together in known.items():
                for (instrument, more), series in zip(parts, together, strict=True):
                    if series.count:
                        found.setdefault(instrument, {})[*values, *more] = series
        return found

    def _add(self, entry: LedgerEntry) -> None:
        r = entry.record
        operation, route, tenant = names.operation(r), r.scope.route, r.scope.tenant
        requests, calls, costs, savings = self._known
        # A refused request's model is whatever the client wrote.
        model = r.model if r.end != End.REFUSED else ""
        key: tuple[str, ...] = (operation, model, route, r.cache, names.error_of(r.end, r.status))
        total, first, each = requests.get(key) or _new(requests, key, _OF_REQUEST)
        total.observe(r.total_s)
        if r.ttft_s is not None:
            first.observe(r.ttft_s)
        if (each_s := per_token_s(r)) is not None:
            each.observe(each_s)
        if entry.saved_nusd:
            key = (tenant, route)
            (saved,) = savings.get(key) or _new(savings, key, _OF_SAVED)
            saved.observe(entry.saved_nusd / 1e9)
        for attempt, money in zip(r.attempts, entry.attempts, strict=True):
            provider = names.provider(attempt)
            key = (
                operation, provider, attempt.model, attempt.response_model, attempt.purpose, route,
                names.error_of(attempt.end, attempt.status),
            )  # fmt: skip
            total, first, into, out = calls.get(key) or _new(calls, key, _OF_CALL)
            total.observe(attempt.end_s - attempt.start_s)
            if r.stream and attempt.first_token_s is not None:
                first.observe(attempt.first_token_s - attempt.start_s)
            if attempt.usage_source != "none":
                into.observe(attempt.usage.input_total)
                out.observe(attempt.usage.output_total)
            if money.nusd:
                key = (tenant, route, provider, attempt.model, attempt.purpose)
                (cost,) = costs.get(key) or _new(costs, key, _OF_COST)
                cost.observe(money.nusd / 1e9)


def _new(known: _Known, values: tuple[str, ...], parts: tuple[_Part, ...]) -> tuple[Series, ...]:
    if len(known) >= _MOST_SERIES:
        values = (OVERFLOW,)
    return known.setdefault(values, tuple([Series(instrument.bounds) for instrument, _ in parts]))
