"""`trimtab slo`: does each route keep its promise, and how fast does its error budget burn."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from trimtab.cli.place import Place, gateway_options, print_lines
from trimtab.errors import ConfigError

_NONE = """No route has an objective. Give one in trimtab.toml, and reload:

  [routes.default.slo]
  targets = "chat"      # first token within 500 ms; or completion, batch, or "ttft=300ms,e2e=5s"
  objective = 0.99"""


@click.command()
@gateway_options
def slo(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Service levels by route: how many requests were good, what is left of the error budget, alarms.

    A burn rate of 1 spends the budget of 30 days in 30 days. Alarms go to the log and to telemetry.alert_webhook_env.
    """
    from trimtab import config
    from trimtab.cli.ledger_view import plain_table, terminal

    try:
        objectives = config.load(config_path, os.environ).objectives()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    place = Place(data_dir, config_path)
    with place.reader() as reader:
        rows = reader.service_levels(objectives, time.time())
    if as_json:
        print_lines(rows)
        return
    if not rows:
        click.echo(_NONE)
        return
    table = plain_table()
    table.add_column("route")
    table.add_column("targets")
    for name in ("objective", "good", "of", "budget left", "burn 5m", "1h", "6h", "3d", "30d"):
        table.add_column(name, justify="right")
    table.add_column("alarm")
    for row in rows:
        table.add_row(*_cells(row))
    terminal().print(table)
    for row in rows:
        for alarm in row["alarms"]:
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(alarm["since"]))
            click.echo(f"{alarm['severity']}: {row['route']} since {since} ({alarm['long']} and {alarm['short']})")


def _cells(row: dict[str, Any]) -> list[str]:
    share, left, burns = row["good_share"], row["budget_left"], row["burn_rates"]
    known = share is not None
    return [
        row["route"],
        row["targets"],
        f"{row['objective']:.4g}",
        f"{share:.3%}" if known else "-",
        f"{row['good'] + row['bad']:,}",
        f"{left:.0%}" if known else "-",
        *[f"{burns[window]:.1f}" if known else "-" for window in ("5m", "1h", "6h", "3d", "30d")],
        ", ".join(sorted({alarm["severity"] for alarm in row["alarms"]})) or "-",
    ]
