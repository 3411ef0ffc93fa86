"""What came of a step of the ladder, and whether its lever is worth having. Pure: files and clocks are `climb`'s."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from trimtab.measure.load import Timing
from trimtab.measure.stats import quantile
from trimtab.measure.workloads import Workload
from trimtab.semantic.bounds import share_upper
from trimtab.types import CACHED

_DRAWS: Final = 1000
_LIMIT: Final = 0.975  # of each side of a 95% interval
_CHEAPER: Final = 0.98  # of the cost of the step before: below, a lever saves
_FASTER: Final = 0.95  # the same, of p50 or p99 from a request's arrival to its end
_SLOWER: Final = 1.25

_OfGroups = Callable[[Sequence[int]], float | None]
Same = Callable[[str, str], bool | None]  # are two answers equivalent? None: cannot be told


class Run(msgspec.Struct, frozen=True):
    """A step as it was measured. Costs are in USD, by the workload's requests in their order."""

    name: str
    config: str
    rate_per_s: float
    timings: tuple[Timing, ...]
    cost_usd: tuple[float, ...]
    beside_usd: float  # of what was asked beside them: warm-up, audits of the semantic cache
    calls: int  # to the engine, for the workload's requests
    fresh_tokens: int  # of prompts, computed
    cached_tokens: int  # of prompts, reused by the engine
    output_tokens: int
    cpu_s: dict[str, float]  # by process, warm-up included
    others_cpu: float | None  # what other programs took of the processors, 0 to 1
    pace: float  # seconds of processor time that a fixed piece of work took
    took_s: float


def pooled(one: Run, other: Run) -> Run:
    """Two runs of one setup with the same requests as one, in which each request has two answers."""
    loads = None if one.others_cpu is None or other.others_cpu is None else (one.others_cpu + other.others_cpu) / 2
    return msgspec.structs.replace(
        one,
        timings=one.timings + other.timings,
        cost_usd=one.cost_usd + other.cost_usd,
        beside_usd=one.beside_usd + other.beside_usd,
        calls=one.calls + other.calls,
        fresh_tokens=one.fresh_tokens + other.fresh_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cpu_s={name: one.cpu_s.get(name, 0.0) + other.cpu_s.get(name, 0.0) for name in one.cpu_s | other.cpu_s},
        others_cpu=loads,
        pace=(one.pace + other.pace) / 2,
        took_s=one.took_s + other.took_s,
    )


class Ratio(msgspec.Struct, frozen=True):
    """How many times less than the baseline, with its 95% interval; None where it cannot be told."""

    value: float | None
    low: float | None
    high: float | None


class Step(msgspec.Struct, frozen=True):
    """A row of the ladder. Times in seconds, costs in USD a request; None where the step was not run or has no value.

    TTFT and end-to-end count from a request's arrival, whoever answers it; the `engine_` ones leave out those that a
    cache answered.
    """

    name: str
    accepted: bool
    reason: str
    requests: int = 0
    answered: int = 0
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    e2e_p50_s: float | None = None
    e2e_p99_s: float | None = None
    engine_e2e_p50_s: float | None = None
    engine_e2e_p99_s: float | None = None
    tokens_per_call: float | None = None  # computed: prompt tokens that were not reused, and output
    prefix_share: float | None = None  # of the prompts' tokens, reused by the engine
    cost_per_request: float | None = None  # warm-up and audits counted
    engine_cpu_s: float | None = None  # a request, warm-up counted
    cpu_s: float | None = None  # the same, of all processes: gateway, caches, engine
    hit_rate: float | None = None  # answered without a call of their own
    exact_share: float | None = None
    coalesced_share: float | None = None
    semantic_share: float | None = None
    semantic_wrong: int = 0  # of these, how many repeat what the model said to questions of other labels only
    semantic_unknown: int = 0  # how many repeat what an audit brought, whose question is not known
    quality: float | None = None  # share of answers equivalent to the baseline's; of its own: to its first ones
    quality_low: float | None = None
    quality_high: float | None = None
    identical: float | None = None  # word for word
    different: float | None = None  # surely not equivalent
    less: dict[str, Ratio] = {}  # than the baseline: e2e_p50, e2e_p99, ttft_p50, ttft_p99, cost, engine_cpu
    others_cpu: float | None = None
    pace: float | None = None  # of the machine, as a multiple of the baseline's: above 1 it was slower
    config: str = ""


def refused(name: str, reason: str) -> Step:
    """A lever that was not tried."""
    return Step(name, accepted=False, reason=reason)


