"""The gateway's own queue and an engine with slots, in virtual time: what a fair queue can do, without noise.

No process, no socket: `trimtab.admission.Gate` on a clock that jumps from event to event.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trimtab.admission import Asking, Done, Gate, GateTerms, Place
from trimtab.errors import Overloaded, RateLimited

UNBOUNDED = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def mono(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@dataclass
class Setting:
    """An engine and what it is asked; prefill varies by 30% either way, the number of tokens by half."""

    slots: int
    prefill_s: float
    token_s: float
    tokens: int
    rates: Mapping[str, float]  # requests a second by tenant
    max_wait_s: float = 1.0
    queue: bool = True
    target_s: float = 0.0  # to the first token after the queue: the limit follows it; 0: it is the slots'
    duration_s: float = 120.0
    seed: int = 1

    @property
    def service_s(self) -> float:
        return self.prefill_s + self.token_s * self.tokens


@dataclass
class Model:
    """One run; `ttft_s` by tenant, of those that were served."""

    setting: Setting
    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    sent: int = 0
    refused: int = 0
    late: int = 0  # refused only after they had waited
    limits: list[tuple[float, int]] = field(default_factory=list)  # seconds, and how many might run then

    def __post_init__(self) -> None:
        setting = self.setting
        self._clock, self._random = Clock(), random.Random(setting.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._free, self._line = setting.slots, deque[Callable[[], None]]()
        most = setting.slots if setting.queue else UNBOUNDED
        terms = GateTerms(None if setting.target_s else most, setting.target_s, setting.max_wait_s)
        self._gate = Gate("engine", terms, self._clock, self._count)
        self.ttft_s = {tenant: [] for tenant in setting.rates}

    def run(self) -> Model:
        for tenant, rate in self.setting.rates.items():
            at = self._random.expovariate(rate)
            while at < self.setting.duration_s:
                self._at(at, lambda tenant=tenant: self._arrive(tenant))
                at += self._random.expovariate(rate)
        while self._events:
            self._clock.now, _, event = heapq.heappop(self._events)
            event()
        return self

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self.sent += 1
        heapq.heappush(self._events, (when, self.sent, event))

    def _count(self, why: str) -> None:
        self.refused += 1
        self.late += why == "late"

    def _arrive(self, tenant: str) -> None:
        setting, now = self.setting, self._clock.now
        cost = 1000 * setting.prefill_s + 2.0 * setting.tokens
        try:
            place = self._gate.enter(Asking(tenant, cost, 1e6))
        except (Overloaded, RateLimited):
            return
        if place.began is not None:
            self._wait_for_slot(place, now)
            return
        place.turn = lambda: self._wait_for_slot(place, now)
        self._at(now + setting.max_wait_s, lambda: self._give_up(place))

    def _give_up(self, place: Place) -> None:
        if place.began is None:
            place.leave()
            self._count("late")

    def _wait_for_slot(self, place: Place, arrived: float) -> None:
        if self._free:
            self._free -= 1
            self._serve(place, arrived)
        else:
            self._line.append(lambda: self._serve(place, arrived))

    def _serve(self, place: Place, arrived: float) -> None:
        setting, now = self.setting, self._clock.now
        first = now + setting.prefill_s * self._random.uniform(0.7, 1.3)
        tokens = setting.tokens * self._random.uniform(0.5, 1.5)
        self.ttft_s[place.asking.tenant].append(first - arrived)
        sent = now if place.began is None else place.began
        done = Done(cost=1000 * setting.prefill_s + 2.0 * tokens, first_s=first - sent, whole=True)
        self._at(first + setting.token_s * tokens, lambda: self._end(place, done))

    def _end(self, place: Place, done: Done) -> None:
        self._free += 1
        if self._line:
            self._free -= 1
            self._line.popleft()()
        place.leave(done)
        self.limits.append((self._clock.now, self._gate.limit.slots))
