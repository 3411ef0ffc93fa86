"""What the embedded engine's settings are worth: huge pages, no flash attention, and an engine for each core.

    make bench-engine-settings
    .venv/bin/python bench/engine_settings.py [--to F16,Q8_0] [--rounds 4] [--json] [--out FILE]

Pages and attention: two engines that differ in one setting serve the same file, one request at a time in all, in turns,
and each comes first as often. Each has eight slots, as by default, and answers the prompts of bench/quantization.py,
behind a policy of some 300 tokens that it reads each time, greedily with 48 tokens; the times are the engine's own.
`decode` and `prefill` are how many times as fast tokens come, and are read: the median over pairs of requests, with its
95% interval.

An engine for each core: one engine of two threads and two engines of one thread answer the same prompts in turns, the
policy read before, by one client, by two and by eight (half of them at each of the two). `throughput` is how many times
as many tokens come in all: the median over rounds, with the least and the most.

Exit code 0; 1 if decoding is not surely faster (as where the kernel has no huge pages), or huge pages changed an
answer. Attention that is computed another way is rounded another way: how many answers differ by it is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from quantization import PROMPTS, documented, tokens, written
from trimtab.engines.llama_cpp import Config
from trimtab.engines.llama_cpp.alone import Ask, served
from trimtab.measure.contention import Contention
from trimtab.measure.stats import summarise
from trimtab.measure.workloads.support import POLICY

ANSWER_TOKENS = 48
HUGE_PAGES = "huge pages"
SETTINGS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {  # without and with
    HUGE_PAGES: ({"map_weights": True}, {"map_weights": False}),
    "no flash attention": ({"flash_attention": True}, {"flash_attention": False}),
}
CORES = 2
CLIENTS = (1, 2, 8)
ASKED = 16  # prompts, a multiple of the clients: at the end none waits for the others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="F16,Q8_0")
    parser.add_argument("--rounds", type=int, default=4, help="times that each prompt is asked")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, beside = [], []
    with tempfile.TemporaryDirectory() as folder:
        for one, _ in written(Path(folder), options.to.split(",")):
            for setting in SETTINGS:
                forget(one.path)
                rows.append({"setting": setting, "type": one.kind.name, **compared(one.path, setting, options.rounds)})
                print(f"{setting}, {one.kind.name} done", file=sys.stderr)
            for clients in CLIENTS:
                beside.append({"type": one.kind.name, "clients": clients, **split(one.path, clients, options.rounds)})
                print(f"an engine for each core, {one.kind.name}, {clients} clients done", file=sys.stderr)
    document = documented(rows, kernel=platform.release(), engine_for_each_core=beside)
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for row in rows:
            said = (f"{key} {row[key]:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})" for key in KINDS)
            differ = f"{row['different']} of {row['pairs']} answers differ"
            print(f"{row['setting']}, {row['type']}: times as fast: {', '.join(said)}; {differ}")
        for row in beside:
            many = f"{row['throughput']:.2f} ({row['throughput_low']:.2f} to {row['throughput_high']:.2f})"
            print(f"an engine for each core, {row['type']}, {row['clients']} clients: times as many tokens: {many}")
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


def split(path: Path, clients: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of an engine for each core, over those of one engine with a thread for each."""
    whole = Config(model=str(path), context_tokens=2048, threads=CORES, parallel=clients)
    part = Config(model=str(path), context_tokens=2048, threads=1, parallel=-(-clients // CORES))
    with contextlib.ExitStack() as stack:
        one = [stack.enter_context(served(whole))]
        each = [stack.enter_context(served(part)) for _ in range(CORES)]
        for engines in (one, each):
            rate(engines, clients)  # the policy is read, in every slot
        others = Contention(os.getsid(0))
        ratios = []
        for number in range(2 * rounds):
            found = {len(engines): rate(engines, clients) for engines in ((one, each) if number % 2 else (each, one))}
            ratios.append(found[CORES] / found[1])
        share = others.share()
    figures = {"throughput": statistics.median(ratios), "throughput_low": min(ratios), "throughput_high": max(ratios)}
    return {"rounds": len(ratios), **figures, "others_cpu": share}


def rate(engines: list[Ask], clients: int) -> float:
    """Tokens a second when so many clients, spread over the engines, ask the prompts one after the other."""
    free: SimpleQueue[Ask] = SimpleQueue()
    for number in range(clients):
        free.put(engines[number % len(engines)])

    def answered(text: str) -> int:
        ask = free.get()
        try:
            prompt = f"{POLICY}\n\n{text}"
            reply = ask("/completion", prompt=prompt, n_predict=ANSWER_TOKENS, temperature=0, ignore_eos=True)
        finally:
            free.put(ask)
        return int(reply["timings"]["predicted_n"])

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        count = sum(pool.map(answered, (*PROMPTS, *PROMPTS)[:ASKED]))
    return count / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
