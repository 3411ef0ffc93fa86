"""How often does the judgement on names find one in public texts, and how long does it take?

    .venv/bin/python bench/names.py --data folder [--json] [--out results.json]

Questions (banking77, CLINC150, GPTCache) name nobody, so every finding is wrong there. Passages (SQuAD, Natural
Questions) are about the world; what is found there are known people and costs hits. `tests/unit/names_corpus.py` has
answers with private names and without.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.redact.names import name_in

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "unit"
BLOCK = 2048  # characters of a text that is timed
ROUNDS = 9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with semantic_cache/ and compression/")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets = dict(texts(options.data))
    rows = [
        {"set": name, "texts": len(found), "context": share(found, bare=False), "any": share(found, bare=True)}
        for name, found in sets.items()
    ]
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rows": rows,
        "us_per_2048_characters": {name: round(cost_us(sets[name]), 1) for name in ("squad", "nq", "other answers")},
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
        return 0
    for row in rows:
        print(f"{row['set']:18} {row['texts']:6} texts  context {row['context']:7.2%}  any {row['any']:7.2%}")
    print(f"us a {BLOCK} characters without a finding: {document['us_per_2048_characters']}")
    return 0


def texts(data: Path) -> Iterator[tuple[str, list[str]]]:
    with (data / "semantic_cache" / "banking77_train.csv").open(newline="") as file:
        yield "banking77", [row["text"] for row in csv.DictReader(file)]
    yield "clinc150", [row["text"] for row in lines(data / "semantic_cache" / "clinc150_half.jsonl.gz")]
    with gzip.open(data / "semantic_cache" / "gptcache_mock_data.json.gz", "rt") as file:
        yield "gptcache", [text for pair in json.load(file) for text in pair.values()]
    with gzip.open(data / "compression" / "squad2_dev_half.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    yield "squad", [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    rows = lines(data / "compression" / "nq_open_oracle_half.jsonl.gz")
    yield "nq", [context["text"] for row in rows for context in row["ctxs"]]
    sys.path.insert(0, str(CORPUS))
    import names_corpus

    yield "private answers", list(names_corpus.PRIVATE)
    yield "bare answers", list(names_corpus.BARE)
    yield "other answers", list(names_corpus.OTHERS)
    yield "public answers", list(names_corpus.PUBLIC)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def share(found: list[str], *, bare: bool) -> float:
    return round(sum(name_in(text, bare=bare) for text in found) / len(found), 5)


def cost_us(found: list[str]) -> float:
    """CPU for a text of `BLOCK` characters that is read to its end."""
    joined = "\n".join(text for text in found if not name_in(text, bare=False))
    blocks = [joined[at : at + BLOCK] for at in range(0, len(joined) - BLOCK, BLOCK)]
    blocks = [block for block in blocks if not name_in(block, bare=False)]
    return min(timed(lambda: [name_in(block, bare=False) for block in blocks]) for _ in range(ROUNDS)) / len(blocks)


def timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e6


if __name__ == "__main__":
    sys.exit(main())
