"""How the figures of routers are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.routing.evaluate import Figures


def figures_table(rows: Sequence[Figures]) -> Table:
    """A line a router; "-" where a figure is undefined."""
    from rich.table import Table

    table = Table("router", "APGR", "95%", "CPT50", "CPT80", "saved at 95%", "saved at 99%", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row.name,
            _cell(row.apgr, "{:.3f}"),
            f"{_cell(row.apgr_low, '{:.3f}')} to {_cell(row.apgr_high, '{:.3f}')}",
            _cell(row.cpt50, "{:.0f}%"),
            _cell(row.cpt80, "{:.0f}%"),
            _cell(row.saved_at_95, "{:.0%}"),
            _cell(row.saved_at_99, "{:.0%}"),
        )
    return table


def _cell(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)
