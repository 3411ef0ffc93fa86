"""Climb the ladder: one gateway after the other, each asked the same requests at the same times.

What was measured is kept in a folder as it comes, so that a run that was broken off goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from trimtab.errors import BadRequest, TrimtabError
from trimtab.ladder import figures, setup
from trimtab.ladder.figures import Run, Same, Step
from trimtab.ladder.setup import Setup, Terms
from trimtab.measure import speculation
from trimtab.measure.contention import Contention, cpu_s, pace_s
from trimtab.measure.gateway import GatewayFailed, GatewayProcess, has_models, of_config
from trimtab.measure.load import Call, Limits, Timing, replay, saturate
from trimtab.measure.scrape import Scraper
from trimtab.measure.workloads import Workload, body
from trimtab.stores import engines_up, ledger_db, ledger_reader
from trimtab.transport import Origin

_READY_S: Final = 600.0  # the first start fetches weights
_MODELS_S: Final = 180.0  # the semantic cache's
_ANSWER_S: Final = 600.0
_ANSWER_BYTES: Final = 16 << 20
_TRIED: Final = 12  # prompts, each asked in every way to speculate
_WARM_UP, _ASKED = "ladder-warm-up", "ladder"
_T = TypeVar("_T")


class View(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """A line."""

    def bar(self, title: str, total: int) -> AbstractContextManager[Callable[[], object]]:
        """Something that is called once for each of `total`."""
        ...


class Capacity(msgspec.Struct, frozen=True):
    """What the baseline's engine can do, in answers a second, and how many it gave to tell."""

    per_s: float
    answers: int


class Found(msgspec.Struct, frozen=True):
    """The ladder as far as it was climbed."""

    capacity_per_s: float
    rate_per_s: float
    steps: tuple[Step, ...]
    finished: bool
    speculation: tuple[speculation.Row, ...] = ()  # each way that was tried, beside none
    again: Step | None = None  # the baseline's second run, beside its first


