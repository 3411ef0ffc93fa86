"""Is `trimtab replay` right, and how much load can it make? The real program against servers whose latencies are known.

    make bench-replay        (or: .venv/bin/python bench/replay.py [--json] [--out FILE])

Truth: a server that answers at known times (`instruments/known.py`); each reported percentile is compared with what the
schedule says. In the third mode the server stands still for three seconds: an honest report shows that in its tail.
Capacity: 2,000 short unstreamed requests/s, and 200 streams/s of 20 chunks, from one core; how late were they sent?
Exit code 1 if a percentile is off by more than 2%, a request failed, or 1% of the requests left more than 20 ms late.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instruments import known

HERE = Path(__file__).resolve().parent
TRIMTAB = Path(sys.executable).with_name("trimtab")
TOLERANCE = 0.02
LATEST_MS = 20.0
RATE_PER_S, TRUTH_S = 60, 12
CAPACITY = {"unstreamed": (2000, 10, False), "streams": (200, 10, True)}  # requests/s, seconds, streamed


@contextmanager
def server(*command: str) -> Iterator[int]:
    """A server from this folder on a free port, on the last core."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    core = str(max(os.sched_getaffinity(0)))
    process = subprocess.Popen(
        ["taskset", "-c", core, sys.executable, *command, "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def trace(folder: Path, times_s: list[float], stream: bool) -> Path:
    """A trace of bodies at these times."""
    body = {"model": "m", "stream": stream, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
    path = folder / "trace.jsonl"
    path.write_text("\n".join(json.dumps({"timestamp": at * 1000, "body": body}) for at in times_s))
    return path


def replay(path: Path, port: int) -> dict[str, Any]:
    """The report of the real program, on the first core, with the single requests."""
    saved = path.with_name("run.json")
    core = str(min(os.sched_getaffinity(0)))
    url = f"http://127.0.0.1:{port}/v1"
    command = [
        "taskset",
        "-c",
        core,
        str(TRIMTAB),
        "replay",
        "run",
        str(path),
        "--url",
        url,
        "--save",
        str(saved),
        "--json",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads(saved.read_text())
    return report


def percentile(values: list[float], q: float) -> float:
    """By linear interpolation, as the report's."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (ordered[min(below + 1, len(ordered) - 1)] - ordered[below]) * (place - below)


def truth(mode: str, folder: Path) -> dict[str, Any]:
    """What the report says beside what the schedule says, in milliseconds."""
    rng = random.Random(mode)
    times_s = [0.0]
    while times_s[-1] < TRUTH_S:
        times_s.append(times_s[-1] + rng.expovariate(RATE_PER_S))
    firsts = [known.first_token_s(mode, n, at) * 1000 for n, at in enumerate(times_s)]
    rest = known.GAP_S * (known.CHUNKS - 1) * 1000
    with server(str(HERE / "instruments" / "known.py"), "--mode", mode) as port:
        report = replay(trace(folder, times_s, stream=True), port)
    found = {}
    for name, values in (
        ("time_to_first_token", firsts),
        ("request_latency", [first + rest for first in firsts]),
        ("inter_token_latency", [known.GAP_S * 1000] * len(firsts)),
    ):
        for statistic, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            right, said = percentile(values, q), report["metrics"][name][statistic]
            found[f"{name} {statistic}"] = {"known": right, "reported": said, "off": abs(said / right - 1)}
    return {"requests": len(times_s), "failed": len(times_s) - report["counts"]["successful"], "percentiles": found}


def capacity(rate_per_s: int, seconds: int, stream: bool, folder: Path) -> dict[str, Any]:
    """How late requests left at that rate, in milliseconds."""
    times_s = [n / rate_per_s for n in range(rate_per_s * seconds)]
    with server(str(HERE / "instruments" / "mock.py"), "--interval-us", "5000") as port:
        report = replay(trace(folder, times_s, stream), port)
    lag = report["metrics"]["queueing"]
    return {
        "requests": len(times_s),
        "failed": len(times_s) - report["counts"]["successful"],
        "p50_ms": lag["p50"],
        "p99_ms": lag["p99"],
        "requests_per_s": report["throughput"]["request_throughput"],
    }


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / f"replay-{today}.json", help="write the JSON here"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result = {
            "truth": {mode: truth(mode, folder) for mode in ("constant", "bimodal", "stall")},
            "capacity": {name: capacity(*what, folder) for name, what in CAPACITY.items()},
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(result))
    fine = all(
        not part["failed"] and all(one["off"] <= TOLERANCE for one in part["percentiles"].values())
        for part in result["truth"].values()
    ) and all(not part["failed"] and part["p99_ms"] < LATEST_MS for part in result["capacity"].values())
    return int(not fine)


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [f"{'':40}{'known':>12}{'reported':>12}{'off':>8}"]
    for mode, part in result["truth"].items():
        lines.append(f"{mode} ({part['requests']:,} requests, {part['failed']} failed)")
        for name, one in part["percentiles"].items():
            lines.append(f"  {name:38}{one['known']:9,.1f} ms{one['reported']:9,.1f} ms{one['off']:8.2%}")
    lines.append(f"{'sent late by':40}{'p50':>12}{'p99':>12}")
    for name, part in result["capacity"].items():
        what = f"{name}, {part['requests']:,} requests, {part['failed']} failed"
        lines.append(f"  {what:38}{part['p50_ms']:9.2f} ms{part['p99_ms']:9.2f} ms")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
