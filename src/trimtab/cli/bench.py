"""`trimtab bench`: what a lever would do with your own data, before it is switched on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.bench_levers import levers
from trimtab.cli.bench_route import route
from trimtab.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trimtab.measure.reuse import PairFigures, Reuse
    from trimtab.semantic.embed import Embedder


@click.group()
def bench() -> None:
    """What would a lever do? Offline on data of your own, or all of them in turn on a real engine."""


bench.add_command(route)
bench.add_command(levers)


@bench.command()
@click.option("--stream", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help='JSONL of {"text", "class"}, taken in order; .gz may be.')  # fmt: skip
@click.option("--pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help='JSONL of {"a", "b", "same"}: how well are equal questions told from others.')  # fmt: skip
@click.option("--max-wrong", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05, show_default=True,
              help="The promise: the share of hits that may be wrong.")  # fmt: skip
@click.option("--mode", type=click.Choice(["promise", "static"]), default="promise", show_default=True,
              help="static: one fixed cosine threshold, as most caches do.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(-1, 1), default=0.85, show_default=True, help="Of --mode static.")
@click.option("--embedder", type=click.Choice(["accurate", "fast"]), default="accurate", show_default=True,
              help="fast: static vectors alone; a look-up takes less, and finds less.")  # fmt: skip
@click.option("--audit", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="The share of hits whose answer is checked against a fresh one.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Open only on an exact proof (Clopper-Pearson); fewer hits.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides which hits are audited.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cache(stream: Path | None, pairs: Path | None, as_json: bool, **options: Any) -> None:
    """How often would a semantic cache answer this stream, and how often wrongly?

    A hit is right if the question that it reuses has the same class. The cache knows no class beforehand: it learns
    from the misses, whose fresh answer is compared with those of similar questions, and from audits of hits.

    \b
    trimtab bench cache --stream questions.jsonl --max-wrong 0.02
    trimtab bench cache --stream questions.jsonl --mode static --threshold 0.9
    trimtab bench cache --pairs pairs.jsonl
    """
    if (stream is None) == (pairs is None):
        raise click.UsageError("name one of --stream FILE and --pairs FILE")
    from trimtab.semantic.embed import require_packages

    require_packages()
    from trimtab.measure import reuse

    if pairs is not None:
        found = reuse.read_pairs(pairs)
        accurate, fast = _embedders(options["embedder"])
        with progress("Scoring pairs", len(found)) as tick:
            scores = reuse.score_pairs(found, accurate, fast, tick)
        import numpy as np

        figures = reuse.judge_scores(scores, np.array([bool(pair.same) for pair in found]))
        _print(reuse.as_mapping(figures), as_json, lambda: _pair_lines(figures))
        return
    assert stream is not None
    result = _run_stream(reuse.read_stream(stream), options)
    _print(reuse.as_mapping(result), as_json, lambda: _stream_lines(result, options))


def _run_stream(asked: list[Any], options: dict[str, Any]) -> Reuse:
    from trimtab.measure import reuse
    from trimtab.semantic.promise import Terms

    accurate, fast = _embedders(options["embedder"])

    def embed(text: str) -> Any:
        return reuse.embed_one(text, accurate, fast)

    embed("warm up")  # the first call of a session allocates
    with progress("Asking", len(asked)) as tick:
        if options["mode"] == "static":
            return reuse.run_static(asked, options["threshold"], embed, tick)
        terms = Terms(options["max_wrong"], options["audit"], options["strict"], options["seed"])
        return reuse.run_promise(asked, terms, embed, tick=tick)


def _embedders(kind: str) -> tuple[Embedder, Embedder]:
    from trimtab.semantic.embed import load_accurate, load_fast
    from trimtab.wheels import cache_dir, shown_on_stderr

    folder = cache_dir(os.environ)
    fast = load_fast(folder, shown_on_stderr("the fast embedder"))
    return (fast if kind == "fast" else load_accurate(folder, shown_on_stderr("the accurate embedder"))), fast


def _print(figures: Any, as_json: bool, lines: Callable[[], Iterator[str]]) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(figures))
        return
    for line in lines():
        click.echo(line)


def _stream_lines(result: Reuse, options: dict[str, Any]) -> Iterator[str]:
    yield f"{result.requests:,} requests, {result.hits:,} hits ({result.hit_rate:.1%})"
    if not result.hits:
        yield "The cache stayed closed: nothing showed that its hits would keep the promise."
        return
    wanted = f"; promised at most {options['max_wrong']:.1%}" if options["mode"] == "promise" else ""
    yield (
        f"{result.wrong_hits:,} hits were wrong: {result.wrong_share:.2%} of hits "
        f"(at most {result.wrong_upper95:.2%} with 95% confidence){wanted}"
    )
    if options["mode"] == "promise":
        yield (
            f"first hit at request {result.opened_at:,}; {result.audits:,} audits found {result.audited_wrong:,} "
            f"wrong; the cache's own estimate: {result.estimated_wrong:.1f} wrong hits"
        )
    yield f"look-up p50 {result.lookup_ms['p50']:.1f} ms, p99 {result.lookup_ms['p99']:.1f} ms"


def _pair_lines(figures: PairFigures) -> Iterator[str]:
    yield f"{figures.pairs:,} pairs, {figures.same:,} the same"
    yield f"AUC {figures.auc:.4f}, AP {figures.ap:.4f}, best F1 {figures.best_f1:.4f}"
    yield "recall " + ", ".join(f"{recall:.3f} at precision {at}" for at, recall in figures.recall_at.items())
