"""How often does the promise break? Synthetic streams whose truth is known, straight into the rule, without any text.

    make bench-promise                                     200 streams each, both rules; some fifteen minutes
    .venv/bin/python bench/promise.py --streams 20

Each stream has its own difficulty: how many requests could be reused, how sharply the evidence tells, how many of
its numbers are noise. The chance of a wrong hit is logistic in a hidden score plus a bend that the rule's own logistic
model cannot follow. Scenarios: `steady`; `drift`, where from half-time on the odds of being wrong are eight times as
high at the same evidence; `verdicts`, where 5% of the verdicts are turned round. A promise is broken if,
of all hits of the stream, more were wrong than promised. Each stream is played at promises of 2, 5 and 10%.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from trimtab.semantic.promise import Promise, Terms

REQUESTS = 3000
PROMISES = (0.02, 0.05, 0.10)
SCENARIOS = ("steady", "drift", "verdicts")
FALSE_VERDICTS = 0.05
DRIFT_ODDS = 8.0


def stream(seed: int, drift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Evidence, shape (REQUESTS, d), and whether a hit would be wrong, shape (REQUESTS,)."""
    rng = np.random.default_rng(seed)
    features, told = int(rng.integers(4, 16)), int(rng.integers(2, 4))
    ease, sharpness = rng.uniform(-1.0, 2.5), rng.uniform(1.0, 3.0)
    score = rng.normal(0.0, 1.0, REQUESTS)
    bend = rng.uniform(-0.4, 0.4) * (score**2 - 1)
    odds = -(ease + sharpness * score + bend)
    if drift:
        odds[REQUESTS // 2 :] += np.log(DRIFT_ODDS)
    wrong = rng.random(REQUESTS) < 1 / (1 + np.exp(-odds))
    values = rng.normal(0.0, 1.0, (REQUESTS, features))
    values[:, :told] = score[:, None] + rng.normal(0.0, 0.5, (REQUESTS, told))
    return values, wrong


def played(seed: int, scenario: str, promise: float, strict: bool) -> tuple[int, int, int]:
    """Hits, wrong hits and alarms of one stream."""
    values, wrong = stream(seed, scenario == "drift")
    rng = np.random.default_rng(seed + 10**6)
    rule = Promise(Terms(promise, strict=strict, seed=seed))
    hits = wrong_hits = 0
    for row, truth in zip(values, wrong, strict=True):
        ruling = rule.rule(row)
        if ruling.hit:
            hits, wrong_hits = hits + 1, wrong_hits + int(truth)
        if not ruling.hit or ruling.audit:
            rule.label(row, ruling, bool(truth) != (scenario == "verdicts" and rng.random() < FALSE_VERDICTS))
    return hits, wrong_hits, rule.alarms


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200, help="of each scenario, rule and promise")
    parser.add_argument("--scenarios", type=lambda text: text.split(","), default=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", type=lambda text: text.split(","), default=["default", "strict"])
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    rows = []
    print(f"{'scenario':9} {'rule':8} {'promise':>7} streams  broken  hit rate  opened  alarms")
    for scenario in options.scenarios:
        for rule in options.rules:
            began = time.monotonic()
            for promise in PROMISES:
                strict = rule == "strict"
                chosen = [played(options.seed + n, scenario, promise, strict) for n in range(options.streams)]
                broken = sum(wrong > promise * hits for hits, wrong, _ in chosen)
                row = {
                    "scenario": scenario,
                    "rule": rule,
                    "promise": promise,
                    "streams": len(chosen),
                    "broken": broken,
                    "hit_rate": round(sum(one[0] for one in chosen) / (len(chosen) * REQUESTS), 4),
                    "opened": sum(one[0] > 0 for one in chosen),
                    "alarms": sum(one[2] for one in chosen),
                    "worst_excess": round(max((w / h / promise for h, w, _ in chosen if h), default=0.0), 3),
                }
                rows.append(row)
                print(f"{scenario:9} {rule:8} {promise:7.0%} {len(chosen):7} {broken / len(chosen):7.1%} "
                      f"{row['hit_rate']:9.3f} {row['opened']:7} {row['alarms']:7}")  # fmt: skip
            if sys.stderr.isatty():
                print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr)
    if options.out:
        document = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "requests": REQUESTS, "rows": rows}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
