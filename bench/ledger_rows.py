"""How long `trimtab latency` and `trimtab ledger summary` take over a large ledger, and how large that is.

    .venv/bin/python bench/ledger_rows.py [--rows 1000000] [--folder DIR] [--json]

Makes a ledger of that many requests over seven days (20 tenants, 5 routes, 4 models), asks it the usual questions with
the real program, and compares the sketches' percentiles with exact ones. Exit code 1 if an answer takes over two
seconds, or a percentile is off by more than the stated error.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trimtab.ledger import settle
from trimtab.prices import Prices
from trimtab.sketch import QUANTILES, RELATIVE_ERROR
from trimtab.stores import ledger_db
from trimtab.types import AttemptRecord, Record, Scope, Usage

LIMIT_S = 2.0
BATCH = 5000
START = 1_795_219_200.0
QUESTIONS = {
    "latency": ["latency"],
    "latency --by route,model": ["latency", "--by", "route,model"],
    "ledger summary --by model": ["ledger", "summary", "--by", "model"],
    "ledger summary --by tenant,route,day": ["ledger", "summary", "--by", "tenant,route,day"],
}


def fill(folder: Path, rows: int) -> list[float]:
    """A ledger of `rows` requests; their times to the first token."""
    rng = random.Random(1)
    prices = Prices.of_tables({}, {})
    connection = ledger_db.open_writer(folder / ledger_db.FILE_NAME)
    times: list[float] = []
    for begin in range(0, rows, BATCH):
        entries = []
        for n in range(begin, min(rows, begin + BATCH)):
            ttft_s = rng.lognormvariate(-1, 0.8)
            total_s = ttft_s + rng.lognormvariate(0.5, 0.7)
            usage = Usage(input=rng.randrange(100, 4000), output=rng.randrange(10, 400))
            attempt = AttemptRecord(
                0, "serve", "openai", "gpt-4o-mini", "openai", "ok", 0.0, total_s,
                first_token_s=ttft_s, status=200, usage=usage, usage_source="reported",
            )  # fmt: skip
            record = Record(
                id=f"r{n:09d}", at=START + n * 604800 / rows, dialect="openai", path="/v1/chat/completions",
                scope=Scope(f"tenant{rng.randrange(20)}", route=f"route{rng.randrange(5)}"),
                model=f"model{rng.randrange(4)}", stream=True, end="ok", status=200, total_s=total_s, ttft_s=ttft_s,
                chunks=10, cache="miss", attempts=(attempt,), baseline_usage=usage, baseline_model="gpt-4o-mini",
                baseline_provider="openai",
            )  # fmt: skip
            times.append(ttft_s)
            entries.append(settle(record, prices))
        connection.execute("BEGIN")
        ledger_db.insert_entries(connection, entries)
        connection.execute("COMMIT")
        if sys.stderr.isatty():
            print(f"\r{begin + len(entries):,} rows", end="", file=sys.stderr, flush=True)
    connection.close()
    return times


def ask(folder: Path, arguments: list[str]) -> tuple[float, str]:
    """Seconds for the whole program, start included, and what it printed."""
    program = Path(sys.executable).with_name("trimtab")
    began = time.monotonic()
    done = subprocess.run(
        [str(program), *arguments, "--json", "--data-dir", str(folder)], capture_output=True, text=True, check=True
    )
    return time.monotonic() - began, done.stdout


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the ledger (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        began = time.monotonic()
        times = sorted(fill(folder, options.rows))
        filled_s = time.monotonic() - began
        answers = {name: ask(folder, arguments) for name, arguments in QUESTIONS.items()}
        size = sum(path.stat().st_size for path in folder.glob(f"{ledger_db.FILE_NAME}*"))
        found = next(row for row in map(json.loads, answers["latency"][1].splitlines()) if row["metric"] == "ttft")
    errors = {name: abs(found[name] / times[math.floor(q * (len(times) - 1))] - 1) for name, q in QUANTILES.items()}
    took = {name: round(seconds, 3) for name, (seconds, _) in answers.items()}
    result = {
        "rows": options.rows,
        "fill_us_a_row": round(filled_s / options.rows * 1e6, 1),
        "bytes_a_row": round(size / options.rows),
        "seconds": took,
        "relative_errors": {name: round(error, 5) for name, error in errors.items()},
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return int(max(took.values()) > LIMIT_S or max(errors.values()) > RELATIVE_ERROR + 1e-6)


if __name__ == "__main__":
    sys.exit(main())
