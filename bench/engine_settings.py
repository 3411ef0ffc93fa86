"""What two settings of the embedded engine are worth: weights in huge pages, and decoding without flash attention.

    make bench-engine-settings
    .venv/bin/python bench/engine_settings.py [--to F16,Q8_0] [--rounds 4] [--json] [--out FILE]

Two engines that differ in one setting serve the same file, one request at a time in all, in turns, and each comes first
as often. Each has eight slots, as by default, and answers the ten prompts of bench/quantization.py, behind a policy of
some 300 tokens that it reads each time, greedily with 48 tokens; the times are the engine's own. `decode` and `prefill`
are how many times as fast tokens come, and are read: the median over pairs of requests, with its 95% interval.

Exit code 0; 1 if decoding is not surely faster (as where the kernel has no huge pages), or huge pages changed an
answer. Attention that is computed another way is rounded another way: how many answers differ by it is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from quantization import PROMPTS, documented, tokens, written
from trimtab.engines.llama_cpp import Config
from trimtab.engines.llama_cpp.alone import served
from trimtab.measure.contention import Contention
from trimtab.measure.stats import summarise
from trimtab.measure.workloads.support import POLICY

ANSWER_TOKENS = 48
HUGE_PAGES = "huge pages"
SETTINGS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {  # without and with
    HUGE_PAGES: ({"map_weights": True}, {"map_weights": False}),
    "no flash attention": ({"flash_attention": True}, {"flash_attention": False}),
}


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
            for setting in SETTINGS:
                forget(one.path)
                rows.append({"setting": setting, "type": one.kind.name, **compared(one.path, setting, options.rounds)})
                print(f"{setting}, {one.kind.name} done", file=sys.stderr)
    document = documented(rows, kernel=platform.release())
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for row in rows:
            said = (f"{key} {row[key]:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})" for key in KINDS)
            differ = f"{row['different']} of {row['pairs']} answers differ"
            print(f"{row['setting']}, {row['type']}: times as fast: {', '.join(said)}; {differ}")
    changed = any(row["different"] for row in rows if row["setting"] == HUGE_PAGES)
    return int(changed or any(row["decode_low"] <= 1 for row in rows))


KINDS = {"decode": "predicted_per_second", "prefill": "prompt_per_second"}


def forget(path: Path) -> None:
    """Have the system read the file anew, as after a download of long ago: just written, it lies in large pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compared(path: Path, setting: str, rounds: int) -> dict[str, Any]:
    """Speeds with a setting over those without, by what is measured."""
    both: dict[str, Any] = {"model": str(path), "context_tokens": 2048}
    without, having = SETTINGS[setting]
    with served(Config(**both, **without)) as one, served(Config(**both, **having)) as other:
        others = Contention(os.getsid(0))
        pairs = []
        for number, text in enumerate(PROMPTS * rounds):
            prompt, found = tokens(one, f"{POLICY}\n\n{text}"), {}
            for ask in (one, other) if number % 2 else (other, one):
                found[ask] = ask(
                    "/completion",
                    prompt=prompt,
                    n_predict=ANSWER_TOKENS,
                    temperature=0,
                    return_tokens=True,
                    ignore_eos=True,
                    cache_prompt=False,
                )
            pairs.append((found[one], found[other]))
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