def step(run: Run, baseline: Run, workload: Workload, same: Same, *, seed: int = 0) -> Step:
    """A run's figures, not yet ruled on; of the baseline itself, if that is the run."""
    whole = [timing for timing in run.timings if timing.ok]
    own = [timing for timing in whole if timing.cache not in _REUSED]
    requests = len(run.timings)
    compared = _compared(run, baseline, workload)
    words = [same(text, other) for text, other in compared]
    alike = sum(word is True for word in words)
    sources = _sources([timing for timing in whole if timing.cache == "semantic"], own, workload)
    shares = {kind: sum(timing.cache == kind for timing in whole) / requests for kind in _REUSED}
    prompt_tokens = run.fresh_tokens + run.cached_tokens
    found = Step(
        name=run.name,
        accepted=run is baseline,
        reason="what the others are compared with" if run is baseline else "",
        requests=requests,
        answered=len(whole),
        ttft_p50_s=_of([timing.ttft_s for timing in whole], 0.5),
        ttft_p99_s=_of([timing.ttft_s for timing in whole], 0.99),
        e2e_p50_s=_of([timing.total_s for timing in whole], 0.5),
        e2e_p99_s=_of([timing.total_s for timing in whole], 0.99),
        engine_e2e_p50_s=_of([timing.total_s for timing in own], 0.5),
        engine_e2e_p99_s=_of([timing.total_s for timing in own], 0.99),
        tokens_per_call=(run.fresh_tokens + run.output_tokens) / run.calls if run.calls else None,
        prefix_share=run.cached_tokens / prompt_tokens if prompt_tokens else None,
        cost_per_request=_cost(run) / requests,
        engine_cpu_s=_engine_cpu_s(run) / requests,
        cpu_s=sum(run.cpu_s.values()) / requests,
        hit_rate=sum(shares.values()),
        exact_share=shares["hit"],
        coalesced_share=shares["coalesced"],
        semantic_share=shares["semantic"],
        semantic_wrong=sum(bool(labels) and label not in labels for label, labels in sources),
        semantic_unknown=sum(not labels for _, labels in sources),
        quality=alike / len(words) if words else None,
        quality_low=1 - share_upper(len(words) - alike, len(words), _LIMIT) if words else None,
        quality_high=share_upper(alike, len(words), _LIMIT) if words else None,
        identical=sum(a == b for a, b in compared) / len(compared) if compared else None,
        different=sum(word is False for word in words) / len(words) if words else None,
        others_cpu=run.others_cpu,
        config=run.config,
    )
    return against(found, run, baseline, seed=seed)


def against(found: Step, run: Run, baseline: Run, *, seed: int = 0) -> Step:
    """The step of that run with the two figures that compare it set against this baseline; all else stays."""
    pace = run.pace / baseline.pace if baseline.pace else None
    return msgspec.structs.replace(found, less=_less(run, baseline, random.Random(seed)), pace=pace)


def longest(run: Run, workload: Workload) -> int:
    """The most tokens that a request may take: its prompt as the engine counted it, and the longest answer."""
    return max(one.input_tokens + int(workload.asked[one.group].fields["max_tokens"]) for one in run.timings)


def ruled(found: Step, run: Run, before: Step, run_before: Run, verdict: str = "", *, answers: bool = False) -> Step:
    """The step with its ruling: a lever stays if it saves, or hastens at no more cost, against the step before.

    One that saves goes only if it surely slows requests, by the intervals of p50 and p99: of a hundred requests, p99
    is what happened to one. `verdict` names the file that stands behind a lever that can change answers. One that
    `answers` requests itself, and answered no more than were answered before, did nothing: what it seems to save is
    noise.
    """
    if found.answered < found.requests:
        return msgspec.structs.replace(
            found, accepted=False, reason=f"{found.requests - found.answered} requests were not answered"
        )
    if answers and (found.hit_rate or 0.0) <= (before.hit_rate or 0.0):
        return msgspec.structs.replace(found, accepted=False, reason="it answered nothing here")
    changes = [
        (name, getattr(found, field) / getattr(before, field))
        for name, field in (("cost", "cost_per_request"), ("p50", "e2e_p50_s"), ("p99", "e2e_p99_s"))
        if getattr(found, field) is not None and getattr(before, field)
    ]
    said = ", ".join(f"{name} {ratio - 1:+.0%}" for name, ratio in changes)
    by = dict(changes)
    cost, times = by.get("cost", 1.0), [ratio for name, ratio in changes if name != "cost"]
    less = _less(run, run_before, random.Random(0))
    fastest = [less[key].high for key in ("e2e_p50", "e2e_p99") if key in less]  # that it may have made them
    saves = cost < _CHEAPER and all(high is None or high > 1 / _SLOWER for high in fastest)
    hastens = cost <= 1 / _CHEAPER and min(times, default=1.0) < _FASTER and max(times, default=1.0) < 1 / _FASTER
    pays = saves or hastens
    said = (said if pays else f"does not pay here: {said}") + (f"; under {verdict}" if verdict else "")
    return msgspec.structs.replace(found, accepted=pays, reason=said)


