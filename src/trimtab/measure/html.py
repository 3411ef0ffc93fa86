"""A replay as one HTML file that needs nothing else: no script, no font, no address is loaded; plots are inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from trimtab.measure.load import Timing
from trimtab.measure.report import TITLES, Report, disturbance
from trimtab.measure.stats import Summary

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 40
_MOST_POINTS = 4000  # a plot of more is thinned evenly: the eye sees the same
_COLOURS = ("#1b6ca8", "#c8553d", "#4a7c59")
STYLE = """
:root { color-scheme: light dark; --ink: #1d2328; --soft: #65707a; --line: #d9dee3; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #98a3ad; --line: #39424a; --paper: #14181b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1120px; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; } h2 { font-size: 1rem; margin: 2rem 0 .3rem; }
p { margin: .2rem 0; } .soft, figcaption { color: var(--soft); font-size: .88rem; } .warn { color: #b3541e; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; } td .soft { white-space: nowrap; }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; flex: 1 1 480px; } svg { width: 100%; height: auto; } text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
"""
_COLUMNS = ("p50", "p90", "p95", "p99", "p99_9", "avg")

Points = list[tuple[float, float]]


class _Series(NamedTuple):
    name: str
    colour: str
    points: Points


def render(report: Report) -> str:
    """The file's text."""
    name = Path(report.settings.trace).name
    whole = [timing for timing in report.requests if timing.ok]
    failed = [timing for timing in report.requests if not timing.ok]
    plots = [
        _figure(
            "Which share of the answers came within how many seconds",
            _lines(
                [
                    _Series("first token", _COLOURS[0], _cdf([t.ttft_s for t in whole])),
                    _Series("end to end", _COLOURS[1], _cdf([t.total_s for t in whole])),
                ],
                "seconds (logarithmic)",
                log_x=True,
            ),
        ),
        _figure(
            "Each request by the time at which it was due",
            _dots(
                [
                    _Series("end to end", _COLOURS[1], _pairs(whole, lambda t: t.at_s, lambda t: t.total_s)),
                    _Series("first token", _COLOURS[0], _pairs(whole, lambda t: t.at_s, lambda t: t.ttft_s)),
                    _Series("failed", "#d02f2f", _pairs(failed, lambda t: t.at_s, lambda t: t.total_s)),
                ],
                "seconds after the start",
                "seconds",
            ),
        ),
        _figure(
            "First token by the length of the prompt",
            _dots(
                [_Series("", _COLOURS[0], _pairs(whole, lambda t: t.input_tokens or None, lambda t: t.ttft_s))],
                "input tokens",
                "seconds",
            ),
        ),
        _figure(
            "End to end by the length of the answer",
            _dots(
                [_Series("", _COLOURS[1], _pairs(whole, lambda t: t.output_tokens or None, lambda t: t.total_s))],
                "output tokens",
                "seconds",
            ),
        ),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Replay of {escape(name)}</title><style>{STYLE}</style></head><body>",
            f"<h1>Replay of {escape(name)}</h1>",
            f'<p class="soft">{escape(_subtitle(report))}</p>',
            *[f'<p class="warn">{escape(text)}</p>' for text in _warnings(report)],
            f"<p>{escape(_counts(report))}</p><p>{escape(_rates(report))}</p>",
            "<h2>Latencies and lengths</h2>",
            _table(report),
            '<p class="soft">Milliseconds from the time at which a request was due. In brackets: 95% interval.</p>',
            "<h2>Plots</h2>",
            f'<div class="plots">{"".join(plots)}</div>',
            "</body></html>",
        ]
    )


def _subtitle(report: Report) -> str:
    settings = report.settings
    cap = f", at most {settings.concurrency_cap} in flight" if settings.concurrency_cap else ""
    model = f", model {settings.model}" if settings.model else ""
    return f"{settings.url}{model}, {settings.speed:g} times the trace's speed{cap}; trimtab {report.version}"


def _warnings(report: Report) -> list[str]:
    found = ["The run was ended before its time."] if report.interrupted else []
    found += [f"{count:,} failed: {why}" for why, count in report.errors.items()]
    if disturbed := disturbance(report):
        found.append(disturbed)
    return found


def _counts(report: Report) -> str:
    counts = report.counts
    return (
        f"{counts.successful:,} answered of {counts.sent:,} sent; {counts.errored:,} failed, "
        f"{counts.cancelled:,} cancelled, {counts.cache_hits:,} from a cache; {counts.too_long:,} were too "
        f"long and {counts.malformed:,} lines malformed"
        + (f", {counts.other_dialect:,} in another dialect." if counts.other_dialect else ".")
    )


def _rates(report: Report) -> str:
    rates, cost = report.throughput, report.cost
    said = (
        f"{rates.request_throughput:.2f} requests/s, {rates.output_token_throughput:,.0f} output tokens/s over "
        f"{rates.duration_s:.1f} s; goodput {rates.goodput:.2f}/s: {rates.good_request_fraction:.1%} met "
        f"{report.settings.slo.name}."
    )
    return said if cost.usd is None else f"{said} Cost: ${cost.usd:.6f} (prices: {cost.source})."


def _table(report: Report) -> str:
    head = "".join(f"<th>{column.replace('_', '.').replace('avg', 'mean')}</th>" for column in ("", *_COLUMNS))
    rows = "".join(
        f"<tr><td>{TITLES[name]}</td>{''.join(_cell(found, column) for column in _COLUMNS)}</tr>"
        for name, found in report.metrics.items()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(found: Summary, column: str) -> str:
    value = _number(getattr(found, column), found.unit)
    if column not in found.ci95 or found.unit != "ms":
        return f"<td>{value}</td>"
    low, high = (_number(bound, found.unit) for bound in found.ci95[column])
    return f'<td>{value}<br><span class="soft">[{low}, {high}]</span></td>'


def _number(value: float, unit: str) -> str:
    return f"{value:,.1f}" if unit == "ms" and value < 1000 else f"{value:,.0f}"


def _pairs(
    timings: Sequence[Timing], x: Callable[[Timing], float | None], y: Callable[[Timing], float | None]
) -> Points:
    found = [(x(timing), y(timing)) for timing in timings]
    return _thin([(a, b) for a, b in found if a is not None and b is not None])


def _cdf(values: Sequence[float | None]) -> Points:
    known = sorted(max(value, 1e-4) for value in values if value is not None)
    return _thin([(value, (rank + 1) / len(known)) for rank, value in enumerate(known)])


def _thin(points: Points) -> Points:
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    return points[::step] + ([points[-1]] if points and (len(points) - 1) % step else [])


def _figure(caption: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


class _Scale:
    """From a value to a place between two pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        self._log = log
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(max(high, low * 1.01)))
        else:
            low, high = 0.0, (high or 1.0) * 1.03
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        low, high = self._low, self._high
        if self._log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values to write at the axis."""
        if self._log:
            first, last = round(math.log10(self._low)), round(math.log10(self._high))
            return [10.0**power for power in range(first, last + 1)]
        rough = self._high / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
        return [n * step for n in range(int(self._high / step) + 1)]


def _lines(series: Sequence[_Series], x_title: str, *, log_x: bool) -> str:
    xs = [x for one in series for x, _ in one.points]
    across, up = _Scale(xs, _LEFT, _WIDTH - _RIGHT, log=log_x and bool(xs)), _Scale([1.0], _HEIGHT - _BOTTOM, _TOP)
    drawn = []
    for one in series:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in one.points)
        drawn.append(f'<polyline fill="none" stroke="{one.colour}" stroke-width="1.8" points="{path}"/>')
    return _svg(drawn, across, up, (x_title, "share of answers"), series)


def _dots(series: Sequence[_Series], x_title: str, y_title: str) -> str:
    across = _Scale([x for one in series for x, _ in one.points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale([y for one in series for _, y in one.points], _HEIGHT - _BOTTOM, _TOP)
    drawn = [
        f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2" fill="{one.colour}" fill-opacity=".55"/>'
        for one in series
        for x, y in one.points
    ]
    return _svg(drawn, across, up, (x_title, y_title), series)


def _svg(drawn: Sequence[str], across: _Scale, up: _Scale, titles: tuple[str, str], series: Sequence[_Series]) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(titles[0])}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(titles[1])}</text>'
    )
    named = [one for one in series if one.name and one.points]
    for n, one in enumerate(named):
        x = _LEFT + 12 + 110 * n
        parts.append(f'<circle cx="{x}" cy="{_TOP - 4}" r="4" fill="{one.colour}"/>')
        parts.append(f'<text x="{x + 8}" y="{_TOP}">{escape(one.name)}</text>')
    return f'<svg viewBox="0 -8 {_WIDTH} {_HEIGHT + 8}" role="img">{"".join((*drawn, *parts))}</svg>'
