"""Whose turn is next: a start-time fair queue over tenants, by the tokens that their requests are estimated to cost.

Each tenant has a line, first come, first served, and a start tag in virtual time: what it was served, divided by its
weight. The tenant with the least tag is next. Virtual time is the largest start tag so far, and whoever was away begins
there: nobody saves up turns by being idle. When a call is over, the tag is corrected by what it really cost.

Sources: start-time fair queueing for servers that serve several requests at once, SFQ(D) (Jin, Chase and Kaur,
SIGMETRICS 2004); the correction and the weight of tokens as in the Virtual Token Counter (Sheng et al., OSDI 2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Protocol

_PRIOR_S: Final = 0.2  # how much waiting must be seen before a line's own experience counts for more than the model
_FADE: Final = 0.9
_MOST_IDLE: Final = 1024  # lines without requests that are remembered for what they owe


class Costed(Protocol):
    """What stands in line."""

    cost: float


class Line:
    """One tenant's requests in line, and what it was served."""

    __slots__ = ("cost", "predicted_s", "running", "tag", "waited_s", "waiting", "weight")

    def __init__(self, weight: float, tag: float) -> None:
        self.weight = weight
        self.tag = tag
        self.waiting: OrderedDict[Costed, None] = OrderedDict()
        self.cost = 0.0  # of all that wait
        self.running = 0
        self.waited_s = self.predicted_s = _PRIOR_S


class FairQueue:
    """The lines of one class of requests."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._lines: dict[str, Line] = {}
        self._now = 0.0  # virtual time
        self._waiting = 0
        self._running = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def cost(self) -> float:
        """Of all that wait."""
        return sum(line.cost for _, line in self._backlogged())

    def _line(self, tenant: str) -> Line:
        """The tenant's line, at its place in virtual time."""
        line = self._lines.get(tenant)
        if line is None:
            if len(self._lines) >= _MOST_IDLE:
                self._forget()
            line = self._lines[tenant] = Line(self._weight(tenant), self._now)
        elif line.tag < self._now and not line.waiting:
            line.tag = self._now
        return line

    def push(self, tenant: str, request: Costed) -> None:
        """Stand in line."""
        line = self._line(tenant)
        line.waiting[request] = None
        line.cost += request.cost
        self._waiting += 1

    def remove(self, tenant: str, request: Costed) -> None:
        """Leave the line before the turn came."""
        line = self._lines[tenant]
        del line.waiting[request]
        line.cost = line.cost - request.cost if line.waiting else 0.0
        self._waiting -= 1
        self._rest(tenant, line)

    def pop(self) -> tuple[str, Costed]:
        """The one whose turn it is; it runs from now on. Raises ValueError if nobody waits."""
        tenant, line = min(self._backlogged(), key=lambda one: one[1].tag)
        request, _ = line.waiting.popitem(last=False)
        line.cost = line.cost - request.cost if line.waiting else 0.0
        self._waiting -= 1
        self._start(line, request.cost)
        return tenant, request

    def start(self, tenant: str, cost: float) -> None:
        """A request runs without having waited."""
        self._start(self._line(tenant), cost)

    def end(self, tenant: str, owed: float) -> None:
        """A request is over; it cost `owed` more than its estimate."""
        line = self._lines[tenant]
        line.running -= 1
        self._running -= 1
        line.tag += owed / line.weight
        self._rest(tenant, line)

    def learn(self, tenant: str, waited_s: float, predicted_s: float) -> None:
        """A request of a tenant that is here waited so long; `predicted_s` leaves the bias out."""
        line = self._lines[tenant]
        line.waited_s = line.waited_s * _FADE + waited_s
        line.predicted_s = line.predicted_s * _FADE + predicted_s

    def ahead(self, tenant: str) -> float:
        """The cost of all that is now in line and is served before another request of this tenant would be."""
        line = self._lines.get(tenant)
        own, tag = (0.0, self._now) if line is None else (line.cost, line.tag + line.cost / line.weight)
        tag = max(tag, self._now)
        others = (
            min(other.cost, max(0.0, tag - other.tag) * other.weight)
            for _, other in self._backlogged()
            if other is not line
        )
        return own + sum(others)

    def bias(self, tenant: str) -> float:
        """Seconds that the tenant's requests really waited for each that was predicted, of late."""
        line = self._lines.get(tenant)
        return 1.0 if line is None else line.waited_s / line.predicted_s

    def above_share(self, tenant: str) -> bool:
        """Whether others are here, and the tenant has more requests running and in line than its share of them."""
        weight = requests = 0.0
        for line in self._lines.values():
            count = line.running + len(line.waiting)
            weight += line.weight * (count > 0)
            requests += count
        own = self._lines.get(tenant)
        count = own.running + len(own.waiting) if own is not None else 0
        return own is not None and 0 < count < requests and count / requests > own.weight / weight

    def _backlogged(self) -> Iterator[tuple[str, Line]]:
        return ((tenant, line) for tenant, line in self._lines.items() if line.waiting)

    def _start(self, line: Line, cost: float) -> None:
        self._now = max(self._now, line.tag)
        line.tag += cost / line.weight
        line.running += 1
        self._running += 1

    def _rest(self, tenant: str, line: Line) -> None:
        """Forget what says nothing any more: a line without requests or debts, and all debts once nobody is here."""
        if not self._running and not self._waiting:
            self._lines.clear()
            self._now = 0.0
        elif not line.running and not line.waiting and line.tag <= self._now:
            del self._lines[tenant]

    def _forget(self) -> None:
        idle = [name for name, line in self._lines.items() if not line.running and not line.waiting]
        for name in idle:
            del self._lines[name]
