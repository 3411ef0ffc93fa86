"""`trimtab cache`: look at the stored answers, or drop them, while gateways run or not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from trimtab.cli.place import data_folder, gateway_options
from trimtab.errors import ConfigError, StoreError
from trimtab.types import EVERYTHING, Selector

if TYPE_CHECKING:
    from trimtab.levers.exact_cache import Config
    from trimtab.ports import AnswerStore
    from trimtab.similar.messages import Space


class _SystemClock:
    def wall(self) -> float:
        return time.time()

    def mono(self) -> float:
        return time.monotonic()


@click.group()
def cache() -> None:
    """The answers that the caches keep."""


@cache.command()
@gateway_options
def stats(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Say how many answers are kept, and how much room they take.

    Of the semantic cache, while a gateway runs: how each tenant's route is doing since it began.
    """
    settings = _settings(data_dir, config_path)
    if spaces := _similar(data_folder(data_dir, config_path)):
        _say_similar(spaces, as_json)
    if settings.store == "memory":
        raise click.ClickException("answers are in the memory of each worker: see trimtab_cache_entries in /metrics")
    if settings.store == "valkey":
        _say_server(settings, as_json)
        return
    folder = data_folder(data_dir, config_path) / "cache"
    entries = used_bytes = file_bytes = 0
    if (data := folder / "answers" / "data.mdb").exists():
        store = _lmdb(folder)
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
@click.option("--tenant", help="Only this tenant's.")
@click.option("--route", help="Only this route's.")
@click.option("--model", help="Only those of a model, as the client, the configuration or the provider names it.")
@click.option("--prompt-version", help="Only those made with this version of the prompt.")
@click.option("--corpus-version", help="Only those made from this version of the corpus.")
@click.option("--policy-version", help="Only those made under this version of the policy.")
@click.option("--request", metavar="ID", help="Only the answer that this request paid for.")
@gateway_options
def purge(data_dir: Path | None, config_path: Path | None, as_json: bool, **what: str | None) -> None:
    """Drop answers, in the memory of running gateways too: those for which every option given holds, or all.

    When it returns, no gateway serves any of them, and none whose request began before it will be kept. An option with
    an empty value means the answers that say nothing there.
    """
    settings = _settings(data_dir, config_path)
    selector = Selector(**what)
    folder = data_folder(data_dir, config_path) / "cache"
    if settings.store == "valkey":
        if (folder / "generation").exists():  # the semantic cache's answers are here all the same
            _tell(folder, selector)
        store = _server(settings)
        try:
            _say_purged(store.purge(selector), store.where, selector, as_json)
        except StoreError as error:
            raise click.ClickException(error.message) from error
        return
    if not (folder / "generation").exists():
        if as_json:
            _say_purged(0, str(folder), selector, as_json)
        else:
            click.echo(f"Nothing to purge: {folder} holds no cache.")
    elif settings.store == "memory":
        _purge_memory(folder, selector, as_json)
    else:
        _purge_file(folder, selector, as_json)


def _purge_file(folder: Path, what: Selector, as_json: bool) -> None:
    store = _lmdb(folder)
    count = store.purge(what)
    failed = store.stats()["errors"]
    store.close()
    if failed:
        raise click.ClickException(
            f"could not empty the cache in {folder}; the line above says why. Running gateways were told to forget all "
            "their answers; restart them if they cannot use that folder either"
        )
    _say_purged(count, str(folder), what, as_json)


def _tell(folder: Path, what: Selector) -> None:
    """Tell the processes that run on a folder what is purged. Raises ClickException."""
    from trimtab.stores._purges import Purges

    try:
        purges = Purges(folder, time.time())
        if what == EVERYTHING:
            purges.everything(time.time())
        else:
            purges.select(what, time.time())
    except OSError as error:
        raise click.ClickException(f"cannot write to {folder} ({error.strerror}); nothing was purged") from error


