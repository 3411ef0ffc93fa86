"""How often are the judges of answers right? Pairs of answers whose sameness is known, through each judge.

    .venv/bin/trimtab serve --port 8099 &
    .venv/bin/python bench/judge.py --data folder --base-url http://127.0.0.1:8099/v1 --answers answers.jsonl
    .venv/bin/python bench/judge.py --data folder --answers answers.jsonl --json     # the answers are there already

Sets: `support`: answers of the model at --base-url to 120 questions of banking77 and CLINC150, same if the questions
have one class; `support_near`: those of them whose questions are neighbours, which is what the cache compares;
`paraphrases`: GPTCache's pairs of statements, each original also with its nearest other one; `spans`: what two people
marked as the answer to one SQuAD question, and answers to two questions on one paragraph; `reasoning`: GSM8K solutions
of two models, same if both are right, different if one is; `numbers`: final answers of many models to GSM8K and MATH,
likewise. Limits are chosen on one half of the questions (--half fit) and checked on the other (--half check).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import itertools
import json
import os
import platform
import random
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from trimtab.semantic.embed import load_accurate, load_fast
from trimtab.semantic.judge import (
    Cascade,
    EmbeddingJudge,
    ExactJudge,
    Limits,
    NumericJudge,
    Outcome,
    StructuredJudge,
    Verdict,
)
from trimtab.semantic.llm_judge import llm_request, llm_verdict
from trimtab.wheels import cache_dir, shown_on_stderr

CLASSES, EACH = 15, 4  # of each of the two question sets
MOST_PAIRS = 1500  # of either kind in a set
NEIGHBOURS = 15
SYSTEM = {
    "b": "You are the support assistant of a bank's app. Answer in one or two short sentences.",
    "c": "You are a helpful assistant. Answer in one or two short sentences.",
}


@dataclass(frozen=True)
class Pair:
    key: str  # the question: decides the half
    one: str
    other: str
    same: bool
    asked: tuple[str, str] = ("", "")


def read_jsonl(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        head = next(rows)[1:]
        return head, {row[0]: row[1:] for row in rows}


def questions(folder: Path) -> list[tuple[str, str]]:
    """(text, class) of 15 classes of each set, four questions a class; always the same ones."""
    rng = random.Random(7)
    with (folder / "semantic_cache/banking77_train.csv").open(newline="", encoding="utf-8") as file:
        banking = [(row["text"], f"b/{row['category']}") for row in csv.DictReader(file)]
    clinc = [
        (row["text"], f"c/{row['intent']}") for row in read_jsonl(folder / "semantic_cache/clinc150_half.jsonl.gz")
    ]
    chosen = []
    for rows in (banking, clinc):
        texts: dict[str, list[str]] = {}
        for text, name in rows:
            texts.setdefault(name, []).append(text)
        names = sorted(texts)
        rng.shuffle(names)
        chosen += [(text, name) for name in sorted(names[:CLASSES]) for text in rng.sample(texts[name], EACH)]
    rng.shuffle(chosen)
    return chosen


def post(base_url: str, body: dict) -> str:
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def ask(base_url: str, model: str, question: str, name: str) -> dict:
    messages = [{"role": "system", "content": SYSTEM[name[0]]}, {"role": "user", "content": question}]
    answer = post(base_url, {"model": model, "messages": messages, "temperature": 0, "max_tokens": 80})
    return {"question": question, "class": name, "answer": answer}


def support(options: argparse.Namespace, vectors: Vectors) -> dict[str, list[Pair]]:
    if not options.answers.exists():
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(lambda one: ask(options.base_url, options.model, *one), questions(options.data)))
        options.answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [json.loads(line) for line in options.answers.read_text(encoding="utf-8").splitlines()]
    asked = vectors([row["question"] for row in rows])
    cosines = asked @ asked.T
    near = {(n, int(m)) for n in range(len(rows)) for m in np.argsort(-cosines[n])[1 : NEIGHBOURS + 1]}
    every, neighbours = [], []
    for n, m in itertools.combinations(range(len(rows)), 2):
        a, b = rows[n], rows[m]
        pair = Pair(
            min(a["class"], b["class"]),
            a["answer"],
            b["answer"],
            a["class"] == b["class"],
            (a["question"], b["question"]),
        )
        every.append(pair)
        if (n, m) in near or (m, n) in near:
            neighbours.append(pair)
    return {"support": every, "support_near": neighbours}


def paraphrases(folder: Path, vectors: Vectors) -> list[Pair]:
    with gzip.open(folder / "semantic_cache/gptcache_mock_data.json.gz", "rt", encoding="utf-8") as file:
        rows = [(row["origin"], row["similar"]) for row in json.load(file)]
    originals = vectors([one for one, _ in rows])
    cosines = originals @ originals.T
    pairs = []
    for n, (one, similar) in enumerate(rows):
        nearest = next(int(m) for m in np.argsort(-cosines[n]) if rows[m][0] != one)
        pairs += [Pair(one, one, similar, True), Pair(one, one, rows[nearest][0], False)]
    return pairs


def spans(folder: Path) -> list[Pair]:
    with gzip.open(folder / "compression/squad2_dev_half.json.gz", "rt", encoding="utf-8") as file:
        data = json.load(file)
    pairs = []
    for article in data["data"] if isinstance(data, dict) else data:
        for paragraph in article["paragraphs"]:
            told = [sorted({a["text"] for a in qa["answers"]}) for qa in paragraph["qas"] if qa["answers"]]
            key = article["title"]
            pairs += [Pair(key, one, other, True) for some in told for one, other in itertools.combinations(some, 2)]
            pairs += [
                Pair(key, a[0], b[0], False)
                for a, b in itertools.combinations(told, 2)
                if a[0] not in b[0] and b[0] not in a[0]
            ]
    return pairs


def reasoning(folder: Path) -> list[Pair]:
    _, scores = read_table(folder / "routing/routellm_gsm8k/scores.csv.gz")
    pairs = []
    for row in read_jsonl(folder / "routing/routellm_gsm8k/prompts.jsonl.gz"):
        right = [score == "1" for score in scores[row["id"]]]
        if any(right):
            pairs.append(Pair(row["prompt"], row["weak_response"], row["strong_response"], all(right)))
    return pairs


def numbers(folder: Path) -> list[Pair]:
    rng = random.Random(11)
    pairs = []
    for name in ("zeroeval_gsm", "zeroeval_mathl5"):
        head, scores = read_table(folder / f"routing/{name}/scores.csv.gz")
        told, preds = read_table(folder / f"routing/{name}/preds.csv.gz")
        for key, row in preds.items():
            by_model = dict(zip(head, scores[key], strict=True))
            right = sorted({said for model, said in zip(told, row, strict=True) if said and by_model[model] == "1"})
            wrong = sorted({said for model, said in zip(told, row, strict=True) if said and by_model[model] == "0"})
            spelled = list(itertools.combinations(right, 2))
            pairs += [Pair(key, one, other, True) for one, other in rng.sample(spelled, min(len(spelled), 3))]
            pairs += [
                Pair(key, rng.choice(right), other, False) for other in rng.sample(wrong, min(len(wrong), 3)) if right
            ]
    return pairs


class Vectors:
    """Unit vectors by text, each embedded once."""

    def __init__(self, embedder) -> None:
        self.dim = embedder.dim
        self._embedder, self._known = embedder, {}

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        texts = list(texts)
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        for begin in range(0, len(missing), 64):
            some = missing[begin : begin + 64]
            self._known.update(zip(some, self._embedder.embed(some), strict=True))
        return np.stack([self._known[text] for text in texts])

    embed = __call__


def drawn(pairs: list[Pair], half: str) -> list[Pair]:
    """At most 1,500 of either kind, of the half of the questions that is asked for."""
    rng = random.Random(5)
    if half != "all":
        odd = half == "check"
        pairs = [p for p in pairs if (hashlib.sha256(p.key.encode()).digest()[0] % 2 == 1) == odd]
    kinds = [p for p in pairs if p.same], [p for p in pairs if not p.same]
    return [p for kind in kinds for p in rng.sample(kind, min(len(kind), MOST_PAIRS))]


def auc(scores: np.ndarray, same: np.ndarray) -> float | None:
    """P(a same pair scores above a different one), ties half."""
    good, bad = np.sort(scores[same]), scores[~same]
    if not len(good) or not len(bad):
        return None
    below = (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / 2
    return float(1 - below.mean() / len(good))


def counts(verdicts: list[Verdict], same: np.ndarray) -> dict:
    said = np.array([one.outcome for one in verdicts])
    alike, unlike = said == Outcome.SAME, said == Outcome.DIFFERENT
    good, bad = int(same.sum()), int((~same).sum())

    def share(part: np.ndarray, of: int) -> float | None:
        return round(int(part.sum()) / of, 4) if of else None

    decided = int((alike | unlike).sum())
    return {
        "said_same": int(alike.sum()),
        "same_precision": share(alike & same, int(alike.sum())),
        "same_recall": share(alike & same, good),
        "same_of_different": share(alike & ~same, bad),  # needs no base rate, as precision does
        "said_different": int(unlike.sum()),
        "different_precision": share(unlike & ~same, int(unlike.sum())),
        "different_recall": share(unlike & ~same, bad),
        "different_of_same": share(unlike & same, good),
        "unknown": share(~(alike | unlike), len(said)),
        "wrong_of_decided": share((alike & ~same) | (unlike & same), decided),
    }


def judged(judge, pairs: list[Pair]) -> list[Verdict]:
    return [judge.compare(pair.one, [pair.other])[0] for pair in pairs]


def by_llm(options: argparse.Namespace, pairs: list[Pair]) -> dict:
    """The model at --base-url as the judge of as many pairs as --llm says, half of them the same."""
    half = options.llm // 2
    chosen = [p for p in pairs if p.same][:half] + [p for p in pairs if not p.same][:half]

    def one(pair: Pair) -> Verdict:
        body = llm_request(pair.asked[0], pair.one, pair.asked[1], pair.other, options.model)
        return llm_verdict(post(options.base_url, body))

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(one, chosen))
    return {"pairs": len(chosen), **counts(verdicts, np.array([p.same for p in chosen]))}


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with semantic_cache, routing, ...")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="answers, made if it is not there")
    parser.add_argument("--base-url", default="http://127.0.0.1:8088/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--half", choices=("all", "fit", "check"), default="all")
    parser.add_argument("--same-at", type=float, default=Limits().same_at)
    parser.add_argument("--different-at", type=float, default=Limits().different_at)
    parser.add_argument("--llm", type=int, default=0, metavar="PAIRS", help="also ask the model about that many pairs")
    parser.add_argument("--curve", action="store_true", help="also shares said same at each limit")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, help="write the document there, too")
    options = parser.parse_args()
    folder = cache_dir(os.environ)
    accurate = Vectors(load_accurate(folder, shown_on_stderr("the accurate embedder")))
    fast = Vectors(load_fast(folder, shown_on_stderr("the fast embedder")))
    limits = Limits(options.same_at, options.different_at)
    full = Cascade((ExactJudge(), StructuredJudge(), NumericJudge(), EmbeddingJudge(accurate, limits)))
    sets = support(options, accurate) | {
        "paraphrases": paraphrases(options.data, accurate),
        "spans": spans(options.data),
        "reasoning": reasoning(options.data),
        "numbers": numbers(options.data),
    }
    found = {}
    for name, all_pairs in sets.items():
        began = time.monotonic()
        pairs = drawn(all_pairs, options.half)
        same = np.array([pair.same for pair in pairs])
        row: dict = {"same": int(same.sum()), "different": int((~same).sum()), "auc": {}}
        pieces = {}
        for label, vectors in (("accurate", accurate), ("fast", fast)):
            judge = EmbeddingJudge(vectors, limits)
            pieces[label] = np.array([one.score for one in judged(judge, pairs)])
        pieces["mean"] = (pieces["accurate"] + pieces["fast"]) / 2
        row["auc"] = {label: round(auc(score, same) or 0.0, 4) for label, score in pieces.items()}
        row["cascade"] = counts(judged(full, pairs), same)
        row["numeric"] = counts(judged(NumericJudge(), pairs), same)
        row["embedding"] = counts(judged(EmbeddingJudge(accurate, limits), pairs), same)
        if options.curve:
            row["curve"] = [
                [round(at, 2), *(round(float((pieces["accurate"][kind] >= at).mean()), 4) for kind in (same, ~same))]
                for at in np.arange(0.2, 1.0, 0.02)
            ]
        row["seconds"] = round(time.monotonic() - began, 1)
        found[name] = row
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "answers_by": options.model,
        "half": options.half,
        "same_at": limits.same_at,
        "different_at": limits.different_at,
        "sets": found,
    }
    if options.llm:
        document["llm"] = by_llm(options, drawn(sets["support_near"], "all"))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
        return 0
    columns = {
        "same_precision": "same right",
        "same_recall": "same found",
        "same_of_different": "false same",
        "different_precision": "diff. right",
        "different_recall": "diff. found",
        "different_of_same": "false diff.",
        "unknown": "unknown",
        "wrong_of_decided": "wrong",
    }
    print(f"{'set':13} {'same':>5} {'diff.':>5} {'AUC':>6} " + " ".join(f"{name:>11}" for name in columns.values()))
    for name, row in found.items():
        cells = ["-" if row["cascade"][key] is None else f"{row['cascade'][key]:.3f}" for key in columns]
        figures = f"{row['same']:5} {row['different']:5} {row['auc']['accurate']:6.3f}"
        print(f"{name:13} {figures} " + " ".join(f"{cell:>11}" for cell in cells))
    if options.llm:
        print(f"llm: {document['llm']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
