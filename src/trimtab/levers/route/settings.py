"""The settings of routing, and what the lever asks about the gateway it works in."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from trimtab.levers.route.checks import Check
from trimtab.ports import AskWithin, Clock, Gains, Threads
from trimtab.protocols.reuse import Whole
from trimtab.routing.dial import Dial
from trimtab.routing.router import Head
from trimtab.types import Dialect, Record, Scope, Target, Usage

DEFAULT_ROUTER: Final = "default"
CLASSIFIER: Final = "classifier"
TAKEN_OUTPUT: Final = 300  # tokens that an answer is taken to have, where a price is predicted

Share = Annotated[float, msgspec.Meta(ge=0, le=1, description="a share from 0 to 1")]
Floor = Annotated[float, msgspec.Meta(gt=0, le=1, description="a share above 0, up to 1")]
Dollars = Annotated[float, msgspec.Meta(gt=0, description="a number of US dollars above 0")]
Seconds = Annotated[float, msgspec.Meta(ge=0, description="a number of seconds, 0 or more")]
Milliseconds = Annotated[float, msgspec.Meta(ge=1, le=60_000, description="a number of milliseconds from 1 to 60000")]
Samples = Annotated[int, msgspec.Meta(ge=0, le=8, description="a whole number from 0 to 8")]
LogProb = Annotated[float, msgspec.Meta(le=0, description="a log probability, 0 or less")]


class Config(msgspec.Struct, frozen=True):
    """Settings; all may differ by route. Of the three budgets one at most is set; without, the router's own setting."""

    mode: Literal["off", "shadow", "on"] = "off"  # "shadow" only says what it would do
    weak: str = ""  # the cheap model, a name of `[models]`
    strong: str = ""  # requests for another model are left alone; "": all are routed
    predictor: str = DEFAULT_ROUTER  # or "classifier", or the file of `trimtab route train`
    classifier_model: str = ""  # grades requests from 1 to 5
    classifier_timeout_ms: Milliseconds = 2000.0
    strong_share: Share | None = None  # budget: of requests that the strong model serves
    max_usd_per_request: Dollars | None = None  # budget: mean cost
    quality_floor: Floor | None = None  # budget: mean expected score, of the strong model's
    cascade: bool | None = None  # read the weak answer before it goes out; None: as the router was trained
    checks: tuple[Check, ...] = ("format", "length", "refusal")  # a cascade's, before any model's opinion
    second: str = ""  # a second cheap model, asked at once: agreement
    samples: Samples = 0  # further answers of the weak model, asked at once: self-consistency
    min_logprob: LogProb | None = None  # of an answer's tokens on average, where the engine gives it
    verifier_model: str = ""  # is asked whether an answer is right
    hold_streams: bool = True  # a cascade keeps a stream back until it is accepted; else it goes to the strong model
    tools: Literal["strong", "route"] = "strong"  # requests that offer tools
    sticky: Literal["session", "turn"] = "session"  # "turn": a new user turn may change the model, if that pays
    cache_life_s: Seconds = 300.0  # how long a provider is taken to keep a prompt's beginning
    timeout_ms: Milliseconds = 50.0  # how long a request waits for a score
    gate: Literal["required", "advisory"] = "required"
    verdict: str = ""  # the file that `trimtab gate` wrote


def cascades(settings: Config, head: Head | None) -> bool:
    """Whether the weak model's answer is read before it goes out."""
    if settings.cascade is not None:
        return settings.cascade
    return head is not None and head.kind == "cascade"


def budgets(settings: Config) -> list[str]:
    """The names of the budgets that are set."""
    names = ("strong_share", "max_usd_per_request", "quality_floor")
    return [name for name in names if getattr(settings, name) is not None]


def router_file(settings: Config) -> str:
    """The router's file as it is named; "" for the router that comes with Trimtab, and for a classifier."""
    return "" if settings.predictor in (DEFAULT_ROUTER, CLASSIFIER) else settings.predictor


class Facts(NamedTuple):
    """What the lever asks about the gateway."""

    settings: Callable[[str], Config]
    table: Callable[[str], str]  # the table that a route's settings are in
    target: Callable[[str, Dialect], Target]
    head: Callable[[Config], tuple[Head, str] | None]  # of the settings' router, and its hash; None for a classifier
    path: Callable[[Config], str]  # of the router's file
    whole: Whole
    no_verdict: Callable[[Scope, str], str]
    off: Callable[[str], str]  # why the lever is switched off on a route, "" if it is not
    cost: Callable[[Target, Usage], int | None]  # nano-USD
    spent: Callable[[Record], int | None]  # nano-USD, all attempts of a request


class Means(NamedTuple):
    """What the lever works with."""

    gains: Gains
    threads: Threads
    ask: AskWithin
    clock: Clock
    dials: MutableMapping[str, Dial]  # by table; they outlive a reload
    served: Callable[[str, str], None]  # told of a table, and who served: weak, strong, escalated
