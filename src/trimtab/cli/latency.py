"""`trimtab latency`: percentiles of what users felt, from the ledger's sketches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trimtab.cli.place import Place, gateway_options, moment, print_lines, say_empty

_TITLES = {"ttft": "First token", "tpot": "Per token", "total": "End to end"}


@click.command()
@click.option("--by", default="", help="Groups, separated by commas: tenant, route, model, prompt_version, cached.")
@click.option("--since", metavar="AGE|DATE", callback=moment, help="From that hour on: 24h, 7d, 2026-11-21T09:00.")
@click.option("--until", metavar="AGE|DATE", callback=moment, help="Before that hour.")
@click.option("--tenant", help="Only this tenant.")
@click.option("--route", help="Only this route.")
@click.option("--model", help="Only this model, as clients name it.")
@click.option("--prompt-version", help="Only this prompt version.")
@gateway_options
def latency(
    by: str, since: float | None, until: float | None, data_dir: Path | None, config_path: Path | None, **rest: Any
) -> None:
    """Percentiles of the time to the first token, per output token, and end to end.

    They are of requests that ended well; the first two of streams. Each figure is within 1% of a value of its rank,
    over whole hours (UTC), however many workers served and however long ago.

    \b
    trimtab latency --since 24h
    trimtab latency --by route,model --since 7d
    trimtab latency --by cached              answers from the cache beside the model's
    """
    as_json = rest.pop("as_json")
    where = {name: value for name, value in rest.items() if value is not None}
    groups = [name.strip() for name in by.split(",") if name.strip()]
    place = Place(data_dir, config_path)
    with place.reader() as reader:
        rows = reader.latency(groups, since=since, until=until, where=where)
    if not rows:
        say_empty(place, as_json, filtered=bool(where or since or until))
    elif as_json:
        print_lines(rows)
    else:
        _print(rows, groups)


def _print(rows: list[dict[str, Any]], groups: list[str]) -> None:
    from trimtab.cli.ledger_view import plain_table, seconds, terminal

    table = plain_table()
    for name in groups:
        table.add_column(name.replace("_", " "))
    table.add_column("", no_wrap=True)
    for name in ("requests", "p50", "p90", "p95", "p99", "p99.9"):
        table.add_column(name, justify="right", no_wrap=True)
    order: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        order.setdefault(tuple(row[name] for name in groups), []).append(row)
    for key, metrics in order.items():
        shown = [_group(name, value) for name, value in zip(groups, key, strict=True)]
        for row in sorted(metrics, key=lambda row: list(_TITLES).index(row["metric"])):
            figures = [seconds(row[name]) for name in ("p50", "p90", "p95", "p99", "p99_9")]
            table.add_row(*shown, _TITLES[row["metric"]], f"{row['count']:,}", *figures)
            shown = [""] * len(groups)
    terminal().print(table)


def _group(name: str, value: Any) -> str:
    from trimtab.cli.ledger_view import clean

    if name == "cached":
        return "from the cache" if value else "from a model"
    return str(clean(value)) or "-"