def _purge_memory(folder: Path, what: Selector, as_json: bool) -> None:
    _tell(folder, what)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "purged": None, **_named(what)}))
    else:
        click.echo(
            f"The gateways that run on {folder} have dropped {_meant(what)} from memory; they do not say how many."
        )


def _say_purged(count: int, where: str, what: Selector, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"folder": where, "purged": count, **_named(what)}))
    else:
        selection = "" if what == EVERYTHING else f" ({_meant(what)})"
        click.echo(
            f"Purged {_answers(count)} from {where}{selection}; gateways that run on it have forgotten them too."
        )


def _named(what: Selector) -> dict[str, Any]:
    return {} if what == EVERYTHING else {"where": msgspec.to_builtins(what)}


def _meant(what: Selector) -> str:
    if what == EVERYTHING:
        return "all answers"
    given = msgspec.to_builtins(what)
    return "those with " + ", ".join(f"{name.replace('_', ' ')} {value or '(none)'}" for name, value in given.items())


def _settings(data_dir: Path | None, config_path: Path | None) -> Config:
    """The exact cache's settings. Raises ClickException for a configuration with mistakes."""
    from trimtab import config
    from trimtab.levers.exact_cache import Config

    try:
        settings = config.load(config_path, os.environ).levers["exact_cache"]
    except ConfigError as error:
        if data_dir is not None and config_path is None:  # the folder is all that is needed for a store on disk
            return Config()
        raise click.ClickException(f"{error}\n(or say where the data is: --data-dir)") from error
    assert isinstance(settings, Config)
    return settings


def _lmdb(folder: Path) -> Any:
    """The store, opened beside whatever gateway uses it; counts an error, and logs a line, where it cannot be."""
    from trimtab.stores.lmdb import DEFAULT_MAX_BYTES, LmdbStore

    return LmdbStore(folder, DEFAULT_MAX_BYTES, _SystemClock())


def _server(settings: Config) -> Any:
    from trimtab.app import answer_store

    store: AnswerStore = answer_store(settings, Path(), _SystemClock(), os.environ, front=False)
    return store


def _say_server(settings: Config, as_json: bool) -> None:
    store = _server(settings)
    try:
        figures = store.survey()
    except StoreError as error:
        raise click.ClickException(error.message) from error
    if as_json:
        click.echo(json.dumps({"folder": store.where, **figures}))
    else:
        click.echo(
            f"{_answers(figures['entries'])} in {store.where}; the server uses {_size(figures['bytes'])} in all."
        )


def _similar(data_dir: Path) -> list[Space]:
    """How the semantic cache is doing, if its process runs."""
    import asyncio

    from trimtab.similar.client import Client
    from trimtab.similar.messages import socket_path

    async def ask() -> list[Space]:
        client = Client(socket_path(data_dir))
        try:
            return await client.census() if await client.connected() else []
        finally:
            await client.stop()

    return asyncio.run(ask()) if socket_path(data_dir).exists() else []


def _say_similar(spaces: list[Space], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"semantic": msgspec.to_builtins(spaces)}))
        return
    from trimtab.cli.ledger_view import plain_table, terminal

    table = plain_table()
    table.title, table.title_justify = "Semantic cache, since it began to learn", "left"
    for name in ("tenant", "route"):
        table.add_column(name, overflow="fold")
    for name in ("answers", "asked", "reused", "judged", "wrong", "est. wrong"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("now", no_wrap=True)
    for space in spaces:
        state = "closed" if space.limit < 0 else "open"
        table.add_row(
            space.tenant,
            space.route,
            f"{space.entries:,}",
            f"{space.requests:,}",
            f"{space.hits:,}",
            f"{space.audits:,}",
            f"{space.audited_wrong:,}",
            f"{space.wrong_estimate:.1f}",
            state + (f", {space.alarms} drifts" if space.alarms else ""),
        )
    terminal().print(table)


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count:,} answers"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
