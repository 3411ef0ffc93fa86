"""Four real traces against the embedded model: does the server get exactly the lengths that each trace says?

    make bench-traces        (or: .venv/bin/python bench/traces.py [--data FOLDER] [--json] [--out FILE])

`trimtab serve` runs without configuration; `trimtab replay` sends the beginning of each trace, slowed down to what two
cores can carry. Then each request is looked up three times: in the trace's file, read here anew; in the replay's saved
run; and in the gateway's ledger, which has the engine's own count. Exit code 0; 1 if a length that was sent is not the
trace's, an answer is longer than the trace's, or a request failed; 2 if the traces are absent or the bench cannot run.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
from instruments import proc
from peers.stacks import free_port
from replay import HERE, TRIMTAB

DATA = HERE.parent.parent / "shared" / "data" / "traces"
MODEL, CONTEXT_TOKENS = "smollm2-135m-instruct", 4096
SLO = "ttft=10s,e2e=60s"
# Two at a time: the engine shares its cores among all that are in flight, so with more of them a slow machine would end
# none within the budget. A wait for a place counts into the latencies.
IN_FLIGHT = 2
BUDGET_S = 125.0  # for one trace; what is not answered then is ended as by Ctrl-C, counted, and not checked
START_S = 300.0  # the first start downloads the model
METRICS = {"time_to_first_token": "TTFT", "inter_token_latency": "ITL", "request_latency": "end to end"}


class Subset(NamedTuple):
    """What is taken of one trace, and how fast it is replayed."""

    title: str
    file: str
    options: tuple[str, ...]


SUBSETS = (
    Subset("Azure code 2023", "azure2023_code.csv.gz", ("--speed", "0.5", "--duration", "60", "--limit", "10")),
    Subset(
        "Azure conversation 2023", "azure2023_conv.csv.gz", ("--speed", "0.12", "--duration", "75", "--limit", "12")
    ),
    Subset(
        "Mooncake conversation",
        "mooncake_conversation.jsonl.gz",
        ("--speed", "0.2", "--duration", "70", "--limit", "6"),
    ),
    Subset(
        "tau-bench agent sessions",
        "tau_airline_gpt4o_calls.jsonl.gz",
        ("--sessions-per-s", "0.08", "--duration", "60", "--limit", "24"),
    ),
)


def lengths(path: Path) -> Counter[tuple[int, int]]:
    """Input and output tokens of every request in a trace, read without the code under test."""
    with gzip.open(path, "rt") as file:
        if ".csv" in path.suffixes:
            return Counter((int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file))
        rows = (json.loads(line) for line in file)
        return Counter((row["input_length"], row["output_length"]) for row in rows)


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[int, Path]]:
    """`trimtab serve` as it comes: its port and its ledger. Raises OSError if it does not start."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "TRIMTAB_CONFIG"}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [str(TRIMTAB), "serve", "--port", str(port)],
            cwd=folder,  # where no trimtab.toml is
            env=environment | {"TRIMTAB_DATA_DIR": str(folder / "data")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + START_S
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > end:
                lines = (folder / "serve.log").read_text(errors="replace").strip().splitlines() or ["no output"]
                raise OSError(f"`trimtab serve` did not start: {lines[-1][:200]}")
            time.sleep(0.2)
        yield port, folder / "data" / "ledger.sqlite"
    finally:
        pids = proc.tree(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            process.wait()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def replay(subset: Subset, data: Path, port: int, folder: Path) -> dict[str, Any]:
    """One trace: the saved run. Raises OSError with what the program said if it saved none."""
    saved = folder / f"{subset.file}.json"
    command = [str(TRIMTAB), "replay", "run", str(data / subset.file), "--url", f"http://127.0.0.1:{port}/v1"]
    command += ["--model", MODEL, "--context", str(CONTEXT_TOKENS), "--ignore-eos", "--slo", SLO]
    command += ["--concurrency-cap", str(IN_FLIGHT)]
    process = subprocess.Popen(
        [*command, *subset.options, "--save", str(saved), "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=BUDGET_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    if not saved.exists():
        raise OSError(f"trimtab replay {subset.file}: {(said.strip().splitlines() or ['no output'])[-1]}")
    run: dict[str, Any] = json.loads(saved.read_text())
    return run


def counted(ledger: Path, ids: set[str]) -> dict[str, tuple[int, int]]:
    """Input and output tokens by request, as the gateway settled them; waits until its ingester has caught up."""
    columns = "input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens, output_tokens"
    end = time.monotonic() + 20
    while True:
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)) as base:
            rows = {one: (given, made) for one, given, made in base.execute(f"SELECT id, {columns} FROM requests")}
        if ids <= set(rows) or time.monotonic() > end:
            return rows
        time.sleep(0.3)


def check(run: dict[str, Any], in_file: Counter[tuple[int, int]], ledger: Path) -> dict[str, Any]:
    """Each answered request beside its trace and its ledger row; the first few that differ are named."""
    answered = [one for one in run["requests"] if one["ok"]]
    rows = counted(ledger, {one["request_id"] for one in answered})
    left = in_file.copy()
    wrong: list[str] = []
    equal = output_equal = 0
    for one in answered:
        planned = one["planned_input_tokens"], one["planned_output_tokens"]
        known = left[planned] > 0
        left[planned] -= 1
        given, made = rows.get(one["request_id"], (None, None))
        right = known and given == planned[0] == one["input_tokens"] and made == one["output_tokens"] <= planned[1]
        equal += right
        output_equal += right and made == planned[1]
        if not right:
            said = f"sent {one['input_tokens']}, answered {one['output_tokens']}, ledger {given} and {made}"
            wrong.append(f"trace {planned[0]} and {planned[1]}{'' if known else ' (not in the file)'}: {said}")
    return {"answered": len(answered), "equal": equal, "output_equal": output_equal, "wrong": wrong[:5]}


def one_trace(subset: Subset, data: Path, port: int, folder: Path, ledger: Path) -> dict[str, Any]:
    """Replay it, check it, and keep what the table and the file need."""
    begin = time.monotonic()
    in_file = lengths(data / subset.file)
    run = replay(subset, data, port, folder)
    whole = run["metrics"]  # of answered requests: empty where none was
    return {
        "title": subset.title,
        "file": subset.file,
        "options": list(subset.options),
        "took_s": round(time.monotonic() - begin, 1),
        "counts": run["counts"],
        "lengths": check(run, in_file, ledger),
        "metrics": {name: {each: whole[name][each] for each in ("p50", "p95")} for name in METRICS if name in whole},
        "input_tokens": sum(one["input_tokens"] for one in run["requests"]),
        "cached_tokens": sum(one["cached_tokens"] for one in run["requests"]),
        "output_tokens": sum(one["output_tokens"] for one in run["requests"]),
        "goodput": run["throughput"]["goodput"],
        "good_request_fraction": run["throughput"]["good_request_fraction"],
        "errors": run["errors"],
        "others_cpu": run["others_cpu"],
    }


def fine(found: dict[str, Any]) -> bool:
    """Whether every answered request had its lengths, some were answered, and none failed."""
    checked = found["lengths"]
    return bool(0 < checked["answered"] == checked["equal"] and not found["counts"]["errored"])


def show(document: dict[str, Any]) -> None:
    """Print the table for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title=f"Real traces against {MODEL}; seconds, p50 / p95; good: {SLO}")
    table.add_column("")
    for found in document["traces"]:
        table.add_column(found["title"], justify="right")

    def row(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    every = document["traces"]
    row("sent, answered", *(f"{one['counts']['sent']}, {one['lengths']['answered']}" for one in every))
    row("sent length equal to the trace's", *(f"{one['lengths']['equal']}" for one in every))
    row("answer as long as the trace's", *(f"{one['lengths']['output_equal']}" for one in every))
    row(
        "skipped: too long, too short", *(f"{one['counts']['too_long']}, {one['counts']['too_short']}" for one in every)
    )
    row("tokens in (of them cached), out", *(_tokens(one) for one in every))
    for name, title in METRICS.items():
        row(title, *(_times(one["metrics"].get(name)) for one in every))
    row(
        "goodput, requests a minute",
        *(f"{one['goodput'] * 60:.1f} ({one['good_request_fraction']:.0%})" for one in every),
    )
    row("", *("[green]met[/]" if fine(one) else "[red]MISSED[/]" for one in every))
    console.print(table)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)


def _times(found: dict[str, float] | None) -> str:
    return "-" if found is None else " / ".join(f"{found[each] / 1000:,.2f}" for each in ("p50", "p95"))


def _tokens(found: dict[str, Any]) -> str:
    return f"{found['input_tokens']:,} ({found['cached_tokens']:,}), {found['output_tokens']:,}"


def notes_on(every: list[dict[str, Any]]) -> list[str]:
    """What went wrong, and what to know before believing the times."""
    found = []
    for one in every:
        found += [f"{one['title']}: {line}" for line in one["lengths"]["wrong"]]
        found += [f"{one['title']}: {count} failed: {reason}" for reason, count in one["errors"].items()]
        if one["counts"]["cancelled"]:
            found.append(f"{one['title']}: {one['counts']['cancelled']} were not answered within {BUDGET_S:g} s")
        if (one["others_cpu"] or 0) > report.DISTURBED:
            found.append(f"{one['title']}: other processes used {one['others_cpu']:.0%} of the processors")
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with the traces")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"traces-{today}.json", help="write JSON here")
    options = parser.parse_args()
    absent = [subset.file for subset in SUBSETS if not (options.data / subset.file).is_file()]
    if absent:
        print(f"{options.data} has no {', '.join(absent)}; name their folder: --data FOLDER", file=sys.stderr)
        return 2
    begin = time.monotonic()
    every = []
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as temporary:
            folder = Path(temporary)
            with gateway(folder) as (port, ledger):
                for subset in SUBSETS:
                    every.append(one_trace(subset, options.data, port, folder, ledger))
                    checked, took = every[-1]["lengths"], every[-1]["took_s"]
                    said = f"{checked['equal']} of {checked['answered']} equal, {took:.0f} s"
                    print(f"  {subset.title}: {said}", file=sys.stderr, flush=True)
    except OSError as error:
        print(f"the bench cannot run: {error}", file=sys.stderr)
        return 2
    document = {
        "what": "trimtab replay of real traces against trimtab serve without configuration: lengths and latencies",
        "date": today,
        "commit": report.commit(),
        "machine": report.machine(),
        "settings": {
            "model": MODEL,
            "context_tokens": CONTEXT_TOKENS,
            "slo": SLO,
            "in_flight": IN_FLIGHT,
            "ignore_eos": True,
        },
        "took_s": round(time.monotonic() - begin, 1),
        "traces": every,
        "notes": notes_on(every),
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
    return int(not all(fine(one) for one in every))


if __name__ == "__main__":
    sys.exit(main())
