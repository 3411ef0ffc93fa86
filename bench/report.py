"""From samples to figures: medians, targets, ratios, the table and the JSON document."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruments.rig import DISTURBED, SATURATED, Sample

if TYPE_CHECKING:
    from overhead import Result

RESULTS = Path(__file__).resolve().parent / "results"
SATURATING = ("miss", "hit", "big", "tls")
# key, what the table calls it, the target that Trimtab holds (None: shown only)
FIGURES: tuple[tuple[str, str, float | None], ...] = (
    ("miss_us", "miss, 0.5 KB: CPU us a request", 150.0),
    ("hit_us", "exact-cache hit: CPU us a request", 60.0),
    ("sse_us_a_chunk", "stream of 20 chunks: CPU us a chunk", 130.0),
    ("sse_us_a_stream", "stream of 20 chunks: CPU us a stream", None),
    ("big_us", "miss, 100 KB: CPU us a request", 550.0),
    ("tls_us", "miss, TLS to the upstream: CPU us a request", None),
    ("added_ttft_p50_ms", "added time to first token, p50: ms", 1.0),
    ("added_ttft_p99_ms", "added time to first token, p99: ms", None),
    ("chunk_delay_p50_us", "chunk delay, one way, p50: us", None),
    ("chunk_delay_p99_us", "chunk delay, one way, p99: us", None),
    ("anonymous_mb", "anonymous memory after the load: MB", 100.0),
    ("cold_start_s", "cold start to the first 200: s", 1.0),
    ("ingester_us_a_row", "ingester: CPU us a ledger row", 100.0),
    ("supervisor_us_a_miss", "supervisor: CPU us a miss", None),
)
TITLES = {key: title for key, title, _ in FIGURES}


def brief(title: str, sample: Sample) -> str:
    """One line of progress."""
    count = sample.chunks or sample.done
    unit = "a chunk" if sample.chunks else "a request"
    others = f", others {sample.others:.0%}" if sample.others > DISTURBED else ""
    problem = f"  !! {sample.problem}" if sample.problem else ""
    cost = f"{sample.per('serve', count):8.1f} us {unit:9}"
    return f"{title:14} {sample.scenario:5} {cost} core {sample.busy:4.0%}{others}{problem}"


def _values(result: Result, scenario: str) -> list[Sample]:
    return [sample for sample in result.samples if sample.scenario == scenario and not sample.problem]


def _spread(values: list[float], digits: int = 1) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "n": len(values),
    }


def _pooled(samples: list[Sample], share: float) -> float | None:
    """A quantile over the streams of all repetitions, microseconds."""
    pooled = sorted(value for sample in samples for value in sample.ttft_all_us)
    return pooled[min(int(share * len(pooled)), len(pooled) - 1)] if pooled else None


def figures(result: Result) -> dict[str, dict[str, float] | None]:
    """Each figure's median, least and largest over the repetitions; None where it was not measured."""
    miss, sse = _values(result, "miss"), _values(result, "sse")
    through, direct = _values(result, "ttft"), _values(result, "direct")
    rest = {sample.rep: sample.ttft_us for sample in direct}
    added = [(sample.ttft_us["p50"] - rest[sample.rep]["p50"]) / 1e3 for sample in through if sample.rep in rest]
    p99, p99_direct = _pooled(through, 0.99), _pooled(direct, 0.99)
    anonymous = [float(str(row["anon_mb"])) for row in result.memory]
    ingester = result.ingester_us_a_row
    return {
        "miss_us": _spread([sample.per("serve", sample.done) for sample in miss]),
        "hit_us": _spread([sample.per("serve", sample.done) for sample in _values(result, "hit")]),
        "sse_us_a_chunk": _spread([sample.per("serve", sample.chunks) for sample in sse]),
        "sse_us_a_stream": _spread([sample.per("serve", sample.done) for sample in sse]),
        "big_us": _spread([sample.per("serve", sample.done) for sample in _values(result, "big")]),
        "tls_us": _spread([sample.per("serve", sample.done) for sample in _values(result, "tls")]),
        "added_ttft_p50_ms": _spread(added, 3),
        "added_ttft_p99_ms": _spread([(p99 - p99_direct) / 1e3] if p99 and p99_direct else [], 3),
        "chunk_delay_p50_us": _spread([sample.chunk_delay_us["p50"] for sample in sse]),
        "chunk_delay_p99_us": _spread([sample.chunk_delay_us["p99"] for sample in sse]),
        "anonymous_mb": _spread([sum(anonymous)] if anonymous else []),
        "cold_start_s": _spread(result.cold_starts_s, 3),
        "ingester_us_a_row": _spread([ingester] if ingester is not None else []),
        "supervisor_us_a_miss": _spread(
            [sample.per("supervisor", sample.done) for sample in miss if "supervisor" in sample.cpu_s], 2
        ),
    }


