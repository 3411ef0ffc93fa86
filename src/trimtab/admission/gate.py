"""Who may call an engine now, who waits, and who is told at once that it would take too long.

Nothing here does I/O. A request enters: it runs at once, waits for its turn, or is refused when the wait that is to be
expected is longer than its patience. Interactive requests come before batch ones, which fill a share of idle slots.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from trimtab.admission.fair import FairQueue
from trimtab.admission.limit import AdaptiveLimit, Limit
from trimtab.errors import Overloaded, RateLimited, TrimtabError
from trimtab.ports import Clock

_FADE: Final = 0.98  # of what is known of the engine's speed, with each call
_SURE: Final = 0.5  # of a request's patience: a longer predicted wait is too long, as others may yet come before it
_MOST_WAITING: Final = 10_000


class GateTerms(msgspec.Struct, frozen=True):
    """What holds for one engine in one process. `most` is how many requests run at once, None: as `target_s` allows."""

    most: int | None
    target_s: float = 0.0  # to the first token of a stream
    max_wait_s: float = 0.0  # of interactive requests; 0: as long as the route's own deadlines
    batch_share: float = 1.0  # of the slots, up to which batch requests may start
    weights: Mapping[str, float] = {}  # of tenants; 1 where there is none


class Asking(msgspec.Struct, frozen=True, gc=False):
    """What a gate has to know of a request; `patience_s` is how long its route's deadlines let it wait."""

    tenant: str
    cost: float  # estimated, see `tokens.cost_of`
    patience_s: float
    batch: bool = False


class Done(msgspec.Struct, frozen=True, gc=False):
    """How a call went: what it cost (None: not known), and seconds to a stream's first token."""

    cost: float | None = None
    first_s: float | None = None
    busy: bool = False  # the engine said that it is, or gave no token in time
    whole: bool = False  # it came to its end, so its length says how fast the engine is


_UNKNOWN: Final = Done()


class Place:
    """One request's place: in line until `began` is set, then at the engine."""

    __slots__ = ("asking", "began", "cost", "entered", "gate", "predicted_s", "turn")

    def __init__(self, gate: Gate, asking: Asking, now: float) -> None:
        self.gate = gate
        self.asking = asking
        self.cost = asking.cost
        self.entered = now
        self.predicted_s = 0.0
        self.began: float | None = None
        self.turn: Callable[[], None] | None = None

    @property
    def waited_s(self) -> float:
        """Seconds in line, of one whose turn has come."""
        return 0.0 if self.began is None else self.began - self.entered

    def leave(self, done: Done = _UNKNOWN) -> None:
        """The call is over, or the request no longer waits for its turn."""
        self.gate.leave(self, done)


