"""`trimtab eval`: run a suite through a gateway under one setting or several, and see what changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.eval_options import EvalOptions, eval_options
from trimtab.cli.run_by_default import RunByDefault

if TYPE_CHECKING:
    from trimtab.evals.runs import Run

_INTERRUPTED = 130


_html = click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the table and what changed here."
)


@click.group(name="eval", cls=RunByDefault, context_settings={"ignore_unknown_options": True})
def evals() -> None:
    """Run eval suites: does a model under these settings still answer as it should?

    \b
    trimtab eval SUITE --config FILE [--config FILE ...]   run it; see `trimtab eval run --help`
    trimtab eval show RUN [RUN ...]                        show runs again, beside each other
    trimtab eval diff A B                                  the items whose score changed
    trimtab eval judge --labels FILE --config FILE         may this model judge answers
    trimtab eval suites                                    the suites that come with Trimtab
    trimtab eval import FILE FOLDER                        make a suite of another tool's file
    """


@evals.command()
@click.argument("suite")
@click.option("--config", "configs", multiple=True, required=True, metavar="[NAME=]FILE.toml|URL[@MODEL]",
              help="A setting: a configuration, which gets a gateway of its own, or a URL up to /v1.")  # fmt: skip
@eval_options
@_html
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(suite: str, configs: tuple[str, ...], html: Path | None, as_json: bool, **options: Any) -> None:
    """Run SUITE (a folder, its suite.toml, or the name of a shipped one) under each setting.

    Every answer is kept, in one file a setting below --out; a run that was broken off goes on where it stopped when
    the same command is given again. Scores come with 95% intervals, differences are paired by item.

    \b
    trimtab eval basics --config trimtab.toml
    trimtab eval ./my-suite --config f16.toml --config q8=quantized.toml --html report.html
    trimtab eval basics --config http://127.0.0.1:8088/v1@gpt-4o-mini --api-key-env MY_KEY
    """
    from trimtab.cli.eval_options import load_suite, sides_of
    from trimtab.cli.eval_runs import Evaluation

    wanted = EvalOptions(**options)
    found = load_suite(suite, wanted)
    evaluation = Evaluation(found, wanted)
    try:
        runs = asyncio.run(evaluation.run_all(sides_of(configs, wanted)))
    except KeyboardInterrupt:
        click.echo(f"Interrupted; the same command goes on. What was answered is in {wanted.out}", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    _present(runs, html, as_json)


@evals.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_html
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(runs: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Show saved runs beside each other; differences are against the first."""
    from trimtab.evals.runs import read

    _present([read(path) for path in runs], html, as_json)


@evals.command()
@click.argument("a", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many of each side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(a: Path, b: Path, limit: int, as_json: bool) -> None:
    """The items that run B answers worse or better than run A, the worst first."""
    import msgspec

    from trimtab.cli import eval_view
    from trimtab.evals.compare import changed
    from trimtab.evals.runs import read

    before, after = read(a), read(b)
    found = changed(before, after)
    if as_json:
        click.echo(msgspec.json.encode({"a": before.name, "b": after.name, "changed": found}))
    else:
        eval_view.show_changes(before, after, found, limit)


@evals.command()
@click.option("--labels", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help='JSONL of {"question", "a", "b", "better": "a", "b" or "tie"}, by somebody who knows.')  # fmt: skip
@click.option("--config", required=True, metavar="FILE.toml|URL[@MODEL]", help="Where the judge is, as in `eval run`.")
@click.option("--min-kappa", type=click.FloatRange(0, 1), default=0.4, show_default=True,
              help="The agreement that it takes, by the lower end of its interval.")  # fmt: skip
@eval_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def judge(labels: Path, config: str, min_kappa: float, as_json: bool, **options: Any) -> None:
    """Try a judge before it is trusted: its agreement with labels, and with itself when places are swapped.

    Each pair is asked about twice. What comes out is kept below --out, and `trimtab gate` takes scores of a judge only
    if its trial says that it may. Exit code: 0 if it may, 1 if not.

    \b
    trimtab eval judge --labels pairs.jsonl --config trimtab.toml --model gpt-4o-mini
    """
    import msgspec

    from trimtab.cli import eval_view
    from trimtab.cli.eval_options import sides_of
    from trimtab.cli.eval_runs import try_judge

    wanted = EvalOptions(**options)
    found = asyncio.run(try_judge(sides_of([config], wanted)[0], labels, min_kappa, wanted))
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        eval_view.show_trial(found)
    raise click.exceptions.Exit(0 if found.trusted else 1)


@evals.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def suites(as_json: bool) -> None:
    """List the suites that come with Trimtab, with their strata."""
    import msgspec

    from trimtab.cli import eval_view
    from trimtab.evals.suite import load, shipped

    found = [load(name) for name in shipped()]
    if as_json:
        click.echo(msgspec.json.encode([eval_view.summary(suite) for suite in found]))
    else:
        eval_view.show_suites(found)


@evals.command(name="import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_(source: Path, folder: Path, as_json: bool) -> None:
    """Make a suite in FOLDER of another tool's FILE, and say what of it could not be taken over.

    FILE is a promptfoo configuration, an Inspect log as JSON, or a JSONL of lm-eval samples.
    """
    import msgspec

    from trimtab.evals.imports import import_file, save

    found = import_file(source)
    save(found, folder)
    if as_json:
        click.echo(msgspec.json.encode({"folder": str(folder), "items": found.items, "left_out": found.left_out}))
        return
    click.echo(f"{found.items} items in {folder}; run them with: trimtab eval {folder} --config FILE")
    for line in found.left_out:
        click.echo(f"  left out: {line}")


def _present(runs: list[Run], html: Path | None, as_json: bool) -> None:
    import msgspec

    from trimtab.cli import eval_view
    from trimtab.evals.compare import table
    from trimtab.evals.html import render

    found = table(runs)
    if html is not None:
        html.write_text(render(found, runs), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    eval_view.show_table(found)
    if html is not None:
        click.echo(f"Report: {html}")
