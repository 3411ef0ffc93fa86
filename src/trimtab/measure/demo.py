"""The demo's workload and its figures: real customer questions with repeats, sent with levers off, then on.

What is real: the questions (banking77), the pattern of arrivals (Azure, November 2023), the model, every latency and
every token. What is assumed: how often each question is asked (Zipf), the support prompt, the rate (a share of what
this machine can serve) and the price of the machine. `data/SOURCES.md` names authors and licences.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from trimtab.measure.load import Call, Timing
from trimtab.measure.stats import quantile
from trimtab.stores import ledger_db, ledger_reader

MODEL: Final = "smollm2-135m-instruct"
MACHINE_HOUR_USD: Final = 0.10
PARALLEL: Final = 8  # requests that the engine runs at once
UTILIZATION: Final = 0.65  # arrivals as a share of the engine's capacity
ZIPF_EXPONENT: Final = 0.8
MAX_TOKENS: Final = 48
MAX_REQUESTS: Final = 400
_DEFAULT_REQUESTS: Final = 220
_FEWEST_REQUESTS: Final = 12
_PHASE_S: Final = 60.0  # what a phase may last by default; answers still under way at its end come on top
SIMILAR_ROUTE: Final = "similar"  # where the semantic cache answers, too
SIMILAR_COSINE: Final = 0.85  # the threshold that such caches come with
_WARM_UPS: Final = PARALLEL  # questions kept out of the workload, for warming up

SYSTEM_PROMPT: Final = """\
You are the support assistant of Example Bank, a bank that lives in a phone app. Customers write to you in the chat.
Facts that you may rely on: a new card arrives within 5 working days, with express delivery (5 euros) within 2. Card \
payments stay pending for up to 3 days. Cash from a foreign machine costs 2 percent. Transfers inside Europe take 1 \
working day, others up to 5. A top-up by card is free and immediate. Identity checks take up to 2 days and need a \
passport or an identity card. A lost or stolen card can be frozen under Cards > Freeze; a forgotten PIN can be seen \
under Cards > Show PIN. Currency exchange uses the market rate and adds 1 percent at weekends.
Rules: answer in one short sentence. Be polite and plain. Never ask for a PIN, a password or a full card number. When \
you do not know, say that a colleague will answer within an hour."""


class Workload(msgspec.Struct, frozen=True):
    """What all phases send: the same requests at the same times."""

    calls: tuple[Call, ...]
    intents: tuple[str, ...]  # of the questions, by the calls' `group`
    distinct: int  # different questions among them
    rate_per_s: float

    @property
    def repeats(self) -> int:
        """How many requests ask exactly what an earlier one asked."""
        return len(self.calls) - self.distinct

    @property
    def lasts_s(self) -> float:
        """From the first arrival to the last."""
        return self.calls[-1].at_s if self.calls else 0.0


class Spread(msgspec.Struct, frozen=True):
    """Quantiles over requests, in seconds; None of none."""

    p50: float | None
    p95: float | None
    p99: float | None


class Ledger(msgspec.Struct, frozen=True):
    """A phase as the gateway's ledger has it. Money is nano-USD, None if a call is unpriced."""

    requests: int
    cache_hits: int
    coalesced: int
    upstream_calls: int
    fresh_input_tokens: int
    cache_read_tokens: int
    output_tokens: int
    machine_s: float
    cost_nusd: int | None
    cost_per_1000_nusd: int | None


class Phase(msgspec.Struct, frozen=True):
    """One phase: what the client saw, and what the ledger says. Latencies are those of whole answers."""

    requests: int  # that were answered, whole or not
    answered: int  # whole
    cut: int  # of them by max_tokens; the cache never keeps those
    ttft_s: Spread
    end_to_end_s: Spread
    inter_token_s: float | None  # p50 of each answer's mean; answers from the cache left out
    ledger: Ledger
    others_cpu: float | None  # what other programs took of the processors, 0 to 1
    errors: tuple[str, ...]  # the first few
    reused: int = 0  # answers of similar questions, by the semantic cache
    reused_wrong: int = 0  # of them, those whose question had another intent (what an audit renewed does not count)


def intents() -> dict[str, str]:
    """The questions that come with Trimtab with their intents by banking77, those for warming up at the end."""
    text = (files("trimtab.measure") / "data" / "questions.csv").read_text(encoding="utf-8")
    return {row["text"]: row["category"] for row in csv.DictReader(text.splitlines())}


def questions() -> list[str]:
    """The questions alone."""
    return list(intents())


def gaps_s() -> list[float]:
    """Times between the arrivals of a real service, in seconds."""
    text = (files("trimtab.measure") / "data" / "gaps_ms.csv").read_text(encoding="utf-8")
    return [float(line) / 1000 for line in text.splitlines()[1:]]


