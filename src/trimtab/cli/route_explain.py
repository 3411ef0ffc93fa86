"""`trimtab route explain`: which model a prompt would go to, and why."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trimtab.explained import Explained


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path, exists=True), help="The gateway's trimtab.toml."
)
@click.option("--route", default="default", show_default=True, help="Whose rules and settings.")
@click.option("--model", default="", help="That the client asks for  [default: the route's own, or the strong one].")
@click.option("--tenant", default="local", show_default=True, help="Who asks, for the rules.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(prompt: str | None, config_path: Path | None, as_json: bool, **asked: Any) -> None:
    """Which model would this prompt go to, and why?

    Asks the rules and the router of a configuration as the gateway would, for a conversation that begins with PROMPT
    (or with what is on standard input). No model is called. A budget's dial stands here as it does at the start: the
    gateway's own has moved with its traffic.

    \b
    trimtab route explain "Prove that the square root of 2 is irrational." --route chat
    trimtab route explain < prompt.txt --json
    """
    text = prompt if prompt is not None else sys.stdin.read()
    if not text.strip():
        raise click.UsageError("there is no prompt; give one as an argument or on standard input")
    from trimtab import config as configuration
    from trimtab.explained import Asking, explained

    config = configuration.load(config_path, os.environ)
    found = asyncio.run(explained(config, Asking(text, **asked), time.time(), os.environ))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found))
        return
    _show(found)


def _show(found: Explained) -> None:
    rows = [("asked", found.asked), *((one.lever, one.reason) for one in found.decisions), ("served by", found.served)]
    if found.gain is not None:
        above = "" if found.threshold is None else f"; above {found.threshold:+.3f} it goes to the strong model"
        rows.append(("gain", f"{found.gain:+.3f} expected of the strong model{above}"))
    if found.saving_usd is not None:
        rows.append(("saves", f"${found.saving_usd:.6f} by the prices, with 300 tokens out"))
    if found.router:
        rows.append(("router", found.router))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}")
