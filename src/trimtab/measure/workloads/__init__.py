"""What `trimtab bench levers` asks: requests made of real data, the same ones for the same seed.

Each module has one workload, made by its `workload(seed, count)`. `data/SOURCES.md` names authors and licences.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.measure.demo import gaps_s
from trimtab.measure.load import Call


class Asked(msgspec.Struct, frozen=True):
    """One request: the fields of a chat completion but for its model and how it is streamed.

    Requests of one `label` have the same right answer ("" is shared with nobody). Requests of one `session` are sent
    one after the other.
    """

    fields: dict[str, Any]
    label: str = ""
    session: str = ""


class Workload(msgspec.Struct, frozen=True):
    """Requests and the pattern of their arrivals; `gaps` lie between them, 1 on average."""

    name: str
    about: str  # what of it is real and what is assumed, in a sentence or two
    asked: tuple[Asked, ...]
    gaps: tuple[float, ...]
    warm: tuple[dict[str, Any], ...] = ()  # asked once by whoever warms a prefix cache: what requests begin with
    one_prefix: bool = False  # all requests have their long beginning in common

    @property
    def groups(self) -> tuple[int, ...]:
        """By request: a number that requests share if they are the same to the byte."""
        numbers: dict[bytes, int] = {}
        return tuple(numbers.setdefault(msgspec.json.encode(one.fields), len(numbers)) for one in self.asked)

    def calls(self, model: str, rate_per_s: float) -> tuple[Call, ...]:
        """The requests with their times, at that rate on average. A call's `group` is its place in `asked`."""
        at_s, calls = 0.0, []
        for number, (one, gap) in enumerate(zip(self.asked, (0.0, *self.gaps), strict=True)):
            at_s += gap / rate_per_s
            calls.append(Call(at_s, number, body(model, one.fields), one.session))
        return tuple(calls)


def body(model: str, fields: dict[str, Any]) -> bytes:
    """A streamed, greedy request that reports its usage."""
    streamed = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode({"model": model, **streamed, **fields})


def gaps(seed: int, count: int) -> tuple[float, ...]:
    """`count` gaps of a real service in their order, begun somewhere, scaled to 1 on average."""
    real = gaps_s()
    first = random.Random(f"gaps/{seed}").randrange(len(real))
    chosen = [real[(first + n) % len(real)] for n in range(count)]
    return scaled(chosen)


def scaled(chosen: Sequence[float]) -> tuple[float, ...]:
    """The same gaps, 1 on average."""
    total = sum(chosen)
    return tuple(gap * len(chosen) / total for gap in chosen)


def named(name: str, seed: int, count: int | None) -> Workload:
    """The workload of that name, of its own usual size without a `count`."""
    from trimtab.measure.workloads import agent, chat, rag, support

    makers = {
        "support": (support.workload, support.COUNT),
        "rag": (rag.workload, rag.COUNT),
        "agent": (agent.workload, agent.COUNT),
        "chat": (chat.workload, chat.COUNT),
    }
    make, usual = makers[name]
    return make(seed, usual if count is None else count)
