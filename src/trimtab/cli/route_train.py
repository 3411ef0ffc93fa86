"""`trimtab route train`: a router for two models, from recorded scores, eval runs or the ledger's verdicts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from trimtab.cli.capture import key_option, key_variables
from trimtab.cli.place import gateway_options
from trimtab.cli.route_options import FOLDER, SecondModel, TokenPrices
from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from trimtab.measure.route_training import Labels, Trained

_RUN = click.Path(path_type=Path, exists=True, dir_okay=False)
# Which sources an option goes with; those that are not here go with all.
_ONLY = {
    "second": ("data", "runs"),
    "weak": ("data", "ledger"),
    "strong": ("data", "ledger"),
    "suite": ("runs",),
    "route": ("ledger",),
    "tenant": ("ledger",),
    "key_envs": ("ledger",),
    "data_dir": ("ledger",),
    "config_path": ("ledger",),
}


class _Second(SecondModel):
    """A folder and a model, or a run."""

    name = "DIR:MODEL|RUN.jsonl"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The pair, or the run's path."""
        if str(value).endswith(".jsonl"):
            return _RUN.convert(value, param, ctx)
        return super().convert(value, param, ctx)


class TrainOptions(msgspec.Struct, frozen=True):
    """The options by name."""

    data: tuple[Path, ...]
    runs: tuple[Path, Path] | None
    ledger: bool
    weak: str
    strong: str
    second: Any
    suite: str
    prices: tuple[float, ...] | None
    floor: float
    seed: int
    out: Path | None
    route: str
    tenant: str
    key_envs: tuple[str, ...]
    config_path: Path | None
    data_dir: Path | None


@click.command()
@click.option("--data", type=FOLDER, multiple=True, help="Learn from this folder, as `trimtab bench route` reads it.")
@click.option("--runs", type=_RUN, nargs=2, metavar="WEAK.jsonl STRONG.jsonl",
              help="Learn from two runs of `trimtab eval` on one suite.")  # fmt: skip
@click.option("--ledger", is_flag=True, help="Learn from the gateway's shadow verdicts on captured requests.")
@click.option("--weak", default="", metavar="A", help="The cheap model; runs know theirs.")
@click.option("--strong", default="", metavar="B", help="The dear model; runs know theirs.")
@click.option("--second", type=_Second(), help="A second cheap model whose answers check the first one's.")
@click.option("--suite", default="", help="The suite of the runs, where it is not a shipped one.")
@click.option("--prices", type=TokenPrices(), help="USD a million tokens; without, what runs cost, or strong calls.")
@click.option("--floor", type=click.FloatRange(0, 1, min_open=True), default=0.99, show_default=True,
              help="Share of the best single model's score that the setting must keep.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits and resamples.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file  [default: A-B.router].")
@click.option("--route", default="", help="With --ledger: only this route's requests.")
@click.option("--tenant", default="", help="With --ledger: only this tenant's requests.")
@key_option
@gateway_options
def train(as_json: bool, **given: Any) -> None:
    """Learn which requests the cheap model gets right, and write it into a file for the lever `route`.

    The setting in it is the cheapest that keeps --floor of the better model's score on prompts left out of the
    learning. Where none saves 5%, it is one model alone, and that is said.

    \b
    trimtab route train --data evals --weak small --strong large --prices 0.2,0.6,2.5,10
    trimtab route train --runs trimtab-evals/shop/small.jsonl trimtab-evals/shop/large.jsonl --suite shop
    trimtab route train --ledger --tenant acme --weak small --strong large --out acme.router
    """
    options = TrainOptions(**given)
    _check_options(options)
    from trimtab.semantic.embed import load_fast, require_packages

    require_packages()
    from trimtab.measure.route_training import train as learn
    from trimtab.wheels import cache_dir, shown_on_stderr

    labels = _labels(options)
    out = options.out or Path(f"{_safe(labels.weak)}-{_safe(labels.strong)}.router")
    _require_writable(out)
    embedder = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder"))
    with _progress() as say:
        found = learn(labels, embedder, floor=options.floor, seed=options.seed, say=say)
    name = _write(out, found)
    if as_json:
        figures = {one: getattr(found, one) for one in found.__struct_fields__ if one != "router"}
        click.echo(msgspec.json.encode({"file": str(out), "sha256": name, "head": found.router.head, **figures}))
        return
    _show(out, name, found)


