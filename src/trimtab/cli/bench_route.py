"""`trimtab bench route`: what routing between two models would save on recorded outcomes, and at which quality."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.route_options import FOLDER, SecondModel, TokenPrices
from trimtab.cli.route_view import figures_table

if TYPE_CHECKING:
    from trimtab.measure.routes import Report


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with prompts.jsonl.gz and scores.csv.gz.")
@click.option("--weak", required=True, metavar="A", help="The cheap model: a column of the scores.")
@click.option("--strong", required=True, metavar="B", help="The dear model: another column.")
@click.option("--second", type=SecondModel(), help="A second cheap model whose answers check the first one's.")
@click.option("--train", type=FOLDER, multiple=True, help="Learn from this folder, too; alone, from it only.")
@click.option("--folds", type=click.IntRange(2, 100), help="Cross-validation within --data; 5 unless told otherwise.")
@click.option("--labels", type=click.IntRange(20), help="Learn from so many prompts of --data, route the others.")
@click.option("--prices", type=TokenPrices(), help="USD a million tokens; without, strong calls are counted.")
@click.option("--budget", type=click.FloatRange(0, 1), help="The strong model's share to keep over the stream [0.5].")
@click.option("--floor", type=click.FloatRange(0, 1, min_open=True), default=0.99, show_default=True,
              help="Share of the best single model's score that the chosen setting must keep.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits and resamples.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def route(as_json: bool, **options: Any) -> None:
    """Would routing between two models pay, and how well can it be done?

    A router learns from some prompts, with both models' scores, and routes the others; equal questions never are on
    both sides. Its curve is measured by RouteLLM's protocol, beside chance, the prompt's length, each task's mean, and
    an oracle.

    \b
    trimtab bench route --data evals --weak small --strong large --prices 0.2,0.6,2.5,10
    trimtab bench route --data evals --weak small --strong large --labels 1500 --budget 0.3
    trimtab bench route --data evals --weak small --strong large --second evals:other-small
    """
    from trimtab.semantic.embed import load_fast, require_packages

    require_packages()
    from trimtab.measure.route_data import Job
    from trimtab.measure.routes import run
    from trimtab.wheels import cache_dir, shown_on_stderr

    embedder = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder"))
    report = run(Job(**options), embedder)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report))
        return
    _show(report)


def _show(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"{report.prompts:,} prompts routed, {report.learned_from:,} learned from ({report.split})\n"
        f"{report.weak} scores {report.weak_score:.1%}, {report.strong} {report.strong_score:.1%}\n"
        f"costs: {report.costs}",
        markup=False,
    )
    console.print(figures_table(report.rows))
    gap = report.gain_over_length
    console.print(f"ours prompt-only minus length rule: {gap['apgr']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})")
    chosen = report.setting
    console.print(f"setting: {chosen.setting}. {chosen.reason}", markup=False)
    console.print(
        "on the prompts routed, of the best single model's score and cost: "
        f"keeps {chosen.kept:.1%} ({chosen.kept_low:.1%} to {chosen.kept_high:.1%}), "
        f"saves {chosen.saved:.1%} ({chosen.saved_low:.1%} to {chosen.saved_high:.1%})"
    )
    for one in report.stream:
        worst = one.worst_after_300
        console.print(
            f"{one.router}: {one.asked:.0%} strong asked in file order, {one.realised:.1%} realised"
            + ("" if worst is None else f", at most {worst:.1%} off after 300")
            + f"; scores {one.quality:.1%}, a coin {one.quality_random:.1%}"
        )
    console.print(f"decision: p50 {report.latency_ms['p50']:.2f} ms, p99 {report.latency_ms['p99']:.2f} ms of CPU")
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
