"""`trimtab ledger`: what every request cost, and why. Reading never disturbs a running gateway."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from trimtab.cli.place import Place, gateway_options, moment, print_lines, say_empty
from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from trimtab.stores.ledger_reader import Reader

_FOLLOW_S = 0.5
_FOLLOW_ROWS = 1000
_PARQUET_ROWS = 10_000


@click.group()
def ledger() -> None:
    """What every request cost: by tenant, route, model, workflow, version or day."""


@ledger.command()
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many requests.")
@click.option("--follow", "-f", is_flag=True, help="Go on as requests come, until Ctrl-C.")
@gateway_options
def tail(count: int, follow: bool, data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """The latest requests."""
    from trimtab.cli import ledger_view

    place = Place(data_dir, config_path)
    with place.reader() as reader:
        rows = reader.tail(count)
    if not rows and not follow:
        say_empty(place, as_json)
        return
    if as_json:
        print_lines(rows)
    else:
        ledger_view.print_tail(rows)
    after = rows[-1]["seq"] if rows else 0
    try:
        while follow:
            time.sleep(_FOLLOW_S)
            with place.reader() as reader:
                rows = reader.tail(_FOLLOW_ROWS, after=after)
            if rows:
                after = rows[-1]["seq"]
                print_lines(rows) if as_json else ledger_view.print_tail(rows, head=False)
    except KeyboardInterrupt:
        return


@ledger.command()
@click.option("--by", default="model", show_default=True, help="Groups, separated by commas: tenant,route,day,...")
@click.option(
    "--since", metavar="AGE|DATE", callback=moment, help="From then on: 24h, 7d, 2026-11-21, 2026-11-21T09:00."
)
@click.option("--until", metavar="AGE|DATE", callback=moment, help="Before then.")
@click.option("--tenant", help="Only this tenant.")
@click.option("--route", help="Only this route.")
@click.option("--model", help="Only this model, as clients name it.")
@click.option("--workflow", help="Only this workflow.")
@click.option("--session", help="Only this session: the cost of a whole task.")
@gateway_options
def summary(
    *,
    by: str,
    since: float | None,
    until: float | None,
    data_dir: Path | None,
    config_path: Path | None,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Totals of requests, tokens and money, the dearest group first."""
    from trimtab.cli import ledger_view

    groups = [name.strip().replace("-", "_") for name in by.split(",") if name.strip()]
    where = {name: value for name, value in filters.items() if value is not None}
    place = Place(data_dir, config_path)
    with place.reader() as reader:
        try:
            rows = reader.summary(groups, since=since, until=until, where=where)
            totals = [] if as_json else reader.summary((), since=since, until=until, where=where)
        except BadRequest as error:
            raise click.BadParameter(error.message, param_hint="--by") from error
    if not rows:
        say_empty(place, as_json, filtered=bool(where or since or until))
    elif as_json:
        print_lines(rows)
    else:
        ledger_view.print_summary(groups, rows, totals[0])


@ledger.command()
@click.argument("request_id", metavar="ID")
@gateway_options
def show(request_id: str, data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """All about one request: stages, attempts, decisions, tokens, money.

    The beginning of its ID will do, and so will the ID of its W3C trace.
    """
    from trimtab.cli import ledger_view

    place = Place(data_dir, config_path)
    with place.reader() as reader:
        request_id = _of_trace(reader, request_id)
        row = reader.show(request_id)
        flying = reader.in_flight(request_id) if row is None else []
    if row is None:
        if flying:
            raise click.ClickException(
                f"request {request_id} is still in flight: {len(flying)} upstream calls were begun"
            )
        raise click.ClickException(
            f"no single request begins with {request_id!r} in {place.database}; `trimtab ledger tail` lists the latest"
        )
    if as_json:
        print_lines([row])
    else:
        ledger_view.print_request(row)


def _of_trace(reader: Reader, given: str) -> str:
    """The request of a trace, where a trace's id was given."""
    if not re.fullmatch(r"[0-9a-f]{32}", given):
        return given
    found = reader.of_trace(given)
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} requests have the trace {given}; name one: {', '.join(found[:20])}")
    return found[0] if found else given


@ledger.command()
@click.option("--format", "kind", type=click.Choice(["csv", "parquet", "jsonl"]), default="csv", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default=Path("-"))
@click.option("--attempts", is_flag=True, help="One line per upstream call in place of one per request.")
@click.option("--since", metavar="AGE|DATE", callback=moment, help="From then on: 24h, 7d, 2026-11-21.")
@click.option("--until", metavar="AGE|DATE", callback=moment, help="Before then.")
@gateway_options
def export(
    *,
    kind: str,
    output: Path,
    attempts: bool,
    data_dir: Path | None,
    config_path: Path | None,
    as_json: bool,
    **period: float | None,
) -> None:
    """Every row, to a file or (csv, jsonl) to standard output. Money is in nano-USD, times are unix seconds."""
    kind = "jsonl" if as_json else kind
    place = Place(data_dir, config_path)
    with place.reader() as reader:
        rows = reader.export(attempts=attempts, **period)
        if kind == "parquet":
            count = _write_parquet(rows, output)
        elif str(output) == "-":
            count = _write_text(rows, sys.stdout, kind)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = _write_text(rows, file, kind)
    click.echo(f"{count:,} {'attempts' if attempts else 'requests'} exported", err=True)


def _write_text(rows: Iterator[dict[str, Any]], file: Any, kind: str) -> int:
    import csv

    count = 0
    writer = None
    for row in rows:
        if kind == "jsonl":
            file.write(msgspec.json.encode(row).decode() + "\n")
        else:
            if writer is None:
                writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
        count += 1
    return count


def _write_parquet(rows: Iterator[dict[str, Any]], output: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise click.ClickException("Parquet needs pyarrow: pip install 'trimtab[parquet]'") from error
    if str(output) == "-":
        raise click.UsageError("Parquet cannot go to standard output; name a file with --output")
    first = next(rows, None)
    if first is None:
        raise click.ClickException("nothing to export: the ledger has no such rows")
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in first])
    rows = chain([first], rows)
    count = 0
    with pq.ParquetWriter(output, schema) as writer:
        while batch := list(islice(rows, _PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    return count


def _arrow_type(pa: Any, name: str) -> Any:
    """By the ledger's own naming, so that a column of NULLs keeps its type."""
    if name.endswith(("_tokens", "_nusd", "_bytes")) or name in ("n", "status", "stream", "chunks", "attempts"):
        return pa.int64()
    return pa.float64() if name == "at" or name.endswith("_s") else pa.string()
