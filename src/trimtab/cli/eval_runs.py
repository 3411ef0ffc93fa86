"""Runs of a suite with their gateways, files and progress, for `trimtab eval` and `trimtab gate`."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from trimtab import __version__
from trimtab.cli.eval_options import EvalOptions
from trimtab.cli.progress import Tick, progress
from trimtab.evals import trial
from trimtab.evals.client import Client, Incomplete, Refused
from trimtab.evals.runner import JUDGE, Runner, Setting, in_lines
from trimtab.evals.runs import Head, Run, RunFile
from trimtab.evals.sides import Side, named_model, serving
from trimtab.evals.suite import Item, Suite

_LINE: Final = "{what}: {done} of {total}"


class Evaluation:
    """A suite, asked under one setting after the other."""

    def __init__(self, suite: Suite, options: EvalOptions) -> None:
        self.suite = suite
        self.options = options
        self._console = Console(stderr=True)

    async def run_all(self, sides: Sequence[Side]) -> list[Run]:
        """Each setting's whole run. Raises Incomplete, GatewayFailed; what was answered is kept."""
        runs = []
        for side in sides:
            async with self.open(side) as asking:
                with self.bar(side.name, len(asking.missing(self.suite.items))) as tick:
                    await asking.run(self.suite.items, tick)
                runs.append(asking.file.run)
        return runs

    @asynccontextmanager
    async def open(self, side: Side) -> AsyncIterator[Asking]:
        """A setting that items can be asked under: its gateway is up, its file is open."""
        side = await named_model(side, self.options.headers())
        options = self.options
        head = Head(
            self.suite.name,
            self.suite.sha256,
            side.name,
            side.settings,
            side.url,
            side.model,
            options.seed,
            __version__,
            f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            time.time(),
            options.judge_model if any(item.scorer == JUDGE for item in self.suite.items) else "",
            options.route,
            options.prompt_version,
            options.policy_version,
        )
        workflow = f"eval-{self.suite.name}-{side.name}-{int(head.at)}"
        setting = Setting(
            side.model,
            options.seed,
            options.repeats,
            options.concurrency,
            options.max_cost_usd,
            options.judge_model,
        )
        with RunFile(self.path_of(side), head, fresh=options.fresh) as file:
            if side.path is not None:
                self.say(f"{side.name}: starting a gateway with {side.path}")
            async with serving(side, lambda _: None) as url:
                client = Client(url, options.headers(), workflow, options.timeout_s)
                try:
                    yield Asking(Runner(client, setting, file), file)
                finally:
                    await client.close()

    def path_of(self, side: Side) -> Path:
        """Where a setting's answers are kept."""
        return self.options.out / self.suite.name / f"{side.name}.jsonl"

    def say(self, text: str) -> None:
        """A step, on stderr."""
        self._console.print(text, highlight=False)

    def bar(self, title: str, total: int) -> AbstractContextManager[Tick]:
        """Progress through items."""
        return progress(title, total, _LINE)


async def try_judge(side: Side, labels: Path, min_kappa: float, options: EvalOptions) -> trial.Trial:
    """Ask a judge about labelled pairs, and keep what comes out. Raises Incomplete: then nothing is kept."""
    side = await named_model(side, options.headers())
    found = trial.read_labels(labels)[: options.limit]
    replies: list[tuple[str, str]] = [("", "")] * len(found)
    async with serving(side, lambda _: None) as url:
        client = Client(url, options.headers(), f"eval-judge-{int(time.time())}", options.timeout_s)
        waiting = iter(enumerate(found))

        async def one_line(tick: Callable[[], None]) -> None:
            for n, labelled in waiting:
                first, second = trial.requests(labelled, side.model)
                replies[n] = (await _said(client, first, n), await _said(client, second, n))
                tick()

        try:
            with progress(f"{side.model} judges", len(found), _LINE) as tick:
                await in_lines(options.concurrency, lambda: one_line(tick))
        finally:
            await client.close()
    digest = hashlib.sha256(labels.read_bytes()).hexdigest()
    result = trial.outcome(side.model, found, replies, min_kappa, digest, side.settings)
    path = trial.path_of(options.out, side.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return result


async def _said(client: Client, fields: dict[str, Any], n: int) -> str:
    try:
        return (await client.ask(fields, f"pair {n + 1}")).text
    except Refused:
        return ""  # it cannot even read the pair, which counts against it


class Asking:
    """An open setting."""

    def __init__(self, runner: Runner, file: RunFile) -> None:
        self._runner = runner
        self.file = file

    def missing(self, items: Sequence[Item]) -> list[tuple[Item, int]]:
        """What is not answered yet."""
        return self._runner.missing(items)

    async def run(self, items: Sequence[Item], tick: Callable[[], None]) -> None:
        """Ask that. Raises Incomplete, which says how to go on."""
        try:
            await self._runner.run(items, tick)
        except Incomplete as stopped:
            asked = len(self.file.answers)
            raise Incomplete(
                f"{stopped.message}. {asked} answers are kept in {self.file.path}; the same command goes on from "
                "there, and there is no verdict before the end"
            ) from None
