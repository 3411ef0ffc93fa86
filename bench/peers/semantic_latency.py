"""A peer's semantic cache with 100,000 questions, run by bench/semantic_latency.py in the peer's own environment.

    python bench/peers/semantic_latency.py gptcache|redisvl FOLDER ROUNDS QUESTIONS REDIS_URL

Embeds with the same MiniLM as Trimtab, for the peers' own models come from a hub; so what differs is the rest. Prints
one JSON object. What it stores for an answer is a word.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from instruments import proc
from trimtab.semantic.embed import load_accurate
from trimtab.wheels import cache_dir

DIM = 384
BATCH = 5000


class Timed:
    """The embedder, and how long its last call took."""

    def __init__(self) -> None:
        self._embedder = load_accurate(cache_dir(os.environ))
        self.took_s = 0.0

    def __call__(self, text: str, **_: Any) -> np.ndarray:
        began = time.perf_counter()
        vector = self._embedder.embed([text])[0]
        self.took_s = time.perf_counter() - began
        return vector


def gptcache(embed: Timed, vectors: np.ndarray, texts: list[str]) -> Callable[[str], Any]:
    """GPTCache as its guide sets it up: SQLite, Faiss, the distance decides."""
    from gptcache import Cache
    from gptcache.adapter.api import get
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

    cache = Cache()
    vector_base = VectorBase("faiss", dimension=DIM, index_path="faiss.index")
    manager = get_data_manager(CacheBase("sqlite", sql_url="sqlite:///./gptcache.db"), vector_base, max_size=10**6)
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=embed,
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(),
    )
    for begin in range(0, len(vectors), BATCH):
        part = vectors[begin : begin + BATCH]
        asked = [f"{texts[(begin + n) % len(texts)]} {begin + n}" for n in range(len(part))]
        manager.import_data(asked, ["answer"] * len(part), list(part), [None] * len(part))
    return lambda text: get(text, cache_obj=cache)


def redisvl(embed: Timed, vectors: np.ndarray, texts: list[str], url: str) -> Callable[[str], Any]:
    """redisvl's SemanticCache with its defaults, on the Redis at `url`."""
    from redisvl.extensions.cache.llm import SemanticCache
    from redisvl.utils.vectorize import CustomTextVectorizer

    vectorizer = CustomTextVectorizer(embed=lambda text, **_: embed(text).tolist())
    cache = SemanticCache(name="trimtab-bench", vectorizer=vectorizer, redis_url=url, overwrite=True)
    for n, vector in enumerate(vectors):
        cache.store(prompt=f"{texts[n % len(texts)]} {n}", response="answer", vector=vector.tolist())
    return lambda text: cache.check(prompt=text)


def quantiles(values_s: np.ndarray) -> dict[str, float]:
    return {name: round(float(np.quantile(values_s, q)) * 1e3, 3) for name, q in (("p50", 0.5), ("p99", 0.99))}


def others_s() -> float:
    return proc.whole_cpu_s(proc.everybody()) + proc.stolen_s()


def main() -> int:
    name, folder, url = sys.argv[1], Path(sys.argv[2]), sys.argv[5]
    rounds, count = int(sys.argv[3]), int(sys.argv[4])
    questions = json.loads((folder / "questions.json").read_text())
    texts = [text for text, _ in questions["base"]]
    asked = [text for text, _ in questions["asked"]][:count]
    with np.load(folder / "peer.npz") as made:
        vectors = made["accurate"]
    embed = Timed()
    embed("warm up")
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1])
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as work:
        os.chdir(work)
        look = gptcache(embed, vectors, texts) if name == "gptcache" else redisvl(embed, vectors, texts, url)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1]) - before
        found = []
        for _ in range(rounds):
            others, began, cpu = others_s(), time.monotonic(), time.process_time()
            rows = []
            for text in asked:
                start = time.perf_counter()
                look(text)
                rows.append((embed.took_s, time.perf_counter() - start - embed.took_s))
            took_s = time.monotonic() - began
            parts = np.array(rows)
            found.append(
                {
                    "others_cores": round((others_s() - others - (time.process_time() - cpu)) / took_s, 2),
                    "ms": quantiles(parts.sum(axis=1)),
                    "parts_ms": {"accurate": quantiles(parts[:, 0]), "search": quantiles(parts[:, 1])},
                }
            )
        os.chdir("/")
    kept = round(pages * os.sysconf("SC_PAGE_SIZE") / len(vectors))
    print(json.dumps({"bytes_a_question": kept, **min(found, key=lambda one: one["others_cores"]), "rounds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
