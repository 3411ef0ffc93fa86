"""Plain counters on the path (half a microsecond a request), rendered in Prometheus' text format when scraped.

Each worker writes its figures to `run/metrics-<worker>.json` about once a second, and a scrape adds up all workers'
files, so that any worker answers for all and a restarted worker goes on from where it was.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from trimtab.types import Record

_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_MAX_SERIES = 5000
_SHARED = frozenset(("trimtab_cache_entries",))  # every worker sees the same figure
_TOKEN_CLASSES = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "output", "reasoning", "output_audio",
)  # fmt: skip

_HELP = {
    "trimtab_requests_total": ("counter", "Requests by route, model, how they ended and what the cache said."),
    "trimtab_tokens_total": (
        "counter",
        "Tokens by route, upstream model, purpose and class; cached answers cost none.",
    ),
    "trimtab_upstream_attempts_total": ("counter", "Upstream calls by engine, purpose and how they ended."),
    "trimtab_request_seconds": ("histogram", "End-to-end seconds by route, from arrival to the last byte handed over."),
    "trimtab_ttft_seconds": ("histogram", "Seconds from arrival to the first non-empty token of streams, by route."),
    "trimtab_unauthenticated_total": ("counter", "Requests turned away for want of a known key."),
    "trimtab_journal_waiting_rows": ("gauge", "Ledger rows that wait in memory because the journal cannot be written."),
    "trimtab_cache_entries": ("gauge", "Answers in the exact cache."),
    "trimtab_cache_errors_total": ("counter", "Failures of the exact cache's store; requests go on without it."),
    "trimtab_in_flight_requests": ("gauge", "Requests being answered now."),
}


class Metrics:
    """One worker's counters: `values[(name, labels)]`, labels already rendered."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder
        self._file = folder / f"metrics-{worker}.json"
        self.values: dict[tuple[str, str], float] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            for name, labels, value in msgspec.json.decode(self._file.read_bytes(), type=list[tuple[str, str, float]]):
                if _kind(name) != "gauge":
                    self.values[name, labels] = value

    def add(self, name: str, labels: str, value: float = 1) -> None:
        """Add to a counter."""
        key = (name, labels)
        known = self.values.get(key)
        if known is None:
            if len(self.values) >= _MAX_SERIES:  # clients choose model and route names
                key = (name, 'overflow="true"')
            known = self.values.get(key, 0)
        self.values[key] = known + value

    def observe(self, name: str, labels: str, seconds: float) -> None:
        """Add to a histogram's own bucket; buckets are made cumulative when rendered."""
        for bound in _BUCKETS_S:
            if seconds <= bound:
                self.add(f"{name}_bucket", f'{labels},le="{bound}"')
                break
        self.add(f"{name}_sum", labels, seconds)
        self.add(f"{name}_count", labels)

    def settled(self, record: Record) -> None:
        """Count one settled request."""
        route = f'route="{_escape(record.scope.route)}"'
        served = record.attempts[-1].model if record.attempts else record.baseline_model
        self.add(
            "trimtab_requests_total",
            f'{route},model="{_escape(served)}",end="{record.end}",cache="{record.cache}"',
        )
        self.observe("trimtab_request_seconds", route, record.total_s)
        if record.ttft_s is not None:
            self.observe("trimtab_ttft_seconds", route, record.ttft_s)
        for attempt in record.attempts:
            engine = f'engine="{_escape(attempt.engine)}",purpose="{attempt.purpose}"'
            self.add("trimtab_upstream_attempts_total", f'{engine},end="{attempt.end}"')
            usage = attempt.usage
            for name in _TOKEN_CLASSES:
                if count := getattr(usage, name):
                    labels = f'{route},model="{_escape(attempt.model)}",purpose="{attempt.purpose}",class="{name}"'
                    self.add("trimtab_tokens_total", labels, count)

    def save(self) -> None:
        """Write the file that scrapes add up; a full disk only makes it stale."""
        rows = [(name, labels, value) for (name, labels), value in self.values.items()]
        with contextlib.suppress(OSError):
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(rows))
            fresh.replace(self._file)

    def render(self) -> bytes:
        """All workers' figures in Prometheus' text format."""
        self.save()
        total: dict[str, dict[str, float]] = {}
        for path in sorted(self._folder.glob("metrics-*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                for name, labels, value in msgspec.json.decode(path.read_bytes(), type=list[tuple[str, str, float]]):
                    series = total.setdefault(name, {})
                    known = series.get(labels, 0)
                    series[labels] = max(known, value) if name in _SHARED else known + value
        lines: list[str] = []
        for name, (kind, text) in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                lines += _histogram(name, total)
            else:
                lines += [
                    f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}"
                    for labels, value in total.get(name, {}).items()
                ]
        return ("\n".join(lines) + "\n").encode()


def _kind(name: str) -> str:
    return _HELP.get(name, ("", ""))[0]


def _histogram(name: str, total: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for labels, count in total.get(f"{name}_count", {}).items():
        running = 0.0
        for bound in _BUCKETS_S:
            with_bound = f'{labels},le="{bound}"'
            running += total.get(f"{name}_bucket", {}).get(with_bound, 0)
            lines.append(f"{name}_bucket{{{with_bound}}} {running:g}")
        lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {count:g}')
        lines.append(f"{name}_sum{{{labels}}} {total[f'{name}_sum'][labels]:.6f}")
        lines.append(f"{name}_count{{{labels}}} {count:g}")
    return lines


def _escape(value: str) -> str:
    if '"' in value or "\\" in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value
