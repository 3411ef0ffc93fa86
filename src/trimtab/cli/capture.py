"""`trimtab capture`: what is kept of the clients' requests; hand it on, or erase it, while the gateway runs or not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from trimtab.cli.place import data_folder, gateway_options, moment, print_lines

if TYPE_CHECKING:
    from trimtab.stores.captures_db import Captured

DEFAULT_KEY_ENV = "TRIMTAB_CAPTURE_KEY"

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(invoke_without_command=True)
@click.pass_context
def capture(context: click.Context) -> None:
    """What clients sent on routes with [routes.NAME.capture]: see it, export it, erase it.

    \b
    trimtab capture                       how much is there, by route and tenant
    trimtab capture export -o prod.jsonl  as JSON Lines, for `trimtab replay` and other tools
    trimtab capture erase --tenant acme   delete what a tenant sent, for good
    """
    if context.invoked_subcommand is None:
        context.invoke(summary, data_dir=None, config_path=None, as_json=False)


def key_option(command: _Command) -> _Command:
    """`--key-env`: the names of the variables that hold keys, as `key_envs`."""
    return click.option(
        "--key-env",
        "key_envs",
        multiple=True,
        metavar="NAME",
        help=f"The variable with the key; repeat it for several keys.  [default: {DEFAULT_KEY_ENV} where that is set]",
    )(command)


def key_variables(key_envs: tuple[str, ...]) -> tuple[str, ...]:
    """The variables to take keys from: those that were named, else the usual one if it is set."""
    return key_envs or ((DEFAULT_KEY_ENV,) if os.environ.get(DEFAULT_KEY_ENV, "").strip() else ())


@capture.command()
@gateway_options
def summary(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:
    """How much is kept, by route and tenant: requests, bytes, oldest and newest, encrypted or not.

    \b
    Examples:
      trimtab capture summary
      trimtab capture summary --json | jq .requests
    """
    from trimtab.stores.captures_db import Reader

    path = _file(data_dir, config_path)
    with Reader(path) as reader:
        rows = reader.summary()
    if as_json:
        print_lines(rows)
    elif not rows:
        click.echo(f"{path} holds no request (any more).")
    else:
        _print_summary(path, rows)


@capture.command()
@click.option("--route", help="Only this route.")
@click.option("--tenant", help="Only this tenant.")
@click.option("--since", metavar="AGE|DATE", callback=moment, help="From then on: 24h, 7d, 2026-11-21.")
@click.option("--until", metavar="AGE|DATE", callback=moment, help="Before then.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest first.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default=Path("-"))
@key_option
@gateway_options
def export(
    *,
    output: Path,
    key_envs: tuple[str, ...],
    data_dir: Path | None,
    config_path: Path | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Write requests as JSON Lines, in order of arrival: {"timestamp": ms, "dialect": .., "body": {..}}.

    This is the kind `bodies` of `trimtab replay`; lines in Anthropic's dialect are skipped there. With --json each line
    has everything that is kept of the request.

    \b
    Examples:
      trimtab capture export --route chat --since 24h -o chat.jsonl
      trimtab capture export --key-env OLD_KEY --key-env NEW_KEY -o all.jsonl
    """
    from trimtab.stores.captures_db import Reader
    from trimtab.stores.sealing import Keyring

    keys = Keyring(key_variables(key_envs), os.environ)
    where = {"route": filters["route"], "tenant": filters["tenant"]}
    count = 0
    with Reader(_file(data_dir, config_path)) as reader, _opened(output) as file:
        rows = reader.rows(where, since=filters["since"], until=filters["until"], limit=filters["limit"])
        for row in rows:
            body = msgspec.Raw(keys.open(row.key_id, row.body, row.id))
            file.write(msgspec.json.encode(_line(row, body, whole=as_json)) + b"\n")
            count += 1
    click.echo(f"{_requests(count)} exported", err=True)


@capture.command()
@click.option("--tenant", required=True, help="Whose requests.")
@click.option("--user", help="Only those of this user of the tenant.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@gateway_options
def erase(
    tenant: str, user: str | None, yes: bool, *, data_dir: Path | None, config_path: Path | None, as_json: bool
) -> None:
    """Delete what a tenant, or one of its users, sent: overwritten in the file, and gone from its log of writes.

    The gateway may run; a request that it has not written yet (up to a second old) and later ones are captured anew.

    \b
    Examples:
      trimtab capture erase --tenant acme
      trimtab capture erase --tenant acme --user u-17 --yes
    """
    import sqlite3

    from trimtab.stores.captures_db import Reader, Writer

    path = _file(data_dir, config_path)
    with Reader(path) as reader:
        count = reader.count(tenant, user)
    whose = f"the user {user} of the tenant {tenant}" if user is not None else f"the tenant {tenant}"
    if not yes:
        click.confirm(f"Erase {_requests(count)} of {whose} from {path}?", abort=True, err=True)
    os.environ.setdefault("SQLITE_TMPDIR", str(path.parent))  # what is rewritten stays on the data's own disk
    try:
        writer = Writer(path)
        try:
            gone = writer.erase(tenant, user)
        finally:
            writer.close()
    except (sqlite3.Error, OSError) as error:
        raise click.ClickException(f"{path} could not be erased whole ({error}); run the same command again") from error
    if as_json:
        print_lines([{"file": str(path), "tenant": tenant, "user": user, "erased": gone}])
    else:
        click.echo(
            f"Erased {_requests(gone)} of {whose} from {path}.\n"
            "Backups and exports of that file are not reached, nor are snapshots of its disk: erase there, too. The "
            "ledger and the cache have data of their own."
        )


def _file(data_dir: Path | None, config_path: Path | None) -> Path:
    from trimtab.stores.captures import FILE_NAME

    return data_folder(data_dir, config_path) / FILE_NAME


def _opened(output: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Standard output, or a file; a new one is for its owner only, as the one that it comes from."""
    if str(output) == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


def _line(row: Captured, body: msgspec.Raw, *, whole: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"timestamp": round(row.at * 1000, 3), "dialect": row.dialect, "body": body}
    if whole:
        hidden = ("at", "dialect", "body", "key_id", "body_bytes")
        line |= {name: getattr(row, name) for name in row.__struct_fields__ if name not in hidden}
    return line


def _print_summary(path: Path, rows: list[dict[str, Any]]) -> None:
    from datetime import UTC, datetime

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("route", "tenant", "requests", "bytes", "stored", "oldest (UTC)", "newest (UTC)", "kept as"):
        table.add_column(column, justify="right" if column in ("requests", "bytes", "stored") else "left")
    for row in rows:
        times = [datetime.fromtimestamp(row[name], UTC).strftime("%Y-%m-%d %H:%M") for name in ("oldest", "newest")]
        figures = [f"{row[name]:,}" for name in ("requests", "body_bytes", "stored_bytes")]
        table.add_row(row["route"], row["tenant"], *figures, *times, _kept_as(row))
    console = Console()
    if console.width < 100 and not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    click.echo(f"{_requests(sum(row['requests'] for row in rows))} in {path}")


def _kept_as(row: dict[str, Any]) -> str:
    def share(count: int, word: str, other: str) -> str:
        return word if count == row["requests"] else other if not count else f"{count:,} {word}, the rest {other}"

    return f"{share(row['plain'], 'plain', 'redacted')}; {share(row['encrypted'], 'encrypted', 'not encrypted')}"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"
