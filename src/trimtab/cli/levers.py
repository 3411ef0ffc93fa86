"""`trimtab levers`: how levers that change answers do, by the verdicts on them, and their switches."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path
from typing import Any

import click

from trimtab.cli.place import Place, gateway_options, print_lines
from trimtab.errors import BadRequest, ConfigError

_WAIT_S = 10.0  # for the gateway's ingester to take up a switch
_NONE = """No lever that changes answers is in use. Those are: {levers}.
To have them judged in production, add to trimtab.toml:

  [routes.default.shadow]
  share = 0.1             # of the requests that they changed"""


@click.group()
def levers() -> None:
    """Levers that change answers: what their quality is, whether they are on, and their switches."""


@levers.command()
@gateway_options
def status(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Each such lever by route: on or off, its loss of quality with an interval that holds at any time, why.

    The loss is the share of answers that are worse than the reference's, less the share that are better.
    """
    from trimtab import config

    place = Place(data_dir, config_path)
    with place.reader() as reader:
        found = {(row["route"], row["lever"]): row for row in reader.levers()}
    in_use = _in_use(config_path)
    for key in in_use:
        found.setdefault(key, _unheard_of(*key))
    rows = [found[key] | {"gate": in_use.get(key, "")} for key in sorted(found)]
    if as_json:
        print_lines(rows)
        return
    if not rows:
        click.echo(_NONE.format(levers=", ".join(config.changing_answers())))
        return
    _print(rows)


@levers.command()
@click.argument("lever")
@click.option("--route", required=True, help="The route's table in the configuration.")
@click.option("--reason", default="", help="Why; kept in the ledger.")
@click.option("--verdict", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Only on this pass of `trimtab gate`, by a run since it went off.")  # fmt: skip
@gateway_options
def on(lever: str, route: str, reason: str, verdict: Path | None, **options: Any) -> None:
    """Switch a lever on; what was known of its quality is set aside, and it is watched anew.

    \b
    trimtab levers on ab --route support --reason "new prompt"
    trimtab levers on ab --route support --verdict trimtab-evals/my-suite/verdict-small.json
    """
    _switch(lever, route, reason, options, on=True, verdict=verdict)


@levers.command()
@click.argument("lever")
@click.option("--route", required=True, help="The route's table in the configuration.")
@click.option("--reason", default="", help="Why; kept in the ledger, and said in each decision.")
@gateway_options
def off(lever: str, route: str, reason: str, **options: Any) -> None:
    """Switch a lever off on a route, within two seconds and until somebody switches it on."""
    _switch(lever, route, reason, options, on=False)


def _switch(
    lever: str, route: str, reason: str, options: dict[str, Any], *, on: bool, verdict: Path | None = None
) -> None:
    from trimtab.config import changing_answers
    from trimtab.stores.ingest import JOURNAL_FOLDER
    from trimtab.stores.journal import FileJournal
    from trimtab.types import Switched

    changing = changing_answers()
    if lever not in changing:
        known = ", ".join(changing)
        raise click.BadParameter(f"{lever!r} cannot change answers; those that can: {known}", param_hint="LEVER")
    place = Place(options["data_dir"], options["config_path"])
    _check_route(place, route, options["config_path"])
    if verdict is not None:
        reason = "; ".join(filter(None, (reason, _passed(verdict, place, lever, route, options["config_path"]))))
    word = Switched(route, lever, on, _user(), " ".join(reason.split()), time.time())
    journal = FileJournal(place.data_dir / JOURNAL_FOLDER, "levers")
    journal.note(word)
    journal.close()
    deadline = time.monotonic() + _WAIT_S
    while not _taken_up(place, word.at):
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"the switch is in {place.data_dir / JOURNAL_FOLDER}, but nobody took it up within {_WAIT_S:.0f} s; "
                "the gateway's log says why"
            )
        time.sleep(0.1)
    if options["as_json"]:
        print_lines([{"route": route, "lever": lever, "on": on, "by": word.by, "reason": word.reason, "at": word.at}])
    else:
        click.echo(f"{lever} is {'on' if on else 'off'} for route {route}; running gateways follow within a second")


def _passed(verdict: Path, place: Place, lever: str, route: str, config_path: Path | None) -> str:
    """What a verdict says for a lever that is off. Raises ClickException where it is on, or the verdict does not do."""
    from trimtab import config
    from trimtab.evals.gates import fresh

    with place.reader() as reader:
        row = next((row for row in reader.levers() if (row["route"], row["lever"]) == (route, lever)), None)
    if row is None or row["on"]:
        raise click.ClickException(f"{lever} is on for route {route}: there is nothing to switch")
    try:
        return fresh(verdict, config.load(config_path, os.environ), lever, route, row["since"])
    except BadRequest as error:
        raise click.ClickException(error.message) from error


def _user() -> str:
    """Who is at the keyboard, as the machine knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _taken_up(place: Place, at: float) -> bool:
    with place.reader() as reader:
        return any(row["since"] == at for row in reader.levers())


def _check_route(place: Place, route: str, config_path: Path | None) -> None:
    from trimtab import config

    with place.reader() as reader:
        known = {row["route"] for row in reader.levers()} | {config.DEFAULT_ROUTE}
    try:
        known |= config.load(config_path, os.environ).routes.keys()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if route not in known:
        raise click.BadParameter(
            f"{route!r} has no table in the configuration, so its settings are those of default; "
            f"there are: {', '.join(sorted(known))}",
            param_hint="--route",
        )


def _in_use(config_path: Path | None) -> dict[tuple[str, str], str]:
    """Which of them are in use on which route, with their `gate`."""
    from trimtab import config

    try:
        found = config.load(config_path, os.environ)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    return {
        (route, lever): getattr(settings, "gate", "")
        for route in sorted({config.DEFAULT_ROUTE, *found.routes})
        for lever in config.changing_answers()
        if config.find("levers", lever).in_use(settings := found.lever_settings(lever, route))
    }


def _unheard_of(route: str, lever: str) -> dict[str, Any]:
    return {
        "route": route, "lever": lever, "on": True, "since": None, "by": "", "why": "no verdict yet", "model": "",
        "margin": None, "pairs": 0, "unknown": 0, "loss": None, "lower": None, "upper": None,
    }  # fmt: skip


def _print(rows: list[dict[str, Any]]) -> None:
    from trimtab.cli.ledger_view import clean, plain_table, terminal

    table = plain_table()
    for name in ("route", "lever", ""):
        table.add_column(name)
    for name in ("pairs", "unknown", "loss", "95% between", "margin"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("since UTC", "by"):
        table.add_column(name)
    for row in clean(rows):
        known = row["loss"] is not None
        table.add_row(
            row["route"],
            row["lever"],
            "on" if row["on"] else "OFF",
            f"{row['pairs']:,}",
            f"{row['unknown']:,}",
            f"{row['loss']:+.3f}" if known else "-",
            f"{row['lower']:+.3f} {row['upper']:+.3f}" if known else "-",
            f"{row['margin']:g}" if row["margin"] else "-",
            time.strftime("%m-%d %H:%M", time.gmtime(row["since"])) if row["since"] else "-",
            row["by"] or "-",
        )
    terminal().print(table)
    for row in clean(rows):
        if row["why"]:
            click.echo(f"{row['lever']} on route {row['route']}: {row['why']}")
        if row["gate"] == "advisory":
            click.echo(f'{row["lever"]} on route {row["route"]}: gate = "advisory", it needs no verdict to act')
