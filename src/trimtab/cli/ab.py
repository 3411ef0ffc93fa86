"""`trimtab ab`: both arms of an A/B test, side by side."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from trimtab.cli.place import Place, gateway_options, moment, print_lines
from trimtab.errors import ConfigError
from trimtab.quality.split import MISMATCH_P


@click.command()
@click.argument("route")
@click.option("--since", metavar="AGE|DATE", callback=moment, help="From then on: 24h, 7d, 2026-11-21.  [default: all]")
@gateway_options
def ab(route: str, since: float | None, data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Compare both arms of ROUTE's A/B test: who was in them, cost, latency, errors, feedback, shadow verdicts.

    Only requests since the share and the candidate are what they are count. Intervals hold with 95%, however often
    one looks.
    """
    from trimtab import config

    try:
        others = [name for name in config.load(config_path, os.environ).routes if name != config.DEFAULT_ROUTE]
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    place = Place(data_dir, config_path)
    with place.reader() as reader:
        found = reader.arms(route, others if route == config.DEFAULT_ROUTE else (), since or 0.0)
        shadow = [row for row in reader.levers() if (row["route"], row["lever"]) == (route, "ab")]
    if found is None:
        if not as_json:
            click.echo(
                f"No request of route {route} was in an A/B test{' since then' if since else ''}. To begin one, add to "
                f'trimtab.toml:\n\n  [routes.{route}.levers.ab]\n  model = "CANDIDATE"\n  share = 0.1'
                '\n\nWithout a verdict of `trimtab gate` nobody gets the candidate, unless gate = "advisory" is there.'
            )
        return
    found = {"route": route, **found, "shadow": shadow[0] if shadow else None}
    print_lines([found]) if as_json else _print(found)


def _print(found: dict[str, Any]) -> None:
    from trimtab.cli.ledger_view import clean, plain_table, terminal

    found = clean(found)
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found["since"]))
    click.echo(f"route {found['route']}: {found['candidate']} (B) against what was asked (A), since {since}")
    if found["setting_changed"]:
        click.echo("The setting changed then; what came before is not compared.")
    if found["gate_advisory"]:
        click.echo('No verdict of the gate covers this test: the setting says gate = "advisory".')
    a, b = found["arms"]["A"], found["arms"]["B"]
    table = plain_table()
    table.add_column("")
    for name in ("A", "B"):
        table.add_column(name, justify="right")
    for label, show in _ROWS:
        table.add_row(label, show(a), show(b))
    terminal().print(table)
    click.echo(_ratio(found))
    click.echo(_shadow(found["shadow"]))


def _usd(arm: dict[str, Any]) -> str:
    from trimtab.cli.ledger_view import usd

    cost = arm["cost_nusd_per_request"]
    return "unpriced" if cost is None else usd(round(cost))


def _time(name: str) -> Any:
    def show(arm: dict[str, Any]) -> str:
        from trimtab.cli.ledger_view import seconds

        return seconds(arm[name])

    return show


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _feedback(arm: dict[str, Any]) -> str:
    said = arm["feedback"]
    if said is None:
        return "-"
    return f"{said['mean']:.2f} ({said['lower']:.2f} to {said['upper']:.2f}, n {said['count']:,})"


_ROWS = (
    ("model", lambda arm: ", ".join(arm["models"]) or "-"),
    ("requests", lambda arm: f"{arm['requests']:,}"),
    ("units", lambda arm: f"{arm['units']:,}"),
    ("share asked", lambda arm: _share(arm["share_asked"])),
    ("share of units", lambda arm: _share(arm["share_realised"])),
    ("answered by a cache", lambda arm: f"{arm['cache_hits']:,}"),
    ("cost per request", _usd),
    ("p50", _time("p50_s")),
    ("p95", _time("p95_s")),
    ("errors", lambda arm: f"{arm['errors']:,} ({_share(arm['error_share'])})"),
    ("feedback, 0 to 1", _feedback),
)


def _ratio(found: dict[str, Any]) -> str:
    p = found["sample_ratio_p"]
    if p is None:
        return "Too few units to tell whether they split as asked."
    if found["trusted"]:
        return f"The units split as asked (p = {p:.2g})."
    return (
        f"Do not trust this comparison: the units did not split as asked (p = {p:.1g}, below {MISMATCH_P:g}). "
        "Something puts them into arms, or loses them, by more than chance."
    )


def _shadow(row: dict[str, Any] | None) -> str:
    if row is None or row["loss"] is None:
        return "Quality: no verdict yet; [routes.ROUTE.shadow] has a share of arm B's answers judged."
    state = "" if row["on"] else "; the lever is OFF"
    between = f"between {row['lower']:+.3f} and {row['upper']:+.3f}"
    pairs = f"{row['pairs']:,} pairs, {row['unknown']:,} unknown"
    return f"Quality: loss {row['loss']:+.3f} ({between}, {pairs}): {row['why']}{state}."