class Gate:
    """Stands before one engine. Belongs to one event loop; `refused` is told "share", "full" or "late"."""

    def __init__(self, engine: str, terms: GateTerms, clock: Clock, refused: Callable[[str], None]) -> None:
        self._engine = engine
        self._clock = clock
        self._refused = refused
        self._lines = {batch: FairQueue(self._weight) for batch in (False, True)}
        self._speed = (0.0, 0.0)  # cost and seconds in service of calls that came to their end, fading
        self.running = 0
        self.limit = Limit(1)
        self.use(terms)

    def use(self, terms: GateTerms) -> None:
        """Other terms from now on; who waits or runs keeps its place, and what was learned stays."""
        self.terms = terms
        if terms.most is not None:
            self.limit = Limit(terms.most)
        elif not isinstance(self.limit, AdaptiveLimit):
            self.limit = AdaptiveLimit()
        self._fill()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return sum(len(lines) for lines in self._lines.values())

    async def turn(self, asking: Asking) -> Place:
        """Wait for a place at the engine; whoever gets it must `leave` it.

        Raises RateLimited when the tenant asks for more than its share, Overloaded when the engine has too much to do:
        at once if the wait is expected to be too long, and when it turns out to be. Cancelling gives the place up.
        """
        place = self.enter(asking)
        if place.began is not None:
            return place
        came = asyncio.get_running_loop().create_future()
        place.turn = lambda: None if came.done() else came.set_result(None)
        try:
            async with asyncio.timeout(self._patience_s(asking)):
                await came
        except TimeoutError:
            if place.began is None:
                self._learn(place)
                self.leave(place)
                raise self._refusal(asking, self._clock.mono() - place.entered, "late") from None
        except BaseException:
            self.leave(place)
            raise
        return place

    def enter(self, asking: Asking) -> Place:
        """A place: it runs if `began` is set, else `turn` is called when it does. Raises as the method `turn` does."""
        place = Place(self, asking, self._clock.mono())
        lines = self._lines[asking.batch]
        if self._has_room(asking.batch) and not lines:  # while interactive ones wait there is no room
            lines.start(asking.tenant, asking.cost)
            self._begin(place)
            return place
        place.predicted_s = self._wait_s(asking)
        expected_s = place.predicted_s * lines.bias(asking.tenant)
        if expected_s > self._patience_s(asking) * _SURE or self.waiting >= _MOST_WAITING:
            raise self._refusal(asking, expected_s, "share" if lines.above_share(asking.tenant) else "full")
        lines.push(asking.tenant, place)
        return place

    def leave(self, place: Place, done: Done = _UNKNOWN) -> None:
        """See `Place.leave`; the next one's turn may have come."""
        asking = place.asking
        lines = self._lines[asking.batch]
        if place.began is None:
            lines.remove(asking.tenant, place)
            return
        now = self._clock.mono()
        self.running -= 1
        lines.end(asking.tenant, 0.0 if done.cost is None else done.cost - place.cost)
        if done.whole:
            cost, busy_s = self._speed
            self._speed = (cost * _FADE + place.cost, busy_s * _FADE + now - place.began)
        if done.busy or done.first_s is not None:
            late = done.busy or (done.first_s or 0.0) > self.terms.target_s
            self.limit.hear(place.began, now, late=late, felt=self.waiting > 0 or self.running + 1 >= self.limit.slots)
        self._fill()

    def _fill(self) -> None:
        """Begin with all whose turn it is."""
        for batch, lines in self._lines.items():
            while lines and self._has_room(batch):
                _, place = lines.pop()
                assert isinstance(place, Place)
                self._begin(place)
                self._learn(place)
                if place.turn is not None:
                    place.turn()

    def _has_room(self, batch: bool) -> bool:
        slots = self.limit.slots
        return self.running < (max(1, int(slots * self.terms.batch_share)) if batch else slots)

    def _begin(self, place: Place) -> None:
        place.began = self._clock.mono()
        self.running += 1

    def _learn(self, place: Place) -> None:
        """How a prediction turned out; of one that was given up, so far."""
        if place.predicted_s > 0:
            until = self._clock.mono() if place.began is None else place.began
            asking = place.asking
            self._lines[asking.batch].learn(asking.tenant, until - place.entered, place.predicted_s)

    def _wait_s(self, asking: Asking) -> float:
        """Seconds until a request of this tenant would begin; 0 while the engine's speed is not known."""
        cost, busy_s = self._speed
        if not cost:
            return 0.0
        ahead = self._lines[asking.batch].ahead(asking.tenant)
        if asking.batch:
            ahead += self._lines[False].cost
        return (ahead + asking.cost) * busy_s / (cost * self.limit.slots)

    def _patience_s(self, asking: Asking) -> float:
        if asking.batch or not self.terms.max_wait_s:
            return asking.patience_s
        return min(asking.patience_s, self.terms.max_wait_s)

    def _weight(self, tenant: str) -> float:
        return self.terms.weights.get(tenant, 1.0)

    def _refusal(self, asking: Asking, wait_s: float, why: str) -> TrimtabError:
        """The error for a wait of that length, and what is to be done."""
        self._refused(why)
        patience_s = self._patience_s(asking)
        again_s = max(1, math.ceil(wait_s - patience_s * _SURE))
        line = f"{self.waiting} requests wait for engine {self._engine}, {self.running} run"
        if why == "late":
            said = f"no turn within {patience_s:.3g} s; {line}; try again in {again_s} s"
            return Overloaded(said, retry_after_s=again_s)
        if why == "share":
            said = f"{asking.tenant} has more than its share of engine {self._engine}: a wait of {wait_s:.3g} s; {line}"
            return RateLimited(f"{said}; send less at once, or again in {again_s} s", retry_after_s=again_s)
        said = f"{line}: a wait of {wait_s:.3g} s is to be expected, at least, where {patience_s:.3g} s are allowed"
        return Overloaded(f"{said}; try again in {again_s} s", retry_after_s=again_s)
