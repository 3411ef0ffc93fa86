"""Rules of the owner about who may be served by which model; they come first, and no other lever overrules them.

A rule looks at what a request is (whose, for what, what it carries, what it says) and pins the model, keeps the one
that was asked, or refuses. It decides in the first slot, so the caches' keys name the model that the rule demands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec
from msgspec import structs

from trimtab.errors import Forbidden
from trimtab.protocols import conversation
from trimtab.protocols.conversation import Conversation
from trimtab.protocols.reuse import is_chat
from trimtab.types import Attempt, Continue, Decision, Dialect, Outcome, Plan, Refuse, Request, Slot, Target

CHANGES_ANSWERS: Final = False  # what the owner demands is no saving whose quality could be judged
_NAME: Final = "policy"
_VERSION: Final = "1"
_WINDOW_CHARS: Final = 20_000  # searched of a turn, half from either end

Kind = Literal["image", "audio", "video", "file"]
Task = Literal["code", "maths", "translation", "summary"]
Tokens = Annotated[int, msgspec.Meta(ge=0, description="a whole number of tokens, 0 or more")]

_TASKS: Final[dict[str, re.Pattern[str]]] = {
    "code": re.compile(
        r"```|\b(?:def|class) \w+[(:]|#include\b|\bSELECT\b.+\bFROM\b|\b(?:write|fix|debug|refactor|implement)\b"
        r".{0,40}\b(?:code|function|script|program|class|query|test|bug|regex)\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "maths": re.compile(
        r"\\(?:frac|int|sum|sqrt)\b|\b(?:solve|prove|integrate|differentiate|calculate|compute)\b.{0,80}[\d=^]|"
        r"\d\s*[-+*/^=]\s*\d",
        re.IGNORECASE | re.DOTALL,
    ),
    "translation": re.compile(r"\btranslat(?:e|ion)\b|\binto (?:english|german|french|spanish)\b", re.IGNORECASE),
    "summary": re.compile(r"\bsummar(?:y|i[sz]e)|\btl;?dr\b|\bin (?:one|two|three|a few) sentences?\b", re.IGNORECASE),
}


class Rule(msgspec.Struct, frozen=True):
    """What is done (one of the first three) with requests of which all that is named holds."""

    model: str = ""  # served by this model, and by no other
    keep: bool = False  # served by the model that was asked: no other lever may choose
    refuse: str = ""  # not served, with these words
    tenants: tuple[str, ...] = ()  # any of them; so with all lists
    users: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    workflows: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # that the client asked for
    tasks: tuple[Task, ...] = ()  # of the last user turn, as far as its words tell
    kinds: tuple[Kind, ...] = ()  # carried beside text
    words: tuple[str, ...] = ()  # in the last user turn, as whole words, in any case
    tools: bool | None = None  # offered
    json: bool | None = None  # demanded
    min_tokens: Tokens = 0  # about so many go in, or more
    max_tokens: Tokens | None = None


class Config(msgspec.Struct, frozen=True):
    """Settings; all may differ by route. The first rule in the file that fits a request decides."""

    rules: dict[str, Rule] = {}


def in_use(settings: Config) -> bool:
    """Whether the lever may do anything under these settings."""
    return bool(settings.rules)


def build(settings: Callable[[str], Config], target: Callable[[str, Dialect], Target]) -> Policy:
    """The lever. `settings` gives a route's; `target` finds a model for a client's dialect, or raises ModelNotFound."""
    return Policy(settings, target)


class Policy:
    """The lever in slot ADMIT."""

    name = _NAME
    version = _VERSION
    slot = Slot.ADMIT
    fails_open = False  # a rule that cannot be applied is no leave to go on without it
    changes_answers = CHANGES_ANSWERS

    def __init__(self, settings: Callable[[str], Config], target: Callable[[str, Dialect], Target]) -> None:
        self._settings = settings
        self._target = target

    async def decide(self, request: Request, plan: Plan) -> Decision:
        """Do what the first rule that fits says."""
        rules = self._settings(request.scope.route).rules
        if not rules:
            return _decided("no rules")
        if not is_chat(request.path):
            return _decided("not a chat request")
        talk = conversation.read(request)
        if talk is None:
            return _decided("messages cannot be read")
        name = next((name for name, rule in rules.items() if fits(rule, request, talk)), "")
        if not name:
            return _decided("no rule fits")
        rule = rules[name]
        if rule.refuse:
            return _decided(f"rule {name} refuses", Refuse(Forbidden(f"{rule.refuse} (rule {name})", param="model")))
        if rule.keep:
            return _decided(f"rule {name} keeps the model", Continue(request, structs.replace(plan, pinned=name)))
        target = self._target(rule.model, request.dialect)
        return _decided(f"rule {name} sends it to {target.model}", Continue(request, _pinned(plan, target, name)))

    async def learn(self, outcome: Outcome, decision: Decision) -> None:
        """Nothing to learn."""


def fits(rule: Rule, request: Request, talk: Conversation) -> bool:
    """Whether all that a rule names holds for a request."""
    scope = request.scope
    return (
        _among(scope.tenant, rule.tenants)
        and _among(scope.user, rule.users)
        and _among(scope.permission, rule.permissions)
        and _among(scope.workflow, rule.workflows)
        and _among(request.model, rule.models)
        and (not rule.kinds or not talk.kinds.isdisjoint(rule.kinds))
        and rule.tools in (None, talk.tools)
        and rule.json in (None, talk.json)
        and rule.min_tokens <= talk.tokens
        and (rule.max_tokens is None or talk.tokens <= rule.max_tokens)
        and (not rule.words or _words(rule.words).search(_searched(talk)) is not None)
        and (not rule.tasks or any(_TASKS[task].search(_searched(talk)) for task in rule.tasks))
    )


def _among(value: str, allowed: tuple[str, ...]) -> bool:
    return not allowed or value in allowed


def _searched(talk: Conversation) -> str:
    """The last user turn, in a tool loop the one that began it; of a long one the two ends."""
    text = talk.text or (talk.earlier[0] if talk.earlier else "")
    if len(text) <= _WINDOW_CHARS:
        return text
    return f"{text[: _WINDOW_CHARS // 2]}\n{text[-_WINDOW_CHARS // 2 :]}"


@lru_cache(maxsize=256)
def _words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)


def _pinned(plan: Plan, target: Target, rule: str) -> Plan:
    """The plan with this target alone: its first attempt and its retries."""
    first = plan.attempts[0].target
    attempts: list[Attempt] = [structs.replace(one, target=target) for one in plan.attempts if one.target == first]
    return structs.replace(plan, attempts=tuple(attempts), pinned=rule)


def _decided(reason: str, step: Continue | Refuse | None = None) -> Decision:
    return Decision(_NAME, _VERSION, Slot.ADMIT, step, reason)
