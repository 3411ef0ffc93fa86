"""An upstream call in its turn: where its engine has a queue, it waits for a place there, and gives it back after."""

from __future__ import annotations

import asyncio

from trimtab.admission import Asking, Done, Gate, Place, cost_of, cost_used
from trimtab.call import Call, Desk
from trimtab.flight import Flight
from trimtab.ports import Engine
from trimtab.types import Attempt

_BUSY_STATUS = frozenset({429, 503, 529})


class Turn:
    """A `Call` as an asynchronous context: entered when there is a place at the engine, which is free again on exit.

    Entering raises RateLimited or Overloaded where that takes too long. The wait is a stage of the flight's until its
    first call was made; later ones lie between attempts.
    """

    __slots__ = ("_attempt", "_call", "_desk", "_engine", "_flight", "_gate", "_place", "_task")

    def __init__(
        self, gate: Gate | None, desk: Desk, flight: Flight, attempt: Attempt, engine: Engine, task: asyncio.Task[None]
    ) -> None:
        self._gate = gate
        self._desk = desk
        self._flight = flight
        self._attempt = attempt
        self._engine = engine
        self._task = task
        self._place: Place | None = None

    async def __aenter__(self) -> Call:
        if self._gate is not None:
            self._place = await self._wait(self._gate)
        self._call = Call(self._desk, self._flight, self._attempt, self._engine, self._task)
        if self._place is not None:
            self._call.queue_s = self._place.waited_s
        try:
            return self._call.__enter__()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        try:
            self._call.__exit__(kind, exc, trace)
        finally:
            self._leave()

    async def _wait(self, gate: Gate) -> Place:
        flight, limits, clock = self._flight, self._attempt.timeouts, self._desk.clock
        request, began = flight.request, clock.mono()
        scope = request.scope
        patience_s = limits.first_token_s if request.stream else limits.total_s
        batch = bool(scope.priority or scope.purpose)
        try:
            return await gate.turn(Asking(scope.tenant, cost_of(request), patience_s, batch))
        finally:
            if not flight.attempts:
                flight.stages["queue"] = flight.stages.get("queue", 0.0) + clock.mono() - began

    def _leave(self) -> None:
        if self._place is not None:
            self._place.leave(_done(self._call))


def _done(call: Call) -> Done:
    """How a call went, for the queue in front of its engine."""
    reply, first_s = call.reply, None
    if call.flight.request.stream and call.first_s is not None:
        first_s = call.first_s - call.start_s
    return Done(
        cost=cost_used(call.usage) if call.usage_source == "reported" else None,
        first_s=first_s,
        busy=call.expired or (reply is not None and reply.status in _BUSY_STATUS),
        whole=call.whole,
    )
