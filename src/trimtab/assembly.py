"""Levers, and what watches them, from a configuration: who knows what of whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from trimtab import config as configuration
from trimtab.admission import Gate, GateTerms
from trimtab.config import AdmissionConfig, Config
from trimtab.levers import ab, exact_cache, place, policy, route, semantic_cache
from trimtab.pipeline import Pipeline
from trimtab.ports import AskAside, AskJudge, Lever
from trimtab.prices import Prices
from trimtab.protocols import CODECS, answer_text, aside
from trimtab.routing import router as routers
from trimtab.routing.router import Head
from trimtab.shadow import Calls, Terms, Watch
from trimtab.types import Dialect, Plan, Purpose, Record, Reply, Request, Scope, Target, Usage
from trimtab.wire.gateway import Shared
from trimtab.wire.metrics import Metrics
from trimtab.wire.targets import Targets

QuickCost = Callable[[str, str, str, Usage, float], int | None]
"""Engine, provider, upstream model, tokens, machine seconds to nano-USD; None while the price is being looked up."""


_CHANGES_ANSWERS: Final = ("quantization", "kv_cache_type", "extra")  # of engines that Trimtab starts


def quick_cost(prices: Prices, shared: Shared) -> QuickCost:
    """What calls cost, without ever waiting for the library of prices."""
    asked: set[tuple[str, str]] = set()

    def cost(engine: str, provider: str, model: str, usage: Usage, machine_s: float) -> int | None:
        money = prices.quick(provider, model, usage, shared.clock.wall(), engine=engine, machine_s=machine_s)
        if money is None and (provider, model) not in asked and len(asked) < 1000:
            asked.add((provider, model))  # the look-up takes a moment: this answer goes without, the next ones have it
            threading.Thread(target=prices.warm, args=([(provider, model)],), daemon=True, name="prices").start()
        return None if money is None else money.nusd

    return cost


def _paid(config: Config, pipeline: Pipeline, cost: QuickCost, shared: Shared) -> AskAside:
    """Calls that no client waits for, each counted in what the route spends on them."""

    async def ask(request: Request, plan: Plan, purpose: Purpose) -> Reply | None:
        reply = await pipeline.ask_aside(request, plan, purpose)
        if reply is not None:
            target = reply.target
            nusd = cost(target.engine, target.provider, target.upstream_model, reply.usage, reply.machine_s)
            shared.spending.add(config.table_of(request.scope.route), nusd or 0)
        return reply

    return ask


def _ask_judge(targets: Targets, ask: AskAside) -> AskJudge:
    async def judge(request: Request, model: str, question: str, fresh: str, other: str) -> bool | None:
        from trimtab.semantic import llm_judge  # numpy comes with it

        asked = aside.question(request, model, llm_judge.llm_request(question, fresh, "", other, model))
        reply = await ask(asked, targets.alone(model, Dialect.OPENAI), Purpose.JUDGE)
        text = None if reply is None else answer_text(reply.body, Dialect.OPENAI)
        return None if text is None else llm_judge.llm_verdict(text).same

    return judge


def _watch(config: Config, shared: Shared, ask: AskAside, judge: AskJudge) -> Watch:
    """What watches levers that change answers."""
    terms = {
        name: Terms(name, shadow.share, shadow.margin, shadow.budget_usd_per_day * 1e9 / workers, shadow.judge_model)
        for name, route in config.routes.items()
        if (shadow := route.shadow) is not None and shadow.share > 0 and (workers := config.server.workers)
    }

    async def compare(fresh: str, others: list[str], timeout_s: float) -> list[bool | None] | None:
        found: list[bool | None] | None = None
        if shared.similar is not None:
            found = await shared.similar.compare(fresh, others, timeout_s)
        return found

    return Watch(
        lambda route: terms.get(config.table_of(route)),
        lambda lever, route: shared.switches.why(lever, config.table_of(route)),
        Calls(ask, compare, judge),
        shared.spending,
        shared.journal,
        lambda route, lever, result: shared.metrics.add(("trimtab_shadow_total", route, lever, result)),
    )


def levers(
    config: Config, targets: Targets, shared: Shared, pipeline: Pipeline, cost: QuickCost
) -> tuple[list[Lever], Watch]:
    """Those that the configuration uses, in slot order, and what watches what they do to quality."""
    ask = _paid(config, pipeline, cost, shared)
    judge = _ask_judge(targets, ask)
    watch = _watch(config, shared, ask, judge)
    router = _router(config, targets, shared, pipeline, cost)
    behind = {name: _identity(config, name) for name in config.engines}

    def identity(engine: str, route: str) -> str:
        return behind[engine] + (router.identity(route) if router is not None else "")

    found: list[Lever] = [
        exact_cache.build(settings_of_lever(config, "exact_cache"), shared.store, shared.clock, _whole, identity)
    ]
    if configuration.is_used(config, "policy"):
        found.append(policy.build(settings_of_lever(config, "policy"), targets.target))
    if router is not None:
        found.append(router)
    if configuration.is_used(config, "ab"):
        found.append(ab.build(settings_of_lever(config, "ab"), targets.target, _no_verdict(config, "ab")))
    if shared.neighbours is not None and configuration.replicas(config):
        placing = place.build(
            config.levers["place"], configuration.replicas(config), shared.clock, shared.neighbours.tell
        )
        shared.neighbours.hear = placing.hear
        found.append(placing)
    if shared.similar is not None and configuration.is_used(config, "semantic_cache"):
        from trimtab.redact import identity_in

        facts = semantic_cache.Facts(_whole, identity, identity_in, _no_verdict(config, "semantic_cache"))
        calls = semantic_cache.Calls(ask, judge, watch.audited)
        found.append(
            semantic_cache.build(
                settings_of_lever(config, "semantic_cache"), shared.similar, shared.clock, facts, calls
            )
        )
    return sorted(found, key=lambda lever: lever.slot), watch


def gates(config: Config, shared: Shared) -> dict[str, Gate]:
    """The queues in front of engines. Those that a reload keeps go on with who runs and who waits."""
    metrics, kept = shared.metrics, {}
    for name, engine in config.engines.items():
        terms = _gate_terms(engine.admission, config.server.workers)
        if terms is None:
            continue
        gate = shared.gates.get(name)
        if gate is None:
            refused = partial(_refused, metrics, name)
            gate = Gate(name, terms, shared.clock, refused)
        else:
            gate.use(terms)
        kept[name] = gate
    for name in shared.gates.keys() - kept.keys():
        for figure in ("waiting", "running", "limit"):
            metrics.set(f"trimtab_queue_{figure}", 0, name)
    shared.gates.clear()
    shared.gates.update(kept)
    return kept


def _gate_terms(admission: AdmissionConfig, workers: int) -> GateTerms | None:
    """What holds for one worker; None without a queue."""
    most = admission.max_concurrency
    if not most:
        return None
    return GateTerms(
        most=None if most == "auto" else -(-most // workers),
        target_s=admission.target_ttft_ms / 1000,
        max_wait_s=admission.max_wait_s,
        batch_share=admission.batch_share,
        weights=admission.weights,
    )


def _refused(metrics: Metrics, engine: str, reason: str) -> None:
    metrics.add(("trimtab_queue_refused_total", engine, reason))


def settings_of_lever(config: Config, lever: str) -> Callable[[str], Any]:
    """A lever's settings by route."""
    return lambda route: config.lever_settings(lever, route)