def body(question: str) -> bytes:
    """The request: a sentence as the answer, so that most end by themselves and may be kept."""
    return msgspec.json.encode(
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stop": [". ", "\n"],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def head(workflow: str, cache: str, route: str = "") -> bytes:
    """Header lines that name a phase's rows in the ledger; `cache` is "off", or "" for the levers on."""
    lines = [b"content-type: application/json", f"x-trimtab-workflow: {workflow}".encode()]
    lines.append(f"x-trimtab-session: {workflow}".encode())
    if cache:
        lines.append(f"x-trimtab-cache: {cache}".encode())
    if route:
        lines.append(f"x-trimtab-route: {route}".encode())
    return b"".join(line + b"\r\n" for line in lines)


def warm_up() -> tuple[Call, ...]:
    """One request for each of the engine's places, all at once: they load the system prompt into its prefix cache."""
    return tuple(Call(0.0, -1 - n, body(text)) for n, text in enumerate(questions()[-_WARM_UPS:]))


def probe(count: int) -> tuple[Call, ...]:
    """Requests with different questions, to measure what the engine can do."""
    return tuple(Call(0.0, n, body(text)) for n, text in enumerate(questions()[:count]))


def sized(capacity_per_s: float, requests: int | None) -> tuple[int, float]:
    """How many requests, and how many a second, for an engine of that capacity; `requests` overrides the first.

    A very slow machine gets a few requests at more than its share, so that the demo comes to an end.
    """
    rate_per_s = max(UTILIZATION * capacity_per_s, _FEWEST_REQUESTS / _PHASE_S)
    if requests is not None:
        return requests, rate_per_s
    return min(_DEFAULT_REQUESTS, int(rate_per_s * _PHASE_S)), rate_per_s


def workload(count: int, rate_per_s: float, seed: int) -> Workload:
    """`count` requests at `rate_per_s` on average, the same ones for the same arguments.

    Popularity follows Zipf over at most as many questions as requests, in a shuffled order, so that about half are
    repeats at any count; the gaps are real ones, scaled to the rate.
    Raises ValueError beyond `MAX_REQUESTS`.
    """
    if not 1 <= count <= MAX_REQUESTS:
        raise ValueError(f"from 1 to {MAX_REQUESTS} requests, not {count}")
    pool = questions()[:-_WARM_UPS]
    rng = random.Random(seed)
    rng.shuffle(pool)
    pool = pool[:count]
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(pool))]
    chosen = rng.choices(range(len(pool)), weights, k=count)
    gaps = gaps_s()[: count - 1]
    scale = (count - 1) / rate_per_s / sum(gaps) if gaps else 1.0
    at_s, calls = 0.0, []
    for group, gap in zip(chosen, [0.0, *gaps], strict=True):
        at_s += gap * scale
        calls.append(Call(at_s, group, body(pool[group])))
    known = intents()
    return Workload(tuple(calls), tuple(known[text] for text in pool), len(set(chosen)), rate_per_s)


def phase(timings: Sequence[Timing], ledger: Ledger, others_cpu: float | None, intents: Sequence[str] = ()) -> Phase:
    """The figures of a phase; `intents` are those of the workload."""
    whole = [timing for timing in timings if timing.ok]
    generated = [timing.inter_token_s for timing in whole if not timing.from_cache]
    reused = [timing for timing in whole if timing.cache == "semantic"]
    said: dict[str, set[str]] = {}  # by what the model said: the intents of the questions that it was the answer to
    for timing in whole:
        if not timing.from_cache and intents:
            said.setdefault(timing.text, set()).add(intents[timing.group])
    return Phase(
        requests=len(timings),
        answered=len(whole),
        cut=sum(timing.finish == "length" for timing in whole),
        ttft_s=_spread([timing.ttft_s for timing in whole]),
        end_to_end_s=_spread([timing.total_s for timing in whole]),
        inter_token_s=quantile([value for value in generated if value is not None], 0.5),
        ledger=ledger,
        others_cpu=others_cpu,
        errors=tuple(dict.fromkeys(timing.error for timing in timings if timing.error))[:3],
        reused=len(reused),
        reused_wrong=sum(intents[timing.group] not in said.get(timing.text, intents) for timing in reused),
    )


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(quantile(known, 0.5), quantile(known, 0.95), quantile(known, 0.99))


def read_ledger(data_dir: Path, workflow: str) -> Ledger:
    """A phase's rows, summed; read it once the gateway has stopped, since then all rows are there."""
    with ledger_reader.Reader(data_dir / ledger_db.FILE_NAME) as reader:
        rows = reader.summary(where={"workflow": workflow})
        machine_s = sum(row["machine_s"] for row in reader.export(attempts=True) if row["workflow"] == workflow)
    if not rows:
        return Ledger(0, 0, 0, 0, 0, 0, 0, 0.0, None, None)
    row = rows[0]
    cost_nusd = None if row["unpriced"] else row["cost_nusd"]
    return Ledger(
        requests=row["requests"],
        cache_hits=row["cache_hits"],
        coalesced=row["coalesced"],
        upstream_calls=row["attempts"],
        fresh_input_tokens=row["input_tokens"],
        cache_read_tokens=row["cache_read_tokens"],
        output_tokens=row["output_tokens"],
        machine_s=machine_s,
        cost_nusd=cost_nusd,
        cost_per_1000_nusd=None if cost_nusd is None else round(1000 * cost_nusd / row["requests"]),
    )


def replayed_faithfully(timings: Sequence[Timing]) -> tuple[int, int]:
    """Of a phase's timings: answers from the cache, and how many of them repeat word for word what the model said."""
    said: dict[int, set[str]] = {}
    for timing in timings:
        if timing.ok and timing.cache != "hit":
            said.setdefault(timing.group, set()).add(timing.text)
    hits = [timing for timing in timings if timing.ok and timing.cache == "hit"]
    return len(hits), sum(timing.text in said.get(timing.group, ()) for timing in hits)
