"""Simulated replicas: each one's true prefix cache, what a rule sends there, and how even that is."""

from __future__ import annotations

import heapq
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from instruments.arrivals import DECODE_TOKENS_PER_S, Arrival

PREFILL_TOKENS_PER_S = 8000.0
WINDOW_S = 60.0
SEED = 7


class Rule(Protocol):
    """Chooses a replica by its number; may learn when the request ends, and what the replica reported."""

    def choose(self, arrival: Arrival) -> int: ...

    def ended(self, cached_blocks: int, arrival: Arrival, ticket: int) -> None: ...


class Truth(msgspec.Struct, frozen=True):
    """How the caches are in truth, beside what a gateway was told."""

    capacity_share: float = 1.0  # of what the gateway believes
    forgetting: float = 0.0  # chance that a request finds the rest of its prefix gone, from a random block on


EXACT = Truth()


class Cache:
    """Least recent use; the last block of a prompt goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def use(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks were there; all are, afterwards."""
        held = self._blocks
        found = 0
        for block in blocks:
            if block not in held:
                break
            found += 1
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._capacity:
            held.popitem(last=False)
        return found

    def forget(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._blocks.pop(block, None)


class Figures(msgspec.Struct, frozen=True):
    """Of one rule on one trace. `of_bound`: against one large cache; loads: the busiest replica's over the mean.

    total: over the whole trace. windowed: the mean of each minute's ratio, weighted by that minute's load. A load is
    the tokens to prefill; those and the answers'; or all of the input, cached or not.
    """

    of_bound: float
    cached_share: float
    total: float
    windowed: float
    total_with_output: float
    windowed_with_output: float
    total_input: float
    windowed_input: float
    decision_us_p50: float
    decision_us_p99: float


class _Loads:
    def __init__(self, replicas: int) -> None:
        self._total = [0.0] * replicas
        self._minutes: defaultdict[int, list[float]] = defaultdict(lambda: [0.0] * replicas)

    def add(self, replica: int, at_s: float, load: float) -> None:
        self._total[replica] += load
        self._minutes[int(at_s // WINDOW_S)][replica] += load

    def ratios(self) -> tuple[float, float]:
        count, whole = len(self._total), sum(self._total)
        return max(self._total) * count / whole, sum(max(one) for one in self._minutes.values()) * count / whole


def bound(arrivals: Sequence[Arrival], capacity: int, truth: Truth = EXACT) -> int:
    """Blocks that one cache of this size would have had; one that forgets as the replicas do."""
    rng = random.Random(SEED)
    cache = Cache(round(capacity * truth.capacity_share))
    return sum(_served(cache, one.blocks, truth, rng) for one in arrivals)


def _served(cache: Cache, blocks: Sequence[int], truth: Truth, rng: random.Random) -> int:
    if truth.forgetting and rng.random() < truth.forgetting:
        cache.forget(blocks[rng.randrange(len(blocks) + 1) :])
    return cache.use(blocks)


def play(
    arrivals: Sequence[Arrival], rule: Rule, replicas: int, capacity: int, at_best: int, truth: Truth = EXACT
) -> Figures:
    """Send the trace by a rule. `at_best` is the bound in blocks. Answers take time, so reports come late."""
    rng = random.Random(SEED)
    caches = [Cache(round(capacity * truth.capacity_share)) for _ in range(replicas)]
    prefill, with_output, whole_input = _Loads(replicas), _Loads(replicas), _Loads(replicas)
    running: list[tuple[float, int, int]] = []
    had = blocks = 0
    took_ns = []
    for number, one in enumerate(arrivals):
        while running and running[0][0] <= one.at_s:
            _, ended, cached = heapq.heappop(running)
            rule.ended(cached, arrivals[ended], ended)
        begin = time.perf_counter_ns()
        replica = rule.choose(one)
        took_ns.append(time.perf_counter_ns() - begin)
        cached = _served(caches[replica], one.blocks, truth, rng)
        had += cached
        blocks += len(one.blocks)
        fresh = one.tokens * (1 - cached / len(one.blocks)) if one.blocks else one.tokens
        for loads, load in ((prefill, fresh), (with_output, fresh + one.output_tokens), (whole_input, one.tokens)):
            loads.add(replica, one.at_s, load)
        lasts_s = fresh / PREFILL_TOKENS_PER_S + one.output_tokens / DECODE_TOKENS_PER_S
        heapq.heappush(running, (one.at_s + lasts_s, number, cached))
    took_ns.sort()
    figures = (
        had / at_best,
        had / blocks,
        *prefill.ratios(),
        *with_output.ratios(),
        *whole_input.ratios(),
        took_ns[len(took_ns) // 2] / 1e3,
        took_ns[int(len(took_ns) * 0.99)] / 1e3,
    )
    return Figures(*(round(figure, 4) for figure in figures))
