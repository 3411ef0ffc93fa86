"""Requests for the simulated replicas: traces with their arrival times, changed ones, and traffic of our own making."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from trimtab.measure import traces

DECODE_TOKENS_PER_S = 30.0
THINK_S = 5.0  # mean pause between an answer and the session's next turn, where a trace has no time stamps
COMMON = 0.01  # a block in more of the requests than this is no session's own
ZIPF = 1.1


class Arrival(msgspec.Struct, frozen=True):
    """One request: `blocks` are numbers of its growing prefix, `session` is whose turn it is."""

    at_s: float
    tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    session: str


def read(path: Path, sessions_per_s: float = 1.0, seed: int = 0) -> list[Arrival]:
    """A trace with hash ids.

    Mooncake's time stamps are spread over the 3 s that they are rounded to. In a trace of sessions these start as a
    Poisson process, and a turn follows the answer before it (at 30 tokens/s) after an exponential pause of 5 s.
    Sessions without a name: a request belongs to its first block that not more than 1% of the requests have.
    """
    found = traces.read(path, seed=seed, sessions_per_s=sessions_per_s).requests
    if not any(request.hash_ids for request in found):
        raise ValueError(f"{path} has no hash_ids: what its prompts share is not known")
    rng = random.Random(seed + 1)
    following: dict[str, float] = {}
    arrivals = []
    chain = Chain()
    for request in found:
        at_s = following.get(request.session, request.at_s) if request.session else request.at_s
        following[request.session] = at_s + request.output_tokens / DECODE_TOKENS_PER_S + rng.expovariate(1 / THINK_S)
        blocks = chain.of(request.hash_ids)
        arrivals.append(Arrival(at_s, request.input_tokens, request.output_tokens, blocks, request.session))
    return named(sorted(arrivals, key=lambda one: one.at_s))


class Chain:
    """Numbers of growing prefixes: an id counts as the same only after the same ids."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}

    def of(self, ids: Iterable[int]) -> tuple[int, ...]:
        before = -1
        found = []
        for one in ids:
            before = self._known.setdefault((before, one), len(self._known))
            found.append(before)
        return tuple(found)


def named(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Sessions by their blocks, where a trace names none."""
    often = Counter(block for one in arrivals if not one.session for block in one.blocks)
    most = COMMON * len(arrivals)
    return [
        one
        if one.session
        else msgspec.structs.replace(
            one, session=str(next((block for block in one.blocks if often[block] <= most), one.blocks[-1:]))
        )
        for one in arrivals
    ]


def halved(arrivals: Sequence[Arrival], seed: int) -> list[Arrival]:
    """Each request is there with a chance of a half, whatever its session."""
    rng = random.Random(seed)
    return [one for one in arrivals if rng.random() < 0.5]


def slowed(arrivals: Sequence[Arrival], times: float) -> list[Arrival]:
    return [msgspec.structs.replace(one, at_s=one.at_s * times) for one in arrivals]


def shuffled(arrivals: Sequence[Arrival], seed: int) -> list[Arrival]:
    """Each session as a whole begins at another moment of the trace, at random."""
    rng = random.Random(seed)
    end_s = arrivals[-1].at_s
    first: dict[str, float] = {}
    moved: dict[str, float] = {}
    for one in arrivals:
        first.setdefault(one.session, one.at_s)
        moved.setdefault(one.session, rng.uniform(0, end_s))
    replaced = [
        msgspec.structs.replace(one, at_s=moved[one.session] + one.at_s - first[one.session]) for one in arrivals
    ]
    return sorted((one for one in replaced if one.at_s <= end_s), key=lambda one: one.at_s)


class Made(msgspec.Struct, frozen=True):
    """Traffic of our own making: tenants of very different size, each with a system prompt that its sessions share."""

    tenants: int
    system_tokens: tuple[int, int]
    turns: float  # of a session, on average
    requests_per_s: float
    bursts: bool  # a fifth of the time, in stretches of two minutes, has six times the sessions of the rest
    requests: int = 8000
    block_tokens: int = 64

    def arrivals(self, seed: int) -> list[Arrival]:
        rng = random.Random(seed)
        size = self.block_tokens
        fresh = iter(range(1 << 40))

        def take(tokens: int) -> list[int]:
            return [next(fresh) for _ in range(max(1, tokens // size))]

        systems = [take(rng.randint(*self.system_tokens)) for _ in range(self.tenants)]
        shares = [1 / (n + 1) ** ZIPF for n in range(self.tenants)]
        made: list[Arrival] = []
        start_s, sessions = 0.0, 0
        while len(made) < self.requests:
            pace = (3.0 if start_s // 120 % 5 == 0 else 0.5) if self.bursts else 1.0
            start_s += rng.expovariate(self.requests_per_s / self.turns * pace)
            sessions += 1
            blocks = list(rng.choices(systems, shares)[0])
            at_s = start_s
            for _ in range(max(1, round(rng.expovariate(1 / self.turns)))):
                blocks += take(rng.randint(100, 1200))
                output = int(rng.lognormvariate(5.3, 0.8)) + 1
                made.append(Arrival(at_s, len(blocks) * size, output, tuple(blocks), f"session {sessions}"))
                blocks += take(output)
                at_s += output / DECODE_TOKENS_PER_S + rng.expovariate(1 / THINK_S)
        return sorted(made, key=lambda one: one.at_s)
