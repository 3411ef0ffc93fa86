"""`trimtab gate`: did quality survive? Pass, fail or undecided, by stratum, with exit codes 0, 1 and 2."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.eval_options import EvalOptions, eval_options
from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from trimtab.cli.eval_runs import Asking, Evaluation
    from trimtab.evals.runs import Run
    from trimtab.evals.sides import Side
    from trimtab.evals.suite import Item
    from trimtab.evals.verdicts import VerdictFile
    from trimtab.quality.verdict import GateTerms

_INTERRUPTED = 130
_ROUND = 16  # items of each undecided stratum between two looks


@click.command()
@click.argument("suite", required=False)
@click.option("--reference", required=True, metavar="[NAME=]FILE.toml|URL[@MODEL]|RUN.jsonl",
              help="What is trusted: a setting as `trimtab eval --config` takes it, or a run of one.")  # fmt: skip
@click.option("--candidate", "candidates", multiple=True, required=True, metavar="(the same)",
              help="What is to be judged; several may be.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05, show_default=True,
              help="The loss that is still accepted, in every stratum.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 0.3, min_open=True), default=0.05, show_default=True,
              help="The chance of passing what is worse than the margin.")  # fmt: skip
@click.option("--sequential", is_flag=True, help="Look after every few items, and stop as soon as it is decided.")
@eval_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gate(
    suite: str | None,
    reference: str,
    candidates: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Judge whether a candidate is as good as the reference, on SUITE or on runs that `trimtab eval` has made.

    It passes if in every stratum the paired one-sided 95% bound of its loss is within the margin. It fails if in any
    the loss is surely above it. Else it is undecided, and how many more items it takes is said. Strata in which the
    reference scores under 20% or over 98% cannot judge. Exit code: 0 pass, 1 fail, 2 undecided; of several candidates
    that of the worst; 130 after Ctrl-C, 3 when a model was out, and then there is no verdict. A verdict is a file below
    --out.

    \b
    trimtab gate small-model --reference f16.toml --candidate q8.toml --candidate q4.toml --sequential
    trimtab gate --reference trimtab-evals/basics/f16.jsonl --candidate trimtab-evals/basics/q8.jsonl
    """
    from trimtab.cli import eval_view
    from trimtab.evals import verdicts
    from trimtab.evals.client import Incomplete
    from trimtab.quality.verdict import GateTerms, Ruling

    terms = GateTerms(options.pop("margin"), options.pop("alpha"))
    sequential = options.pop("sequential")
    try:
        found = asyncio.run(_judge(suite, (reference, *candidates), terms, EvalOptions(**options), sequential))
    except KeyboardInterrupt:
        click.echo("Interrupted; the same command goes on, and there is no verdict before the end.", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except Incomplete as stopped:
        click.echo(f"No verdict: {stopped.message}", err=True)
        raise click.exceptions.Exit(3) from None
    for one in found:
        path = options["out"] / one.reference.suite / f"verdict-{one.candidate.config}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(verdicts.as_json(one))
        if not as_json:
            eval_view.show_verdict(one)
            click.echo(f"Written to {path}\n")
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found))
    rulings = {one.verdict.ruling for one in found}
    raise click.exceptions.Exit(1 if Ruling.FAIL in rulings else 2 if Ruling.UNDECIDED in rulings else 0)


async def _judge(
    suite: str | None, said: Sequence[str], terms: GateTerms, options: EvalOptions, sequential: bool
) -> list[VerdictFile]:
    from trimtab.evals import verdicts
    from trimtab.evals.runs import read

    saved = [one.endswith(".jsonl") for one in said]
    if suite is None or all(saved):
        if not all(saved):
            raise BadRequest("name a SUITE, or runs (.jsonl) on both sides", param="suite")
        runs = [read(Path(one)) for one in said]
        _require_trials({run.head.judge_model for run in runs}, options.out)
        return [verdicts.of_runs(runs[0], run, terms, time.time()) for run in runs[1:]]
    from trimtab.cli.eval_options import load_suite, sides_of
    from trimtab.cli.eval_runs import Evaluation
    from trimtab.evals.runner import JUDGE

    evaluation = Evaluation(load_suite(suite, options), options)
    if any(item.scorer == JUDGE for item in evaluation.suite.items):
        _require_trials({options.judge_model}, options.out)
    if sequential:
        if any(saved):
            raise BadRequest("--sequential asks item by item: name settings, not runs", param="sequential")
        return await _in_turn(evaluation, sides_of(said, options), terms)
    sides = sides_of([one for one, is_run in zip(said, saved, strict=True) if not is_run], options)
    fresh = iter(await evaluation.run_all(sides))
    all_runs: list[Run] = [read(Path(one)) if is_run else next(fresh) for one, is_run in zip(said, saved, strict=True)]
    return [verdicts.of_runs(all_runs[0], run, terms, time.time()) for run in all_runs[1:]]


def _require_trials(judges: set[str], folder: Path) -> None:
    from trimtab.evals.trial import trusted

    for model in sorted(judges - {""}):
        if problem := trusted(folder, model):
            raise BadRequest(f"{problem}; or leave its strata out with --strata", param="judge-model")


async def _in_turn(evaluation: Evaluation, sides: Sequence[Side], terms: GateTerms) -> list[VerdictFile]:
    """Ask reference and candidates a few items at a time, in random order, and stop when all strata are decided."""
    from trimtab.evals.verdicts import VerdictFile
    from trimtab.quality.verdict import SequentialGate

    strata: dict[str, list[Item]] = {}
    for item in evaluation.suite.items:
        strata.setdefault(item.stratum, []).append(item)
    for items in strata.values():
        random.Random(evaluation.suite.sha256).shuffle(items)
    if any(item.weight != 1.0 for item in evaluation.suite.items):
        raise BadRequest("the suite has weights, which --sequential has no bound for: leave it out", param="sequential")
    gates = [SequentialGate(list(strata), terms) for _ in sides[1:]]
    async with AsyncExitStack() as stack:
        asking = [await stack.enter_async_context(evaluation.open(side)) for side in sides]
        most = max(len(items) for items in strata.values())
        with evaluation.bar("items of each stratum", most) as tick:
            for begin in range(0, most, _ROUND):
                wanted = {name for gate in gates for name in gate.wanted}
                some = [item for name in strata if name in wanted for item in strata[name][begin : begin + _ROUND]]
                if not some:
                    break
                await asking[0].run(some, lambda: None)
                for gate, candidate in zip(gates, asking[1:], strict=True):
                    mine = [item for item in some if item.stratum in gate.wanted]
                    await candidate.run(mine, lambda: None)
                    _count(gate, mine, asking[0], candidate)
                tick(min(_ROUND, most - begin))
    return [
        VerdictFile(gate.verdict(), asking[0].file.head, candidate.file.head, time.time())
        for gate, candidate in zip(gates, asking[1:], strict=True)
    ]


def _count(gate: Any, items: Sequence[Item], reference: Asking, candidate: Asking) -> None:
    from trimtab.evals.compare import by_item
    from trimtab.quality.paired import Item as Pair

    ours, theirs = by_item(reference.file.run), by_item(candidate.file.run)
    for item in items:
        gate.add(
            item.stratum,
            Pair(tuple(one.score for one in ours[item.id]), tuple(one.score for one in theirs[item.id])),
        )
