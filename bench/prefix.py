"""What a warm prefix saves: time to the first token of prompts whose beginning the engine has read, beside fresh ones.

    make bench-prefix     (or: .venv/bin/python bench/prefix.py [--rounds 9] [--lengths 300,750] [--out FILE] [--json])

What is real: the engine (the embedded llama.cpp on two threads, its own model as F16), the weights, a real `trimtab
serve` before it, the streams and their times as the client saw them, and each count of tokens, which the engine made
and the ledger has as well. What is made: the prompts, random words of one token each, so that their lengths are exact
and no two prompts begin alike; and that one request runs at a time. Nothing is said here of how often prefixes repeat.

A cold request has a system message that nobody has sent before, and a question; the warm ones after it have the same
system message and other questions. Lengths follow each other within each round, so that noise meets all of them. Every
third round asks the same of an engine with `prefix_cache = false`, and has the longest prefix that the engine's default
context leaves. Every request bypasses the gateway's caches. The ratio is that of the medians; its 95% interval comes
from resampled prefixes, where there are five.

Exit code 0; 1 if warm is not surely 10 times as fast as cold at 1,500 tokens, a warm prefix was not read from the
cache whole, the engine without a cache used one, gained by it, or the ledger has other counts; 2 if it cannot run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

import report
from quantization import written
from trimtab.engines.llama_cpp import BUILT_IN, Config
from trimtab.errors import TrimtabError
from trimtab.measure.contention import NOISY, Contention
from trimtab.measure.gateway import of_config
from trimtab.measure.load import Call, Timing, saturate
from trimtab.measure.prompts import Pool, calibrate
from trimtab.measure.stats import quantile
from trimtab.stores import ledger_db, ledger_reader
from trimtab.transport import Origin

HERE = Path(__file__).resolve().parent
CLAIM_TOKENS, CLAIM = 1500, 10.0  # times as fast, at the lower end of the interval
NO_GAIN = 1.25  # more than that between two cold reads would be a gain
LENGTHS = (300, 750, CLAIM_TOKENS)
CONTEXT_TOKENS, THREADS = Config().context_tokens, Config().threads
QUESTION_TOKENS, ANSWER_TOKENS, WARM = 12, 4, 12
ROUNDS, EVERY = 9, 3  # what is dear and says little more when repeated is in every third
ENGINES = ("on", "off")  # the prefix cache; also what their files are called
DRAWS, FOR_INTERVAL, FOR_P99 = 2000, 5, 100
START_S, ANSWER_S = 300.0, 300.0
HEAD = b"content-type: application/json\r\nx-trimtab-cache: off\r\n"
ENGINE = """
[engines.{name}]
kind = "llama_cpp"
model = "{path}"
threads = {threads}
parallel = 2
prefix_cache = {cached}
"""


class Asked(msgspec.Struct, frozen=True):
    """One request as the client saw it."""

    engine: str
    tokens: int  # of the system message
    round: int
    warm: bool
    ttft_s: float
    input_tokens: int
    cached_tokens: int
    id: str


class Row(msgspec.Struct, frozen=True):
    """A length on an engine. Times in seconds; p99 of 100 values or more, an interval of five prefixes or more."""

    prefix_cache: str
    prefix_tokens: int
    cold: int
    warm: int
    cold_p50_s: float
    warm_p50_s: float
    cold_p99_s: float | None
    warm_p99_s: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    cold_cached_p50: float
    warm_cached_p50: float
    warm_cached_min: int
    warm_cached_max: int


# -- the gateway


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Origin, int]]:
    """One `trimtab serve` before two engines on the same weights; where it listens, and the leader of its session."""
    ((whole, _),) = written(folder, ["F16"])
    text = ""
    for name in ENGINES:
        path = folder / f"{name}.gguf"  # the file names the model
        path.hardlink_to(whole.path)
        text += ENGINE.format(name=name, path=path, threads=THREADS, cached=str(name == "on").lower())
    (folder / "trimtab.toml").write_text(text)
    running = of_config(folder / "trimtab.toml", folder)
    running.start()
    try:
        await running.wait_ready(START_S, lambda _: None)
        origin = Origin(running.base_url)
        try:
            yield origin, running.pid
        finally:
            await origin.close()
    finally:
        await asyncio.to_thread(running.stop)


async def ask(origin: Origin, engine: str, messages: Sequence[tuple[str, str]]) -> Timing:
    """One streamed answer. Raises TrimtabError where there is none."""
    body = {
        "model": engine,
        "messages": [{"role": role, "content": text} for role, text in messages],
        "max_tokens": ANSWER_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    _, timings = await saturate(
        origin, [Call(0.0, 0, msgspec.json.encode(body))], HEAD, concurrency=1, at_most_s=ANSWER_S
    )
    (timing,) = timings
    if not timing.ok:
        raise TrimtabError(f"engine {engine} did not answer: {timing.error}")
    return timing


# -- the measurement


class Words:
    """Texts of an exact number of tokens, each new."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._words = pool.words
        self._rng = random.Random(seed)

    def text(self, tokens: int) -> str:
        return " ".join(("the", *self._rng.choices(self._words, k=tokens - 1)))