def _notes(results: dict[str, Result]) -> list[str]:
    """What a reader must know before believing the table."""
    notes: list[str] = []
    for result in results.values():
        notes += [f"{result.title}: {note}" for note in result.notes]
        if result.missing:
            notes.append(f"{result.title}: not measured: {result.missing}")
            continue
        for sample in result.samples:
            where = f"{result.title}, {sample.scenario}, repetition {sample.rep + 1}"
            if sample.problem:
                notes.append(f"{where}: left out: {sample.problem}")
            elif sample.others + sample.stolen > DISTURBED:
                used = f"others used {sample.others:.0%} of a core"
                stolen = f" and {sample.stolen:.0%} was stolen" if sample.stolen > 0.01 else ""
                notes.append(f"{where}: {used}{stolen} (best of {sample.tries})")
        for scenario in SATURATING:
            busy = [sample.busy for sample in _values(result, scenario) if sample.others <= DISTURBED]
            if busy and statistics.median(busy) < SATURATED:
                share = statistics.median(busy)
                notes.append(
                    f"{result.title}, {scenario}: its core was only {share:.0%} busy: the instruments bound it"
                )
        if (result.sse_rate, result.ttft_rate) != (100.0, 50.0):
            rates = f"{result.sse_rate:.0f} streams a second (added TTFT at {result.ttft_rate:.0f})"
            notes.append(f"{result.title}: streams measured at {rates}: one core of it carries no 100")
    if "trimtab" in results and not machine()["python_optimized"]:
        notes.append("this Python was built without --enable-optimizations: Trimtab's CPU is a quarter higher for it")
    return notes


def _targets(figures_by_stack: dict[str, dict[str, dict[str, float] | None]]) -> list[dict[str, Any]]:
    """Each target of Trimtab's with its figure; one that was not measured is not met."""
    mine = figures_by_stack.get("trimtab")
    if mine is None:
        return []
    rows = []
    for key, _, target in FIGURES:
        if target is not None:
            figure = mine[key]
            value = figure["median"] if figure else None
            rows.append({"name": key, "target": target, "value": value, "met": value is not None and value <= target})
    return rows


def _ratios(by_stack: dict[str, dict[str, dict[str, float] | None]]) -> dict[str, dict[str, float]]:
    """How many times Trimtab's figure each peer's is, in this very run."""
    mine = by_stack.get("trimtab", {})
    ratios: dict[str, dict[str, float]] = {}
    for name, theirs in by_stack.items():
        if name != "trimtab":
            ratios[name] = {
                key: round(figure["median"] / own["median"], 2)
                for key, figure in theirs.items()
                if figure and (own := mine.get(key)) and own["median"] > 0
            }
    return ratios


def machine() -> dict[str, object]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        # A distribution's own Python always is, and does not say so.
        "python_optimized": sys.base_prefix == "/usr"
        or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
    }


def commit() -> str:
    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head, state = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain")
    except OSError:
        return "unknown"
    return (head or "none") + ("-dirty" if state else "")


def document(results: dict[str, Result], settings: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Everything that the JSON file holds: machine, settings, versions, figures, ratios, targets, notes, samples."""
    by_stack = {name: figures(result) for name, result in results.items() if not result.missing}
    return {
        "what": "CPU per request, memory, start and added latency of gateways, measured in one run",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "settings": settings,
        "stacks": {
            name: {
                "title": result.title,
                "version": result.version,
                "settings": result.settings,
                "missing": result.missing,
                "figures": by_stack.get(name, {}),
                "processes": result.memory,
                "cold_starts_s": result.cold_starts_s,
                "ingested_rows": result.ingested_rows,
            }
            for name, result in results.items()
        },
        "ratios_to_trimtab": _ratios(by_stack),
        "targets": _targets(by_stack),
        "notes": notes + _notes(results),
        "samples": {name: [sample.public() for sample in result.samples] for name, result in results.items()},
    }


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "-"
    middle, low, high = figure["median"], figure["min"], figure["max"]
    digits = 0 if middle >= 1000 else 1 if middle >= 10 else 2
    text = f"{middle:,.{digits}f}"
    return text if figure["n"] < 2 else f"{text}\n[dim]{low:,.{digits}f}-{high:,.{digits}f}[/dim]"


def show(document: dict[str, Any]) -> None:
    """Print the table for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 150)
    stacks = {name: stack for name, stack in document["stacks"].items() if not stack["missing"]}
    order = sorted(stacks, key=lambda name: name != "trimtab")
    machine = document["machine"]
    table = Table(title=f"Overhead on {machine['cpu']}, {machine['cores']} cores, {document['date']}: median, min-max")
    table.add_column("")
    for name in order:
        table.add_column(f"{stacks[name]['title']}\n{stacks[name]['version']}", justify="right")
        if name == "trimtab":
            table.add_column("target", justify="right")
    targets = {row["name"]: row for row in document["targets"]}
    for key, title, target in FIGURES:
        row = [title]
        for name in order:
            row.append(_cell(stacks[name]["figures"][key]))
            if name == "trimtab":
                verdict = "" if target is None else "[green]met[/]" if targets[key]["met"] else "[red]MISSED[/]"
                row.append("" if target is None else f"<= {target:g}\n{verdict}")
        table.add_row(*row)
    console.print(table)
    if document["ratios_to_trimtab"]:
        ratios = Table(title="Times Trimtab's figure, in this run (over 1: Trimtab uses less)")
        ratios.add_column("")
        for name in document["ratios_to_trimtab"]:
            ratios.add_column(stacks[name]["title"], justify="right")
        for key in ("miss_us", "hit_us", "sse_us_a_chunk", "big_us", "tls_us", "anonymous_mb", "cold_start_s"):
            cells = [document["ratios_to_trimtab"][name].get(key) for name in document["ratios_to_trimtab"]]
            ratios.add_row(TITLES[key], *(f"{cell:.2f}" if cell is not None else "-" for cell in cells))
        console.print(ratios)
    for stack in stacks.values():
        each = ", ".join(f"{row['name']} {row['anon_mb']}" for row in stack["processes"])
        console.print(f"[b]{stack['title']}[/b] {stack['settings']}. Anonymous MB: {each}", highlight=False)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