def _router(
    config: Config, targets: Targets, shared: Shared, pipeline: Pipeline, cost: QuickCost
) -> route.RouteByGain | None:
    """What routes requests, where any are routed. Raises ConfigError for a router's file that cannot be read."""
    if shared.similar is None or shared.threads is None or not configuration.is_used(config, "route"):
        return None
    facts = routing_facts(config, targets, cost, lambda table: shared.switches.why("route", table))
    means = route.Means(
        shared.similar,
        shared.threads,
        pipeline.ask_within,
        shared.clock,
        shared.dials,
        lambda table, served: shared.metrics.add(("trimtab_routed_total", table, served)),
    )
    return route.build(facts, means)


def routing_facts(config: Config, targets: Targets, cost: QuickCost, off: Callable[[str], str]) -> route.Facts:
    """What routing asks about the gateway; `off` says why it is switched off on a table of settings."""
    heads: dict[str, tuple[Head, str]] = {}

    def own_router(settings: route.Config) -> Path | None:
        return Path(path(settings)) if route.router_file(settings) else None

    def path(settings: route.Config) -> str:
        return str(configuration.router_path(config, settings))

    def head(settings: route.Config) -> tuple[Head, str] | None:
        if settings.predictor == route.CLASSIFIER:
            return None
        if settings.predictor not in heads:
            read, name = routers.read(Path(path(settings)))
            heads[settings.predictor] = read.head, name
        return heads[settings.predictor]

    for settings in configuration.settings_of(config, "route"):
        if route.in_use(settings):
            head(settings)

    def price(target: Target, usage: Usage) -> int | None:
        return cost(target.engine, target.provider, target.upstream_model, usage, 0.0)

    def spent(record: Record) -> int | None:
        costs = [cost(one.engine, one.provider, one.model, one.usage, one.machine_s) for one in record.attempts]
        return None if None in costs else sum(one for one in costs if one is not None)

    return route.Facts(
        settings_of_lever(config, "route"),
        config.table_of,
        targets.target,
        head,
        path,
        _whole,
        _no_verdict(config, "route", own_router),
        lambda name: off(config.table_of(name)),
        price,
        spent,
    )


def _no_verdict(
    config: Config, lever: str, made_of: Callable[[Any], Path | None] = lambda _: None
) -> Callable[[Scope, str], str]:
    """Why no verdict covers a request for a model; see `evals.gates.Verdicts`."""
    from trimtab.evals.gates import Verdicts

    return Verdicts(config, lever, made_of).why_not


def _whole(dialect: Dialect, finish: str, fields: dict[str, msgspec.Raw]) -> bool:
    return CODECS[dialect].finish_is_whole(finish, fields)


def _identity(config: Config, engine: str) -> str:
    """What is behind an engine's name, for cache keys: where it is, and what else may change its answers.

    Of a model's file, or the files of its folder, that is their size and age too: they may be replaced.
    """
    settings = config.engines[engine].settings
    where: str = getattr(settings, "base_url", "") or getattr(settings, "model", "")
    parts = [where]
    path = Path(where)
    if where.endswith(".gguf") and path.is_file():
        files = [path]
    else:
        files = [file for file in path.iterdir() if file.is_file()] if path.is_absolute() and path.is_dir() else []
    if files:
        found = [file.stat() for file in files]
        parts += [str(sum(one.st_size for one in found)), str(max(one.st_mtime_ns for one in found))]
    parts += [str(getattr(settings, name)) for name in _CHANGES_ANSWERS if hasattr(settings, name)]
    return " ".join(parts)
