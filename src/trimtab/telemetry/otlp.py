"""Spans and metrics to an OpenTelemetry collector over OTLP/HTTP, by the SDK's exporters.

The SDK encodes, compresses, retries and knows its environment variables (OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE,
_COMPRESSION, OTEL_RESOURCE_ATTRIBUTES, ...). Here is what it would do too slowly or at the wrong place: rows come from
the ledger, priced, and are added up and sampled before anything is built. It needs `trimtab[otlp]`, so it is imported
only where a collector is configured.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace.export import SpanExportResult

import trimtab
from trimtab.ledger import LedgerEntry
from trimtab.telemetry import otel_names as names
from trimtab.telemetry.otel_metrics import OVERFLOW, Instrument, OtelMetrics, Series
from trimtab.telemetry.otel_spans import SCOPE, keeps, spans
from trimtab.telemetry.outlet import Dropped, Outlet

_TIMEOUT_S = 5.0  # of one export, its retries included


class Otlp(Outlet[LedgerEntry]):
    """Takes what the ledger has taken. `endpoint` is the collector's base URL; see `otel_spans.keeps` for `sample`.

    `instance` is what no other gateway has and what a restart does not change: cumulative metrics of two must not meet.
    """

    name = "OpenTelemetry spans"
    limit = 4096
    batch = 256
    every_s = 1.0

    def __init__(
        self, endpoint: str, instance: str, *, sample: float, slow_s: float, metrics_every_s: float, dropped: Dropped
    ) -> None:
        super().__init__(dropped)
        self._sample = sample
        self._slow_s = slow_s
        self._metrics_every_s = metrics_every_s
        own = {
            SERVICE_NAME: "trimtab",
            SERVICE_VERSION: trimtab.__version__,
            SERVICE_INSTANCE_ID: str(uuid.uuid5(uuid.NAMESPACE_URL, instance)),
        }
        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins.
        self._resource = _One(Resource(own).merge(_environment()).attributes)
        base = endpoint.rstrip("/")
        self._spans = OTLPSpanExporter(f"{base}/v1/traces", timeout=_TIMEOUT_S)
        self._metrics = OTLPMetricExporter(f"{base}/v1/metrics", timeout=_TIMEOUT_S)
        self._lock = threading.Lock()
        self._sums = OtelMetrics()
        self._began_ns = time.time_ns()
        self._due_at = time.monotonic() + metrics_every_s
        for name in ("opentelemetry", "urllib3"):  # each retry would be a line; `report` says it once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.start()

    def __call__(self, entries: Sequence[LedgerEntry]) -> None:
        """Count these rows, and queue those whose spans are sent."""
        with self._lock:
            self._sums.add(entries)
        self.put([entry for entry in entries if keeps(entry.record, self._sample, self._slow_s)])

    def send(self, items: list[LedgerEntry]) -> str:
        """Export their spans."""
        result = self._spans.export([span for entry in items for span in spans(entry, self._resource)])
        return "" if result is SpanExportResult.SUCCESS else "the collector did not take them"

    def tick(self, last: bool) -> None:
        """Export the metrics when they are due."""
        if last or time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + self._metrics_every_s
            if self._metrics.export(self._data()) is not otel.MetricExportResult.SUCCESS:
                self.report(
                    "the collector did not take the metrics; they are cumulative, so the next ones make up for it"
                )
            else:
                self.report("")

    def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits, and the last metrics."""
        super().close(timeout_s)
        self._spans.shutdown()  # type: ignore[no-untyped-call]
        self._metrics.shutdown()

    def _data(self) -> otel.MetricsData:
        now_ns = time.time_ns()
        with self._lock:
            metrics = [
                _metric(instrument, known, self._began_ns, now_ns) for instrument, known in self._sums.series().items()
            ]
        scope = otel.ScopeMetrics(SCOPE, metrics, names.SCHEMA_URL)
        return otel.MetricsData([otel.ResourceMetrics(self._resource, [scope], self._resource.schema_url)])


class _One(Resource):
    """The only resource there is: the encoder groups spans by it, and its own hash is the JSON of its attributes."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _environment() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, without the SDK's own description of itself."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    return OTELResourceDetector().detect()


def _metric(instrument: Instrument, known: dict[tuple[str, ...], Series], began_ns: int, now_ns: int) -> otel.Metric:
    data: otel.Histogram | otel.Sum
    temporality = otel.AggregationTemporality.CUMULATIVE
    if instrument.bounds:
        points = [
            otel.HistogramDataPoint(
                _attributes(instrument, values), began_ns, now_ns, s.count, s.total, list(s.buckets),
                instrument.bounds, s.least, s.largest,
            )
            for values, s in known.items()
        ]  # fmt: skip
        data = otel.Histogram(points, temporality)
    else:
        sums = [
            otel.NumberDataPoint(_attributes(instrument, values), began_ns, now_ns, s.total)
            for values, s in known.items()
        ]
        data = otel.Sum(sums, temporality, instrument.monotonic)
    return otel.Metric(instrument.name, instrument.text, instrument.unit, data)


def _attributes(instrument: Instrument, values: tuple[str, ...]) -> dict[str, str | bool]:
    if values[0] == OVERFLOW:
        rest = values[1:]
        return {OVERFLOW: True, **dict(zip(instrument.attributes[-len(rest) :], rest, strict=False))}
    return {name: value for name, value in zip(instrument.attributes, values, strict=True) if value}
