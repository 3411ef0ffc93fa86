"""May the embedded model judge answers? A trial on pairs whose truth is known; it should say no.

    make bench-judge-trial DATA=folder         forty pairs, about ten minutes on two cores
    .venv/bin/python bench/judge_trial.py --data folder --pairs 200 --config trimtab.toml@gpt-4o-mini

The folder's routellm_gsm8k has the answers of two models to grade-school maths, with their scores. An answer that is
right is better than one that is wrong; two of one kind are a tie. As many pairs of each of the three kinds as there
are. Exit code 1 if a judge that should not be trusted was, or the other way round (`--expect`).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

SET = "routellm_gsm8k"
EMBEDDED = """
[engines.local]
kind = "llama_cpp"
parallel = 4
[models.smollm2-135m-instruct]
engine = "local"
"""


def labelled(folder: Path, pairs: int, seed: int) -> list[dict[str, str]]:
    """Pairs with their truth, the three kinds alike; places are drawn."""
    with gzip.open(folder / SET / "scores.csv.gz", "rt") as lines:
        rows = list(csv.reader(lines))[1:]
    scores = {row[0]: (float(row[1]), float(row[2])) for row in rows}
    kinds: dict[str, list[dict[str, str]]] = {"a": [], "b": [], "tie": []}
    rng = random.Random(seed)
    with gzip.open(folder / SET / "prompts.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            weak, strong = scores[row["id"]]
            one, other = (row["weak_response"], weak), (row["strong_response"], strong)
            if rng.random() < 0.5:
                one, other = other, one
            better = "tie" if one[1] == other[1] else "a" if one[1] > other[1] else "b"
            kinds[better].append({"question": row["prompt"], "a": one[0], "b": other[0], "better": better})
    found = []
    for rows_of_kind in kinds.values():
        rng.shuffle(rows_of_kind)
        found += rows_of_kind[: pairs // 3 + 1]
    rng.shuffle(found)
    return found[:pairs]


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="", help="another judge, as `trimtab eval judge --config` takes it")
    parser.add_argument("--expect", choices=["refused", "trusted"], default="refused")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as name:
        work = Path(name)
        rows = labelled(options.data, options.pairs, options.seed)
        (work / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (work / "embedded.toml").write_text(EMBEDDED)
        config = options.config or str(work / "embedded.toml")
        command = [
            str(Path(sys.executable).with_name("trimtab")),
            "eval",
            "judge",
            "--labels",
            str(work / "labels.jsonl"),
        ]
        command += ["--config", config, "--out", str(work / "out"), "--concurrency", "4"]
        shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(shown.stdout, end="")
        kept = list((work / "out" / "judges").glob("*.json"))
        if not kept:
            return 1
        trial = json.loads(kept[0].read_text())
    if options.out:
        document = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "set": SET, "seed": options.seed, **trial}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(trial["trusted"] != (options.expect == "trusted"))


if __name__ == "__main__":
    sys.exit(main())