_REUSED: Final = (*CACHED, "coalesced")  # what x-trimtab-cache says of an answer that took no call


def _of(values: Sequence[float | None], q: float) -> float | None:
    return quantile([value for value in values if value is not None], q)


def _cost(run: Run) -> float:
    return sum(run.cost_usd) + run.beside_usd


def _engine_cpu_s(run: Run) -> float:
    return sum(used for name, used in run.cpu_s.items() if name not in _GATEWAY)


_GATEWAY: Final = ("trimtab-superv", "trimtab-worker0", "trimtab-ingest", "trimtab-similar")


def _compared(run: Run, baseline: Run, workload: Workload) -> list[tuple[str, str]]:
    """Each answer with the baseline's to the same request; the baseline's repeats with its first of that question."""
    if run is not baseline:
        reference: dict[int, str] = {}
        for timing in baseline.timings:
            if timing.ok:
                reference.setdefault(timing.group, timing.text)
        return [
            (timing.text, reference[timing.group]) for timing in run.timings if timing.ok and timing.group in reference
        ]
    groups = workload.groups
    first: dict[int, str] = {}
    pairs = []
    for timing in sorted(run.timings, key=lambda one: one.group):
        if timing.ok:
            group = groups[timing.group]
            if group in first:
                pairs.append((timing.text, first[group]))
            else:
                first[group] = timing.text
    return pairs


def _sources(semantic: Sequence[Timing], own: Sequence[Timing], workload: Workload) -> list[tuple[str, frozenset[str]]]:
    """By reused answer: its question's label, and those of the questions to which the model said the same."""
    said: dict[str, frozenset[str]] = {}
    for timing in own:
        said[timing.text] = said.get(timing.text, frozenset()) | {workload.asked[timing.group].label}
    return [(workload.asked[one.group].label, said.get(one.text, frozenset())) for one in semantic]


def _less(run: Run, baseline: Run, rng: random.Random) -> dict[str, Ratio]:
    """Ratios baseline / run; intervals by resampling requests, the same ones of both."""
    ours, theirs = _by_request(run), _by_request(baseline)
    both = sorted(set(ours) & set(theirs))
    if run is baseline or not both:
        return {}
    draws = [rng.choices(both, k=len(both)) for _ in range(_DRAWS)]
    found = {}
    for name, field, q in (
        ("e2e_p50", "total_s", 0.5),
        ("e2e_p99", "total_s", 0.99),
        ("ttft_p50", "ttft_s", 0.5),
        ("ttft_p99", "ttft_s", 0.99),
    ):
        found[name] = _interval(_quantiles(theirs, ours, field, q), both, draws)
    a, b = _costs(baseline), _costs(run)
    found["cost"] = _interval(lambda groups: _over(sum(a[g] for g in groups), sum(b[g] for g in groups)), both, draws)
    # The engine's processor time is not known by request: one figure, no interval.
    each = (_engine_cpu_s(one) / len(one.timings) for one in (baseline, run))
    found["engine_cpu"] = Ratio(_over(*each), None, None)
    return found


def _by_request(run: Run) -> dict[int, list[Timing]]:
    """Its answers; of a pooled run, more than one."""
    found: dict[int, list[Timing]] = {}
    for timing in run.timings:
        if timing.ok:
            found.setdefault(timing.group, []).append(timing)
    return found


def _costs(run: Run) -> dict[int, float]:
    """By request, over its answers, with its share of what was asked beside them."""
    answers = Counter(timing.group for timing in run.timings)
    found = dict.fromkeys(answers, run.beside_usd / len(run.timings))
    for timing, cost in zip(run.timings, run.cost_usd, strict=True):
        found[timing.group] += cost / answers[timing.group]
    return found


def _quantiles(theirs: dict[int, list[Timing]], ours: dict[int, list[Timing]], field: str, q: float) -> _OfGroups:
    """By requests: how many times theirs is ours."""
    a, b = (
        {group: [getattr(timing, field) for timing in timings] for group, timings in one.items()}
        for one in (theirs, ours)
    )
    return lambda groups: _over(_at(a, groups, q), _at(b, groups, q))


def _at(values: dict[int, list[float | None]], groups: Sequence[int], q: float) -> float | None:
    return _of([value for group in groups for value in values[group]], q)


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _interval(ratio: _OfGroups, both: Sequence[int], draws: Sequence[Sequence[int]]) -> Ratio:
    drawn = [value for value in map(ratio, draws) if value is not None]
    return Ratio(ratio(both), quantile(drawn, 0.025), quantile(drawn, 0.975))
