"""Does routing keep what it promises? Recorded outcomes of public benchmarks, no model is called.

    make bench-route DATA=folder                     every target with its figure; about two minutes on a free core
    .venv/bin/python bench/route.py --data folder --only mmlu,gsm8k

The folder holds a folder each: routellm_mmlu, routellm_gsm8k, zeroeval_gsm, zeroeval_mathl5, mmlupro, llmrouter_train
(see bench/README.md). Models are named by their rank in a set, never by name. Prices are USD a million tokens:
GPT-4-1106 10 and 30, Mixtral-8x7B 0.60, a small open model 0.20, a frontier model 3 and 15.
Exit code 1 if a target is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from trimtab.measure.route_data import Job
from trimtab.measure.routes import CASCADES, Report, run
from trimtab.routing import data
from trimtab.routing.evaluate import Figures
from trimtab.semantic.embed import load_fast
from trimtab.wheels import cache_dir, shown_on_stderr

GROUPS = ("mmlu", "gsm8k", "harder", "foreign", "latency")
LABELS = 1500
GPT4 = (0.6, 0.6, 10.0, 30.0, 0.2, 0.2)
FRONTIER = (0.2, 0.2, 3.0, 15.0)
CARRIED = (  # learned from the first, routing the second
    ("routellm_mmlu", "routellm_gsm8k"),
    ("routellm_mmlu", "zeroeval_mathl5"),
    ("routellm_mmlu", "llmrouter_train"),
    ("routellm_gsm8k", "routellm_mmlu"),
    ("routellm_gsm8k", "llmrouter_train"),
    ("zeroeval_mathl5", "routellm_gsm8k"),
    ("zeroeval_mathl5", "routellm_mmlu"),
    ("llmrouter_train", "routellm_gsm8k"),
    ("llmrouter_train", "zeroeval_mathl5"),
    ("llmrouter_train", "routellm_mmlu"),
)
SHARES = (0.2, 0.5, 0.8)


class Target(msgspec.Struct, frozen=True):
    """One thing that must hold: the figure, what it must reach, whether it does."""

    what: str
    figure: float
    wanted: str
    met: bool


class Bench:
    """Runs and what they must show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedder = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder"))
        self.targets: list[Target] = []
        self.reports: dict[str, Report] = {}

    def ranked(self, name: str) -> list[str]:
        """A set's models from worst to best, of those that answered everything."""
        outcomes = data.read(self.folder / name)
        whole = np.flatnonzero(np.isfinite(outcomes.scores).all(axis=0))
        means = outcomes.scores.mean(axis=0)
        return [outcomes.models[n] for n in sorted(whole, key=lambda n: means[n])]

    def run(self, title: str, name: str, weak: str, strong: str, **options: object) -> Report:
        report = run(Job(self.folder / name, weak, strong, **options), self.embedder)  # type: ignore[arg-type]
        self.reports[title] = report
        return report

    def least(self, what: str, figure: float | None, least: float) -> None:
        value = float("nan") if figure is None else figure
        self._add(Target(what, value, f">= {least:g}", value >= least))

    def most(self, what: str, figure: float, most: float) -> None:
        self._add(Target(what, figure, f"<= {most:g}", figure <= most))

    def _add(self, target: Target) -> None:
        self.targets.append(target)
        print(f"{'met' if target.met else 'MISSED':6} {target.figure:8.4f} {target.wanted:9} {target.what}", flush=True)


def row(report: Report, name: str) -> Figures:
    return next(one for one in report.rows if one.name == name)


def mmlu(bench: Bench) -> None:
    weak, strong = bench.ranked("routellm_mmlu")
    few = bench.run("mmlu, 1,500 labels", "routellm_mmlu", weak, strong, labels=LABELS)
    bench.least("MMLU, 1,500 labels: APGR", row(few, "ours prompt-only").apgr, 0.62)
    folds = bench.run("mmlu, 5 folds", "routellm_mmlu", weak, strong)
    bench.least("MMLU, 5 folds: APGR", row(folds, "ours prompt-only").apgr, 0.66)
    for words, report in (("1,500 labels", few), ("5 folds", folds)):
        bench.least(f"MMLU, {words}: gain over the length rule, low end", report.gain_over_length["low"], 1e-9)
        for one in report.stream:
            bench.most(f"MMLU, {words}: strong share off after 300", one.worst_after_300 or 0.0, 0.05)


