"""A ladder as one HTML file that needs nothing else: waterfalls of cost and latency as inline SVG, and the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Final

import msgspec

from trimtab.ladder.figures import Step
from trimtab.ladder.setup import BASELINE, MODEL, WITHOUT_CACHES
from trimtab.measure.contention import NOISY
from trimtab.measure.html import STYLE
from trimtab.measure.speculation import Row

_STEADY: Final = 0.1  # a machine whose pace differs by more was not the same machine
_WIDTH, _ROW, _LEFT, _RIGHT = 520, 30, 176, 78
_DOWN, _UP, _TOTAL = "#4a7c59", "#c8553d", "#1b6ca8"


class Ladder(msgspec.Struct, frozen=True):
    """A ladder with where and of what it was measured. `--json` prints it as it is."""

    version: str
    at: str
    machine: str
    cores: int
    workload: str
    about: str
    seed: int
    requests: int
    distinct: int
    engine: str
    model: str
    machine_hour_usd: float
    utilization: float
    capacity_per_s: float
    rate_per_s: float
    finished: bool
    steps: tuple[Step, ...]
    speculation: tuple[Row, ...] = ()  # on trial, on the workload and on it without response caches
    again: Step | None = None  # the baseline's second run, compared with its first


def title(found: Ladder) -> str:
    """One line."""
    return f"The ladder of levers: {found.workload}, {found.requests} requests, seed {found.seed}"


def lines_below(found: Ladder) -> Iterator[str]:
    """What a reader has to know to trust the table."""
    yield (
        f"{found.about} {found.requests} requests, {found.requests - found.distinct} of them exact repeats, "
        f"{found.rate_per_s:.2f} a second: {found.utilization:.0%} of the {found.capacity_per_s:.2f} that the baseline "
        f"can serve. {found.engine}, {found.model}, {found.cores} cores, {found.machine}."
    )
    yield (
        "p50 and p99: from a request's arrival to its end; engine: without those that a cache answered. CPU: the "
        f"engine's, a request; cost: its busy time at ${found.machine_hour_usd:g} an hour; both with warm-up. Tokens: "
        "computed, prompt and output. Alike: answers equivalent to the baseline's to the same request, as far as words "
        "and embeddings can tell; in the baseline's own row, its repeats against its first answer."
    )
    if found.again is not None:
        yield f"{_drifted(found.again)}; its row, and all that is compared with it, are of both runs."
    wrong = [step for step in found.steps if step.semantic_share]
    if wrong:
        last = wrong[-1]
        reused = round((last.semantic_share or 0) * last.requests)
        unknown = f", {last.semantic_unknown} renewed by an audit" if last.semantic_unknown else ""
        wrong_ones = f"{last.semantic_wrong} of them of another intent"
        yield f"Reused answers of similar questions: {reused}, {wrong_ones}{unknown}."
    for step in found.steps:
        if step.others_cpu is not None and step.others_cpu > NOISY:
            yield f"{step.name}: other programs took {step.others_cpu:.0%} of the processors; measure it again."
        if step.pace is not None and abs(step.pace - 1) > _STEADY:
            yield f"{step.name}: the machine was {step.pace:.2f} times as slow as at the baseline; mind its times."


def _drifted(again: Step) -> str:
    """How the baseline's second run did beside its first."""
    names = (("e2e_p50", "p50"), ("e2e_p99", "p99"), ("cost", "cost"))
    ratios = ((name, again.less[key].value) for key, name in names if key in again.less)
    said = ", ".join(f"{name} {1 / ratio:.2f}" for name, ratio in ratios if ratio)
    return f"The baseline's second run, before the last step, in multiples of its first: {said}"


def render(found: Ladder) -> str:
    """The file's text."""
    plots = [
        _figure("Cost of a request, in millionths of a dollar", found, lambda s: _scaled(s.cost_per_request, 1e6)),
        _figure("End to end, p50, in seconds", found, lambda s: s.e2e_p50_s),
        _figure("End to end, p99, in seconds", found, lambda s: s.e2e_p99_s),
        _figure("Time to first token, p99, in seconds", found, lambda s: s.ttft_p99_s),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title(found))}</title><style>{STYLE}{_OWN_STYLE}</style></head><body>",
            f"<h1>{escape(title(found))}</h1>",
            f'<p class="soft">trimtab {escape(found.version)}, {escape(found.at)}</p>',
            "" if found.finished else '<p class="warn">Not finished: the steps so far.</p>',
            f'<div class="plots">{"".join(plots)}</div>',
            "<h2>Steps</h2>",
            _table(found),
            *[f'<p class="soft">{escape(line)}</p>' for line in lines_below(found)],
            "</body></html>",
        ]
    )


