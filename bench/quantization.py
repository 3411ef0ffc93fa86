"""What each type costs in size and answers: the embedded model quantized, served, and compared with its F16.

    .venv/bin/python bench/quantization.py [--to Q8_0,Q4_0] [--tokens 24] [--json] [--out results.json]

`perplexity` is that of some 1,020 tokens of an encyclopedia, and `times` how many times the F16's, with a 95% interval.
The F16 answers each prompt greedily. At every position of those answers each other file is given the F16's tokens so
far and asked for the next one: `agreement` is how often it is the F16's. `same_answers` counts prompts that it answers
by itself exactly as the F16 does. The F16 is made from the shipped Q4_1, so all is relative to that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.cli.model_file import model_file
from trimtab.engines.llama_cpp import BUILT_IN, Config, gguf
from trimtab.engines.llama_cpp.alone import Ask, served
from trimtab.engines.llama_cpp.ggml import Ggml
from trimtab.engines.llama_cpp.mixes import file_type
from trimtab.engines.llama_cpp.perplexity import losses, perplexity, times, windows_of
from trimtab.engines.llama_cpp.quantize import Plan, plan, write
from trimtab.measure.workloads.rag import collection

PROMPTS = (
    "Explain in three sentences why the sky is blue.",
    "A customer writes that the parcel came damaged. Write a short and friendly reply.",
    "List five things to check before a long car journey.",
    "What is 17 times 6? Show the steps.",
    "Write a Python function that returns the largest of three numbers.",
    "Summarize what a database index does, for a beginner.",
    "Translate into French: Where is the nearest train station?",
    "Name the planets of the solar system in order, with one fact about each.",
    "Write the first paragraph of a story about a lighthouse keeper.",
    "Give the capital cities of Spain, Norway and Japan as JSON.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="Q8_0,Q5_K_M,Q4_K_M,Q4_1,Q4_0,Q2_K")
    parser.add_argument("--tokens", type=int, default=24, help="the longest answer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(Path(folder), ["F16", *options.to.split(",")], options.tokens))
    document = documented(rows, prompts=len(PROMPTS))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
        return 0
    for row in rows:
        print(
            f"{row['type']:7} {row['bytes'] / 1e6:6.1f} MB {row['bits_per_weight']:6.2f} bits/weight  "
            f"written in {row['seconds']:4.1f} s  perplexity {row['perplexity']:.2f}, "
            f"{row['times'][0]:.3f} ({row['times'][1]:.3f} to {row['times'][2]:.3f}) of the F16's  "
            f"agreement {row['agreement']:.3f} of {row['positions']}  "
            f"same answers {row['same_answers']} of {len(PROMPTS)}"
        )
    return 0


def measured(folder: Path, names: list[str], most_tokens: int) -> Iterator[dict[str, Any]]:
    answers: list[list[int]] = []
    surprise: list[float] = []
    text = "\n\n".join(collection().passages.values())
    for one, seconds in written(folder, names):
        with served(Config(model=str(one.path), context_tokens=2048, parallel=1, threads=1)) as ask:
            asked = [tokens(ask, text) for text in PROMPTS]
            own = [greedy(ask, prompt, most_tokens) for prompt in asked]
            answers = answers or own
            lost = losses(ask, windows_of(ask, text, 4), lambda: None)
            surprise = surprise or lost
            right = [
                greedy(ask, [*prompt, *answer[:at]], 1) == [answer[at]]
                for prompt, answer in zip(asked, answers, strict=True)
                for at in range(len(answer))
            ]
        yield {
            "type": one.kind.name,
            "bytes": one.size_bytes,
            "bits_per_weight": round(one.bits_per_weight, 3),
            "fallbacks": one.fallbacks.total(),
            "seconds": round(seconds, 2),
            "perplexity": round(perplexity(lost), 3),
            "times": [round(value, 4) for value in times(lost, surprise)],
            "agreement": round(sum(right) / len(right), 4),
            "positions": len(right),
            "same_answers": sum(map(list.__eq__, own, answers)),
        }
        print(f"{one.kind.name} done", file=sys.stderr)


def documented(rows: list[dict[str, Any]], **facts: object) -> dict[str, Any]:
    """The rows of a result, with when and on what they were measured."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "xllamacpp": version("xllamacpp"),
        "model": BUILT_IN,
        **facts,
        "rows": rows,
    }


def written(folder: Path, names: list[str]) -> Iterator[tuple[Plan, float]]:
    """The embedded model in each type, written when it is its turn, and in how many seconds."""
    source, ggml = gguf.read(model_file(BUILT_IN)[0]), Ggml()
    for name in names:
        one = plan(source, file_type(name), folder, BUILT_IN)
        yield one, write(one, ggml)


def tokens(ask: Ask, text: str) -> list[int]:
    """A user's message as the model is asked it."""
    prompt = ask("/apply-template", messages=[{"role": "user", "content": text}])["prompt"]
    found: list[int] = ask("/tokenize", content=prompt, parse_special=True)["tokens"]
    return found


def greedy(ask: Ask, prompt: list[int], count: int) -> list[int]:
    """The tokens that follow."""
    found: list[int] = ask("/completion", prompt=prompt, n_predict=count, temperature=0, return_tokens=True)["tokens"]
    return found


if __name__ == "__main__":
    sys.exit(main())
