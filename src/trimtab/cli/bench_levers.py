"""`trimtab bench levers`: the ladder of levers on one workload, each step measured on the same requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from trimtab.cli.interrupts import until_signal
from trimtab.cli.progress import progress
from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from trimtab.ladder.page import Ladder
    from trimtab.ladder.setup import Terms
    from trimtab.measure.workloads import Workload

_WORKLOADS: Final = ("support", "rag", "agent", "chat")
_INTERRUPTED: Final = 130


@click.command()
@click.option("--workload", type=click.Choice(_WORKLOADS), default="support", show_default=True,
              help="support: with repeats; rag: questions on passages; agent: sessions; chat: open.")  # fmt: skip
@click.option("--requests", type=click.IntRange(8, 2000), help="At each step.  [default: the workload's own size]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Draws the requests and arrivals.")
@click.option("--engine", type=click.Choice(["llama_cpp", "vllm"]), default="llama_cpp", show_default=True,
              help="llama_cpp: the embedded one.")  # fmt: skip
@click.option("--model", default="", help="Weights of the baseline.  [default: the embedded model in F16]")
@click.option("--quantized", default="", help="Weights of the quantization step.  [default: the same in Q8_0]")
@click.option("--command", default="vllm serve", show_default=True, help="Of --engine vllm: how it is started.")
@click.option("--gpu-memory", type=click.FloatRange(0, 1, min_open=True),
              help="Of --engine vllm: its share of the card, or of the CPU's memory.  [default: its own]")  # fmt: skip
@click.option("--verdict", "verdicts", multiple=True, metavar="LEVER=FILE",
              help='Of `trimtab gate`, on "semantic cache", quantization, speculation. Repeatable.')  # fmt: skip
@click.option("--routing", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="TOML that the last step adds: [models.*] and [levers.route].")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once, at most.")
@click.option("--threads", type=click.IntRange(1, 512), default=2, show_default=True, help="Of the embedded engine.")
@click.option("--utilization", type=click.FloatRange(0.05, 1.5), default=0.7, show_default=True,
              help="Arrivals as a share of what the baseline can serve.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for what was measured.  [default: trimtab-ladder/WORKLOAD-SEED]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure anew what the folder has.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with a waterfall, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def levers(workload: str, seed: int, as_json: bool, **options: Any) -> None:
    """What is each lever worth? The same requests at the same times, one lever more at each step.

    Starts with an engine that batches and reuses nothing, measures how many requests it can serve, sends 70% of that,
    and adds the exact cache, the semantic cache, prefix reuse, quantization, speculation and routing in turn. A lever
    that can change answers is tried only under a verdict of `trimtab gate`; one that does not pay is left out of the
    steps after it, and stays in the table with the reason. At the end the same without stored answers.

    A step takes some four minutes on two cores. What was measured is kept: after Ctrl-C the same command goes on.

    \b
    trimtab bench levers --verdict quantization=verdict-q8_0.json --html ladder.html
    trimtab bench levers --workload chat --seed 2 --json
    """
    from trimtab.measure.workloads import named

    chosen = named(workload, seed, options["requests"])
    terms = _terms(chosen, seed, options)
    folder = options["out"] or Path("trimtab-ladder") / f"{workload}-{seed}"
    if options["fresh"]:
        shutil.rmtree(folder, ignore_errors=True)
    found = _climbed(terms, chosen, folder)
    if options["html"]:
        from trimtab.ladder.page import render

        options["html"].write_text(render(found), encoding="utf-8")
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    elif found.steps:
        from trimtab.cli.ladder_view import show

        show(found)
    if not found.finished:
        click.echo("Interrupted: the same command goes on where this one ended.", err=True)
        sys.exit(_INTERRUPTED)


def _terms(chosen: Workload, seed: int, options: dict[str, Any]) -> Terms:
    from trimtab.ladder.setup import Terms, read_verdicts

    engine: dict[str, Any] = {"kind": options["engine"], "parallel": options["parallel"]}
    model, quantized = options["model"], options["quantized"]
    if options["engine"] == "llama_cpp":
        engine |= {"threads": options["threads"], "context_tokens": _CONTEXT_TOKENS}
        if not model:
            model, made = _embedded()
            quantized = quantized or made
    else:
        engine |= {"command": options["command"].split(), "context_tokens": _CONTEXT_TOKENS}
        if options["gpu_memory"]:
            engine["gpu_memory"] = options["gpu_memory"]
        if not model:
            raise BadRequest("--engine vllm needs --model: a folder or a name that vLLM can load", param="model")
    routing = options["routing"].read_text(encoding="utf-8") if options["routing"] else ""
    return Terms(
        workload=chosen.name,
        seed=seed,
        requests=len(chosen.asked),
        engine=engine,
        model=_absolute(model),
        quantized=_absolute(quantized),
        verdicts=read_verdicts(options["verdicts"]),
        one_slot=options["engine"] == "llama_cpp" and chosen.one_prefix,
        utilization=options["utilization"],
        routing=routing,
    )


_CONTEXT_TOKENS: Final = 1536  # of a request, prompt and answer


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path and Path(path).expanduser().exists() else path


def _embedded() -> tuple[str, str]:
    """The embedded model in F16 and in Q8_0, written on first use."""
    from trimtab.cli.model_file import model_file
    from trimtab.engines.llama_cpp import BUILT_IN, gguf
    from trimtab.engines.llama_cpp.ggml import Ggml
    from trimtab.engines.llama_cpp.mixes import file_type
    from trimtab.engines.llama_cpp.quantize import plan, write
    from trimtab.wheels import cache_dir

    source, folder = gguf.read(model_file(BUILT_IN)[0]), cache_dir(os.environ) / "quantized"
    plans = [plan(source, file_type(name), folder, BUILT_IN) for name in ("F16", "Q8_0")]
    for one in plans:
        if not one.is_there:
            click.echo(f"writing {one.path.name}", err=True)
            write(one, Ggml())
    return str(plans[0].path), str(plans[1].path)


def _climbed(terms: Terms, chosen: Workload, folder: Path) -> Ladder:
    from trimtab import __version__
    from trimtab.ladder.climb import Climber
    from trimtab.ladder.page import Ladder

    climber = Climber(terms, chosen, folder, _judge(), _View())
    with contextlib.suppress(KeyboardInterrupt):  # before the loop, or while it closed
        asyncio.run(until_signal(climber.climb()))
    found = climber.found()
    return Ladder(
        version=__version__,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        workload=chosen.name,
        about=chosen.about,
        seed=terms.seed,
        requests=len(chosen.asked),
        distinct=len(set(chosen.groups)),
        engine=terms.engine["kind"],
        model=Path(terms.model).name,
        machine_hour_usd=terms.machine_hour_usd,
        utilization=terms.utilization,
        capacity_per_s=found.capacity_per_s,
        rate_per_s=found.rate_per_s,
        finished=found.finished,
        steps=found.steps,
        speculation=found.speculation,
        again=found.again,
    )


def _judge() -> Callable[[str, str], bool | None]:
    """By words, numbers and embeddings where those are installed; else only what is the same to the letter."""
    from trimtab.semantic.embed import missing_packages

    if missing_packages():
        return lambda one, other: True if one == other else None
    from trimtab.semantic.embed import load_accurate
    from trimtab.semantic.judge import cascade
    from trimtab.wheels import cache_dir, shown_on_stderr

    judges = cascade(load_accurate(cache_dir(os.environ), shown_on_stderr("the accurate embedder")))
    return lambda one, other: True if one == other else judges.compare(one, [other])[0].same


class _View:
    """On stderr."""

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def bar(self, title: str, total: int) -> contextlib.AbstractContextManager[Callable[[], object]]:
        click.echo(title, err=True)
        return progress("  asked", total, "  {done} of {total}")
