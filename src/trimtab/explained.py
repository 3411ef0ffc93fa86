"""What the levers that choose models would do with a prompt, without a gateway and without calling any model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trimtab import config as configuration
from trimtab.app import SystemClock, engines_of
from trimtab.assembly import routing_facts, settings_of_lever
from trimtab.config import Config
from trimtab.errors import BadRequest
from trimtab.levers import policy, route
from trimtab.ports import Answered, Thread
from trimtab.prices import Prices
from trimtab.types import Aside, Continue, Dialect, Refuse, Reply, Request, Scope, Usage
from trimtab.wheels import cache_dir, shown_on_stderr
from trimtab.wire.targets import Targets


class Asking(msgspec.Struct, frozen=True):
    """A conversation that begins with a prompt; `model` is what the client asks for, "" for the route's own."""

    prompt: str
    route: str
    model: str
    tenant: str


class Said(msgspec.Struct, frozen=True):
    """One lever's decision, in words."""

    lever: str
    reason: str


class Explained(msgspec.Struct, frozen=True):
    """`served` is the model that would be asked, first where its answer would be read; "" for a refusal."""

    asked: str
    served: str
    decisions: tuple[Said, ...]
    gain: float | None = None
    threshold: float | None = None
    saving_usd: float | None = None
    router: str = ""


async def explained(config: Config, asking: Asking, now: float, env: Mapping[str, str]) -> Explained:
    """Ask rules and router about a prompt. Raises BadRequest, ModelNotFound."""
    settings = config.lever_settings("route", asking.route)
    asked = asking.model or config.route(asking.route).model or settings.strong
    if not asked:
        raise BadRequest("which model does the client ask for? Name it with --model", param="model")
    targets = Targets(config, engines_of(config, {}, env))
    fields = {"model": asked, "messages": [{"role": "user", "content": asking.prompt}]}
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    request = Request(
        "explain", Dialect.OPENAI, "/v1/chat/completions", Scope(asking.tenant, asking.route), asked, raw, False, False,
        len(msgspec.json.encode(fields)), now, 0.0,
    )  # fmt: skip
    plan = targets.plan(asking.route, asked, Dialect.OPENAI)
    ruled = await policy.build(settings_of_lever(config, "policy"), targets.target).decide(request, plan)
    if isinstance(ruled.step, Refuse):
        return Explained(asked, "", (Said("policy", ruled.reason),))
    if isinstance(ruled.step, Continue):
        plan = ruled.step.plan
    routed = await _lever(config, targets, now).decide(request, plan)
    if isinstance(routed.step, Continue):
        plan = routed.step.plan
    saving = routed.saving_nusd
    return Explained(
        asked,
        plan.attempts[0].target.model,
        (Said("policy", ruled.reason), Said("route", routed.reason)),
        routed.score,
        routed.threshold,
        None if saving is None else saving / 1e9,
        _router_words(config, settings),
    )


def _lever(config: Config, targets: Targets, now: float) -> route.RouteByGain:
    prices = Prices.of_tables(config.prices, config.models)

    def cost(engine: str, provider: str, model: str, usage: Usage, machine_s: float) -> int | None:
        return prices.price(provider, model, usage, now, engine=engine, machine_s=machine_s).nusd

    facts = routing_facts(config, targets, cost, lambda table: "")
    return route.build(facts, route.Means(_Here(), _Nothing(), _nobody, SystemClock(), {}, lambda *_: None))


def _router_words(config: Config, settings: route.Config) -> str:
    if settings.mode == "off" or settings.predictor == route.CLASSIFIER:
        return ""
    from trimtab.routing import router

    read, name = router.read(configuration.router_path(config, settings))
    return f"{name}, learned from {read.head.rows:,} prompts: {read.head.trained_on}"


class _Here:
    """Scores in this process; see `ports.Gains`."""

    async def gain(self, router: str, prompt: str, timeout_s: float) -> tuple[float, bool] | None:
        import os

        from trimtab.semantic.embed import load_fast
        from trimtab.similar.messages import Gain
        from trimtab.similar.routers import Routers

        embedder = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder"))
        found = Routers(embedder).answer(Gain(0, router, prompt))
        return found.gain, found.far

    async def gain_after(self, router: str, answered: Answered, timeout_s: float) -> float | None:
        return None


class _Nothing:
    """Remembers no conversation."""

    def find(self, key: bytes) -> Thread | None:
        return None

    def keep(self, key: bytes, thread: Thread) -> None: ...


async def _nobody(request: Request, aside: Aside) -> Reply | None:
    return None
