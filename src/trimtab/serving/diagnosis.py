"""From readings of an engine over a window to the state it is in, the lever that fits, and the figures that say so.

    nothing runs and nothing waits                                        idle
    KV cache nearly full, or too full for what waits, or requests evicted memory-bound
    requests wait though memory is free: all slots are taken              queue-bound
    requests wait though memory and slots are free, or slots all decode   compute-bound
    else                                                                  healthy

In that order: where memory is short, requests wait as well, and a lever for the queue would make memory shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.serving.readings import Kind, Reading, Total


class State(StrEnum):
    """What holds an engine back, or that nothing does."""

    IDLE = "idle"
    HEALTHY = "healthy"
    MEMORY = "memory-bound"
    COMPUTE = "compute-bound"
    QUEUE = "queue-bound"
    UNKNOWN = "unknown"


# Published: llm-d's guide to model server metrics calls a KV cache above 0.9 nearly full, with evictions to come; its
# workload autoscaler (v0.7) adds replicas from 0.8 on. We name a state and no wish to scale: 0.9.
_KV_FULL: Final = 0.9
# In the recorded windows a queue stood at every look or at none; half leaves room for load that comes and goes.
_WAITS: Final = 0.5
# SmolLM2 on two processors made 75 tokens/s for one stream and 173 for four: near the number of its slots an engine
# makes all streams slower, and the next burst waits. Not 1, since a request that ends leaves its slot free for a look.
_SLOTS_TAKEN: Final = 0.8
# A prompt's token costs a step as much as an answer's. Above this share of the tokens computed, prompts fill the steps;
# recorded: 0.02 where slots were the limit, above 0.99 where prompts of 3,000 tokens were.
_PROMPTS: Final = 0.9
_IDLE: Final = 0.1  # share of looks at which anything ran


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in a window. Gauges are means over its readings, rates are by the second; None is not known."""

    kind: Kind
    window_s: float
    readings: int
    restarted: bool  # counters began anew
    busy_share: float  # of the readings, those at which a request ran
    waiting_share: float  # those at which one waited
    running: float
    waiting: float
    slots: int | None
    running_full: float  # the mean at the looks at which a request waited; of all, if none did
    kv_usage: float | None
    kv_fullest: float | None
    prefill_tokens_s: float | None
    decode_tokens_s: float | None
    prefix_hit_share: float | None  # of prompt tokens
    preemptions_s: float | None
    acceptance: float | None  # of draft tokens
    tokens_per_draft: float | None  # accepted, a speculative step
    queue_s: float | None  # before prefill, of requests that ended in the window
    prefill_s: float | None
    ttft_s: float | None
    per_token_s: float | None

    @classmethod
    def of(cls, readings: Sequence[Reading], *, slots: int | None = None) -> Rates:
        """Of two readings or more, the first and the last for the rates; `slots` where the engine does not say it.

        Raises BadRequest for fewer readings, readings of two engines, or a window of no length.
        """
        if len(readings) < 2:
            raise BadRequest("a window needs two readings; make it longer", param="window")
        first, last = readings[0], readings[-1]
        window_s = last.at - first.at
        if window_s <= 0 or first.kind is not last.kind:
            raise BadRequest("a window needs readings of one engine, in order", param="window")
        running = [one.running or 0.0 for one in readings]
        waiting = [one.waiting or 0.0 for one in readings]
        full = [ran for ran, waited in zip(running, waiting, strict=True) if waited] or running
        change = _Change(first, last, window_s)
        cached, prefill = change.of(_cached), change.of(_prefill)
        return cls(
            kind=first.kind,
            window_s=window_s,
            readings=len(readings),
            restarted=change.restarted,
            busy_share=sum(value > 0 for value in running) / len(running),
            waiting_share=sum(value > 0 for value in waiting) / len(waiting),
            running=_mean(running),
            waiting=_mean(waiting),
            slots=last.slots or slots,
            running_full=_mean(full),
            kv_usage=_mean_known([one.kv_usage for one in readings]),
            kv_fullest=_mean_known([one.kv_fullest for one in readings]),
            prefill_tokens_s=change.rate(_prefill),
            decode_tokens_s=change.rate(lambda one: one.generated_tokens),
            prefix_hit_share=_share(cached, None if prefill is None or cached is None else prefill + cached),
            preemptions_s=change.rate(lambda one: one.preemptions),
            acceptance=_share(change.of(lambda one: one.accepted_tokens), change.of(lambda one: one.draft_tokens)),
            tokens_per_draft=_share(change.of(lambda one: one.accepted_tokens), change.of(lambda one: one.drafts)),
            queue_s=change.mean_s(lambda one: one.queue),
            prefill_s=change.mean_s(lambda one: one.prefill),
            ttft_s=change.mean_s(lambda one: one.ttft),
            per_token_s=change.mean_s(lambda one: one.per_token),
        )


