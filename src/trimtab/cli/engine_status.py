"""`trimtab engine status`: what each engine does now, what holds it back, and the lever that fits."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from trimtab.cli.place import data_folder, gateway_options, print_lines
from trimtab.errors import BadRequest, ConfigError, TrimtabError
from trimtab.serving.diagnosis import Diagnosis, Rates, diagnose
from trimtab.serving.readings import Kind

_WIDEST = 400
_LOOKS = 10  # a window, so that a gauge is not one moment's luck
_LEAST_EVERY_S = 0.2
_COLUMNS = ("running", "waiting", "KV", "prefill/s", "decode/s", "prefix hits")
_OF_VLLM = ("evicted/s", "before prefill")  # llama.cpp never says them
_DRAFTS = "drafts"  # the last, so that a window without any cuts no other column


class Asked(msgspec.Struct, frozen=True):
    """An engine to ask."""

    name: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    ca_file: str = ""
    slots: int | None = None


class Seen(msgspec.Struct, frozen=True):
    """What was seen of it, or why nothing was."""

    engine: Asked
    rates: Rates | None = None
    diagnosis: Diagnosis | None = None
    error: str = ""

    def row(self) -> dict[str, Any]:
        """For --json."""
        known = {"at": time.time(), "engine": self.engine.name, "url": self.engine.url}
        if self.rates is None or self.diagnosis is None:
            return known | {"error": self.error}
        return {**known, **msgspec.to_builtins(self.diagnosis), "rates": msgspec.to_builtins(self.rates)}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--url", help="Ask this engine instead: a vLLM, or a llama.cpp server with --metrics.")
@click.option("--slots", type=click.IntRange(1), help="How many requests it runs at once, where it does not say so: "
              "vLLM's --max-num-seqs.")  # fmt: skip
@click.option("--window", "window_s", type=click.FloatRange(0.5, 600), default=5.0, show_default=True,
              help="Seconds to look.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Go on, window after window, until Ctrl-C.")
@gateway_options
def status(
    names: tuple[str, ...], url: str | None, slots: int | None, window_s: float, watch: bool, **place: Any
) -> None:
    """What engines do now, what holds them back, and the lever that fits.

    Looks at each engine for a few seconds and names its state, with the figures that say so:

    \b
    idle           nothing runs
    healthy        requests run, nothing waits, memory is free
    memory-bound   the KV cache is nearly full, or requests are evicted
    queue-bound    requests wait for a slot though memory is free
    compute-bound  all slots work and nothing waits, or prompts wait for processing

    Without NAME: the engines that run here, in the gateway or by `trimtab engine start`. NAME may be any engine of the
    configuration: one behind a URL (a vLLM of yours) is asked only if it is named. No engine is changed, and no prompt
    is read.

    \b
    trimtab engine status
    trimtab engine status my-vllm --slots 256 --watch
    trimtab engine status --url http://10.0.0.5:8000
    """
    as_json = place.pop("as_json")
    if url and names:
        raise click.UsageError("give names, or --url, not both")
    asked = [Asked(url.partition("://")[2] or url, url)] if url else _asked(names, **place)
    try:
        asyncio.run(_show(asked, slots, window_s, watch, as_json))
    except KeyboardInterrupt:
        return


async def _show(asked: list[Asked], slots: int | None, window_s: float, watch: bool, as_json: bool) -> None:
    states: dict[str, str] = {}
    while True:
        seen = await asyncio.gather(*[_look(one, slots, window_s) for one in asked])
        if as_json:
            print_lines([one.row() for one in seen])
        else:
            _print(seen, states, watch)
        if not watch:
            break
        if all(one.error for one in seen):
            await asyncio.sleep(window_s)
    if any(one.error for one in seen):
        raise click.exceptions.Exit(1)


async def _look(asked: Asked, slots: int | None, window_s: float) -> Seen:
    from trimtab.measure.scrape import Scraper

    try:
        scraper = Scraper(asked.url, asked.headers, ca_file=asked.ca_file)
    except ValueError as error:
        raise BadRequest(f"{error}; write http://host:port", param="url") from None
    try:
        pages = await scraper.window(window_s, max(_LEAST_EVERY_S, window_s / _LOOKS))
        rates = Rates.of(scraper.understood(pages), slots=slots or asked.slots)
        return Seen(asked, rates, diagnose(rates))
    except TrimtabError as error:
        return Seen(asked, error=error.message.removeprefix(f"{asked.url}: "))
    finally:
        await scraper.close()


# -- which engines


def _asked(names: tuple[str, ...], config_path: Path | None, data_dir: Path | None) -> list[Asked]:
    """The named engines, or those that the gateway runs itself. Raises ClickException if there is none to ask."""
    from trimtab import config as configuration
    from trimtab.stores import engine_runs, engines_up

    folder = data_folder(data_dir, config_path)
    up = {one.name: Asked(one.name, one.url) for one in engines_up.read(folder)}
    up |= {one.engine: Asked(one.engine, one.url, slots=one.slots or None) for one in engine_runs.running(folder)}
    if not names and up:
        return list(up.values())
    try:
        config = configuration.load(config_path, os.environ)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    own = configuration.own_processes(config)
    elsewhere = [name for name in config.engines if name not in own]
    if not names:
        hint = f"; engines behind a URL are asked by name: {', '.join(elsewhere)}" if elsewhere else ""
        raise click.ClickException(f"no engine runs here: start `trimtab serve` or one engine, or give --url{hint}")
    found = []
    for name in names:
        if name in up:
            found.append(up[name])
        elif name in own:
            raise click.ClickException(
                f"engine {name} is not running: start `trimtab serve`, or it alone: trimtab engine start {name}"
            )
        elif name in elsewhere:
            found.append(_behind_url(name, config.engines[name].settings))
        else:
            known = ", ".join([*up, *(other for other in config.engines if other not in up)])
            raise click.ClickException(f"no engine {name}; there are: {known}")
    return found


def _behind_url(name: str, settings: Any) -> Asked:
    if not getattr(settings, "base_url", ""):
        raise click.ClickException(f"engine {name} has no URL that could be asked")
    key = os.environ.get(getattr(settings, "api_key_env", "") or "\0", "").strip()
    headers = ((b"authorization", b"Bearer " + key.encode()),) if key else ()
    return Asked(name, settings.base_url, headers, getattr(settings, "ca_file", ""))


# -- how it looks


def _print(seen: list[Seen], states: dict[str, str], watch: bool) -> None:
    """A line an engine, and why; under --watch the why only where the state is another than before."""
    from rich.measure import Measurement

    from trimtab.cli.ledger_view import plain_table, terminal

    columns = _columns([one.rates for one in seen if one.rates is not None])
    table = plain_table(show_header=not states)
    if watch:
        table.add_column("time", width=8)
    table.add_column("engine", overflow="fold", min_width=max(len("engine"), *[len(one.engine.name) for one in seen]))
    table.add_column("state", no_wrap=True, min_width=13)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for one in seen:
        start = [time.strftime("%H:%M:%S")] if watch else []
        if one.rates is None or one.diagnosis is None:
            table.add_row(*start, one.engine.name, "unreachable", *["-"] * len(columns))
        else:
            cells = _cells(one.rates)
            table.add_row(*start, one.engine.name, one.diagnosis.state.value, *[cells[name] for name in columns])
    console = terminal()
    wanted = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    console.width = max(console.width, wanted)  # a line that is broken is better than a figure that is cut
    console.print(table)
    for one in seen:
        state = one.error or (one.diagnosis.state.value if one.diagnosis else "")
        if states.get(one.engine.name) != state:
            _explain(one)
        states[one.engine.name] = state


def _explain(seen: Seen) -> None:
    if seen.diagnosis is None:
        click.echo(f"{seen.engine.name}: {seen.error}", err=True)
        return
    click.echo(f"{seen.engine.name}: {seen.diagnosis.state}: {seen.diagnosis.evidence[0]}")
    if seen.diagnosis.lever:
        click.echo(f"{' ' * len(seen.engine.name)}  lever: {seen.diagnosis.lever}")


def _columns(rates: list[Rates]) -> list[str]:
    """Those that any of the engines can fill."""
    vllm = _OF_VLLM if any(one.kind is Kind.VLLM for one in rates) else ()
    return [*_COLUMNS, *vllm, *([_DRAFTS] if any(one.acceptance is not None for one in rates) else [])]


def _cells(rates: Rates) -> dict[str, str]:
    from trimtab.cli.ledger_view import seconds

    of = f" of {rates.slots}" if rates.slots else ""
    return {
        "running": f"{rates.running:.1f}{of}",
        "waiting": f"{rates.waiting:.1f}",
        "KV": _percent(rates.kv_usage),
        "prefill/s": _number(rates.prefill_tokens_s),
        "decode/s": _number(rates.decode_tokens_s),
        "prefix hits": _percent(rates.prefix_hit_share),
        "evicted/s": "-" if rates.preemptions_s is None else f"{rates.preemptions_s:.2f}",
        "before prefill": seconds(rates.queue_s),
        _DRAFTS: _percent(rates.acceptance),
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
