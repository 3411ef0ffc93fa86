"""Which quantization of the embedded model may serve? The gate, on the real engine, against F16.

    make bench-gate-quants                     Q4_0 and Q2_K, stopped as soon as they are decided; under twenty minutes
    .venv/bin/python bench/gate_quants.py --quants Q8_0 --whole --keep runs     goes on where it stopped
    ... --whole --keep runs --after RESULT.json     a new sample of items, as many as that result calls for

Writes the quants with `trimtab engine quantize`, a configuration for each, and runs `trimtab gate` on the suite
`small-model`: strata that a model of 135 million parameters can do at all. F16 is the reference; it is made from the
embedded model's Q4_1, so the verdicts are relative to that. Exit code 1 if Q4_0 or Q2_K do not fail, or Q8_0 fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import new_sample
from trimtab.wheels import unwound_by_sigterm

MODEL = "smollm2-135m-instruct"
EXPECTED = {"Q4_0": {"fail"}, "Q2_K": {"fail"}, "Q8_0": {"pass", "undecided"}}
CONFIG = """\
[engines.local]
kind = "llama_cpp"
model = "{file}"
parallel = 8
threads = {threads}
[models.smollm2]
engine = "local"
price = {{ machine_hour = 0.10 }}
"""


def trimtab(*arguments: str, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """The command beside this Python; its progress is shown."""
    command = [str(Path(sys.executable).with_name("trimtab")), *arguments]
    with unwound_by_sigterm():  # it does not go on without its starter
        return subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)


def configurations(folder: Path, quants: list[str], threads: int) -> dict[str, Path]:
    """A configuration for each, F16 among them."""
    done = trimtab("engine", "quantize", MODEL, "--to", ",".join(["F16", *quants]), "--out", str(folder), "--json")
    if done.returncode:
        sys.exit(done.returncode)
    found = {}
    for written in json.loads(done.stdout)["files"]:
        path = folder / f"{written['type'].lower()}.toml"
        path.write_text(CONFIG.format(file=Path(written["path"]).name, threads=threads))
        found[written["type"]] = path
    return found


def new_suite(work: Path, after: Path, seed: str) -> str:
    """A suite of new items, as many as the first verdict of an earlier result calls for; its folder."""
    plan = new_sample.planned(json.loads(after.read_text())["verdicts"][0]["verdict"])
    for stratum, (items, power) in plan.items():
        print(f"{stratum:28} {items:5,} items, {power:.0%} power")
    folder = work / f"small-model-{seed}"
    new_sample.write(folder, seed, {stratum: items for stratum, (items, _) in plan.items()})
    return str(folder)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quants", default="Q4_0,Q2_K", help="comma-separated: %(default)s")
    parser.add_argument("--suite", default="small-model")
    parser.add_argument("--margin", default="0.05")
    parser.add_argument("--whole", action="store_true", help="ask all items; without it, stop when it is decided")
    parser.add_argument("--keep", type=Path, help="keep runs and quants there, and go on from them")
    parser.add_argument("--threads", type=int, default=2, help="of each engine; 1 where others use the machine, too")
    parser.add_argument("--after", type=Path, metavar="RESULT", help="a new sample, sized by what an earlier run found")
    parser.add_argument("--seed", default="two", help="of the new sample: %(default)s")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    quants = options.quants.split(",")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as name:
        work = options.keep or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        suite = new_suite(work, options.after, options.seed) if options.after else options.suite
        configs = configurations(work, quants, options.threads)
        command = ["gate", suite, "--reference", str(configs["F16"]), "--margin", options.margin]
        for quant in quants:
            command += ["--candidate", str(configs[quant])]
        command += ["--out", str(work / "runs"), "--json", *([] if options.whole else ["--sequential"])]
        done = trimtab(*command)
        if not done.stdout:
            return done.returncode or 1
        verdicts = json.loads(done.stdout)
    took_s = time.monotonic() - began
    wrong = []
    for quant, found in zip(quants, verdicts, strict=True):
        verdict = found["verdict"]
        print(f"{quant}: {verdict['ruling']}; {verdict['reason']}")
        for one in verdict["strata"]:
            score, other = one["reference_score"], one["candidate_score"]
            scores = f"{score:.1%} to {other:.1%}" if score is not None else "nothing asked"
            print(f"  {one['stratum']:28} {one['ruling']:10} {one['items']:4} items, {scores}: {one['reason']}")
        if verdict["ruling"] not in EXPECTED.get(quant, {verdict["ruling"]}):
            wrong.append(quant)
    print(f"{took_s / 60:.1f} minutes on {os.cpu_count()} processors")
    if options.out:
        document = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
            "minutes": round(took_s / 60, 1),
            "verdicts": verdicts,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
