"""Which replica gets a request: cached share and evenness of load on simulated replicas, rule by rule.

    make bench-placement DATA=folder             everything; a minute
    .venv/bin/python bench/placement.py --data folder --quick
    .venv/bin/python bench/placement.py --trace FILE --blocks 10000 --replicas 4 [--sessions-per-s 1]

The folder holds mooncake_conversation.jsonl.gz and tau_airline_gpt4o_calls.jsonl.gz (see bench/README.md). FILE is any
trace with hash_ids that `trimtab replay` reads; one without time stamps gets arrival times (instruments/arrivals.py).
Exit code 1 if a target is missed by the placer with a true mirror, 2 if the bench cannot run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

import report
from instruments import arrivals as traffic
from instruments import rules
from instruments.arrivals import Arrival, Made
from instruments.replicas import EXACT, Figures, Rule, Truth, bound, play
from trimtab.errors import BadRequest
from trimtab.placement import prefix_blocks

LEAST_SHARE = 0.95
MOST_LOAD = 1.25
MOONCAKE, TAU = "mooncake_conversation.jsonl.gz", "tau_airline_gpt4o_calls.jsonl.gz"
OURS = "trimtab"

Build = Callable[[int, int], Rule]
BESIDE: dict[str, Build] = {
    "round robin": rules.RoundRobin,
    "session hash": rules.SessionHash,
    "longest match": rules.LongestMatch,
    "least load": rules.LeastLoad,
    "session hash, bounded 1.25": rules.BoundedHash,
    "least of 4 x new + load": rules.WeightedSum,
}
TRUTHS = {
    "caches 30% smaller than said": Truth(0.7),
    "caches 30% larger than said": Truth(1.3),
    "5% of prompts forgotten": Truth(1.0, 0.05),
    "30% smaller, 5% forgotten": Truth(0.7, 0.05),
}
WORKERS = 4


class Case(msgspec.Struct, frozen=True):
    """One trace on so many replicas of so many blocks each. `gated`: its figures must reach the targets."""

    title: str
    arrivals: Sequence[Arrival]
    blocks: int
    replicas: int = 4
    gated: bool = False
    deep: bool = False  # also with caches that are not as said, and with several workers


class Row(msgspec.Struct, frozen=True):
    case: str
    rule: str
    figures: Figures


class Target(msgspec.Struct, frozen=True):
    """One thing that must hold."""

    what: str
    figure: float
    wanted: str
    met: bool


def given(folder: Path) -> Iterator[Case]:
    """The two public traces as they are."""
    mooncake, tau = traffic.read(folder / MOONCAKE), traffic.read(folder / TAU)
    yield Case("Mooncake conversation", mooncake, 10_000, gated=True, deep=True)
    yield Case("tau-bench sessions", tau, 2_000, gated=True, deep=True)
    yield Case("Mooncake, 8 replicas", mooncake, 10_000, 8)
    yield Case("tau-bench, 8 replicas", tau, 2_000, 8)


def changed(folder: Path) -> Iterator[Case]:
    """The same in other forms, and traffic of our own making."""
    mooncake, tau = traffic.read(folder / MOONCAKE), traffic.read(folder / TAU)
    yield Case("Mooncake, one half", traffic.halved(mooncake, 1), 10_000)
    yield Case("Mooncake, another half", traffic.halved(mooncake, 2), 10_000)
    yield Case("Mooncake, twice as slow", traffic.slowed(mooncake, 2.0), 10_000)
    yield Case("Mooncake, twice as fast", traffic.slowed(mooncake, 0.5), 10_000)
    yield Case("Mooncake, sessions shuffled", traffic.shuffled(mooncake, 1), 10_000)
    yield Case("Mooncake, 3,000 blocks", mooncake, 3_000)
    yield Case("tau-bench, one half", traffic.halved(tau, 1), 2_000)
    yield Case("tau-bench, twice as slow", traffic.slowed(tau, 2.0), 2_000)
    yield Case("tau-bench, sessions shuffled", traffic.shuffled(tau, 1), 2_000)
    for pace in (2.0, 0.5, 0.2, 0.1):
        yield Case(f"tau-bench, {pace:g} sessions/s", traffic.read(folder / TAU, pace, seed=1), 2_000)
    tenants = Made(tenants=40, system_tokens=(500, 8000), turns=5, requests_per_s=4, bursts=True)
    yield Case("made: 40 unequal tenants, bursts", tenants.arrivals(1), 8_000)
    yield Case("made: the same, 8 replicas", tenants.arrivals(2), 8_000, 8)
    hot = Made(tenants=1, system_tokens=(4000, 4001), turns=5, requests_per_s=4, bursts=True)
    yield Case("made: one hot system prompt", hot.arrivals(1), 4_000)
    tools = Made(tenants=12, system_tokens=(3000, 9000), turns=1, requests_per_s=5, bursts=False)
    yield Case("made: 12 long prompts, single calls", tools.arrivals(1), 3_000)
    rare = Made(tenants=40, system_tokens=(500, 8000), turns=5, requests_per_s=0.3, bursts=False, requests=2000)
    yield Case("made: a request in 3 s", rare.arrivals(1), 5_000)


def measured(case: Case) -> Iterator[Row]:
    """Every rule on one case."""
    at_best = bound(case.arrivals, case.blocks * case.replicas)
    if not at_best:
        raise ValueError(f"{case.title}: no prompt begins like an earlier one; there is nothing to reuse")

    def row(rule: str, build: Build, best: int, truth: Truth = EXACT) -> Row:
        built = build(case.replicas, case.blocks)
        return Row(case.title, rule, play(case.arrivals, built, case.replicas, case.blocks, best, truth))

    for name, build in {**BESIDE, OURS: rules.Ours}.items():
        yield row(name, build, at_best)
    if not case.deep:
        return
    for name, truth in TRUTHS.items():
        best = bound(case.arrivals, case.blocks * case.replicas, truth)
        yield row(f"{OURS}, {name}", rules.Ours, best, truth)
        if truth.capacity_share != 1.0:
            yield row(f"{OURS}, {name}, no reports", partial(rules.Ours, reports=False), best, truth)
    for words, delay_s in (("each alone", None), ("told 0.1 s later", 0.1)):
        several = partial(rules.Workers, workers=WORKERS, delay_s=delay_s)
        yield row(f"{OURS}, {WORKERS} workers, {words}", several, at_best)


def targets(case: Case, rows: Sequence[Row]) -> Iterator[Target]:
    """What ours must reach where the mirror is true."""
    if not case.gated:
        return
    figures = next(row.figures for row in rows if row.rule == OURS)
    share = figures.of_bound
    yield Target(f"{case.title}: cached, of the single cache", share, f">= {LEAST_SHARE}", share >= LEAST_SHARE)
    for words, load in (
        ("total", figures.total),
        ("60 s windows", figures.windowed),
        ("total with output", figures.total_with_output),
        ("60 s windows with output", figures.windowed_with_output),
    ):
        yield Target(f"{case.title}: busiest / mean, {words}", load, f"<= {MOST_LOAD}", load <= MOST_LOAD)


def hashing_us() -> dict[str, float]:
    """Time to hash a prompt's bytes, median of 50; microseconds by kilobytes."""
    found = {}
    for kilobytes in (4, 32, 100):
        prompt = bytes(range(256)) * (4 * kilobytes)
        took = []
        for _ in range(50):
            begin = time.perf_counter_ns()
            prefix_blocks((prompt,))
            took.append(time.perf_counter_ns() - begin)
        found[str(kilobytes)] = round(sorted(took)[25] / 1e3, 1)
    return found


