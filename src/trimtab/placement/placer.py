"""Chooses the replica whose cache saves most, as long as the work stays even.

A replica's cost is what it would have to prefill, and a price for each token of work that it would then have beyond its
bound: 5% over the mean, and one request more. So a conversation stays where its prefix is; a new one, which is dear
everywhere, goes where there is room; and a prefix that more share than one replica can serve is copied to the next.
Source: the bound is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2018), with
the cached prefix in place of the hash; saved prefill is weighed against the load of a recent window as by the scheduler
E2 of Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.placement.load import Load
from trimtab.placement.mirror import Mirror

_OVER_MEAN: Final = 1.05  # of the mean load, are within the bound
_PRICE: Final = 8.0  # prefilled tokens that one token of work beyond the bound is worth
_FIRST_OUTPUT_TOKENS: Final = 256.0  # expected before any answer was seen
_REMEMBERED: Final = 100  # requests whose sizes make up what is typical


class Choice(msgspec.Struct, frozen=True):
    """Where one request goes, and why. msgspec can encode it, so that other workers can be told.

    Reasons: `prefix`, no other replica holds more of it; `load`, one does, but has too much work; `new`, nobody holds
    any of it.
    """

    replica: str
    expected_cached_blocks: int
    reason: str
    blocks: tuple[int, ...]
    work: float  # tokens: to prefill, and to answer as others were
    at_s: float
    most_cached_blocks: int  # what the replica with the most of it holds
    age_blocks: int  # added there since the last expected one was used


class Placer:
    """Replicas, what each is believed to hold, and how much work it has. One thread; deterministic for one history.

    A request is chosen for (`choose`), reported on where the engine says how much was cached (`heard`), and finished
    (`done`). Workers that serve the same replicas tell each other their choices (`placed`).
    """

    def __init__(self, replicas: Sequence[str], capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._mirrors: dict[str, Mirror] = {}
        self._load = Load()
        self._output_tokens = _FIRST_OUTPUT_TOKENS
        self._work = self._work_squared = 0.0  # means over recent requests
        for replica in replicas:
            self.add(replica)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Who may be chosen."""
        return tuple(self._mirrors)

    def add(self, replica: str, capacity_blocks: int | None = None) -> None:
        """A replica with an empty cache, of the common capacity unless one is named. Raises BadRequest."""
        capacity = self._capacity_blocks if capacity_blocks is None else capacity_blocks
        if replica in self._mirrors:
            raise BadRequest(f"the replica {replica!r} is there already; name another", param="replicas")
        if capacity < 1:
            raise BadRequest(f"a cache of {capacity} blocks holds nothing; say how many fit", param="capacity_blocks")
        self._mirrors[replica] = Mirror(capacity)
        self._load.add_replica(replica)

    def remove(self, replica: str) -> None:
        """The replica is chosen no more; what is still running there may be finished. Raises BadRequest."""
        del self._mirrors[self._known(replica)]
        self._load.remove_replica(replica)

    def lost(self, replica: str) -> None:
        """The replica has begun anew: its cache is empty and nothing runs there. Raises BadRequest."""
        self._mirrors[self._known(replica)].clear()
        self._load.lost(replica)

    def choose(
        self, blocks: Sequence[int], tokens: int, now: float, in_flight: Mapping[str, float] | None = None
    ) -> Choice:
        """Where a prompt goes that is so many tokens long, and note that it went there.

        `now` in seconds of any clock that does not go back. `in_flight`: tokens that each replica has still to work
        off, where the caller knows better than what was chosen here and not yet `done`. Raises BadRequest if there is
        no replica.
        """
        choice = self._decide(tuple(blocks), tokens, now, in_flight)
        self.placed(choice)
        return choice

    def placed(self, choice: Choice) -> None:
        """A request went to a replica: note it. For choices of other workers; `choose` does it for its own."""
        mirror = self._mirrors.get(choice.replica)
        if mirror is None:
            return
        mirror.use(choice.blocks)
        self._load.given(choice.replica, choice.work, choice.at_s)
        self._work += (choice.work - self._work) / _REMEMBERED
        self._work_squared += (choice.work**2 - self._work_squared) / _REMEMBERED

    def done(self, choice: Choice, output_tokens: int | None = None) -> None:
        """The request has ended; with so many tokens of output, if that is known."""
        self._load.finished(choice.replica, choice.work, choice.at_s)
        if output_tokens is not None:
            self._output_tokens += (output_tokens - self._output_tokens) / _REMEMBERED

    def heard(self, choice: Choice, cached_blocks: int) -> None:
        """The engine reports how many of the prompt's blocks it had: what is believed of its cache is corrected."""
        mirror = self._mirrors.get(choice.replica)
        if mirror is not None:
            mirror.heard(choice.expected_cached_blocks, cached_blocks, choice.age_blocks)

    def _known(self, replica: str) -> str:
        if replica not in self._mirrors:
            raise BadRequest(
                f"no replica {replica!r}; there are: {', '.join(self._mirrors) or 'none'}", param="replicas"
            )
        return replica

    def _decide(
        self, blocks: tuple[int, ...], tokens: int, now: float, in_flight: Mapping[str, float] | None
    ) -> Choice:
        if not self._mirrors:
            raise BadRequest("there is no replica to choose; add one", param="replicas")
        load = self._load.at(now, in_flight)
        a_block = tokens / len(blocks) if blocks else 0.0
        total, count = sum(load.values()), len(load)
        # A token finds itself in a request of this size, on average: the one request more.
        slack = self._work_squared / self._work if self._work else 0.0
        cached = {replica: mirror.match(blocks) for replica, mirror in self._mirrors.items()}

        def cost(replica: str) -> tuple[float, float]:
            prefill = tokens - cached[replica] * a_block
            work = prefill + self._output_tokens
            over = load[replica] + work - _OVER_MEAN * (total + work) / count - slack
            return prefill + _PRICE * max(0.0, over), load[replica]

        replica = min(self._mirrors, key=cost)
        most, expected = max(cached.values()), cached[replica]
        return Choice(
            replica=replica,
            expected_cached_blocks=expected,
            reason="new" if not most else "prefix" if expected == most else "load",
            blocks=blocks,
            work=tokens - expected * a_block + self._output_tokens,
            at_s=now,
            most_cached_blocks=most,
            age_blocks=self._mirrors[replica].age(blocks, expected),
        )
