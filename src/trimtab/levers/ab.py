"""Sends a fixed share of the users of a route to another model, so that the two can be compared.

Who is in which arm is a hash of the unit (the user, else the session, else the request), salted with tenant, route and
candidate: the same one everywhere and always, and unrelated to any other experiment. It decides in the first slot, so
that all that follows (the caches' keys, coalescing) knows the arm's model: no answer of one arm can reach the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import structs

from trimtab.types import Continue, Decision, Dialect, Outcome, Plan, Request, Scope, Slot, Target

CHANGES_ANSWERS: Final = True
JUDGED: Final = ("model",)
"""What a verdict of the gate is of: who gets the candidate changes nothing about its answers."""
_NAME: Final = "ab"
_VERSION: Final = "1"
_ENCODE: Final = msgspec.msgpack.Encoder().encode

Unit = Literal["user", "session", "request"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1, description="a share from 0 to 1")]


class Config(msgspec.Struct, frozen=True):
    """Settings; all may differ by route."""

    model: str = ""  # the candidate, a name of `[models]`; "" for no experiment
    share: Share = 0.1  # of the units that get it: arm B
    by: Unit = "user"  # whose arm never changes; a request without a user goes by session, else for itself
    gate: Literal["required", "advisory"] = "required"  # whether anybody gets the candidate without a verdict
    verdict: str = ""  # the file that `trimtab gate` wrote


def in_use(settings: Config) -> bool:
    """Whether the lever may do anything under these settings."""
    return bool(settings.model)


def build(
    settings: Callable[[str], Config],
    target: Callable[[str, Dialect], Target],
    no_verdict: Callable[[Scope, str], str],
) -> SplitTraffic:
    """The lever. `settings` gives a route's; `target` finds a model for a client's dialect, or raises ModelNotFound;
    `no_verdict` says why no verdict of the gate covers a request for a model, "" where one does.
    """
    return SplitTraffic(settings, target, no_verdict)


class SplitTraffic:
    """The lever in slot ADMIT."""

    name = _NAME
    version = _VERSION
    slot = Slot.ADMIT
    fails_open = True
    changes_answers = CHANGES_ANSWERS

    def __init__(
        self,
        settings: Callable[[str], Config],
        target: Callable[[str, Dialect], Target],
        no_verdict: Callable[[Scope, str], str],
    ) -> None:
        self._settings = settings
        self._target = target
        self._no_verdict = no_verdict

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Put the request into an arm; `score` is where its unit stands from 0 to 1, and below `threshold` is arm B."""
        config = self._settings(request.scope.route)
        if not config.model:
            return _decided("off for this route")
        if not plan.attempts:
            return _decided("no target")
        if plan.pinned:
            return _decided(f"the model is pinned by the rule {plan.pinned}")
        target = self._target(config.model, request.dialect)
        first = plan.attempts[0].target
        if first == target:
            return _decided("asked for the candidate itself")
        kind, unit = unit_of(request, config.by)
        stands_at = position(request.scope, config.model, kind, unit)
        in_a = stands_at >= config.share
        arm = f"arm A {first.model} against {target.model}" if in_a else f"arm B {target.model} against {first.model}"
        held = self._no_verdict(request.scope, first.model)
        if held and config.gate == "required":
            return _decided(f"shadow ({held}), would be {arm}, by {kind}")  # without a place: nobody is in the test
        said = f"{arm}, by {kind}{', gate advisory' * bool(held)}"
        step = None if in_a else Continue(request, _sent_to(target, plan))
        return _decided(said, step, stands_at, config.share)

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Nothing to learn."""


def unit_of(request: Request, by: Unit) -> tuple[Unit, str]:
    """What stays in one arm: its kind and its id."""
    scope = request.scope
    if by == "user" and scope.user:
        return "user", scope.user
    if by != "request" and scope.session:
        return "session", scope.session
    return "request", request.id


def position(scope: Scope, model: str, kind: Unit, unit: str) -> float:
    """Where a unit stands in the experiment, from 0 up to 1, evenly spread; two units hardly ever at the same place."""
    salted = _ENCODE((scope.tenant, scope.route, model, kind, unit))
    return (int.from_bytes(hashlib.blake2b(salted, digest_size=8).digest()) >> 11) / 2**53


def _sent_to(target: Target, plan: Plan) -> Plan:
    """The plan with the candidate in place of its first target; the fallbacks stay."""
    first = plan.attempts[0].target
    attempts = [structs.replace(one, target=target) if one.target == first else one for one in plan.attempts]
    return structs.replace(plan, attempts=tuple(attempts))


def _decided(
    reason: str, step: Continue | None = None, score: float | None = None, threshold: float | None = None
) -> Decision:
    return Decision(_NAME, _VERSION, Slot.ADMIT, step, reason, score, threshold)
