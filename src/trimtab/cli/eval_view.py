"""How eval runs and verdicts look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from trimtab.evals.compare import Cell, Changed, Table
from trimtab.evals.runs import Run
from trimtab.evals.suite import Suite
from trimtab.evals.trial import Trial
from trimtab.evals.verdicts import VerdictFile
from trimtab.quality.verdict import Ruling, StratumVerdict

_COLOURS: Final = {Ruling.PASS: "green", Ruling.FAIL: "red", Ruling.UNDECIDED: "yellow"}
_ANSWER_CHARS: Final = 70


def show_table(found: Table) -> None:
    """Scores by stratum; of the second run and later with the paired difference."""
    grid = Grid(box=box.SIMPLE_HEAD, title=f"Suite {found.suite}: mean scores, 95% intervals", title_justify="left")
    grid.add_column("stratum", no_wrap=True)
    grid.add_column("items", justify="right")
    for n, name in enumerate(found.runs):
        grid.add_column(name, justify="right")
        if n:
            grid.add_column(f"change from {found.runs[0]}", justify="right")
    for stratum, cells in found.strata.items():
        first = next(cell for cell in cells if cell is not None)
        row = [stratum, str(first.items)]
        for n, cell in enumerate(cells):
            row += _shown(cell, with_change=n > 0)
        grid.add_row(*row)
    Console().print(grid)


def _shown(cell: Cell | None, *, with_change: bool) -> list[str]:
    if cell is None:
        return ["-"] * (1 + with_change)
    shown = [f"{cell.score:.1%} [dim]({cell.low:.0%} to {cell.high:.0%})[/dim]"]
    if with_change:
        if cell.loss is None or cell.loss_low is None or cell.loss_high is None:
            shown.append("-")
        else:
            style = "red" if cell.loss_low > 0 else "green" if cell.loss_high < 0 else "default"
            span = f"({-cell.loss_high:+.1%} to {-cell.loss_low:+.1%})"
            shown.append(f"[{style}]{-cell.loss:+.1%}[/{style}] [dim]{span}[/dim]")
    return shown


def show_changes(before: Run, after: Run, found: Sequence[Changed], limit: int) -> None:
    """Items that changed, worse ones first."""
    console = Console()
    worse, better = [c for c in found if c.loss > 0], [c for c in found if c.loss < 0]
    console.print(
        f"{after.name} against {before.name}: {len(worse)} items worse, {len(better)} better", highlight=False
    )
    for title, some in (("worse", worse), ("better", better[::-1])):
        for one in some[:limit]:
            console.print(
                Text.assemble((f"{-one.loss:+.2f} ", "red" if one.loss > 0 else "green"), f"{one.stratum}  {one.item}")
            )
            console.print(Text(f"   {before.name}: {_line(one.before)}"))
            console.print(Text(f"   {after.name}: {_line(one.after)}   ({one.why})"))
        if len(some) > limit:
            console.print(f"   ... and {len(some) - limit} more {title} (--limit, or --json)", highlight=False)


def _line(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= _ANSWER_CHARS else f"{shown[:_ANSWER_CHARS]}..."


def summary(suite: Suite) -> dict[str, Any]:
    """A suite without its items."""
    strata: dict[str, int] = {}
    for item in suite.items:
        strata[item.stratum] = strata.get(item.stratum, 0) + 1
    return {"name": suite.name, "description": suite.description, "license": suite.license, "strata": strata}


def show_suites(suites: Sequence[Suite]) -> None:
    """Names and strata."""
    console = Console()
    for suite in suites:
        found = summary(suite)
        console.print(f"[bold]{suite.name}[/bold]  {suite.description}", highlight=False)
        console.print("  " + ", ".join(f"{name} ({count})" for name, count in found["strata"].items()), highlight=False)


def show_trial(found: Trial) -> None:
    """A judge's trial, in words."""
    console = Console()
    lines = [
        f"{found.model} on {found.pairs:,} labelled pairs, each asked about twice with the places swapped",
        f"  agreement with the labels  {found.agreement:.0%}, kappa {found.kappa:.2f} "
        f"(95%: {found.kappa_low:.2f} to {found.kappa_high:.2f})",
        f"  position bias              prefers the first place in {found.first:.0%} of replies, the second in "
        f"{found.second:.0%}; {found.swapped_differs:.0%} of verdicts change when the places do",
        f"  replies that say neither   {found.unread:.0%}",
    ]
    for line in lines:
        console.print(line, highlight=False)
    if found.trusted:
        console.print(f"[green]It may judge[/green]: kappa is at least {found.min_kappa:g}.", highlight=False)
    else:
        console.print(
            f"[red]It may not judge[/red]: it takes a kappa whose interval begins at {found.min_kappa:g}.",
            highlight=False,
        )


def show_verdict(found: VerdictFile) -> None:
    """The verdict by stratum, and in all."""
    verdict = found.verdict
    console = Console()
    grid = Grid(
        box=box.SIMPLE_HEAD,
        title=f"{found.candidate.config} against {found.reference.config}, suite {found.reference.suite}",
        title_justify="left",
    )
    for name in ("stratum", "items", found.reference.config, found.candidate.config, "worse/better", "loss, bounds"):
        grid.add_column(name, justify="left" if name == "stratum" else "right", no_wrap=name != "loss, bounds")
    grid.add_column("verdict")
    for one in verdict.strata:
        grid.add_row(*_of_stratum(one))
    console.print(grid)
    colour = _COLOURS[verdict.ruling]
    more = f" About {verdict.more_items:,} more items would decide it." if verdict.more_items else ""
    console.print(f"[bold {colour}]{verdict.ruling.upper()}[/bold {colour}]: {verdict.reason}.{more}", highlight=False)


def _of_stratum(one: StratumVerdict) -> list[str]:
    colour = _COLOURS[one.ruling]
    score, other = (
        f"{value:.1%}" if value is not None else "-" for value in (one.reference_score, one.candidate_score)
    )
    loss = "-"
    if one.loss is not None and one.lower is not None and one.upper is not None:
        loss = f"{one.loss:+.3f} ({one.lower:+.3f} to {one.upper:+.3f})"
    ruling = f"[{colour}]{one.ruling}[/{colour}]"
    if one.ruling is Ruling.UNDECIDED:
        lack = f"{one.more_items:,} more items" if one.more_items else one.reason
        ruling += f" [dim]({lack})[/dim]"
    return [one.stratum, str(one.items), score, other, f"{one.worse}/{one.better}", loss, ruling]
