"""The ladder in a terminal: a row for each step, then what each did to the one before."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.cli.ledger_view import plain_table, seconds, share, terminal
from trimtab.ladder.figures import Ratio, Step
from trimtab.ladder.page import Ladder, lines_below, title


def show(found: Ladder) -> None:
    """Print it."""
    console = terminal()
    console.print(title(found), style="bold")
    table = plain_table()
    table.add_column("step", no_wrap=True)
    for name in (
        "p50",
        "p99",
        "TTFT p50",
        "p99",
        "engine p50",
        "p99",
        "hits",
        "tokens/call",
        "CPU",
        "USD/1,000",
        "alike",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ruling", overflow="fold", min_width=24)
    for step in found.steps:
        table.add_row(*_cells(step))
    console.print(table)
    for line in (*_against(found), *lines_below(found)):
        console.print(line)


def _cells(step: Step) -> tuple[str, ...]:
    sign = "+ " if step.accepted else "- "
    if not step.requests:
        return (sign + step.name, *[""] * 11, step.reason)
    return (
        sign + step.name,
        seconds(step.e2e_p50_s),
        seconds(step.e2e_p99_s),
        seconds(step.ttft_p50_s),
        seconds(step.ttft_p99_s),
        seconds(step.engine_e2e_p50_s),
        seconds(step.engine_e2e_p99_s),
        share(step.hit_rate),
        "-" if step.tokens_per_call is None else f"{step.tokens_per_call:.0f}",
        seconds(step.engine_cpu_s),
        "-" if step.cost_per_request is None else f"{step.cost_per_request * 1000:.4f}",
        share(step.quality),
        step.reason,
    )


def _against(found: Ladder) -> Iterator[str]:
    for step in _last_two(found):
        if step.less:
            said = ", ".join(f"{name} {_ratio(step.less[key])}" for key, name in _NAMES if key in step.less)
            yield f"{step.name}, times less than the baseline: {said}"


_NAMES = (("e2e_p50", "p50"), ("e2e_p99", "p99"), ("cost", "cost"), ("engine_cpu", "engine CPU"))


def _last_two(found: Ladder) -> list[Step]:
    """The top of the ladder, and the same without stored answers."""
    climbed = [step for step in found.steps if step.accepted and step.requests]
    return climbed[-2:]


def _ratio(ratio: Ratio) -> str:
    if ratio.value is None:
        return "-"
    interval = f" ({ratio.low:.1f} to {ratio.high:.1f})" if ratio.low is not None and ratio.high is not None else ""
    return f"{ratio.value:.1f}{interval}"