async def measured(origin: Origin, options: argparse.Namespace) -> list[Asked]:
    """All requests."""

    async def count(text: str) -> int:
        return (await ask(origin, "off", [("user", text)])).input_tokens

    words = Words(await calibrate(count), options.seed)
    one = await ask(origin, "off", [("system", words.text(1)), ("user", words.text(1))])
    longest = CONTEXT_TOKENS - (one.input_tokens - 2) - QUESTION_TOKENS - ANSWER_TOKENS
    if max(options.lengths or LENGTHS) > longest:
        raise TrimtabError(f"--lengths: the context of {CONTEXT_TOKENS} tokens leaves {longest} for the prefix")
    for engine in ENGINES:  # what is slow only once
        await ask(origin, engine, [("user", words.text(QUESTION_TOKENS))])
    found: list[Asked] = []
    for number in range(options.rounds):
        seldom = number % EVERY == 0
        for tokens in options.lengths or (*LENGTHS, *((longest,) if seldom else ())):
            found += await pair(origin, words, "on", tokens, number)
            if seldom and tokens < longest:
                found += await pair(origin, words, "off", tokens, number)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return found


async def pair(origin: Origin, words: Words, engine: str, tokens: int, number: int) -> list[Asked]:
    """A cold request and its warm ones; without a cache there is one of them, for each costs as much as the cold."""
    prefix, found = words.text(tokens), []
    for n in range(1 + (WARM if engine == "on" else 1)):
        timing = await ask(origin, engine, [("system", prefix), ("user", words.text(QUESTION_TOKENS))])
        if timing.ttft_s is None:
            raise TrimtabError(f"engine {engine} streamed no text, so there is no first token")
        found.append(
            Asked(
                engine, tokens, number, n > 0, timing.ttft_s, timing.input_tokens, timing.cached_tokens,
                timing.request_id,
            )
        )  # fmt: skip
    return found


def row(engine: str, tokens: int, found: Sequence[Asked], seed: int) -> Row:
    """The figures of one length on one engine."""
    by_round: dict[int, tuple[list[float], list[float]]] = {}
    for one in found:
        by_round.setdefault(one.round, ([], []))[one.warm].append(one.ttft_s)
    cold, warm = ([one.ttft_s for one in found if one.warm is is_warm] for is_warm in (False, True))
    cached = {is_warm: [one.cached_tokens for one in found if one.warm is is_warm] for is_warm in (False, True)}
    low, high = interval(list(by_round.values()), seed) if len(by_round) >= FOR_INTERVAL else (None, None)
    return Row(
        engine, tokens, len(cold), len(warm), middle(cold), middle(warm),
        quantile(cold, 0.99) if len(cold) >= FOR_P99 else None,
        quantile(warm, 0.99) if len(warm) >= FOR_P99 else None,
        middle(cold) / middle(warm), low, high, middle(cached[False]), middle(cached[True]),
        min(cached[True]), max(cached[True]),
    )  # fmt: skip


def interval(prefixes: Sequence[tuple[list[float], list[float]]], seed: int) -> tuple[float, float]:
    """The ratio of the medians, cold over warm, over resampled prefixes: the middle 95%."""
    rng, ratios = random.Random(seed), []
    for _ in range(DRAWS):
        drawn = rng.choices(prefixes, k=len(prefixes))
        cold, warm = ([value for one in drawn for value in one[side]] for side in (0, 1))
        ratios.append(middle(cold) / middle(warm))
    return middle(ratios, 0.025), middle(ratios, 0.975)


def middle(values: Sequence[float], q: float = 0.5) -> float:
    found = quantile(values, q)
    assert found is not None
    return found


def of_ledger(folder: Path, found: Sequence[Asked]) -> int:
    """Of how many requests the ledger has other token counts than the client; read it once the gateway has stopped."""
    with ledger_reader.Reader(folder / "data" / ledger_db.FILE_NAME) as reader:
        rows = {one["id"]: (one["input_tokens"], one["cache_read_tokens"]) for one in reader.export()}
    return sum(rows.get(one.id) != (one.input_tokens - one.cached_tokens, one.cached_tokens) for one in found)


def gain(found: Sequence[Asked]) -> float:
    """How many times as fast the second request of each prefix was: the geometric mean."""
    pairs: dict[tuple[int, int], dict[bool, float]] = {}
    for one in found:
        pairs.setdefault((one.tokens, one.round), {})[one.warm] = one.ttft_s
    return statistics.geometric_mean([pair[False] / pair[True] for pair in pairs.values()])


