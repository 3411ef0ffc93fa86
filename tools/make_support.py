"""Writes what workload and suite `support` are made of: `python tools/make_support.py BANKING77_TRAIN.csv`.

The file is banking77's training split (PolyAI, CC BY 4.0); it is not in the repository. The same every time. The
suite asks nothing that the workload asks.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import make_suites
import numpy as np
from suites import support

from trimtab.semantic.embed import Embedder, load_accurate
from trimtab.wheels import cache_dir

NAME = "tools/make_support.py"
ROOT = Path(__file__).parents[1] / "src" / "trimtab"
WORKLOAD = ROOT / "measure" / "data" / "support.csv"
INTENTS = 60  # those with the most questions
PARAPHRASES = 40
LENGTHS = range(15, 161)  # characters of a question


def questions(path: Path) -> dict[str, list[str]]:
    """Different ASCII questions by intent, in the file's order; those that two intents share are left out."""
    found: dict[str, str] = {}
    shared = set()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = " ".join(row["text"].split())
            if text.isascii() and len(text) in LENGTHS and found.setdefault(text, row["category"]) != row["category"]:
                shared.add(text)
    by_intent: dict[str, list[str]] = {}
    for text, intent in found.items():
        if text not in shared:
            by_intent.setdefault(intent, []).append(text)
    return by_intent


def medoid(texts: list[str], embedder: Embedder) -> str:
    """The text that is nearest to all others on average."""
    vectors = np.asarray(embedder.embed(texts))
    return texts[int((vectors @ vectors.sum(axis=0)).argmax())]


def workload(by_intent: dict[str, list[str]]) -> list[tuple[str, str, int]]:
    """Rows of text, intent, canonical."""
    embedder = load_accurate(cache_dir(os.environ))
    largest = sorted(by_intent, key=lambda intent: (-len(by_intent[intent]), intent))[:INTENTS]
    rows = []
    for intent in sorted(largest):
        texts = by_intent[intent]
        canonical = medoid(texts, embedder)
        others = sorted(set(texts) - {canonical})
        rows.append((canonical, intent, 1))
        rows += [(text, intent, 0) for text in random.Random(f"support/{intent}").sample(others, PARAPHRASES)]
    return rows


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("banking77", type=Path)
    options = parser.parse_args()
    by_intent = questions(options.banking77)
    rows = workload(by_intent)
    with WORKLOAD.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "intent", "canonical"))
        writer.writerows(rows)
    asked = {text for text, _, _ in rows}
    left = {intent: [text for text in texts if text not in asked] for intent, texts in by_intent.items()}
    make_suites.write(
        make_suites.FOLDER / "support", f"# Made by {NAME}\n{support.head('support')}", support.strata(left, "one")
    )


if __name__ == "__main__":
    main()
