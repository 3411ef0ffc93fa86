"""How a replay looks in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from trimtab.measure.report import TITLES, Report, disturbance, worst_lag_s
from trimtab.measure.stats import Difference, Summary

_WIDEST = 100
_LATE_S = 0.02  # a generator whose p99 is later than this measured itself


def show(report: Report) -> None:
    """Print the report."""
    console = _console()
    settings, counts, rates = report.settings, report.counts, report.throughput
    title = f"{Path(settings.trace).name} at {settings.speed:g}x to {settings.url}"
    table = Table(title=title + (" (interrupted)" if report.interrupted else ""), box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("p50", "p90", "p95", "p99", "p99.9", "mean"):
        table.add_column(column, justify="right")
    for name, found in report.metrics.items():
        shown = [found.p50, found.p90, found.p95, found.p99, found.p99_9, found.avg]
        table.add_row(TITLES[name], *[_value(value, found.unit) for value in shown])
    console.print(table)
    console.print(_plain([("Requests", _requests(report)), *_figures(report)]))
    for title, count in report.errors.items():
        console.print(f"{count:,} failed: {title}", style="red", markup=False, highlight=False)
    first = report.metrics.get("time_to_first_token") or report.metrics.get("request_latency")
    if first is not None:
        console.print(_interval_note(first), style="dim", highlight=False)
    for note in _notes(report):
        console.print(note, style="yellow", highlight=False)
    if rates.duration_s < 1 and counts.sent < 20:
        console.print("So few requests say little.", style="yellow")


def show_differences(a: Report, b: Report, found: list[Difference]) -> None:
    """Print what differs between two runs."""
    console = _console()
    for name, run in (("A", a), ("B", b)):
        where = f"{Path(run.settings.trace).name} at {run.settings.speed:g}x to {run.settings.url}"
        console.print(f"{name}: {where}, {run.counts.successful:,} answered", highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "", "A", "B", "B - A", "95% interval", ""):
        table.add_column(column, justify="left" if column in ("", "95% interval") else "right")
    last = ""
    for one in found:
        interval = f"{_value(one.low, one.unit)} to {_value(one.high, one.unit)}"
        verdict = ("[red]more[/]" if one.difference > 0 else "[green]less[/]") if one.real else "[dim]no difference[/]"
        table.add_row(
            TITLES[one.metric] if one.metric != last else "",
            "mean" if one.statistic == "avg" else one.statistic,
            *[_value(value, one.unit) for value in (one.a, one.b, one.difference)],
            interval,
            verdict,
        )
        last = one.metric
    console.print(table)
    if a.settings.trace != b.settings.trace or a.settings.speed != b.settings.speed:
        console.print(
            "The runs replayed different traffic: their difference is not the servers' alone.", style="yellow"
        )


def _requests(report: Report) -> str:
    counts = report.counts
    parts = [f"{counts.successful:,} answered"]
    parts += [f"{counts.errored:,} failed"] if counts.errored else []
    parts += [f"{counts.cancelled:,} cancelled"] if counts.cancelled else []
    parts += [f"{counts.cache_hits:,} from a cache"] if counts.cache_hits else []
    parts += [f"{counts.too_long:,} too long, skipped"] if counts.too_long else []
    parts += [f"{counts.too_short:,} too short to be made"] if counts.too_short else []
    parts += [f"{counts.other_dialect:,} in Anthropic's dialect, skipped"] if counts.other_dialect else []
    parts += [f"{counts.malformed:,} lines malformed"] if counts.malformed else []
    return ", ".join(parts)


def _figures(report: Report) -> list[tuple[str, str]]:
    rates, cost, slo = report.throughput, report.cost, report.settings.slo
    limits = {"first token": slo.ttft_s, "per token": slo.tpot_s, "end to end": slo.total_s}
    said = ", ".join(f"{name} <= {limit * 1000:g} ms" for name, limit in limits.items() if limit is not None)
    rows = [
        (
            "Throughput",
            f"{rates.request_throughput:.2f} requests/s, {rates.output_token_throughput:,.0f} output tokens/s",
        ),
        ("Goodput", f"{rates.goodput:.2f} requests/s: {rates.good_request_fraction:.1%} met {slo.name} ({said})"),
    ]
    if cost.usd is not None:
        good = "-" if cost.usd_per_good_request is None else f"${cost.usd_per_good_request:.6f}"
        rows.append(("Cost", f"${cost.usd:.6f}, {good} a good request (prices: {cost.source})"))
    fidelity = report.fidelity
    if fidelity.planned:
        off = f", at most {fidelity.input_largest_difference} off" if fidelity.input_largest_difference else ""
        rows.append(
            (
                "Lengths",
                f"{fidelity.input_exact:,} of {fidelity.planned:,} prompts exactly as in the trace{off}; "
                f"{fidelity.output_exact:,} answers",
            )
        )
    return rows


def _interval_note(found: Summary) -> str:
    """How sure the first line's figures are, for the highest percentile that the requests are enough for."""
    name = next((name for name in ("p99", "p95", "p90", "p50") if name in found.ci95), None)
    if name is None:
        return f"{found.count} requests are too few for intervals."
    low, high = found.ci95[name]
    return (
        f"95% interval of the first line's {name}: {_value(low, found.unit)} to {_value(high, found.unit)} (all are in "
        f"--json); beyond {name}, {found.count:,} requests are too few for one."
    )


def _notes(report: Report) -> list[str]:
    notes = []
    if disturbed := disturbance(report):
        notes.append(disturbed)
    if not report.settings.concurrency_cap and worst_lag_s(report) > _LATE_S:
        notes.append(
            f"1% of the requests were sent more than {worst_lag_s(report) * 1000:.0f} ms late: this machine could not "
            "keep up as a generator, and the latencies contain that."
        )
    return notes


def _plain(rows: list[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    for row in rows:
        table.add_row(*row)
    return table


def _value(value: float, unit: str) -> str:
    if unit != "ms":
        return f"{value:,.0f}"
    size = abs(value)
    if size >= 1000:
        return f"{value / 1000:,.1f} s" if size >= 10_000 else f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if size >= 100 else f"{value:.1f} ms"


def _console() -> Console:
    console = Console()
    return Console(width=min(console.width, _WIDEST)) if console.is_terminal else Console(width=_WIDEST)
