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

_SERVER = (names.OPERATION, names.REQUEST_MODEL, "trimtab.route", "trimtab.tenant", "trimtab.cache", names.ERROR)
_CLIENT = (
    names.OPERATION, names.PROVIDER, names.REQUEST_MODEL, names.RESPONSE_MODEL, "trimtab.purpose", "trimtab.route",
    "trimtab.tenant", names.ERROR,
)  # fmt: skip


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
_CALLS: Final = Instrument(names.CLIENT_DURATION, "s", "An upstream call, sent to ended.", _CLIENT, _SECONDS)
_CHUNK: Final = Instrument(names.CLIENT_FIRST_CHUNK, "s", "Sent to a stream's first token.", _CLIENT, _FIRST_TOKEN_S)
_USED: Final = Instrument(
    names.CLIENT_TOKENS, "{token}", "Tokens of an upstream call, cached ones included.",
    (*_CLIENT, names.TOKEN_TYPE), _TOKENS,
)  # fmt: skip
_COST: Final = Instrument("trimtab.cost", "{USD}", "What upstream calls cost, where a price is known.", _CLIENT)
_SAVED: Final = Instrument(
    "trimtab.saved", "{USD}", "Baseline minus cost, where both are known.", _SERVER[:4], monotonic=False
)


class Series:
    """One set of attributes of one instrument, since the start."""

    __slots__ = ("buckets", "count", "largest", "least", "total")

    def __init__(self, buckets: int) -> None:
        self.count = 0
        self.total = 0.0
        self.least = float("inf")
        self.largest = float("-inf")
        self.buckets = [0] * buckets


class OtelMetrics:
    """What happened since this was made. Not thread-safe: `add` and `series` take turns."""

    def __init__(self) -> None:
        self._series: dict[Instrument, dict[tuple[str, ...], Series]] = {}

    def add(self, entries: Iterable[LedgerEntry]) -> None:
        """Count settled requests and their upstream calls."""
        for entry in entries:
            self._add(entry)

    def series(self) -> dict[Instrument, dict[tuple[str, ...], Series]]:
        """Everything, by instrument and attribute values (in the instrument's order, "" where there is none)."""
        return self._series

    def _add(self, entry: LedgerEntry) -> None:
        r = entry.record
        operation, route, tenant = names.operation(r), r.scope.route, r.scope.tenant
        # A refused request's model is whatever the client wrote.
        model = r.model if r.end != End.REFUSED else ""
        server = (operation, model, route, tenant, r.cache, names.error_of(r.end, r.status))
        self._observe(_REQUESTS, server, r.total_s)
        if r.ttft_s is not None:
            self._observe(_FIRST, server, r.ttft_s)
        if (each_s := per_token_s(r)) is not None:
            self._observe(_EACH, server, each_s)
        if entry.saved_nusd:
            self._observe(_SAVED, server[:4], entry.saved_nusd / 1e9)
        for attempt, money in zip(r.attempts, entry.attempts, strict=True):
            client = (
                operation, names.provider(attempt), attempt.model, attempt.response_model, attempt.purpose, route,
                tenant, names.error_of(attempt.end, attempt.status),
            )  # fmt: skip
            self._observe(_CALLS, client, attempt.end_s - attempt.start_s)
            if r.stream and attempt.first_token_s is not None:
                self._observe(_CHUNK, client, attempt.first_token_s - attempt.start_s)
            if attempt.usage_source != "none":
                self._observe(_USED, (*client, "input"), attempt.usage.input_total)
                self._observe(_USED, (*client, "output"), attempt.usage.output_total)
            if money.nusd:
                self._observe(_COST, client, money.nusd / 1e9)

    def _observe(self, instrument: Instrument, values: tuple[str, ...], value: float) -> None:
        known = self._series.get(instrument)
        if known is None:
            known = self._series[instrument] = {}
        series = known.get(values)
        if series is None:
            if len(known) >= _MOST_SERIES:
                values = (OVERFLOW,)
            series = known.setdefault(values, Series(len(instrument.bounds) + 1))
        series.count += 1
        series.total += value
        series.least = min(series.least, value)
        series.largest = max(series.largest, value)
        if instrument.bounds:
            series.buckets[bisect_left(instrument.bounds, value)] += 1
