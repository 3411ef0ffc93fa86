"""How often is the quality gate wrong, and how many items does it need? Simulations whose truth is known.

    make bench-gate                                          2,000 runs each; six minutes, twelve on busy processors
    .venv/bin/python bench/gate.py --runs 200 --only gate

Parts: `exact` adds up the chances of all outcomes of small samples, without any drawing, for the gate's bound and for
two that are used elsewhere; `gate` and `sequential` draw whole gates in which one stratum is worse by the margin or
more and the others are all but equal, so that a pass is an error; `power` draws candidates that are good enough;
`monitor` plays production streams. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

import report
from exact_levels import MARGIN, binomial, drawn_cell, exact_cell, three_values, two_weights
from trimtab.quality import paired, verdict
from trimtab.quality.monitor import Monitor
from trimtab.quality.paired import Counts, Item
from trimtab.quality.verdict import Ruling, SequentialGate, judge

SIZES = (30, 60, 120, 300, 1000)
ACCURACIES = (0.3, 0.6, 0.9)  # of the reference
EXACT_SIZES = (20, 30, 59, 60, 93, 120, 200, 300, 1000)
POWER_SIZES = (60, 120, 300, 600, 1000, 2000)
SEEDS = 200  # streams of each kind for the monitor
Kinds = tuple[list[Item], np.ndarray]  # the items that occur, and how often


# What items look like


def binary(accuracy: float, worse: float, better: float) -> Kinds:
    """Answers are right or wrong; shares of items that only the reference, or only the candidate, has right."""
    worse, better = min(worse, accuracy), min(better, 1 - accuracy)
    right = (1.0,), (0.0,)
    items = [Item(reference, candidate) for reference, candidate in itertools.product(right, right)]
    return items, np.array([accuracy - worse, worse, better, 1 - accuracy - better])


def graded(accuracy: float, losses: dict[float, float]) -> Kinds:
    """Scores of a judge: `losses` says how often the candidate is how much worse, `accuracy` about the reference's."""
    least, most = max(losses), 1 + min(losses)
    score = min(max(accuracy, least), most)
    return [Item((score,), (score - loss,)) for loss in losses], np.array([*losses.values()])


def repeated(accuracy: float, loss: float) -> Kinds:
    """Each item is asked three times of either side; a third of the items is hard, and those repeat their mistakes."""
    chances: dict[tuple[int, int], float] = {}
    for ease in (accuracy - 0.2, accuracy, min(accuracy + 0.2, 1.0)):
        for one, two in itertools.product(range(4), repeat=2):
            share = binomial(3, ease)[one] * binomial(3, ease - loss)[two] / 3
            chances[one, two] = chances.get((one, two), 0.0) + share
    repeats = [tuple([1.0] * right + [0.0] * (3 - right)) for right in range(4)]
    return [Item(repeats[one], repeats[two]) for one, two in chances], np.array([*chances.values()])


def _spread(centre: float) -> dict[float, float]:
    return {round(centre + step, 3): 1 / 41 for step in np.linspace(-0.2, 0.2, 41)}


def swapped(accuracy: float) -> float:
    return 0.8 * min(accuracy, 1 - accuracy)


WRONG: dict[str, Callable[[float], Kinds]] = {
    "losses only": lambda accuracy: binary(accuracy, MARGIN, 0.0),
    "10% / 5%": lambda accuracy: binary(accuracy, 0.10, 0.05),
    "noisy": lambda accuracy: binary(accuracy, swapped(accuracy), swapped(accuracy) - MARGIN),
    "worse by 8%": lambda accuracy: binary(accuracy, 0.10, 0.02),
    "graded, small": lambda accuracy: graded(accuracy, {0.25: 0.4, -0.25: 0.2, 0.0: 0.4}),
    "graded, rare": lambda accuracy: graded(accuracy, {0.8: 1 / 16, 0.0: 15 / 16}),
    "graded, spread": lambda accuracy: graded(accuracy, _spread(MARGIN)),
    "three repeats": lambda accuracy: repeated(accuracy, MARGIN),
}
GOOD: dict[str, Kinds] = {
    "ties only": binary(0.6, 0.0, 0.0),
    "1% / 1%": binary(0.6, 0.01, 0.01),
    "5% / 5%": binary(0.6, 0.05, 0.05),
    "10% / 10%": binary(0.6, 0.10, 0.10),
    "graded: 25% better or worse": graded(0.6, {0.25: 0.3, -0.25: 0.3, 0.0: 0.4}),
    "1% worse: 5.5% / 4.5%": binary(0.6, 0.055, 0.045),
    "2% worse: 6% / 4%": binary(0.6, 0.06, 0.04),
}
BAD: dict[str, Kinds] = {"10% worse: 12% / 2%": binary(0.6, 0.12, 0.02), "15% worse: 18% / 3%": binary(0.6, 0.18, 0.03)}
OTHERS = binary(0.6, 0.01, 0.01)  # the strata that are not bad


