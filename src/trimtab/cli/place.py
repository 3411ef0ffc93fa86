"""Options that commands share, and where a gateway keeps its data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trimtab.errors import ConfigError

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