def _check_options(options: TrainOptions) -> None:
    """Raises UsageError unless there is one source, with the options that go with it."""
    sources = [name for name in ("data", "runs", "ledger") if getattr(options, name)]
    if len(sources) != 1:
        raise click.UsageError("name one of --data DIR, --runs WEAK.jsonl STRONG.jsonl, and --ledger")
    source = sources[0]
    for name, fits in _ONLY.items():
        if getattr(options, name) and source not in fits:
            word = {"key_envs": "key-env", "config_path": "config", "data_dir": "data-dir"}.get(name, name)
            raise click.UsageError(
                f"--{word} goes with {' and '.join(f'--{one}' for one in fits)}, not with --{source}"
            )
    if source == "data" and not (options.weak and options.strong):
        raise click.UsageError("--data needs --weak and --strong: columns of its scores")
    if options.second is not None and isinstance(options.second, Path) != (source == "runs"):
        raise click.UsageError("--second is DIR:MODEL with --data, and a run with --runs")


def _labels(options: TrainOptions) -> Labels:
    if options.runs:
        from trimtab.evals.route_labels import of_runs

        runs = (*options.runs, *([] if options.second is None else [options.second]))
        return of_runs(runs, suite=options.suite, prices=options.prices)
    if options.ledger:
        return _of_ledger(options)
    from trimtab.measure.route_data import Job
    from trimtab.measure.route_labels import of_folders

    job = Job(options.data[0], options.weak, options.strong, second=options.second, prices=options.prices)
    return of_folders(options.data, job)


def _of_ledger(options: TrainOptions) -> Labels:
    from trimtab.cli.place import Place
    from trimtab.measure.route_ledger import Wanted, of_ledger
    from trimtab.stores.captures import FILE_NAME
    from trimtab.stores.sealing import Keyring

    place = Place(options.data_dir, options.config_path)
    keys = Keyring(key_variables(options.key_envs), os.environ)
    wanted = Wanted(options.tenant, options.route, options.weak, options.strong)
    with place.reader() as reader:
        return of_ledger(reader, place.data_dir / FILE_NAME, keys, wanted, options.prices)


def _safe(name: str) -> str:
    """A model's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "model"


def _require_writable(out: Path) -> None:
    """Raises BadRequest before the work instead of after it."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise BadRequest(f"{out} cannot be written: there is no folder {folder}", param="out")
    if not os.access(folder, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise BadRequest(f"{out} cannot be written: permission denied; name another file with --out", param="out")


def _write(out: Path, found: Trained) -> str:
    """The hash that names the file."""
    from trimtab.routing import router

    try:
        router.write(out, found.router)
    except OSError as error:
        raise BadRequest(f"{out} cannot be written: {error.strerror}", param="out") from error
    return router.read(out)[1]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is under way, on stderr: one line that changes, or one a step where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: click.echo(f"{text} ...", err=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(f"{text} ...")


def _show(out: Path, name: str, found: Trained) -> None:
    from rich.console import Console

    from trimtab.cli.route_view import figures_table

    head = found.router.head
    console = Console(highlight=False)
    console.print(
        f"{head.weak} scores {found.weak_score:.1%}, {head.strong} {found.strong_score:.1%}, on {found.prompts:,} "
        f"prompts: {head.trained_on}\ncosts: {found.costs}",
        markup=False,
    )
    console.print(figures_table(found.rows))
    gap = found.gain_over_length
    if gap["apgr"] is not None:
        console.print(f"prompt-only minus length rule: {gap['apgr']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})")
    console.print(f"setting: {head.kind}. {head.reason}", markup=False)
    if not head.pays:
        console.print("The router does not pay by itself; with a share or a cost that you set, its order is used.")
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"Written to {out} ({out.stat().st_size / 1024:,.0f} KB, {name})", markup=False)