class Climber:
    """One ladder in its folder. `same` judges two answers."""

    def __init__(self, terms: Terms, workload: Workload, folder: Path, same: Same, view: View) -> None:
        """Raises BadRequest if the folder holds a ladder of other terms."""
        self._terms, self._workload, self._folder, self._same, self._view = terms, workload, folder, same, view
        self._capacity: Capacity | None = None
        self._trials: list[speculation.Row] = []
        self._steps: list[Step] = []
        self._again: Step | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._own(folder / "terms.json")

    def _own(self, file: Path) -> None:
        text = msgspec.json.format(msgspec.json.encode(self._terms), indent=1)
        if not file.exists():
            file.write_bytes(text)
        elif msgspec.json.decode(file.read_bytes(), type=Terms) != self._terms:
            raise BadRequest(
                f"{self._folder} holds a ladder of other settings (see {file.name} there): name another folder, or "
                f"begin anew with --fresh",
                param="out",
            )

    def found(self) -> Found:
        """What is known so far."""
        capacity = self._capacity.per_s if self._capacity else 0.0
        finished = bool(self._steps) and self._steps[-1].name == setup.WITHOUT_CACHES
        return Found(capacity, self._rate_per_s, tuple(self._steps), finished, tuple(self._trials), self._again)

    @property
    def _rate_per_s(self) -> float:
        return self._terms.utilization * self._capacity.per_s if self._capacity else 0.0

    async def climb(self) -> None:
        """Take every step not taken yet; cancelled, it keeps what is whole. Raises GatewayFailed, BadRequest."""
        plain = now = setup.baseline(self._terms)
        self._capacity = await self._measure_capacity(now)
        self._view.say(
            f"The baseline answers {self._capacity.per_s:.2f} requests a second when it is kept busy; "
            f"{self._rate_per_s:.2f} a second will be sent, {len(self._workload.asked)} at each step."
        )
        baseline = await self._run(setup.BASELINE, now)
        before = self._step(baseline, baseline)
        self._steps, runs = [before], {setup.BASELINE: baseline}
        longest = figures.longest(baseline, self._workload)
        for rung in setup.RUNGS:
            tried = await self._tried(rung, now, longest)
            if isinstance(tried, str):
                self._steps.append(figures.refused(rung, tried))
                self._view.say(f"{rung}: {tried}")
                continue
            runs[rung] = await self._run(rung, tried)
            found = self._step(runs[rung], baseline)
            verdict, answers = setup.verdict_behind(rung, tried, self._terms), rung in (setup.EXACT, setup.SEMANTIC)
            found = figures.ruled(found, runs[rung], before, runs[before.name], verdict, answers=answers)
            self._steps.append(found)
            self._view.say(f"{rung}: {found.reason}")
            if found.accepted:
                now, before = tried, found
        both = await self._baseline_again(plain, baseline, runs)
        await self._without_caches(now, both)

    def _step(self, run: Run, baseline: Run) -> Step:
        return figures.step(run, baseline, self._workload, self._same)

    async def _baseline_again(self, plain: Setup, first: Run, runs: dict[str, Run]) -> Run:
        """Both runs of the baseline as one, with which every step is now compared; its ruling stands.

        A machine that others share grows slower and faster over the half hour of a ladder, and the first step alone
        would decide what all the others look like.
        """
        again = await self._run(setup.AGAIN, plain)
        self._again = self._step(again, first)
        both = figures.pooled(first, again)
        self._steps = [
            self._step(both, both),
            *(figures.against(step, runs[step.name], both) if step.name in runs else step for step in self._steps[1:]),
        ]
        return both

    async def _without_caches(self, now: Setup, baseline: Run) -> None:
        """Beside the ladder: nobody may say that only stored answers did it."""
        reason = "all accepted levers but stored answers"
        bare = setup.without_caches(now)
        if bare != now and self._shared and "speculation" not in bare.engine:
            # What caches answered comes to the engine again, and what it said to it before can be guessed.
            calls = self._workload.calls(setup.MODEL, 1.0)
            about = f"{self._workload.name} {setup.WITHOUT_CACHES}"
            tried = await self._speculation(bare, self._shared, calls, about)
            if isinstance(tried, str):
                self._view.say(f"{setup.WITHOUT_CACHES}, speculation: {tried}")
            else:
                verdict = setup.verdict_behind(setup.SPECULATION, tried, self._terms)
                bare, reason = tried, f"{reason}, and speculation: {self._trials[-1].reason}; under {verdict}"
        found = self._step(await self._run(setup.WITHOUT_CACHES, bare), baseline)
        self._steps.append(msgspec.structs.replace(found, accepted=True, reason=reason))

    async def _tried(self, rung: str, now: Setup, longest: int) -> Setup | str:
        if rung == setup.SPECULATION:
            ways = (*setup.ALONE, *self._shared)
            return await self._speculation(now, ways, self._different()[:_TRIED], self._workload.name)
        return setup.with_rung(rung, now, self._terms, self._folder, longest)

    async def _measure_capacity(self, baseline: Setup) -> Capacity:
        file = self._folder / "capacity.json"
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=Capacity)
        async with _Served(self._folder / "capacity", baseline) as served:
            self._view.say("measuring what the baseline's engine can do")
            per_s, timings = await saturate(
                served.origin,
                self._workload.calls(setup.MODEL, 1.0),
                _head(_WARM_UP),
                concurrency=baseline.engine.get("parallel", 8),
                at_most_s=_ANSWER_S,
            )
        if not any(timing.ok for timing in timings):
            raise GatewayFailed(f"the baseline answered nothing: {timings[0].error if timings else 'no requests'}")
        return _kept(file, Capacity(per_s, sum(timing.ok for timing in timings)))

    def _different(self) -> list[Call]:
        """The first requests that are not the same to the byte, to be sent at any time."""
        first: dict[bytes, Call] = {}
        for call in self._workload.calls(setup.MODEL, 1.0):
            first.setdefault(call.body, call)
        return list(first.values())

    async def _run(self, name: str, chosen: Setup) -> Run:
        """Measure a step, or read what was measured of it under the same settings."""
        config = chosen.toml()
        file = self._folder / f"{name.replace(' ', '-')}.json"
        if file.exists():
            kept = msgspec.json.decode(file.read_bytes(), type=Run)
            if kept.config == config and kept.rate_per_s == self._rate_per_s:
                return kept
        return _kept(file, await self._measured(name, chosen, config))

    async def _measured(self, name: str, chosen: Setup, config: str) -> Run:
        calls = self._workload.calls(setup.MODEL, self._rate_per_s)
        folder = self._folder / "gateway" / name.replace(" ", "-")
        timings: list[Timing] = []
        pace = pace_s()
        async with _Served(folder, chosen) as served:
            if chosen.semantic is not None:
                await self._wait_for_models(served.origin)
            pid = served.gateway.pid
            began, used, others = time.monotonic(), cpu_s(pid), Contention(pid)
            await self._warm_up(served.origin, chosen.warmed)
            title = f"{name} ({self._place(name)})"
            with self._view.bar(title, len(calls)) as tick:
                await replay(served.origin, calls, _head(_ASKED), _noting(timings, tick), Limits(deadline_s=_ANSWER_S))
            now = cpu_s(pid)
            share, took_s = others.share(), time.monotonic() - began
        pace = (pace + pace_s()) / 2
        timings.sort(key=lambda timing: timing.group)
        spent = {one: seconds - used.get(one, 0.0) for one, seconds in now.items()}
        return _billed(name, config, self._rate_per_s, timings, folder, (spent, share, pace, took_s))

    async def _wait_for_models(self, origin: Origin) -> None:
        if not await has_models(origin, _MODELS_S):
            raise GatewayFailed(f"the semantic cache's models were not there within {_MODELS_S:g} s")

    def _place(self, name: str) -> str:
        names = (setup.BASELINE, *setup.RUNGS, setup.AGAIN, setup.WITHOUT_CACHES)
        left = len(names) - names.index(name)
        minutes = left * (len(self._workload.asked) / self._rate_per_s) / 60
        return f"step {names.index(name) + 1} of {len(names)}, at most {minutes:.0f} min left"

    async def _warm_up(self, origin: Origin, count: int) -> None:
        """Have so many of the engine's slots read what the requests begin with, at once so that each takes its own."""
        warm = [body(setup.MODEL, fields) for fields in self._workload.warm]
        if not warm or not count:
            return
        for one in warm:
            replies = await asyncio.gather(*(_ask(origin, one, _WARM_UP) for _ in range(count)))
            if bad := [said for status, said in replies if status != 200]:
                raise GatewayFailed(f"a warm-up request failed: {bad[0][:300].decode(errors='replace')}")

    @property
    def _shared(self) -> tuple[str, ...]:
        return setup.SHARED[self._terms.engine["kind"]]

    async def _speculation(self, now: Setup, ways: Sequence[str], calls: Sequence[Call], about: str) -> Setup | str:
        """With the way to guess tokens that pays most on these requests, or why none does."""
        rows = await self._trial(now, ways, calls, about)
        self._trials += rows
        best = speculation.best(rows)
        if best == speculation.BASELINE:
            return "; ".join(f"{row.name} {row.reason}" for row in rows)
        return setup.speculating(best, now, self._terms)

    async def _trial(
        self, now: Setup, ways: Sequence[str], calls: Sequence[Call], about: str
    ) -> tuple[speculation.Row, ...]:
        file = self._folder / f"speculation-{about.replace(' ', '-')}.json"
        key = now.toml()
        if file.exists():
            kept = msgspec.json.decode(file.read_bytes(), type=_Trial)
            if kept.config == key:
                return kept.rows
        plain = msgspec.structs.replace(setup.without_caches(now), engine={**now.engine, "parallel": 1})
        tried = {speculation.BASELINE: plain, **{way: setup.drafting(way, plain) for way in ways}}
        samples: dict[str, list[speculation.Sample]] = {way: [] for way in tried}
        async with contextlib.AsyncExitStack() as stack:
            running = [
                (way, await stack.enter_async_context(_Served(self._folder / "gateway" / way, one)))
                for way, one in tried.items()
            ]
            with self._view.bar(f"does speculation pay? ({about})", len(running) * len(calls)) as tick:
                for number, call in enumerate(calls):
                    first = number % len(running)  # each comes first as often
                    for way, served in (*running[first:], *running[:first]):
                        samples[way].append(await _clocked(served, number, call))
                        tick()
        plainly = samples.pop(speculation.BASELINE)
        rows = (speculation.row(way, about, plainly, said, seed=self._terms.seed) for way, said in samples.items())
        return _kept(file, _Trial(key, tuple(rows))).rows