def gsm8k(bench: Bench) -> None:
    weak, strong = bench.ranked("routellm_gsm8k")
    alone = bench.run("gsm8k", "routellm_gsm8k", weak, strong, prices=GPT4[:4])
    bench.least("GSM8K prompt-only: gain over the length rule, high end", alone.gain_over_length["high"], 0.0)
    bench.least("GSM8K cascade with answer checks: APGR", row(alone, CASCADES[0]).apgr, 0.75)
    cheap = bench.ranked("zeroeval_gsm")
    for place in (0.2, 0.25, 0.3):
        second = cheap[int(place * len(cheap))]
        both = bench.run(
            f"gsm8k, second {second}",
            "routellm_gsm8k",
            weak,
            strong,
            second=(bench.folder / "zeroeval_gsm", second),
            prices=GPT4,
        )
        bench.least(f"GSM8K, {second} checks, only {weak} answers: APGR", row(both, CASCADES[1]).apgr, 0.85)
        bench.least(f"GSM8K, {second} checks or answers: APGR", row(both, CASCADES[0]).apgr, 0.85)
        bench.least(f"GSM8K, {second}: the chosen setting keeps of the strong score", both.setting.kept_of_strong, 0.99)
        bench.least(f"GSM8K, {second}: the chosen setting saves", both.setting.saved_of_strong, 0.60)


def harder(bench: Bench) -> None:
    for name, places in (("zeroeval_mathl5", (0.1, 0.3, 0.5, 0.7)), ("mmlupro", (0.1, 0.4, 0.7))):
        models = bench.ranked(name)
        for place in places:
            weak = models[int(place * len(models))]
            options = {} if name == "zeroeval_mathl5" else {"labels": LABELS}
            report = bench.run(f"{name}, {weak}", name, weak, models[-2], prices=FRONTIER, **options)
            chosen = report.setting
            words = f"{chosen.setting}, {'pays' if chosen.pays else 'does not pay'}"
            what = f"{name}, {weak} before {models[-2]} ({words}): kept of the best single"
            bench.least(what, chosen.kept, 0.98)


def foreign(bench: Bench) -> None:
    for n, (source, name) in enumerate(CARRIED):
        models = bench.ranked(name)
        weak, strong = models[len(models) // 4], models[-1]
        share = SHARES[n % len(SHARES)]
        report = bench.run(f"{source} to {name}", name, weak, strong, train=(bench.folder / source,), budget=share)
        ours = row(report, "ours prompt-only")
        bench.least(f"{source} to {name}: prompt-only APGR, high end", ours.apgr_high, 0.5)
        for one in report.stream:
            what = f"{source} to {name}: {one.router}, {share:.0%} asked, off after 300"
            bench.most(what, one.worst_after_300 or 0.0, 0.05)


def latency(bench: Bench) -> None:
    weak, strong = bench.ranked("routellm_mmlu")
    report = bench.reports.get("mmlu, 1,500 labels") or bench.run(
        "latency", "routellm_mmlu", weak, strong, labels=LABELS
    )
    bench.most("decision p50, ms of CPU", report.latency_ms["p50"], 1.0)
    bench.most("decision p99, ms of CPU", report.latency_ms["p99"], 5.0)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    groups: dict[str, Callable[[Bench], None]] = dict(zip(GROUPS, (mmlu, gsm8k, harder, foreign, latency), strict=True))
    began = time.monotonic()
    bench = Bench(options.data)
    for name in options.only:
        groups[name](bench)
    missed = [one for one in bench.targets if not one.met]
    print(f"{len(bench.targets) - len(missed)} of {len(bench.targets)} targets met in {time.monotonic() - began:.0f} s")
    if options.out:
        reports = {
            title: {**msgspec.to_builtins(report), "data": Path(report.data).name}
            for title, report in bench.reports.items()
        }
        document = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "targets": msgspec.to_builtins(bench.targets),
            "reports": reports,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
