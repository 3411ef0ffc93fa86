"""What telemetry costs a request: CPU of bringing rows into the ledger, with OpenTelemetry at its defaults and without.

    make bench-telemetry     (or: .venv/bin/python bench/telemetry.py [--rows 20000] [--rounds 7] [--json] [--out FILE])

Requests pay nothing themselves: spans and metrics are made by the ingester, from rows that are in the ledger. So the
whole price is the difference between two ingesters that take the same journal, in turns in one process, threads
included; a receiver in a process of its own takes what is sent. 1% of the requests fail, some are slow: those are
always kept.
Exit code 1 if the median difference is more than 30 us a request.
"""

from __future__ import annotations

import argparse
import gc
import http.server
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from trimtab.config import Config
from trimtab.prices import Prices
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.telemetry.otlp import Otlp
from trimtab.telemetry.request_log import RequestLog
from trimtab.types import AttemptRecord, DecisionRecord, Record, Scope, Usage
from trimtab.wire.intake import Ids

LIMIT_US = 30.0
DEFAULTS = Config().telemetry


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes everything, says so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def receive(pipe: multiprocessing.connection.Connection) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    pipe.send(server.server_port)
    server.serve_forever()


def records(count: int) -> list[Record]:
    """Chat streams as a gateway settles them."""
    rng, ids = random.Random(1), Ids()
    made = []
    decision = DecisionRecord("exact_cache", "1", "REUSE_EXACT", "continue", "miss", took_s=1e-5)
    for n in range(count):
        ttft_s = rng.lognormvariate(-1, 0.8)
        total_s = ttft_s + rng.lognormvariate(0.5, 0.7)
        usage = Usage(input=rng.randrange(100, 4000), output=rng.randrange(10, 400))
        failed = rng.random() < 0.01
        attempt = AttemptRecord(
            0, "serve", "openai", f"model-{rng.randrange(4)}", "openai", "error" if failed else "ok", 0.001, total_s,
            first_token_s=ttft_s, status=503 if failed else 200, usage=usage, usage_source="reported", finish="stop",
        )  # fmt: skip
        record = Record(
            id=ids.next(), at=1_795_219_200.0 + n / 100, dialect="openai", path="/v1/chat/completions",
            scope=Scope(f"tenant{rng.randrange(20)}", route=f"route{rng.randrange(5)}", session=f"s{n % 999}"),
            model=attempt.model, stream=True, end=attempt.end, status=attempt.status, total_s=total_s, ttft_s=ttft_s,
            chunks=20, cache="miss", attempts=(attempt,), decisions=(decision,), baseline_usage=usage,
            baseline_model=attempt.model, baseline_provider="openai",
            stages={"auth": 1e-5, "read": 1e-5, "parse": 2e-5, "exact_cache": 1e-5, "model_ttft": ttft_s},
        )  # fmt: skip
        made.append(record)
    return made


def ingest(made: list[Record], kind: str, port: int) -> float:
    """CPU us a row of this process, from the journal to the ledger and, by `kind`, to the receiver or a log file."""
    lost: list[int] = []

    def dropped(_: str, count: int) -> None:
        lost.append(count)

    with tempfile.TemporaryDirectory() as folder:
        journal = FileJournal(Path(folder) / "journal", "bench")
        for record in made:
            journal.row(record)
        journal.close()
        outlets: list[Otlp | RequestLog] = []
        if kind == "otlp":
            outlets.append(
                Otlp(
                    f"http://127.0.0.1:{port}", "bench", sample=DEFAULTS.sample, slow_s=DEFAULTS.slow_s,
                    metrics_every_s=DEFAULTS.metrics_every_s, dropped=dropped,
                )
            )  # fmt: skip
        elif kind == "log":
            outlets.append(RequestLog(os.devnull, dropped))
        ingester = Ingester(Path(folder), Prices.of_tables({}, {}), observers=outlets)
        if outlets:
            outlets[0].limit = len(made)  # a journal read at once must not look as if telemetry dropped its work
        began = time.process_time()
        assert ingester.run_once() == len(made)
        for outlet in outlets:
            outlet.close(60.0)
        took_s = time.process_time() - began
        ingester.close()
    assert not lost, f"{sum(lost)} rows were dropped, so this is not the whole price"
    return took_s / len(made) * 1e6


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.get_context("fork").Process(target=receive, args=(there,), daemon=True)
    receiver.start()
    port = here.recv()
    made = records(options.rows)
    kinds = ("none", "otlp", "log")
    for kind in kinds:  # imports and price look-ups
        ingest(made[:500], kind, port)
    gc.freeze()  # a real ingester does not hold the rows of the whole run, which collections would walk
    rounds: list[dict[str, float]] = []
    for n in range(options.rounds):
        rounds.append({kind: ingest(made, kind, port) for kind in kinds})
        if sys.stderr.isatty():
            print(f"round {n + 1} of {options.rounds}: {rounds[-1]}", file=sys.stderr)
    receiver.terminate()
    more = {kind: [r[kind] - r["none"] for r in rounds] for kind in kinds[1:]}
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": options.rows,
        "sample": DEFAULTS.sample,
        "ingester_us_a_row": round(statistics.median(r["none"] for r in rounds), 1),
        **{
            f"{kind}_us_more": {
                "median": round(statistics.median(values), 1),
                "least": round(min(values), 1),
                "most": round(max(values), 1),
            }
            for kind, values in more.items()
        },
        "limit_us": LIMIT_US,
        "rounds": [{kind: round(value, 1) for kind, value in r.items()} for r in rounds],
    }
    text = json.dumps(result) if options.json else json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return int(statistics.median(more["otlp"]) > LIMIT_US)


if __name__ == "__main__":
    sys.exit(main())