def targets(rows: Sequence[Row], gained: float, differing: int) -> list[dict[str, Any]]:
    """Each target with its figure; the claim is not met where its length was not measured."""
    on, off = ([one for one in rows if one.prefix_cache == name] for name in ENGINES)
    claim = next((one.ratio_low for one in on if one.prefix_tokens == CLAIM_TOKENS), None)
    unread = sum(one.warm_cached_min < one.prefix_tokens for one in on)
    used = max(one.warm_cached_max for one in off)
    return [
        {
            "name": f"times as fast at {CLAIM_TOKENS:,} tokens, low end, at least",
            "target": CLAIM,
            "value": claim,
            "met": claim is not None and claim >= CLAIM,
        },
        {"name": "lengths whose prefix was not read whole", "target": 0, "value": unread, "met": unread == 0},
        {"name": "most cached tokens with prefix_cache = false", "target": 0, "value": used, "met": used == 0},
        {
            "name": "times as fast with it, all lengths, at most",
            "target": NO_GAIN,
            "value": gained,
            "met": gained <= NO_GAIN,
        },
        {"name": "requests with other counts in the ledger", "target": 0, "value": differing, "met": differing == 0},
    ]


# -- what is shown


def show(document: dict[str, Any]) -> None:
    """The table for people."""
    head = ("cache", "prefix", "cold p50", "warm p50", "warm p99", "ratio", "95%", "cached, cold / warm")
    print("{:6}{:>8}{:>12}{:>12}{:>12}{:>8}{:>16}{:>22}".format(*head))
    for one in document["rows"]:
        spread = "-" if one["ratio_low"] is None else f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}"
        p99 = "-" if one["warm_p99_s"] is None else f"{one['warm_p99_s'] * 1000:,.0f} ms"
        print(
            f"{one['prefix_cache']:6}{one['prefix_tokens']:>8,}{one['cold_p50_s'] * 1000:>9,.0f} ms"
            f"{one['warm_p50_s'] * 1000:>9,.0f} ms{p99:>12}{one['ratio']:>8.2f}"
            f"{spread:>16}"
            f"{one['cold_cached_p50']:>14,.0f} / {one['warm_cached_p50']:,.0f}"
        )
    for one in document["targets"]:
        value = "not measured" if one["value"] is None else f"{one['value']:.4g}"
        print(f"{one['name']}: {value} (target {one['target']:g}): {'met' if one['met'] else 'MISSED'}")
    if (others := document["others_share"]) is not None and others > NOISY:
        print(f"note: others used {others:.0%} of the processors meanwhile")


async def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure; everything that the JSON file holds."""
    async with gateway(folder) as (origin, leader):
        contention = Contention(leader)
        found = await measured(origin, options)
        others = contention.share()
    of: dict[tuple[int, int], list[Asked]] = {}
    for one in found:
        of.setdefault((ENGINES.index(one.engine), one.tokens), []).append(one)
    rows = [row(ENGINES[engine], tokens, same, options.seed) for (engine, tokens), same in sorted(of.items())]
    return {
        "what": "time to the first token with a prefix that the embedded engine has read, and without, one run",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": report.commit(),
        "machine": report.machine(),
        "engine": {"xllamacpp": version("xllamacpp"), "model": f"{BUILT_IN} F16", "threads": THREADS},
        "context_tokens": CONTEXT_TOKENS,
        "question_tokens": QUESTION_TOKENS,
        "seed": options.seed,
        "rounds": options.rounds,
        "others_share": others,
        "rows": [msgspec.to_builtins(one) for one in rows],
        "targets": targets(rows, gain([one for one in found if one.engine == "off"]), of_ledger(folder, found)),
        "samples": [msgspec.to_builtins(msgspec.structs.replace(one, ttft_s=round(one.ttft_s, 6))) for one in found],
    }


def lengths_of(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(one) for one in text.split(",")}))


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="prefixes of each length")
    parser.add_argument("--lengths", type=lengths_of, help="of the system message, in tokens, joined by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the result there (default: bench/results/ for a full run)")
    parser.add_argument("--no-targets", action="store_true", help="exit 0 though a target is missed")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            document = asyncio.run(run(Path(folder), options))
    except (TrimtabError, OSError) as error:
        print(f"prefix: {error}", file=sys.stderr)
        return 2
    today, full = datetime.now(UTC).date().isoformat(), not options.lengths and options.rounds >= ROUNDS
    if out := options.out or (HERE / "results" / f"prefix-{today}.json" if full else None):
        out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1)) if options.json else show(document)
    return 0 if options.no_targets else int(not all(one["met"] for one in document["targets"]))


if __name__ == "__main__":
    sys.exit(main())
