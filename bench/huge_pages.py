"""What huge pages save: the embedded engine with its weights in pages of 2 MB, beside the same file mapped.

    make bench-huge-pages
    .venv/bin/python bench/huge_pages.py [--to F16,Q8_0] [--rounds 4] [--json] [--out FILE]

Two engines of the same settings serve the same file, one request at a time in all, in turns, and each comes first as
often. Each has eight slots, as by default, and answers the ten prompts of bench/quantization.py, behind a policy of
some 300 tokens that it reads each time, greedily with 48 tokens; the times are the engine's own.
`decode` and `prefill` are how many times as fast tokens come, and are read, with huge pages: the median over pairs of
requests, with its 95% interval. The answers must be the same to the token.

Exit code 0; 1 if an answer differs, or decoding is not surely faster (as where the kernel has no huge pages).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantization import PROMPTS, tokens, written
from trimtab.engines.llama_cpp import BUILT_IN, Config
from trimtab.engines.llama_cpp.alone import served
from trimtab.measure.contention import Contention
from trimtab.measure.stats import summarise
from trimtab.measure.workloads.support import POLICY

ANSWER_TOKENS = 48


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="F16,Q8_0")
    parser.add_argument("--rounds", type=int, default=4, help="times that each prompt is asked")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for one, _ in written(Path(folder), options.to.split(",")):
            forget(one.path)
            rows.append({"type": one.kind.name, **compared(one.path, options.rounds)})
            print(f"{one.kind.name} done", file=sys.stderr)
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "xllamacpp": version("xllamacpp"),
        "model": BUILT_IN,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for row in rows:
            said = (f"{key} {row[key]:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})" for key in KINDS)
            print(f"{row['type']:5} times as fast: {', '.join(said)}; {row['different']} of {row['pairs']} differ")
    return int(any(row["different"] or row["decode_low"] <= 1 for row in rows))


KINDS = {"decode": "predicted_per_second", "prefill": "prompt_per_second"}


def forget(path: Path) -> None:
    """Have the system read the file anew, as after a download of long ago: just written, it lies in large pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compared(path: Path, rounds: int) -> dict[str, Any]:
    """Speeds with huge pages over those without, by what is measured."""
    settings: dict[str, Any] = {"model": str(path), "context_tokens": 2048}
    with served(Config(map_weights=True, **settings)) as mapped, served(Config(**settings)) as huge:
        others = Contention(os.getsid(0))
        pairs = []
        for number, text in enumerate(PROMPTS * rounds):
            prompt, found = tokens(mapped, f"{POLICY}\n\n{text}"), {}
            for ask in (mapped, huge) if number % 2 else (huge, mapped):
                found[ask] = ask(
                    "/completion",
                    prompt=prompt,
                    n_predict=ANSWER_TOKENS,
                    temperature=0,
                    return_tokens=True,
                    ignore_eos=True,
                    cache_prompt=False,
                )
            pairs.append((found[mapped], found[huge]))
        share = others.share()
    row: dict[str, Any] = {"pairs": len(pairs), "different": sum(a["tokens"] != b["tokens"] for a, b in pairs)}
    for kind, key in KINDS.items():
        ratios = summarise([b["timings"][key] / a["timings"][key] for a, b in pairs], "ratio")
        assert ratios is not None  # there is a pair
        row |= {kind: ratios.p50, f"{kind}_per_s": statistics.median(b["timings"][key] for _, b in pairs)}
        row[f"{kind}_low"], row[f"{kind}_high"] = ratios.ci95["p50"]
    return {**row, "others_cpu": share}


if __name__ == "__main__":
    sys.exit(main())
