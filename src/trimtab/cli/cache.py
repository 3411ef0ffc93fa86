"""`trimtab cache`: look at the stored answers, or drop them, while the gateway runs or not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli.place import data_folder, gateway_options

if TYPE_CHECKING:
    from trimtab.stores.lmdb import LmdbStore


class _SystemClock:
    def wall(self) -> float:
        return time.time()

    def mono(self) -> float:
        return time.monotonic()


@click.group()
def cache() -> None:
    """The answers that the exact cache keeps on disk."""


@cache.command()
@gateway_options
def stats(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Say how many answers are kept, and how much room they take."""
    folder = data_folder(data_dir, config_path) / "cache"
    entries = used_bytes = file_bytes = 0
    if (data := folder / "answers" / "data.mdb").exists():
        store = _store(folder)
        figures = store.stats()
        store.close()
        if figures["errors"]:
            raise click.ClickException(f"cannot open the cache in {folder}; the line above says why")
        entries, used_bytes, file_bytes = figures["entries"], figures["bytes"], data.stat().st_size
    if as_json:
        figures = {"entries": entries, "bytes": used_bytes, "file_bytes": file_bytes}
        click.echo(json.dumps({"folder": str(folder), **figures}))
    elif not file_bytes:
        click.echo(f"No answers are kept yet: {folder} holds no cache.")
    else:
        click.echo(
            f"{_answers(entries)} in {folder}, {_size(used_bytes)} (the file takes {_size(file_bytes)}).\n"
            "Hits and misses are counted by each gateway: see /metrics, or `trimtab ledger summary`."
        )


@cache.command()
@gateway_options
def purge(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Drop all answers, in the memory of running gateways too."""
    folder = data_folder(data_dir, config_path) / "cache"
    count = 0
    found = (folder / "generation").exists()
    if found:
        store = _store(folder)
        count = store.purge()
        failed = store.stats()["errors"]
        store.close()
        if failed:
            raise click.ClickException(
                f"could not empty the cache in {folder}; the line above says why. Running gateways were told to forget "
                "their answers; restart them if they cannot use that folder either"
            )
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "purged": count}))
    elif not found:
        click.echo(f"Nothing to purge: {folder} holds no cache.")
    else:
        click.echo(f"Purged {_answers(count)} from {folder}; gateways that run on it have forgotten them too.")


def _store(folder: Path) -> LmdbStore:
    """The store, opened beside whatever gateway uses it; counts an error, and logs a line, where it cannot be."""
    from trimtab.stores.lmdb import DEFAULT_MAX_BYTES, LmdbStore

    return LmdbStore(folder, DEFAULT_MAX_BYTES, _SystemClock())


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count:,} answers"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