_OWN_STYLE: Final = """
.out { color: var(--soft); } .scroll { overflow-x: auto; } .name { fill: var(--ink); } td, th { padding: .25rem .4rem; }
td { white-space: nowrap; border-bottom: 0; padding-bottom: 0; } body { max-width: 1280px; }
td.why { text-align: left; white-space: normal; color: var(--soft); font-size: .88rem; padding: 0 .4rem .25rem;
  border-bottom: 1px solid var(--line); }
"""


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _figure(caption: str, found: Ladder, read: Callable[[Step], float | None]) -> str:
    """A bar from the step before down (or up) to each accepted one; whole bars for the baseline and the last row."""
    shown = [(step, value) for step in found.steps if (value := read(step)) is not None]
    if not shown:
        return ""
    most = max(value for _, value in shown) or 1.0
    room = _WIDTH - _LEFT - _RIGHT

    def across(value: float) -> float:
        return _LEFT + room * value / most

    drawn, before = [], 0.0
    for n, (step, value) in enumerate(shown):
        y, whole = n * _ROW + 4, step.name in (BASELINE, WITHOUT_CACHES)
        start = 0.0 if whole else before
        low, high = sorted((across(start), across(value)))
        colour = _TOTAL if whole else _DOWN if value <= start else _UP
        faint = "" if step.accepted else ' fill-opacity=".25"'
        drawn.append(f'<text class="name" x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(step.name)}</text>')
        drawn.append(
            f'<rect x="{low:.1f}" y="{y}" width="{max(high - low, 1.5):.1f}" height="{_ROW - 8}" '
            f'fill="{colour}"{faint}/>'
        )
        drawn.append(f'<text x="{max(low, high) + 6:.1f}" y="{y + 15}">{_short(value)}</text>')
        if (step.accepted and not whole) or step.name == BASELINE:
            before = value
        x = across(before)
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{y + _ROW - 8}" y2="{y + _ROW}"/>')
    height = len(shown) * _ROW + 4
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(drawn)}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _quality(step: Step) -> str:
    if step.quality is None or step.quality_low is None or step.quality_high is None:
        return "-"
    return f'{step.quality:.0%}<br><span class="soft">[{step.quality_low:.0%}, {step.quality_high:.0%}]</span>'


def _less(step: Step, name: str) -> str:
    ratio = step.less.get(name)
    if ratio is None or ratio.value is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.1f}x"
    return f'{ratio.value:.1f}x<br><span class="soft">[{ratio.low:.1f}, {ratio.high:.1f}]</span>'


_COLUMNS: Final[tuple[tuple[str, Callable[[Step], str]], ...]] = (
    ("p50", lambda s: _number(s.e2e_p50_s)),
    ("p99", lambda s: _number(s.e2e_p99_s)),
    ("TTFT p50", lambda s: _number(s.ttft_p50_s)),
    ("TTFT p99", lambda s: _number(s.ttft_p99_s)),
    ("engine p50", lambda s: _number(s.engine_e2e_p50_s)),
    ("engine p99", lambda s: _number(s.engine_e2e_p99_s)),
    ("hits", lambda s: _percent(s.hit_rate)),
    ("tokens a call", lambda s: "-" if s.tokens_per_call is None else f"{s.tokens_per_call:.0f}"),
    ("engine CPU s", lambda s: _number(s.engine_cpu_s)),
    ("USD per 1,000", lambda s: "-" if s.cost_per_request is None else f"{s.cost_per_request * 1000:.4f}"),
    ("alike", _quality),
    ("p50 less", lambda s: _less(s, "e2e_p50")),
    ("p99 less", lambda s: _less(s, "e2e_p99")),
    ("cost less", lambda s: _less(s, "cost")),
    ("CPU less", lambda s: _less(s, "engine_cpu")),
)


def _table(found: Ladder) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("step", *(name for name, _ in _COLUMNS)))
    rows = []
    for step in found.steps:
        kind = "" if step.accepted else ' class="out"'
        name = escape(step.name if step.accepted else f"({step.name})")
        why = f'<td colspan="{len(_COLUMNS)}" class="why">{escape(step.reason)}</td>'
        if step.requests:
            cells = "".join(f"<td>{show(step)}</td>" for _, show in _COLUMNS)
            rows.append(f'<tr{kind}><td>{name}</td>{cells}</tr><tr><td class="why"></td>{why}</tr>')
        else:
            rows.append(f'<tr{kind}><td class="why">{name}</td>{why}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="soft">In brackets: 95% intervals, over requests. Levers in brackets are left out of the steps '
        f"after them. Clients ask for {escape(MODEL)}.</p>"
    )