class _Trial(msgspec.Struct, frozen=True):
    config: str
    rows: tuple[speculation.Row, ...]


class _Running(NamedTuple):
    origin: Origin
    gateway: GatewayProcess
    data_dir: Path


class _Served:
    """A gateway for a while, in a folder of its own that is emptied before."""

    def __init__(self, folder: Path, chosen: Setup) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = folder / "trimtab.toml"
        config.write_text(chosen.toml(), encoding="utf-8")
        self._gateway, self._data_dir = of_config(config, folder), folder / "data"
        self._origin: Origin | None = None

    async def __aenter__(self) -> _Running:
        self._gateway.start()
        try:
            await self._gateway.wait_ready(_READY_S, lambda _: None)
        except BaseException:
            self._gateway.stop()
            raise
        self._origin = Origin(self._gateway.base_url)
        return _Running(self._origin, self._gateway, self._data_dir)

    async def __aexit__(self, *exc: object) -> None:
        if self._origin is not None:
            await self._origin.close()
        self._gateway.stop()


async def _ask(origin: Origin, asked: bytes, workflow: str) -> tuple[int, bytes]:
    reply = await origin.request("POST", "/v1/chat/completions", _head(workflow, cache="off"), asked, _ANSWER_S)
    return reply.status, await reply.read(_ANSWER_BYTES)