def show(row: Row) -> None:
    one = row.figures
    loads = f"{one.total:5.2f} {one.windowed:5.2f}   {one.total_with_output:5.2f} {one.windowed_with_output:5.2f}"
    inputs = f"{one.total_input:5.2f} {one.windowed_input:5.2f}"
    took = f"{one.decision_us_p50:6.1f} {one.decision_us_p99:6.1f}"
    print(f"  {row.rule:50} {one.of_bound:7.1%} {one.cached_share:6.1%}   {loads}   {inputs}   {took}", flush=True)


HEAD = f"  {'':50} {'of one':>7} {'cached':>6}   {'prefill':^11}   {'with output':^11}   {'all input':^11}   us p50,p99"


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def cases(options: argparse.Namespace) -> Iterator[Case]:
    if options.trace:
        arrivals = traffic.read(options.trace, options.sessions_per_s, options.seed)
        yield Case(options.trace.name, arrivals, options.blocks, options.replicas, gated=True, deep=not options.quick)
        return
    yield from given(options.data)
    if not options.quick:
        yield from changed(options.data)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="FOLDER", help="where the two public traces are")
    source.add_argument("--trace", type=Path, metavar="FILE", help="this trace instead")
    parser.add_argument("--blocks", type=positive, default=10_000, help="of each replica's cache (with --trace)")
    parser.add_argument("--replicas", type=positive, default=4, help="how many (with --trace)")
    parser.add_argument("--sessions-per-s", type=float, default=1.0, help="where it has no time stamps (with --trace)")
    parser.add_argument("--seed", type=int, default=0, help="of arrival times that a trace leaves open (with --trace)")
    parser.add_argument("--quick", action="store_true", help="the given traces only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    options = parser.parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    found: list[Target] = []
    about = []
    try:
        for case in cases(options):
            if not options.json:
                print(
                    f"{case.title}: {len(case.arrivals):,} requests, {case.replicas} x {case.blocks:,} blocks\n{HEAD}"
                )
            of_case = []
            for row in measured(case):
                of_case.append(row)
                if not options.json:
                    show(row)
            rows += of_case
            found += targets(case, of_case)
            about.append(
                {
                    "title": case.title,
                    "requests": len(case.arrivals),
                    "span_s": round(case.arrivals[-1].at_s, 1),
                    "replicas": case.replicas,
                    "blocks_each": case.blocks,
                }
            )
    except (BadRequest, OSError, ValueError) as error:
        print(f"the bench cannot run: {error}", file=sys.stderr)
        return 2
    document = {
        "what": "placement on simulated replicas: cached share of the single cache's, busiest over mean load",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": report.commit(),
        "machine": report.machine(),
        "took_s": round(time.monotonic() - began, 1),
        "targets": msgspec.to_builtins(found),
        "hashing_us_by_kilobytes": hashing_us(),
        "cases": about,
        "rows": msgspec.to_builtins(rows),
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for one in found:
            print(f"{'met' if one.met else 'MISSED':6} {one.figure:7.4f} {one.wanted:8} {one.what}")
        print(f"hashing a prompt, us by KB: {document['hashing_us_by_kilobytes']}; {document['took_s']} s")
    return int(not all(one.met for one in found))


if __name__ == "__main__":
    sys.exit(main())