class Diagnosis(msgspec.Struct, frozen=True):
    """A state, the lever that fits (empty where none is needed), and what says so, a sentence a figure."""

    state: State
    lever: str
    evidence: tuple[str, ...]


class _Change:
    """How counters moved between two readings; a counter that moved back makes all of them unknown."""

    def __init__(self, first: Reading, last: Reading, window_s: float) -> None:
        self._first, self._last, self._window_s = first, last, window_s
        # Not the generated tokens: llama.cpp's are put together from two pages, between which a request may end.
        counters: tuple[Callable[[Reading], float | None], ...] = (_prefill, lambda one: one.steps)
        pairs = [(of(first), of(last)) for of in counters]
        self.restarted = any(a is not None and b is not None and b < a for a, b in pairs)

    def of(self, counter: Callable[[Reading], float | None]) -> float | None:
        before, after = counter(self._first), counter(self._last)
        return None if before is None or after is None or self.restarted else max(0.0, after - before)

    def rate(self, counter: Callable[[Reading], float | None]) -> float | None:
        moved = self.of(counter)
        return None if moved is None else moved / self._window_s

    def mean_s(self, total: Callable[[Reading], Total | None]) -> float | None:
        before, after = total(self._first), total(self._last)
        if before is None or after is None or self.restarted:
            return None
        return _share(after.seconds - before.seconds, after.count - before.count)


def _prefill(one: Reading) -> float | None:
    return one.prefill_tokens


def _cached(one: Reading) -> float | None:
    return one.cached_tokens


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


_LEVERS_OF_VLLM: Final = {
    State.MEMORY: "shorten prompts, store the KV cache in 8 bits (--kv-cache-dtype fp8), quantize the weights or raise "
    "--gpu-memory-utilization; a lower --max-num-seqs stops the evictions",
    State.COMPUTE: "a smaller quant, speculation or a replica; batch limits choose who waits: a lower "
    "--max-num-batched-tokens keeps prompts from holding up tokens, a lower --max-num-seqs makes each stream faster",
    State.QUEUE: "admission: reject or defer early; or a higher --max-num-seqs, as the KV cache has room",
}
_LEVERS_OF_LLAMA_CPP: Final = {
    State.MEMORY: "shorten prompts or bound answers, or raise `context_tokens`; where memory for that lacks, lower "
    "`parallel` or quantize the weights",
    State.COMPUTE: "a smaller quant, n-gram speculation or a replica; a lower `parallel` makes each stream faster, a "
    "higher one serves more at a lower speed",
    State.QUEUE: "admission: reject or defer early; or a higher `parallel` if memory allows, or a replica",
}
_LEVERS: Final = {Kind.VLLM: _LEVERS_OF_VLLM, Kind.LLAMA_CPP: _LEVERS_OF_LLAMA_CPP}


def diagnose(rates: Rates) -> Diagnosis:
    """The state of an engine over a window; see the module for the rules."""
    state, why = _state(rates)
    return Diagnosis(state, _LEVERS[rates.kind].get(state, ""), (why, *_figures(rates)))


