"""What the commands that read a gateway's data share: their options, where the data is, and how rows are printed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from trimtab.errors import BadRequest, ConfigError

if TYPE_CHECKING:
    from trimtab.stores.ledger_reader import Reader

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def gateway_options(command: _Command) -> _Command:
    """`--json`, and which gateway is meant: `as_json`, `config_path`, `data_dir`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line."),
        click.option(
            "--config", "config_path", type=click.Path(path_type=Path, exists=True), help="The gateway's trimtab.toml."
        ),
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="The gateway's data folder [default: $TRIMTAB_DATA_DIR, or as configured].",
        ),
    ):
        command = option(command)
    return command


def data_folder(data_dir: Path | None, config_path: Path | None) -> Path:
    """The gateway's data folder. Raises ClickException if only a configuration with mistakes could name it."""
    if data_dir is not None:
        return data_dir
    if named := os.environ.get("TRIMTAB_DATA_DIR"):
        return Path(named).expanduser()
    from trimtab import config

    try:
        return Path(config.load(config_path, os.environ).server.data_dir)
    except ConfigError as error:
        raise click.ClickException(f"{error}\n(or say where the data is: --data-dir)") from error


def moment(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Unix time of an age (90s, 30m, 24h, 7d) or of an ISO date or date-time, UTC unless it names an offset."""
    if value is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value):
        return time.time() - float(match[1]) * _UNITS_S[match[2]]
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is neither an age like 24h or 7d nor a date like 2026-11-21", param=param
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Place:
    """Where the ledger is, and its pending rows brought in when no gateway does that."""

    def __init__(self, data_dir: Path | None, config_path: Path | None) -> None:
        self._config_path = config_path
        self.waiting = False  # rows are there that could not be brought in; a note said so
        self.data_dir = data_folder(data_dir, config_path)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        from trimtab.stores.ledger_db import FILE_NAME

        return self.data_dir / FILE_NAME

    def reader(self) -> Reader:
        """Open for reading, after ingesting what is pending."""
        from trimtab.stores.ledger_reader import Reader

        self._ingest()
        try:
            return Reader(self.database)
        except BadRequest as error:
            raise click.ClickException(error.message) from error

    def _ingest(self) -> None:
        from trimtab import config
        from trimtab.prices import Prices
        from trimtab.stores.ingest import JOURNAL_FOLDER, Ingester

        journal = self.data_dir / JOURNAL_FOLDER
        if not journal.is_dir() or not any(journal.glob("*.jsonl")):
            return
        import sqlite3

        try:
            found = config.load(self._config_path, os.environ)
            ingester = Ingester(self.data_dir, Prices.of_tables(found.prices, found.models), found.objectives())
            ingester.run_once()
            ingester.close()
        except (sqlite3.Error, OSError, ConfigError) as error:
            if not self.waiting:
                self.waiting = True
                click.echo(f"note: the newest rows wait in {journal} and are not shown: {error}", err=True)


def say_empty(place: Place, as_json: bool, filtered: bool = False) -> None:
    """Say that there is nothing to show, and what to do about it."""
    if as_json or place.waiting:
        return
    if filtered:
        click.echo("No request matches. Without filters: trimtab ledger summary")
    else:
        click.echo(
            f"The ledger in {place.data_dir} is empty. Start `trimtab serve`, send a request, and look again.\n"
            "If the gateway keeps its data elsewhere, name that folder with --data-dir."
        )


def print_lines(rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    for row in rows:
        click.echo(msgspec.json.encode(row))
