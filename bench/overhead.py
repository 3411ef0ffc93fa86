"""What the gateway costs: CPU per request, memory, start and added latency, beside its peers, in one run.

    make bench-overhead        (or: .venv/bin/python bench/overhead.py [--quick] [--only trimtab,nginx] [--help])

Method and limits: bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
from instruments import proc
from instruments.rig import DISTURBED, Load, Rig, Sample, body, make_certificate
from peers.stacks import CACHE, STACKS, Ports, Stack, Unavailable, free_port

SEED = 20261121


@dataclass(frozen=True)
class Settings:
    """How long and how often; the load itself is the same in every run."""

    reps: int = 3
    scale: float = 1.0  # of every duration
    tries: int = 3  # of a run that others disturbed
    patience_s: float = 420.0  # after it, nothing is repeated
    cold_starts: int = 5
    connections: int = 32
    sse_rate: float = 100.0
    ttft_rate: float = 50.0


DURATION_S = {"sse": 4.0, "ttft": 2.5, "miss": 3.0, "tls": 2.5, "big": 2.5, "hit": 2.5}


@dataclass
class Result:
    """All that was measured of one stack."""

    name: str
    title: str
    settings: str = ""
    version: str = ""
    missing: str = ""  # why it could not be measured
    samples: list[Sample] = field(default_factory=list)
    memory: list[dict[str, object]] = field(default_factory=list)
    cold_starts_s: list[float] = field(default_factory=list)
    sse_rate: float = 0.0
    ttft_rate: float = 0.0
    ingester_us_a_row: float | None = None
    ingested_rows: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """The rig, the settings and the stacks under test."""

    rig: Rig
    ports: Ports
    work: Path
    settings: Settings
    only: set[str]
    begin: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def load(self, stack: Stack, scenario: str, rep: int) -> Load:
        """What a run of `scenario` sends to `stack`."""
        tls, stream = scenario == "tls", scenario in ("sse", "ttft")
        rate = {"sse": stack.sse_rate, "ttft": stack.ttft_rate}.get(scenario, 0.0)
        size = 100_000 if scenario == "big" else 512
        return Load(
            body=body(stack.model(tls), stream=stream, unique=scenario != "hit", size_bytes=size),
            port=stack.port,
            path=stack.path_for(tls),
            headers=stack.headers(tls),
            duration_s=DURATION_S[scenario] * self.settings.scale,
            rate=rate,
            connections=64 if stream else self.settings.connections,
            seed=SEED + rep,
        )

    def direct(self, stack: Stack, rep: int) -> Sample:
        """The same light stream load straight to the mock, to tell what the gateway adds."""
        load = self.load(stack, "ttft", rep)
        load.port, load.path, load.headers = self.rig.port, "/v1/chat/completions", []
        return self.rig.measure(load, Sample("direct", rep), None)

    def once(self, stack: Stack, scenario: str, rep: int) -> Sample:
        """One run, repeated while others disturb it or its counts do not add up; the best try is kept."""
        best: Sample | None = None
        for attempt in range(1, self.settings.tries + 1):
            sample = self.rig.measure(self.load(stack, scenario, rep), Sample(scenario, rep, tries=attempt), stack.pid)
            if not sample.problem:
                sample.problem = _wrong_count(sample)
            if best is None or (bool(sample.problem), sample.others) < (bool(best.problem), best.others):
                best = sample
            best.tries = attempt
            calm = not best.problem and best.others + best.stolen <= DISTURBED
            if calm or time.monotonic() - self.begin > self.settings.patience_s:
                break
        assert best is not None
        return best

    def warm(self, stack: Stack, scenario: str) -> None:
        load = self.load(stack, scenario, 0)
        load.duration_s = stack.warm_s * min(self.settings.scale * 2, 1.0)
        with contextlib.suppress(OSError):
            self.rig.send(load)

    def turn(self, stack: Stack, result: Result, scenarios: tuple[str, ...], rep: int) -> None:
        """One repetition of one stack."""
        with stack.running():
            for scenario in scenarios:
                if rep == 0 or scenario == "hit":
                    self.warm(stack, scenario)
                if scenario == "ttft":
                    result.samples.append(self.direct(stack, rep))
                sample = self.once(stack, scenario, rep)
                result.samples.append(sample)
                self.say(f"  {rep + 1}/{self.settings.reps} {report.brief(stack.title, sample)}")
            if stack.name == "trimtab":
                _settle(stack, 20.0)


def _wrong_count(sample: Sample) -> str:
    """Whether the mock saw as many requests as were answered: none of the hits, each of all others."""
    wanted = 0 if sample.scenario == "hit" else sample.done
    return "" if sample.at_mock == wanted else f"the mock saw {sample.at_mock} requests where {wanted} were right"


def _settle(stack: Stack, limit_s: float) -> None:
    """Wait until the ingester has caught up (its process rests)."""
    end = time.monotonic() + limit_s
    last = -1.0
    while time.monotonic() < end:
        now = proc.cpu_by_role_s(stack.pid).get("ingester", 0.0)
        if now - last < 0.02:
            return
        last = now
        time.sleep(0.5)


def _ingested(stack: Stack, result: Result) -> None:
    """CPU of the ingester, its start excluded, for each request row that it wrote."""
    with stack.running():
        _settle(stack, 60.0)
        used = proc.cpu_by_role_s(stack.pid).get("ingester")
        try:
            with contextlib.closing(sqlite3.connect(stack.dir / "data" / "ledger.sqlite", timeout=10)) as ledger:
                result.ingested_rows = ledger.execute("SELECT count(*) FROM requests").fetchone()[0]
        except sqlite3.Error as error:
            result.notes.append(f"the ledger could not be read: {error}")
            return
    answered = result_requests(result)
    if used is None:
        result.notes.append("no process calls itself trimtab-ingest")
    elif result.ingested_rows:
        result.ingester_us_a_row = (used - stack.idle_cpu_s) / result.ingested_rows * 1e6
    if result.ingested_rows < answered:
        result.notes.append(f"the ledger holds {result.ingested_rows} requests of at least {answered} answered")


def result_requests(result: Result) -> int:
    return sum(sample.done for sample in result.samples if sample.scenario != "direct")


def _start_all(bench: Bench) -> tuple[dict[str, Stack], dict[str, Stack], dict[str, Result]]:
    """Install and start each stack, one after the other, and hold it still; what cannot run says why."""
    plain: dict[str, Stack] = {}
    cached: dict[str, Stack] = {}
    results: dict[str, Result] = {}
    for name, build in STACKS.items():
        if bench.only and name not in bench.only:
            continue
        stack = build(bench.ports, bench.work)
        result = results[name] = Result(
            name, stack.title, stack.settings, sse_rate=stack.sse_rate, ttft_rate=stack.ttft_rate
        )
        bench.say(f"{stack.title}: installing where needed, starting ...")
        try:
            result.version = stack.install()
            plain[name] = stack
            _start(stack, bench, result)
            if stack.hit_instance:
                cached[name] = build(bench.ports, bench.work, cache_on=True)
                _start(cached[name], bench, None)
        except Unavailable as why:
            result.missing = str(why)
            for half in (plain.pop(name, None), cached.pop(name, None)):
                if half is not None:
                    half.stop()
            bench.say(f"{stack.title}: {why}")
    return plain, cached, results


def _start(stack: Stack, bench: Bench, result: Result | None) -> None:
    took = stack.start(bench.rig.gateway_core)
    if result is not None:
        result.cold_starts_s.append(round(took, 3))
    time.sleep(0.5)
    stack.idle_cpu_s = proc.cpu_by_role_s(stack.pid).get("ingester", 0.0)
    stack.pause()


def _cold_starts(bench: Bench, results: dict[str, Result]) -> None:
    """Start afresh with bytecode in place: several times, once more for those that take seconds."""
    for name, result in results.items():
        if result.missing:
            continue
        runs = bench.settings.cold_starts if result.cold_starts_s[0] < 2.0 else 1
        samples = []
        for _ in range(runs):
            stack = STACKS[name](bench.ports, bench.work / "cold")
            try:
                with contextlib.suppress(Unavailable):
                    samples.append(round(stack.start(bench.rig.gateway_core), 3))
            finally:
                stack.stop()
        result.cold_starts_s = samples or result.cold_starts_s
        bench.say(f"{result.title}: cold start {samples} s")


def run(bench: Bench) -> dict[str, Result]:
    """Measure every stack: interleaved repetitions, then memory, the ingester, and cold starts."""
    plain, cached, results = _start_all(bench)
    try:
        for rep in range(bench.settings.reps):
            for name, stack in list(plain.items()):
                scenarios = tuple(
                    scenario
                    for scenario in DURATION_S
                    if (scenario != "tls" or bench.ports.ca) and (scenario != "hit" or stack.caches_here)
                )
                try:
                    bench.turn(stack, results[name], scenarios, rep)
                    if name in cached:
                        bench.turn(cached[name], results[name], ("hit",), rep)
                except OSError:
                    if not (stack.ended or (name in cached and cached[name].ended)):
                        raise
                    results[name].notes.append(f"it crashed in repetition {rep + 1}: its figures are from before")
                    bench.say(f"{stack.title}: crashed")
                    for half in (plain.pop(name), cached.pop(name, None)):
                        if half is not None:
                            half.stop()
        for name, stack in plain.items():
            results[name].memory = proc.memory(stack.pid)
            if name == "trimtab":
                _ingested(stack, results[name])
    finally:
        for stack in (*plain.values(), *cached.values()):
            stack.stop()
    _cold_starts(bench, results)
    return results


@contextlib.contextmanager
def _rig(work: Path, notes: list[str]) -> Iterator[tuple[Rig, Ports]]:
    """The mock with its certificate; without openssl the TLS runs are left out and that is said."""
    certificate: tuple[str, str] | None = None
    ca = ""
    try:
        ca, *rest = make_certificate(work)
        certificate = (rest[0], rest[1])
    except OSError as error:
        notes.append(f"no TLS figures: {error}")
    numbers = (free_port(), free_port())
    rig = Rig(work, numbers, certificate)
    try:
        rig.wait()
        yield rig, Ports(*numbers, ca)
    finally:
        rig.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per request, memory, start and added latency, beside the peers.")
    parser.add_argument("--quick", action="store_true", help="short runs, under two minutes; nothing is written")
    parser.add_argument("--only", default="", help="comma-separated: " + ",".join(STACKS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="write the JSON here (default: bench/results/ for a full run)")
    parser.add_argument("--no-targets", action="store_true", help="exit 0 though a target is missed")
    parser.add_argument("--reps", type=int, help="repetitions (default 3)")
    arguments = parser.parse_args()
    unknown = {name for name in arguments.only.split(",") if name} - set(STACKS)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(STACKS)}")
    return arguments


def main() -> int:
    arguments = _arguments()
    only = {name for name in arguments.only.split(",") if name}
    settings = Settings(reps=2, scale=0.35, tries=1, cold_starts=3) if arguments.quick else Settings()
    if arguments.reps:
        settings = Settings(**{**settings.__dict__, "reps": arguments.reps})
    if shutil.which("taskset") is None:
        print("bench-overhead needs taskset (Debian: apt-get install util-linux)", file=sys.stderr)
        return 2
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    notes: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        work = Path(folder)
        with _rig(work, notes) as (rig, ports):
            results = run(Bench(rig, ports, work, settings, only))
    document = report.document(results, settings.__dict__ | {"seed": SEED, "durations_s": DURATION_S}, notes)
    document["took_s"] = round(time.monotonic() - begin, 1)
    out = arguments.out
    if out is None and not arguments.quick and not only:
        out = report.RESULTS / f"overhead-{document['date']}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(document, indent=1))
    else:
        report.show(document)
    missed = [row["name"] for row in document["targets"] if not row["met"]]
    return 1 if missed and not arguments.no_targets else 0


if __name__ == "__main__":
    sys.exit(main())
