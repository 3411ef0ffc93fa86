"""Eval runs as one HTML file that needs nothing else: scores by stratum with intervals, and every item that changed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from trimtab.evals.compare import Cell, Changed, Table, changed
from trimtab.evals.runs import Run
from trimtab.measure.html import STYLE

_MORE_STYLE: Final = """
.bar { position: relative; height: .7rem; background: var(--line); border-radius: 2px; min-width: 8rem; }
.bar i { position: absolute; top: 0; bottom: 0; background: #1b6ca8; opacity: .45; }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; width: 3px; background: #1b6ca8; }
.worse { color: #c8553d; } .better { color: #4a7c59; } details { margin: .6rem 0; }
details td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
"""
_MOST_CHANGES: Final = 500
_TEXT_CHARS: Final = 1000


def render(found: Table, runs: Sequence[Run]) -> str:
    """The file's text."""
    title = f"Suite {escape(found.suite)}"
    changes = "".join(_changes(runs[0], run) for run in runs[1:])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}{_MORE_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p class="soft">{escape(_about(runs))}</p>'
        "<h2>Mean scores by stratum, with 95% intervals</h2>"
        f"<table>{_head(found)}{''.join(_row(found, name, cells) for name, cells in found.strata.items())}</table>"
        f"{changes}</body></html>\n"
    )


def _about(runs: Sequence[Run]) -> str:
    settings = ", ".join(f"{run.name} ({run.head.model})" for run in runs)
    head = runs[0].head
    return f"{settings}; suite {head.suite_sha256[:12]}, Trimtab {head.trimtab}, {head.machine}, seed {head.seed}"


def _head(found: Table) -> str:
    cells = ["<th>stratum</th><th>items</th>"]
    for n, name in enumerate(found.runs):
        cells.append(f"<th>{escape(name)}</th><th></th>")
        if n:
            cells.append(f"<th>change from {escape(found.runs[0])}</th>")
    return f"<tr>{''.join(cells)}</tr>"


def _row(found: Table, stratum: str, cells: Sequence[Cell | None]) -> str:
    items = next(cell.items for cell in cells if cell is not None)
    shown = [f"<td>{escape(stratum)}</td><td>{items}</td>"]
    for n, cell in enumerate(cells):
        if cell is None:
            shown.append("<td>-</td><td></td>" + "<td>-</td>" * (n > 0))
            continue
        shown.append(f"<td>{cell.score:.1%}</td><td>{_bar(cell)}</td>")
        if n:
            shown.append(f"<td>{_change(cell)}</td>")
    return f"<tr>{''.join(shown)}</tr>"


def _bar(cell: Cell) -> str:
    return (
        f'<div class="bar" title="{cell.low:.1%} to {cell.high:.1%}"><i style="left:{cell.low:.1%};'
        f'right:{1 - cell.high:.1%}"></i><b style="left:calc({cell.score:.1%} - 1px)"></b></div>'
    )


def _change(cell: Cell) -> str:
    if cell.loss is None or cell.loss_low is None or cell.loss_high is None:
        return "-"
    word = "worse" if cell.loss_low > 0 else "better" if cell.loss_high < 0 else ""
    span = f"{-cell.loss_high:+.1%} to {-cell.loss_low:+.1%}"
    return f'<span class="{word}">{-cell.loss:+.1%}</span> <span class="soft">{span}</span>'


def _changes(before: Run, after: Run) -> str:
    found = changed(before, after)
    rows = "".join(_changed_row(one) for one in found[:_MOST_CHANGES])
    left = f"<p class='soft'>and {len(found) - _MOST_CHANGES} more</p>" if len(found) > _MOST_CHANGES else ""
    names = f"<th>{escape(before.name)}</th><th>{escape(after.name)}</th>"
    return (
        f"<h2>{escape(after.name)}: {sum(one.loss > 0 for one in found)} items worse, "
        f"{sum(one.loss < 0 for one in found)} better than {escape(before.name)}</h2>"
        f"<details><summary>show them</summary><table><tr><th>item</th><th>change</th>{names}<th>why</th></tr>"
        f"{rows}</table>{left}</details>"
    )


def _changed_row(one: Changed) -> str:
    word = "worse" if one.loss > 0 else "better"
    texts = "".join(f"<td>{escape(text[:_TEXT_CHARS])}</td>" for text in (one.before, one.after, one.why))
    return (
        f'<tr><td>{escape(one.stratum)}<br><span class="soft">{escape(one.item)}</span></td>'
        f'<td class="{word}">{-one.loss:+.2f}</td>{texts}</tr>'
    )
