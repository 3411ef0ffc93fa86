"""Plain counters on the path, rendered in Prometheus' text format when scraped.

Each worker writes its figures to `run/metrics-<worker>.json` about once a second, and a scrape adds up all workers'
files, so that any worker answers for all and a restarted worker goes on from where it was. prometheus_client would
cost 18 us a request (measured); these cost about 3.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from pathlib import Path

import msgspec

from trimtab.types import Record

Series = tuple[str, ...]
"""A metric's name, then the values of its labels."""

_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_BUCKET_NAMES = (*(f"{bound:g}" for bound in _BUCKETS_S), "+Inf")
_MAX_SERIES = 5000  # clients choose model and route names; what is beyond shares one series
_RARE_CLASSES = ("cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "reasoning", "output_audio")


class _Metric(msgspec.Struct, frozen=True):
    kind: str
    labels: tuple[str, ...]
    text: str
    shared: bool = False  # every worker sees the same figure: take it once


_METRICS = {
    "trimtab_requests_total": _Metric(
        "counter",
        ("route", "model", "end", "cache"),
        "Requests by upstream model, how they ended, what the cache said.",
    ),
    "trimtab_tokens_total": _Metric(
        "counter", ("route", "model", "purpose", "class"), "Tokens of upstream calls; cached answers cost none."
    ),
    "trimtab_upstream_attempts_total": _Metric(
        "counter", ("engine", "purpose", "end"), "Upstream calls by engine, purpose and how they ended."
    ),
    "trimtab_request_seconds": _Metric("histogram", ("route",), "End-to-end seconds, arrival to the last byte."),
    "trimtab_ttft_seconds": _Metric("histogram", ("route",), "Seconds from arrival to a stream's first token."),
    "trimtab_unauthenticated_total": _Metric("counter", (), "Requests turned away for want of a known key."),
    "trimtab_journal_waiting_rows": _Metric("gauge", (), "Rows in memory because the journal cannot be written."),
    "trimtab_cache_entries": _Metric("gauge", (), "Answers in the exact cache.", shared=True),
    "trimtab_cache_errors_total": _Metric("counter", (), "Failures of the exact cache's store."),
    "trimtab_cache_skipped_total": _Metric(
        "counter", (), "Look-ups and answers that went without the exact cache's server while it was down or full."
    ),
    "trimtab_cache_down": _Metric("gauge", (), "Workers that go without the exact cache's server now."),
    "trimtab_semantic_skipped_total": _Metric(
        "counter", (), "Questions that went without the semantic cache: its process gave no answer in time."
    ),
    "trimtab_semantic_errors_total": _Metric(
        "counter", (), "Failures of the semantic cache's process, such as a full disk or a damaged file.", shared=True
    ),
    "trimtab_telemetry_dropped_total": _Metric(
        "counter",
        ("outlet",),
        "Rows that left no trace elsewhere: a collector or log was down or slow. The ledger has them.",
    ),
    "trimtab_capture_written_total": _Metric("counter", (), "Requests written to the capture file."),
    "trimtab_capture_dropped_total": _Metric(
        "counter", ("reason",), "Requests that should have been captured and were not, by reason."
    ),
    "trimtab_shadow_total": _Metric(
        "counter",
        ("route", "lever", "result"),
        "Answers that a lever changed, sampled for a comparison: judged, unknown, unanswered, over budget, too busy.",
    ),
    "trimtab_routed_total": _Metric(
        "counter", ("route", "served"), "Requests that routing chose a model for: weak, strong, escalated."
    ),
    "trimtab_route_drift": _Metric(
        "gauge",
        ("route",),
        "How far the traffic's scores are from those that its router was fitted to, 0 to 1.",
        shared=True,
    ),
    "trimtab_queue_waiting": _Metric("gauge", ("engine",), "Requests that wait for their turn at an engine."),
    "trimtab_queue_running": _Metric("gauge", ("engine",), "Requests at an engine that has a queue in front of it."),
    "trimtab_queue_limit": _Metric("gauge", ("engine",), "How many requests may be at it at once, now."),
    "trimtab_queue_refused_total": _Metric(
        "counter",
        ("engine", "reason"),
        "Requests refused a place: share (their tenant's is used up), full (too long a wait), late (it turned out so).",
    ),
    "trimtab_in_flight_requests": _Metric("gauge", (), "Requests being answered now."),
}


class Metrics:
    """One worker's figures."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder
        self._file = folder / f"metrics-{worker}.json"
        self._values: dict[Series, float] = {
            series: value for series, value in _read(self._file) if _METRICS[_base(series[0])].kind != "gauge"
        }

    def add(self, series: Series, value: float = 1) -> None:
        """Add to a counter."""
        try:
            self._values[series] += value
        except KeyError:
            if len(self._values) >= _MAX_SERIES:
                series = (series[0], *("other" for _ in series[1:]))
            self._values[series] = self._values.get(series, 0) + value

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a figure."""
        self._values[name, *labels] = value

    def settled(self, record: Record) -> None:
        """Count one settled request."""
        add, route, attempts = self.add, record.scope.route, record.attempts
        served = attempts[-1].model if attempts else record.baseline_model
        add(("trimtab_requests_total", route, served, record.end, record.cache))
        if not record.scope.purpose:
            add(("trimtab_request_seconds_bucket", route, _bucket(record.total_s)))
            add(("trimtab_request_seconds_sum", route), record.total_s)
        if record.ttft_s is not None:
            add(("trimtab_ttft_seconds_bucket", route, _bucket(record.ttft_s)))
            add(("trimtab_ttft_seconds_sum", route), record.ttft_s)
        for attempt in attempts:
            add(("trimtab_upstream_attempts_total", attempt.engine, attempt.purpose, attempt.end))
            usage, model, purpose = attempt.usage, attempt.model, attempt.purpose
            add(("trimtab_tokens_total", route, model, purpose, "input"), usage.input)
            add(("trimtab_tokens_total", route, model, purpose, "output"), usage.output)
            if usage.total != usage.input + usage.output:
                for name in _RARE_CLASSES:
                    if count := getattr(usage, name):
                        add(("trimtab_tokens_total", route, model, purpose, name), count)

    def save(self) -> None:
        """Write the file that scrapes add up; a full disk only makes it stale."""
        with contextlib.suppress(OSError):
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(list(self._values.items())))
            fresh.replace(self._file)

    def render(self) -> bytes:
        """All workers' figures in Prometheus' text format."""
        self.save()
        total: dict[Series, float] = {}
        others = [_read(path) for path in sorted(self._folder.glob("metrics-*.json")) if path != self._file]
        for figures in (list(self._values.items()), *others):  # its own as they are: on a full disk its file is stale
            for series, value in figures:
                known = total.get(series, 0)
                total[series] = max(known, value) if _METRICS[_base(series[0])].shared else known + value
        lines: list[str] = []
        for name, metric in _METRICS.items():
            lines += [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}"]
            if metric.kind == "histogram":
                lines += _histogram(name, total)
            else:
                found = sorted(series for series in total if series[0] == name)
                lines += [f"{name}{_labels(metric.labels, series[1:])} {total[series]:g}" for series in found]
        return ("\n".join(lines) + "\n").encode()


def _bucket(seconds: float) -> str:
    return _BUCKET_NAMES[bisect_left(_BUCKETS_S, seconds)]


def _read(path: Path) -> list[tuple[Series, float]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[tuple[Series, float]])
    except (OSError, msgspec.DecodeError):
        return []


def _base(name: str) -> str:
    """The metric that a histogram's part belongs to."""
    return name.removesuffix("_bucket").removesuffix("_sum") if name.endswith(("_bucket", "_sum")) else name


def _histogram(name: str, total: dict[Series, float]) -> list[str]:
    lines = []
    for route in sorted(series[1] for series in total if series[0] == f"{name}_sum"):
        running = 0.0
        for bound in _BUCKET_NAMES:
            running += total.get((f"{name}_bucket", route, bound), 0)
            lines.append(f"{name}_bucket{_labels(('route', 'le'), (route, bound))} {running:g}")
        labels = _labels(("route",), (route,))
        lines.append(f"{name}_sum{labels} {total[f'{name}_sum', route]:.6f}")
        lines.append(f"{name}_count{labels} {running:g}")
    return lines


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=False)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