def true_loss(kinds: Kinds) -> float:
    return float(sum(item.loss * share for item, share in zip(*kinds, strict=True)))


def rng_of(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def sample(kinds: Kinds, size: int, rng: np.random.Generator) -> list[Item]:
    counts = rng.multinomial(size, kinds[1] / kinds[1].sum())
    return [item for item, count in zip(kinds[0], counts, strict=True) for _ in range(count)]


def stream(kinds: Kinds, size: int, rng: np.random.Generator) -> list[Item]:
    drawn = rng.choice(len(kinds[0]), size, p=kinds[1] / kinds[1].sum())
    return [kinds[0][place] for place in drawn]


# Drawn gates


@lru_cache(maxsize=200_000)
def _remembered(bound: Callable[[Counts, float], float], counts: frozenset, alpha: float) -> float:
    return bound(dict(counts), alpha)


def remember_bounds() -> None:
    """Let the gate ask for each bound once: most samples of a size are alike. The bounds are the gate's own."""
    verdict.upper_bound = lambda counts, alpha: _remembered(paired.upper_bound, frozenset(counts.items()), alpha)
    verdict.lower_bound = lambda counts, alpha: _remembered(paired.lower_bound, frozenset(counts.items()), alpha)


def error_cell(sequential: bool, truth: str, accuracy: float, strata: int, size: int, runs: int) -> dict[str, object]:
    """How often gates pass of which one stratum is worse by the margin or more. A look after every item."""
    bad = WRONG[truth](accuracy)
    at_margin = abs(true_loss(bad) - MARGIN) < 1e-9
    assert at_margin or true_loss(bad) > MARGIN, truth
    rng = rng_of(sequential, truth, accuracy, strata, size)
    passed = failed = 0
    for _ in range(runs):
        if sequential:
            ruling = _sequential_run([bad] + [OTHERS] * (strata - 1), size, rng)[0]
        else:
            samples = {str(n): sample(OTHERS if n else bad, size, rng) for n in range(strata)}
            ruling = judge(samples).ruling
        passed += ruling is Ruling.PASS
        failed += ruling is Ruling.FAIL
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    return {
        "part": "sequential" if sequential else "gate",
        "truth": truth,
        "reference": accuracy,
        "strata": strata,
        "items": size,
        "runs": runs,
        "passed": round(passed / runs, 4),
        "failed": round(failed / runs, 4),
        "ok": passed / runs <= limit and (failed / runs <= limit or not at_margin),
    }


def _sequential_run(strata: list[Kinds], size: int, rng: np.random.Generator) -> tuple[Ruling, int]:
    """The ruling and the items used; strata come one after the other, until one does not pass."""
    gate = SequentialGate([str(n) for n in range(len(strata))])
    used, rulings = 0, []
    for name, kinds in enumerate(strata):
        ruling = Ruling.UNDECIDED
        for item in stream(kinds, size, rng):
            used += 1
            ruling = gate.add(str(name), item)
            if ruling is not Ruling.UNDECIDED:
                break
        rulings.append(ruling)
        if ruling is not Ruling.PASS:
            return ruling, used
    assert all(ruling is Ruling.PASS for ruling in rulings)
    return Ruling.PASS, used


def power_cell(truth: str, runs: int) -> dict[str, object]:
    """Shares of the right ruling by sample size: fixed, and sequential with that many items at most."""
    kinds, right = (GOOD[truth], Ruling.PASS) if truth in GOOD else (BAD[truth], Ruling.FAIL)
    rng = rng_of("power", truth)
    fixed = {
        size: round(sum(judge({"one": sample(kinds, size, rng)}).ruling is right for _ in range(runs)) / runs, 3)
        for size in POWER_SIZES
    }
    found = [_sequential_run([kinds], POWER_SIZES[-1], rng) for _ in range(runs)]
    needed = sorted(used if ruling is right else math.inf for ruling, used in found)
    shares = {size: round(sum(used <= size for used in needed) / runs, 3) for size in POWER_SIZES}
    advised = advice(kinds, right, runs, rng)
    median = needed[len(needed) // 2]
    return {
        "part": "power",
        "truth": truth,
        "right": str(right),
        "runs": runs,
        "fixed": fixed,
        "sequential": shares,
        "sequential_median": None if math.isinf(median) else median,
        "advice_sufficed": advised,
        "ok": True,
    }


def advice(kinds: Kinds, right: Ruling, runs: int, rng: np.random.Generator) -> float | None:
    """How often a new sample of 60 and the items that were advised decides rightly; None if it never lacked any."""
    sufficed = tried = 0
    for _ in range(runs):
        more = judge({"one": sample(kinds, 60, rng)}).more_items
        if more is not None and more < 20_000:
            tried += 1
            sufficed += judge({"one": sample(kinds, 60 + more, rng)}).ruling is right
    return round(sufficed / tried, 3) if tried else None


def again_cell(truth: str, runs: int) -> dict[str, object]:
    """What happens if items are added to a sample until the fixed gate passes: five looks that it does not know of."""
    kinds, rng = WRONG[truth](0.6), rng_of("again", truth)
    passed = 0
    for _ in range(runs):
        items: list[Item] = []
        for size in (60, 120, 240, 480, 960):
            items += sample(kinds, size - len(items), rng)
            if judge({"one": items}).ruling is Ruling.PASS:
                passed += 1
                break
    return {"part": "looking again", "truth": truth, "runs": runs, "passed": round(passed / runs, 4), "ok": True}


# The monitor


def pairs(rng: np.random.Generator, size: int, wrong: float, noise: float) -> list[float]:
    """Losses: `wrong` of the answers are worse; of the rest, `noise` look worse by chance and as many look better."""
    luck = rng.random(size)
    losses = np.where(luck < noise, 1.0, np.where(luck > 1 - noise, -1.0, 0.0))
    losses[rng.random(size) < wrong] = 1.0
    return [float(loss) for loss in losses]


def off_after(losses: list[float]) -> float:
    monitor = Monitor()
    return next((n for n, loss in enumerate(losses, 1) if not monitor.add(loss)), math.inf)


def change_cell(wrong: float, noise: float, good: int) -> dict[str, object]:
    """How many pairs after a change a lever goes off; targets hold for 20% wrong and verdicts without noise."""
    rng = rng_of("change", wrong, noise, good)
    found = [off_after(pairs(rng, good, 0.0, noise) + pairs(rng, 3000, wrong, noise)) - good for _ in range(SEEDS)]
    after = sorted(n for n in found if n > 0)
    median, p95 = after[len(after) // 2], after[int(0.95 * len(after))]
    return {
        "part": "monitor: change",
        "wrong": wrong,
        "noise": noise,
        "good_pairs": good,
        "seeds": SEEDS,
        "median_pairs": None if math.isinf(median) else median,
        "p95_pairs": None if math.isinf(p95) else p95,
        "off_before": len(found) - len(after),
        "ok": wrong != 0.2 or noise > 0 or (median <= 60 and p95 <= 120),
    }


def steady_cell(loss: float, noise: float, size: int) -> dict[str, object]:
    """How often a lever whose loss never changes goes off; an equal one may within 1,000 pairs in 5% of the runs."""
    rng = rng_of("steady", loss, noise, size)
    off = sum(off_after(pairs(rng, size, loss, noise)) <= size for _ in range(SEEDS)) / SEEDS
    return {
        "part": "monitor: steady",
        "loss": loss,
        "noise": noise,
        "pairs": size,
        "seeds": SEEDS,
        "off": off,
        "ok": loss > 0 or size > 1000 or off <= 0.05,
    }


# All of it


def cells(runs: int, parts: list[str]) -> Iterator[tuple[Callable[..., dict[str, object]], tuple[object, ...]]]:
    """Every simulation: a function and its arguments, the long ones first."""
    names = [*WRONG]
    if "sequential" in parts:
        yield from ((error_cell, (True, truth, 0.6, 1, 1000, runs)) for truth in names)
        yield from ((error_cell, (True, "losses only", accuracy, 1, 300, runs)) for accuracy in ACCURACIES)
        yield from ((error_cell, (True, names[k % len(names)], 0.6, k, 300, runs)) for k in range(9, 1, -1))
    if "gate" in parts:
        for size, truth, accuracy in itertools.product(reversed(SIZES), names, ACCURACIES):
            if size < 1000 or accuracy == 0.6:
                yield error_cell, (False, truth, accuracy, 1, size, runs)
        for k, size in itertools.product(range(9, 1, -1), (60, 120, 300)):
            yield error_cell, (False, names[(k + size) % len(names)], 0.6, k, size, runs)
    if "power" in parts:
        yield from ((power_cell, (truth, max(runs // 5, 20))) for truth in (*GOOD, *BAD))
        yield from ((again_cell, (truth, runs)) for truth in ("10% / 5%", "noisy"))
    if "exact" in parts:
        yield from ((exact_cell, (size,)) for size in EXACT_SIZES)
        yield drawn_cell, ("three values", three_values, 200)
        yield drawn_cell, ("two weights", two_weights, 200)
    if "monitor" in parts:
        for noise, good in itertools.product((0.0, 0.02, 0.05), (0, 200, 1000)):
            yield change_cell, (0.2, noise, good)
        yield from ((change_cell, (wrong, 0.0, 200)) for wrong in (0.08, 0.1, 0.15, 0.3))
        yield from ((steady_cell, (0.0, noise, 1000)) for noise in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4))
        yield from ((steady_cell, (loss, 0.0, 1000)) for loss in (0.02, MARGIN, 0.08, 0.1))
        yield from ((steady_cell, (0.0, noise, 10_000)) for noise in (0.02, 0.05, 0.1))


def _cell(cell: tuple[Callable[..., dict[str, object]], tuple[object, ...]]) -> dict[str, object]:
    began = time.monotonic()
    return cell[0](*cell[1]) | {"seconds": round(time.monotonic() - began, 1)}


def shown(row: dict[str, object]) -> str:
    rest = ", ".join(
        f"{name} {value}" for name, value in row.items() if name not in ("part", "ok", "seconds", "runs", "seeds")
    )
    return f"{row['part']:16} {rest}{'' if row['ok'] else '   MISSED'}"


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_parts = ["exact", "gate", "sequential", "power", "monitor"]
    parser.add_argument("--runs", type=int, default=2000, help="of each gate; a fifth of that for power")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=all_parts, help="parts: " + ",".join(all_parts)
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the document instead of the rows")
    parser.add_argument("--out", type=Path, help="write the document there, too")
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    todo = list(cells(options.runs, options.only))
    with multiprocessing.Pool(options.processes, initializer=remember_bounds) as pool:
        for row in pool.imap(_cell, todo):
            rows.append(row)
            if not options.json:
                print(shown(row), flush=True)
            if sys.stderr.isatty():
                print(f"  {len(rows)}/{len(todo)}, {time.monotonic() - began:.0f} s", end="\r", file=sys.stderr)
    worst = {
        part: max((row["passed"] for row in rows if row["part"] == part), default=None)
        for part in ("gate", "sequential")
    }
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": report.commit(),
        "machine": report.machine(),
        "margin": MARGIN,
        "worst_wrong_pass": worst,
        "missed": sum(not row["ok"] for row in rows),
        "seconds": round(time.monotonic() - began),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print(f"greatest share of wrong passes: {worst}; targets missed: {document['missed']}; {document['seconds']} s")
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if document["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
