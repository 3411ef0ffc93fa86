"""Rules that choose a replica: the well-known ones, and ours as one or several workers use it."""

from __future__ import annotations

import hashlib
import random
from collections import deque

from instruments.arrivals import Arrival
from trimtab.placement import Choice, Placer
from trimtab.placement.load import Load
from trimtab.placement.mirror import Mirror

BOUND = 1.25
NEW_BLOCKS = 4.0


class _Base:
    """What most have: mirrors of the configured size, and recent work to prefill."""

    def __init__(self, replicas: int, capacity: int) -> None:
        self.count = replicas
        self.mirrors = [Mirror(capacity) for _ in range(replicas)]
        self.load = Load()
        for number in range(replicas):
            self.load.add_replica(str(number))

    def loads(self, arrival: Arrival) -> list[float]:
        return list(self.load.at(arrival.at_s, {}).values())

    def fresh(self, arrival: Arrival) -> list[float]:
        """Tokens that each replica would have to prefill."""
        share = arrival.tokens / max(1, len(arrival.blocks))
        return [arrival.tokens - mirror.match(arrival.blocks) * share for mirror in self.mirrors]

    def send(self, replica: int, arrival: Arrival, work: float) -> int:
        self.mirrors[replica].use(arrival.blocks)
        self.load.given(str(replica), work, arrival.at_s)
        return replica

    def ended(self, cached_blocks: int, arrival: Arrival, ticket: int) -> None:
        pass


class RoundRobin(_Base):
    _next = -1

    def choose(self, arrival: Arrival) -> int:
        self._next += 1
        return self._next % self.count


class SessionHash(_Base):
    def choose(self, arrival: Arrival) -> int:
        return max(range(self.count), key=lambda number: weight(arrival.session, number))


class LeastLoad(_Base):
    def choose(self, arrival: Arrival) -> int:
        fresh, loads = self.fresh(arrival), self.loads(arrival)
        replica = loads.index(min(loads))
        return self.send(replica, arrival, fresh[replica])


class LongestMatch(_Base):
    """Ties go to the least loaded."""

    def choose(self, arrival: Arrival) -> int:
        fresh, loads = self.fresh(arrival), self.loads(arrival)
        replica = min(range(self.count), key=lambda number: (fresh[number], loads[number]))
        return self.send(replica, arrival, fresh[replica])


class BoundedHash(_Base):
    """A session's replicas in the order of its hash: the first whose load stays within 1.25 of the mean."""

    def choose(self, arrival: Arrival) -> int:
        fresh, loads = self.fresh(arrival), self.loads(arrival)
        order = sorted(range(self.count), key=lambda number: -weight(arrival.session, number))
        total = sum(loads)
        within = (n for n in order if loads[n] + fresh[n] <= BOUND * (total + fresh[n]) / self.count)
        replica = next(within, loads.index(min(loads)))
        return self.send(replica, arrival, fresh[replica])


class WeightedSum(_Base):
    """The least of 4 x what is new and recent load."""

    def choose(self, arrival: Arrival) -> int:
        fresh, loads = self.fresh(arrival), self.loads(arrival)
        replica = min(range(self.count), key=lambda number: NEW_BLOCKS * fresh[number] + loads[number])
        return self.send(replica, arrival, fresh[replica])


class Ours:
    """The placer, as it is used: told of ends, answers and reports."""

    def __init__(self, replicas: int, capacity: int, reports: bool = True) -> None:
        self.placer = Placer([str(number) for number in range(replicas)], capacity)
        self._reports = reports
        self._choices: dict[int, Choice] = {}
        self._sent = -1

    def choose(self, arrival: Arrival) -> int:
        choice = self.placer.choose(arrival.blocks, arrival.tokens, arrival.at_s)
        self._sent += 1
        self._choices[self._sent] = choice
        return int(choice.replica)

    def ended(self, cached_blocks: int, arrival: Arrival, ticket: int) -> None:
        choice = self._choices.pop(ticket)
        if self._reports:
            self.placer.heard(choice, cached_blocks)
        self.placer.done(choice, arrival.output_tokens)


class Workers:
    """Several workers, each with a placer of its own, take requests at random.

    With `delay_s` each hears of the others' choices so much later; without it never.
    """

    def __init__(self, replicas: int, capacity: int, workers: int, delay_s: float | None) -> None:
        self._placers = [Placer([str(number) for number in range(replicas)], capacity) for _ in range(workers)]
        self._delay_s = delay_s
        self._rng = random.Random(3)
        self._told: deque[tuple[float, int, Choice]] = deque()
        self._choices: list[tuple[int, Choice] | None] = []

    def choose(self, arrival: Arrival) -> int:
        while self._told and self._told[0][0] <= arrival.at_s:
            _, by, choice = self._told.popleft()
            for number, placer in enumerate(self._placers):
                if number != by:
                    placer.placed(choice)
        worker = self._rng.randrange(len(self._placers))
        choice = self._placers[worker].choose(arrival.blocks, arrival.tokens, arrival.at_s)
        if self._delay_s is not None:
            self._told.append((arrival.at_s + self._delay_s, worker, choice))
        self._choices.append((worker, choice))
        return int(choice.replica)

    def ended(self, cached_blocks: int, arrival: Arrival, ticket: int) -> None:
        worker, choice = self._choices[ticket] or (0, None)
        self._choices[ticket] = None
        if choice is None:
            return
        for number, placer in enumerate(self._placers):
            if number == worker:
                placer.heard(choice, cached_blocks)
            if number == worker or self._delay_s is not None:
                placer.done(choice, arrival.output_tokens)


def weight(session: str, replica: int) -> int:
    """Rendezvous hashing: the greatest weight wins."""
    return int.from_bytes(hashlib.blake2b(f"{session} {replica}".encode(), digest_size=8).digest(), "big")
