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
    """Scores by stratum and run; of the second run and later with the paired difference from the first."""
    grid = _grid(f"Suite {found.suite}: mean scores with 95% intervals")
    grid.add_column("stratum", no_wrap=True)
    grid.add_column("setting", no_wrap=True)
    for name in ("score", ""):
        grid.add_column(name, justify="right", no_wrap=True)
    if len(found.runs) > 1:
        grid.add_column("change", justify="right", no_wrap=True)
        grid.add_column("", justify="right", no_wrap=True)
    for stratum, cells in found.strata.items():
        count = next(cell.items for cell in cells if cell is not None)
        titles = [stratum, f"[dim]{count:,} items[/dim]", *[""] * len(cells)]
        for n, (run, cell) in enumerate(zip(found.runs, cells, strict=True)):
            grid.add_row(titles[n], run, *_shown(cell), end_section=n == len(cells) - 1)
    Console().print(grid)


def _grid(title: str) -> Grid:
    return Grid(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", collapse_padding=True)


def _shown(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["-"]
    shown = [f"{cell.score:.1%}", f"[dim]{100 * cell.low:.0f} to {cell.high:.0%}[/dim]"]
    if cell.loss is not None and cell.loss_low is not None and cell.loss_high is not None:
        style = "red" if cell.loss_low > 0 else "green" if cell.loss_high < 0 else "default"
        shown.append(f"[{style}]{-cell.loss:+.1%}[/{style}]")
        shown.append(f"[dim]{-100 * cell.loss_high:+.1f} to {-cell.loss_low:+.1%}[/dim]")
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
    grid = _grid(f"{found.candidate.config} against {found.reference.config}, suite {found.reference.suite}")
    grid.add_column("stratum", no_wrap=True)
    for name in ("items", found.reference.config, found.candidate.config, "-/+", "loss at most", "verdict"):
        grid.add_column(name, justify="right", no_wrap=True)
    for one in verdict.strata:
        grid.add_row(*_of_stratum(one))
    console.print(grid)
    for one in verdict.strata:
        if one.ruling is Ruling.UNDECIDED:
            console.print(f"[yellow]{one.stratum}[/yellow]: {one.reason}", highlight=False)
    colour = _COLOURS[verdict.ruling]
    console.print(f"[bold {colour}]{verdict.ruling.upper()}[/bold {colour}]: {verdict.reason}", highlight=False)


def _of_stratum(one: StratumVerdict) -> list[str]:
    score, other = (
        f"{value:.1%}" if value is not None else "-" for value in (one.reference_score, one.candidate_score)
    )
    most = "-" if one.upper is None else f"{one.upper:+.1%}"
    ruling = f"[{_COLOURS[one.ruling]}]{one.ruling}[/{_COLOURS[one.ruling]}]"
    return [one.stratum, str(one.items), score, other, f"{one.worse}/{one.better}", most, ruling]
