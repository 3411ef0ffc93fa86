"""What a replay found: latencies with intervals, throughput, goodput, errors, cost, and how true to its trace it was.

Metric names and statistics follow aiperf's JSON where it has them; times are milliseconds. Definitions:

    time_to_first_token     from the scheduled time to the first non-empty piece of text
    inter_token_latency     per answer: (last piece - first piece) / (output tokens - 1)
    inter_chunk_latency     every gap between two pieces of text of one answer
    time_per_output_token   per answer: (end - first piece) / (output tokens - 1)
    request_latency         from the scheduled time to the end of the answer
    queueing                from the scheduled time to the sending: a late generator, or the concurrency cap
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.measure.contention import NOISY
from trimtab.measure.load import Timing
from trimtab.measure.stats import Difference, Summary, differences, quantile, summarise
from trimtab.slo import Slo

SCHEMA: Final = "trimtab-replay/1"
_ERRORS_NAMED: Final = 10


class Settings(msgspec.Struct, frozen=True):
    """How a replay was run."""

    url: str
    model: str
    trace: str
    kind: str
    speed: float
    seed: int
    slo: Slo
    streamed: bool = True
    concurrency_cap: int = 0


class Run(msgspec.Struct, frozen=True):
    """What a replay brought: each request's timing, and what of the trace was not sent."""

    timings: Sequence[Timing]
    in_trace: int
    malformed: int = 0
    too_long: int = 0
    too_short: int = 0
    interrupted: bool = False
    others_cpu: float | None = None
    other_dialect: int = 0


class Counts(msgspec.Struct, frozen=True):
    """Requests: those of the trace, and what became of them."""

    in_trace: int
    malformed: int  # lines of the trace
    too_long: int  # skipped: longer than the target's context
    too_short: int  # skipped: shorter than the target's chat template with one word
    sent: int
    successful: int
    errored: int
    cancelled: int
    cache_hits: int
    other_dialect: int = 0  # skipped: not in OpenAI's dialect


class Throughput(msgspec.Struct, frozen=True):
    """Per second of `duration_s`, which runs from the first scheduled request to the last answer's end."""

    duration_s: float
    request_throughput: float
    output_token_throughput: float
    total_token_throughput: float
    goodput: float
    good_request_fraction: float


class Cost(msgspec.Struct, frozen=True):
    """US dollars; None where a call's price is not known. `source` says whose prices."""

    usd: float | None
    usd_per_request: float | None
    usd_per_good_request: float | None
    source: str


class Fidelity(msgspec.Struct, frozen=True):
    """Of the answered requests with planned lengths: how many had exactly those, by the target's own usage."""

    planned: int
    input_exact: int
    input_largest_difference: int
    output_exact: int


class Report(msgspec.Struct, frozen=True):
    """All of it. `requests` holds what each one did, so that runs can be compared and drawn later."""

    schema: str
    version: str
    settings: Settings
    interrupted: bool
    counts: Counts
    metrics: dict[str, Summary]  # of successful requests
    by_end: dict[str, dict[str, Summary]]  # request_latency of "successful", "errored", "cancelled"
    throughput: Throughput
    cost: Cost
    fidelity: Fidelity
    errors: dict[str, int]
    others_cpu: float | None  # what other programs took of the processors meanwhile, 0 to 1
    requests: tuple[Timing, ...]


def tpot_s(timing: Timing) -> float | None:
    """Seconds per output token after the first; None below two tokens or without a stream."""
    if timing.ttft_s is None or timing.output_tokens < 2:
        return None
    return (timing.total_s - timing.ttft_s) / (timing.output_tokens - 1)


def _gaps(timings: Sequence[Timing]) -> list[float]:
    return [gap for timing in timings for gap in timing.gaps_s]


def _each(read: Callable[[Timing], float | None]) -> Callable[[Sequence[Timing]], list[float]]:
    return lambda timings: [value for timing in timings if (value := read(timing)) is not None]


# name -> (unit, factor from our unit, values of the successful requests)
_METRICS: Final[dict[str, tuple[str, float, Callable[[Sequence[Timing]], list[float]]]]] = {
    "time_to_first_token": ("ms", 1000, _each(lambda t: t.ttft_s)),
    "inter_token_latency": ("ms", 1000, _each(lambda t: t.inter_token_s)),
    "inter_chunk_latency": ("ms", 1000, _gaps),
    "time_per_output_token": ("ms", 1000, _each(tpot_s)),
    "request_latency": ("ms", 1000, _each(lambda t: t.total_s)),
    "queueing": ("ms", 1000, _each(lambda t: t.lag_s)),
    "input_sequence_length": ("tokens", 1, _each(lambda t: t.input_tokens or None)),
    "output_sequence_length": ("tokens", 1, _each(lambda t: t.output_tokens or None)),
}


# metric -> how a newcomer calls it
TITLES: Final = {
    "time_to_first_token": "Time to first token",
    "inter_token_latency": "Between tokens (mean)",
    "inter_chunk_latency": "Between pieces",
    "time_per_output_token": "Time per output token",
    "request_latency": "End to end",
    "queueing": "Sent late by",
    "input_sequence_length": "Input tokens",
    "output_sequence_length": "Output tokens",
}
_DEPENDENT: Final = "inter_chunk_latency"  # gaps of one answer depend on each other: an interval would be too narrow