async def _clocked(served: _Running, number: int, call: Call) -> speculation.Sample:
    """One answer by a client's clock, with the engine's own count of what it drafted meanwhile."""
    (engine,) = engines_up.read(served.data_dir)
    scraper = Scraper(engine.url)
    try:
        before = await scraper.page()
        head = _head(_WARM_UP, cache="off")
        _, (timing,) = await saturate(served.origin, [call], head, concurrency=1, at_most_s=_ANSWER_S)
        first, last = scraper.understood([before, await scraper.page()])
    finally:
        await scraper.close()
    if not timing.ok:
        raise TrimtabError(f"the engine did not answer: {timing.error}")
    return speculation.Sample(
        prompt=number,
        text=timing.text,
        ttft_s=timing.ttft_s or 0.0,
        decode_s=(timing.inter_token_s or 0.0) * timing.output_tokens,
        tokens=timing.output_tokens,
        drafted=_more(first.draft_tokens, last.draft_tokens),
        accepted=_more(first.accepted_tokens, last.accepted_tokens),
        cost_usd=timing.cost_usd,
    )


def _more(before: float | None, after: float | None) -> int:
    """What a counter rose by; an engine that does not speculate has none."""
    return round((after or 0.0) - (before or 0.0))


def _head(workflow: str, cache: str = "") -> bytes:
    lines = f"content-type: application/json\r\nx-trimtab-workflow: {workflow}\r\n"
    return (lines + (f"x-trimtab-cache: {cache}\r\n" if cache else "")).encode()


def _noting(timings: list[Timing], tick: Callable[[], object]) -> Callable[[Timing], None]:
    def note(timing: Timing) -> None:
        timings.append(timing)
        tick()

    return note


def _billed(
    name: str,
    config: str,
    rate_per_s: float,
    timings: Sequence[Timing],
    folder: Path,
    spent: tuple[dict[str, float], float | None, float, float],
) -> Run:
    """With the gateway's own ledger, which is whole once the gateway has stopped."""
    with ledger_reader.Reader(folder / "data" / ledger_db.FILE_NAME) as reader:
        rows = {row["id"]: row for row in reader.export()}
        attempts = list(reader.export(attempts=True))
    own = {one.request_id for one in timings}
    asked = [row for row in attempts if row["request_id"] in own]
    cpu, others, pace, took_s = spent
    return Run(
        name=name,
        config=config,
        rate_per_s=rate_per_s,
        timings=tuple(timings),
        cost_usd=tuple(
            (rows[one.request_id]["cost_nusd"] or 0) / 1e9 if one.request_id in rows else 0.0 for one in timings
        ),
        beside_usd=sum(row["cost_nusd"] or 0 for row in rows.values() if row["id"] not in own) / 1e9,
        calls=len(asked),
        fresh_tokens=sum(row["input_tokens"] for row in asked),
        cached_tokens=sum(row["cache_read_tokens"] for row in asked),
        output_tokens=sum(row["output_tokens"] for row in asked),
        cpu_s=cpu,
        others_cpu=others,
        pace=pace,
        took_s=took_s,
    )


def _kept(file: Path, value: _T) -> _T:
    """Write it whole or not at all."""
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(value))
    part.rename(file)
    return value
