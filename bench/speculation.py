"""Does guessing tokens by n-grams pay, where should it be refused, and are the answers as good?

    make bench-speculation                                        a quarter of an hour on two cores
    .venv/bin/python bench/speculation.py [--json] [--out FILE]

Two commands on the embedded model's Q8_0, the weights that the ladder ends with. `trimtab engine speculate-bench`
decodes texts to be copied, open questions, and such that are asked twice, plainly and with each kind of n-grams, in
turn, and compares all answers with the plain ones. A step that checks several tokens sums in another order than one
alone, so an answer may go on otherwise. Whether it is then worse, `trimtab gate` rules, the same engine with and
without n-grams, eight requests at a time, stopped as soon as it is decided. N-grams of one text: on items like those of
the suite `small-model`, whose own 300 a stratum left one of six undecided, so these are others, up to 900, and may pass
with half of alpha only. N-grams that all requests share, which guess nothing in answers so short: on longer ones, each
item asked twice, so that the second answer is guessed from the first.

Exit code 1 if n-grams do not decode copies 1.5 times as fast, are not refused on open questions, shared ones do not pay
on questions asked twice, or either kind does not pass the gate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import long_answers
import new_sample
from gate_quants import MODEL, trimtab
from quantization import documented

FASTER = 1.5
ITEMS = {"copy": 900, "extract": 900, "forms": 600, "position": 900, "record": 900, "swap": 900}
WAY, SHARED = "ngram", "ngram_mod"
PLAIN = """\
[engines.local]
kind = "llama_cpp"
parallel = 8
threads = 2
model = "{weights.name}"
{more}
[models.smollm2]
engine = "local"
name = "{weights.stem}"
price = {{ machine_hour = 0.10 }}
"""


def answered(*arguments: str) -> Any:
    """The JSON that a command prints; ends the program if it prints none."""
    done = trimtab(*arguments)
    if not done.stdout:
        sys.exit(done.returncode or 1)
    return json.loads(done.stdout)


def judged(way: str, work: Path, weights: Path) -> dict[str, Any]:
    """The gate's verdict on a kind of n-grams with the engine's own defaults."""
    plain, guessing, suite = work / "plain.toml", work / f"{way}.toml", work / f"suite-{way}"
    plain.write_text(PLAIN.format(weights=weights, more=""))
    guessing.write_text(PLAIN.format(weights=weights, more=f'speculation = "{way}"'))
    command = ["gate", str(suite), "--reference", str(plain), "--candidate", str(guessing), "--sequential"]
    if way == SHARED:
        long_answers.write(suite)
        command += ["--repeats", "2"]
    else:
        new_sample.write(suite, "speculation", ITEMS)
        command += ["--alpha", "0.025"]
    (found,) = answered(*command, "--out", str(work / "runs"), "--json")
    return found


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the document instead of lines")
    parser.add_argument("--out", type=Path, help="write it there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        work = Path(folder)
        (file,) = answered("engine", "quantize", MODEL, "--to", "Q8_0", "--out", folder, "--json")["files"]
        weights = Path(file["path"])
        rows = answered("engine", "speculate-bench", "--model", str(weights), "--json")["rows"]
        verdicts = {way: judged(way, work, weights) for way in (WAY, SHARED)}
    by = {(row["workload"], row["name"]): row for row in rows}
    copied, again = by["copy", WAY], by["repeats", SHARED]
    chat = [row for row in rows if row["workload"] == "chat" and row["name"] != "none"]
    targets = {
        f"copies decode {FASTER:g} times as fast": copied["gain"] >= FASTER,
        "refused on open questions": not any(row["pays"] for row in chat),
        "shared ones pay on questions asked twice": again["pays"],
        **{f"{way} passes the gate": found["verdict"]["ruling"] == "pass" for way, found in verdicts.items()},
    }
    document = documented(rows, verdicts=verdicts, targets=targets)
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
        return int(not all(targets.values()))
    for row in rows:
        speed = f"{row['gain']:.2f} times as fast ({row['gain_low']:.2f} to {row['gain_high']:.2f})"
        same = f"{row['identical']} of {row['prompts']} answers the same"
        print(f"{row['workload']:5} {row['name']:10} {speed}, {row['accepted_per_step']:.2f} right a step, {same}")
    for way, found in verdicts.items():
        print(f"gate, {way}: {found['verdict']['ruling']}; {found['verdict']['reason']}")
        for one in found["verdict"]["strata"]:
            print(f"  {one['stratum']:10} {one['ruling']:10} {one['items']:4} items: {one['reason']}")
    for name, met in targets.items():
        print(f"{name}: {'met' if met else 'MISSED'}")
    return int(not all(targets.values()))


if __name__ == "__main__":
    sys.exit(main())