def _state(rates: Rates) -> tuple[State, str]:
    waits = rates.waiting_share >= _WAITS
    if rates.restarted:
        return State.UNKNOWN, "its counters began anew in the window: it was restarted; look again"
    if rates.busy_share < _IDLE and not waits:
        looks = round(rates.busy_share * rates.readings)
        return State.IDLE, f"a request ran at {looks} of {rates.readings} looks" if looks else "nothing runs or waits"
    if why := _memory(rates, waits):
        return State.MEMORY, why
    full = rates.slots is not None and rates.running_full >= _SLOTS_TAKEN * rates.slots
    if waits:
        queue = f"{_few(rates.waiting)} requests waited while the KV cache had room"
        if full or (rates.slots is None and _prompt_share(rates) < _PROMPTS):
            return State.QUEUE, f"{queue}: {_of_slots(rates)}"
        prompts = f"{_prompt_share(rates):.0%} of what it computes are prompts ({_of_slots(rates)})"
        return State.COMPUTE, f"{queue}: {prompts}"
    if full:
        return State.COMPUTE, f"all is decoding and nothing waits: {_of_slots(rates)}"
    unsaid = "" if rates.slots else "; how many may run at once it does not say"
    return State.HEALTHY, f"nothing waits and memory is free: {_of_slots(rates)}{unsaid}"


def _memory(rates: Rates, waits: bool) -> str:
    if rates.preemptions_s:
        return f"the KV cache is too small: {rates.preemptions_s:.2f} requests a second were evicted and computed anew"
    usage, fullest = rates.kv_usage, rates.kv_fullest
    if fullest is not None and fullest >= _KV_FULL:
        return f"a request's context is {fullest:.0%} full: it will be cut there"
    if usage is None:
        return ""
    if usage >= _KV_FULL:
        return f"the KV cache is {usage:.0%} full"
    # A shared cache: what one running request holds is what the next one needs. llama.cpp's slots share nothing. (vLLM
    # counts an eviction only once the evicted request runs again, so a full cache is seen here first.)
    if waits and rates.running and rates.kind is Kind.VLLM and usage + usage / rates.running > 1:
        return (
            f"{_few(rates.waiting)} requests waited and no further one fits: the KV cache is {usage:.0%} full, "
            f"{usage / rates.running:.0%} a request"
        )
    return ""


def _prompt_share(rates: Rates) -> float:
    """Of the tokens that it computed, those of prompts."""
    prefill, decode = rates.prefill_tokens_s or 0.0, rates.decode_tokens_s or 0.0
    return prefill / (prefill + decode) if prefill else 0.0


def _of_slots(rates: Rates) -> str:
    ran = _few(rates.running_full)
    return f"{ran} ran" if rates.slots is None else f"{ran} of {rates.slots} slots taken"


def _few(count: float) -> str:
    return f"{count:.1f}".removesuffix(".0")


def _figures(rates: Rates) -> list[str]:
    """A sentence for each figure that is known, the rates first."""
    said = []
    if rates.decode_tokens_s is not None:
        said.append(f"{rates.decode_tokens_s:.1f} tokens/s decoded, {rates.prefill_tokens_s or 0:.1f} prefilled")
    if rates.kv_usage is not None:
        said.append(f"KV cache {rates.kv_usage:.0%} used by running requests")
    if rates.queue_s is not None:
        said.append(f"{rates.queue_s:.2f} s before prefill, on average of requests that ended")
    if rates.per_token_s is not None:
        said.append(f"{rates.per_token_s * 1000:.0f} ms a token")
    if rates.prefix_hit_share is not None:
        said.append(f"{rates.prefix_hit_share:.0%} of prompt tokens came from a cached prefix")
    if rates.acceptance is not None:
        said.append(f"{rates.acceptance:.0%} of draft tokens accepted, {rates.tokens_per_draft or 0:.1f} a step")
    return said
