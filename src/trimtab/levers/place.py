"""Sends a request to the replica of its model that holds the prompt's beginning, unless its load makes that dearer.

Replicas are engines that serve the same model: `replicas` of `[models.NAME]`. Which of them holds what is believed from
what was sent there (by this worker and, told through `tell`, by the others), and corrected by the cached tokens that
engines report. Answers do not depend on it, so no verdict is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import structs

from trimtab.placement import Choice, Placer, prefix_blocks
from trimtab.ports import Clock
from trimtab.protocols.reuse import is_chat
from trimtab.types import Attempt, Continue, Decision, Outcome, Plan, Purpose, Request, Slot

CHANGES_ANSWERS: Final = False
NEEDS_REPLICAS: Final = True  # without any, the lever does nothing
_NAME: Final = "place"
_VERSION: Final = "1"
_BYTES_PER_TOKEN: Final = 4
_PROMPT_FIELDS: Final = ("tools", "functions", "system", "messages")  # in the order in which engines read them

Blocks = Annotated[int, msgspec.Meta(ge=1, le=1 << 24, description="a whole number of blocks of 1 KB, 1 or more")]


class Config(msgspec.Struct, frozen=True):
    """Settings of the whole gateway."""

    cache_blocks: Blocks = 10_000  # that a replica's cache holds, a kilobyte of prompt each; corrected by its reports


PER_ROUTE: Final = ()


class Told(msgspec.Struct, frozen=True):
    """What workers tell each other: a request went to a replica of this model, or (`done`) has ended."""

    model: str
    choice: Choice
    done: bool = False


def build(
    config: Config, replicas: Mapping[str, tuple[str, ...]], clock: Clock, tell: Callable[[bytes], None]
) -> Place:
    """The lever. `replicas` are the engines of each model that has several; `tell` sends to the other workers."""
    return Place(config, replicas, clock, tell)


class Place:
    """The lever in slot PLACE."""

    name = _NAME
    version = _VERSION
    slot = Slot.PLACE
    fails_open = True
    changes_answers = CHANGES_ANSWERS

    def __init__(
        self, config: Config, replicas: Mapping[str, tuple[str, ...]], clock: Clock, tell: Callable[[bytes], None]
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._placers = {model: Placer(names, config.cache_blocks) for model, names in replicas.items()}

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Choose the replica; `score` is the share of the prompt that it is believed to hold."""
        if not plan.attempts or not is_chat(request.path):
            return _decided("nothing to place")
        model, fields = plan.attempts[0].target.model, request.fields
        placer = self._placers.get(model)
        if placer is None:
            return _decided("one replica")
        parts = [model.encode(), *(bytes(fields[name]) for name in _PROMPT_FIELDS if name in fields)]
        blocks = prefix_blocks(parts)
        choice = placer.choose(blocks, max(1, request.body_bytes // _BYTES_PER_TOKEN), self._clock.mono())
        self._say(Told(model, choice))
        held = choice.expected_cached_blocks / len(blocks) if blocks else 0.0
        return Decision(
            _NAME,
            _VERSION,
            Slot.PLACE,
            Continue(request, _placed(plan, choice.replica, placer.replicas)),
            f"{choice.replica}: {_WORDS[choice.reason]}",
            score=held,
            wants_record=True,
            memo=Told(model, choice, done=True),
        )

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Take the engine's word for what it had cached."""
        told = decision.memo
        if not isinstance(told, Told):
            return
        choice, placer = told.choice, self._placers[told.model]
        served = outcome.record.attempts[-1] if outcome.record.attempts else None
        usage = None if served is None or served.engine != choice.replica or served.end != "ok" else served.usage
        placer.done(choice, None if usage is None else usage.output_total)
        self._say(told)
        if usage is not None and usage.input_total and choice.blocks:
            placer.heard(choice, round(usage.cache_read / usage.input_total * len(choice.blocks)))

    def hear(self, message: bytes) -> None:
        """Take what another worker tells. Raises msgspec.MsgspecError for what is none of ours."""
        told = _DECODE(message)
        placer = self._placers.get(told.model)
        if placer is not None:
            (placer.done if told.done else placer.placed)(told.choice)

    def _say(self, told: Told) -> None:
        self._tell(_ENCODE(told))


_WORDS: Final = {"prefix": "holds the prefix", "load": "has less to do", "new": "a new prefix"}
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Told).decode


def _placed(plan: Plan, replica: str, names: tuple[str, ...]) -> Plan:
    """The plan with the model's first attempt at this replica; its retries go to the others in turn."""
    first = plan.attempts[0]
    others = [name for name in names if name != replica] or [replica]
    found: list[Attempt] = []
    turn = 0
    for attempt in plan.attempts:
        if attempt.target != first.target:
            found.append(attempt)
        elif attempt.purpose is Purpose.RETRY:
            engine = others[turn % len(others)]
            turn += 1
            found.append(structs.replace(attempt, target=structs.replace(attempt.target, engine=engine)))
        else:
            found.append(structs.replace(attempt, target=structs.replace(attempt.target, engine=replica)))
    return structs.replace(plan, attempts=tuple(found))


def _decided(reason: str) -> Decision:
    return Decision(_NAME, _VERSION, Slot.PLACE, None, reason)