def values(name: str, timings: Sequence[Timing]) -> list[float]:
    """A metric's values over the successful requests among `timings`, in its unit."""
    _, factor, read = _METRICS[name]
    return [value * factor for value in read([timing for timing in timings if timing.ok])]


def make(settings: Settings, run: Run, version: str, price: Callable[[Timing], float | None] | None = None) -> Report:
    """The report of a run; `price` gives a request's US dollars where its answer did not say them."""
    timings = run.timings
    ends = {
        "successful": [timing for timing in timings if timing.ok],
        "errored": [timing for timing in timings if not timing.ok and not timing.cancelled],
        "cancelled": [timing for timing in timings if timing.cancelled],
    }
    good = sum(t.ok and settings.slo.met(t.ttft_s, tpot_s(t), t.total_s) for t in timings)
    whole = ends["successful"]
    metrics = {
        name: summarise(values(name, whole), unit, intervals=name != _DEPENDENT)
        for name, (unit, *_) in _METRICS.items()
    }
    by_end = {
        end: {"request_latency": found}
        for end, some in ends.items()
        if (found := summarise([timing.total_s * 1000 for timing in some], "ms")) is not None
    }
    return Report(
        schema=SCHEMA,
        version=version,
        settings=settings,
        interrupted=run.interrupted,
        counts=Counts(
            in_trace=run.in_trace,
            malformed=run.malformed,
            other_dialect=run.other_dialect,
            too_long=run.too_long,
            too_short=run.too_short,
            sent=len(timings),
            successful=len(whole),
            errored=len(ends["errored"]),
            cancelled=len(ends["cancelled"]),
            cache_hits=sum(timing.from_cache for timing in whole),
        ),
        metrics={name: found for name, found in metrics.items() if found is not None},
        by_end=by_end,
        throughput=_throughput(timings, whole, good),
        cost=_cost(timings, good, price),
        fidelity=_fidelity(whole),
        errors=dict(Counter(timing.error for timing in ends["errored"]).most_common(_ERRORS_NAMED)),
        others_cpu=run.others_cpu,
        requests=tuple(timings),
    )


def compare(a: Report, b: Report) -> list[Difference]:
    """What differs between two runs, metric by metric."""
    found: list[Difference] = []
    for name, (unit, *_) in _METRICS.items():
        if name != _DEPENDENT:
            found += differences(name, values(name, a.requests), values(name, b.requests), unit)
    return found


def load(text: bytes, name: str) -> Report:
    """A report that was saved. Raises BadRequest for anything else."""
    try:
        found = msgspec.json.decode(text, type=Report)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{name} is no saved replay ({error}); make one with --save") from None
    if found.schema != SCHEMA:
        raise BadRequest(f"{name} is a replay of the form {found.schema}; this version reads {SCHEMA}")
    return found


def disturbance(report: Report) -> str:
    """What to say of other programs that took enough of the processors to spoil the run; "" of fewer."""
    if report.others_cpu is None or report.others_cpu <= NOISY:
        return ""
    return f"Other programs used {report.others_cpu:.0%} of the processors meanwhile."


def worst_lag_s(report: Report) -> float:
    """The 99th percentile of how late requests were sent, in seconds; 0 of none."""
    return quantile([timing.lag_s for timing in report.requests], 0.99) or 0.0


def _throughput(timings: Sequence[Timing], whole: Sequence[Timing], good: int) -> Throughput:
    first = min((timing.at_s for timing in timings), default=0.0)
    last = max((timing.at_s + timing.total_s for timing in timings), default=0.0)
    duration_s = max(last - first, 1e-9)
    output = sum(timing.output_tokens for timing in whole)
    return Throughput(
        duration_s=duration_s,
        request_throughput=len(whole) / duration_s,
        output_token_throughput=output / duration_s,
        total_token_throughput=(output + sum(timing.input_tokens for timing in whole)) / duration_s,
        goodput=good / duration_s,
        good_request_fraction=good / max(1, len(timings)),
    )


def _cost(timings: Sequence[Timing], good: int, price: Callable[[Timing], float | None] | None) -> Cost:
    total, sources = 0.0, set()
    for timing in timings:
        if timing.cost_usd is not None:
            usd: float | None = timing.cost_usd
            sources.add("the gateway")
        elif timing.from_cache:
            usd = 0.0
        else:
            usd = price(timing) if price is not None else None
            sources.add("genai-prices")
        if usd is None and timing.ok:
            return Cost(None, None, None, "")
        total += usd or 0.0
    source = " and ".join(sorted(sources))
    return Cost(total, total / max(1, len(timings)), total / good if good else None, source)


def _fidelity(whole: Sequence[Timing]) -> Fidelity:
    planned = [timing for timing in whole if timing.planned_input_tokens is not None]
    gaps = [abs(timing.input_tokens - (timing.planned_input_tokens or 0)) for timing in planned]
    return Fidelity(
        planned=len(planned),
        input_exact=gaps.count(0),
        input_largest_difference=max(gaps, default=0),
        output_exact=sum(timing.output_tokens == timing.planned_output_tokens for timing in planned),
    )
