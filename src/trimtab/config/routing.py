"""What the levers that choose models refer to: models, routers' files, prices, budgets that can be kept."""

from __future__ import annotations

import time
from pathlib import Path as FilePath
from typing import Any, Final

from trimtab.config.problems import Path, Problems, choices, shown
from trimtab.config.schema import Config, settings_by_path
from trimtab.errors import ConfigError
from trimtab.routing import router
from trimtab.types import Usage

_TYPICAL_INPUT: Final = 1000  # tokens


def router_path(config: Config, settings: Any) -> FilePath:
    """The router's file that settings of the lever `route` name."""
    from trimtab.levers.route import router_file

    if not (name := router_file(settings)):
        return router.DEFAULT
    return FilePath(config.source).parent / FilePath(name).expanduser()


def check_routing(config: Config, models: set[str], problems: Problems) -> None:
    """Report rules and routers that name what is not there, and budgets that nothing can keep."""
    for path, settings in settings_by_path(config, "policy"):
        for name, rule in settings.rules.items():
            _check_rule((*path, "rules", name), rule, config, models, problems)
    for path, settings in settings_by_path(config, "route"):
        if settings.mode != "off":
            _check_route(path, settings, config, models, problems)


def unknown_model(name: str, config: Config, models: set[str]) -> str:
    """Why no engine can serve a model by this name, "" if one can."""
    if name in models or config.open_engines():
        return ""
    return f'unknown model {shown(name)}; {choices(name, models)} (or add [models."{name}"])'


def _check_rule(path: Path, rule: Any, config: Config, models: set[str], problems: Problems) -> None:
    done = [name for name in ("model", "keep", "refuse") if getattr(rule, name)]
    if len(done) != 1:
        what = "says nothing to do" if not done else f"says {' and '.join(done)} at once"
        problems.add(path, f'{what}; give it one of model = "...", keep = true, refuse = "words"')
    if rule.model and (message := unknown_model(rule.model, config, models)):
        problems.add((*path, "model"), message)
    if rule.max_tokens is not None and rule.max_tokens < rule.min_tokens:
        problems.add((*path, "max_tokens"), f"{rule.max_tokens} is below min_tokens {rule.min_tokens}: nothing fits")


def _check_route(path: Path, settings: Any, config: Config, models: set[str], problems: Problems) -> None:
    from trimtab.levers.route.settings import CLASSIFIER, budgets

    before = len(problems)
    if not settings.weak:
        problems.add((*path, "weak"), 'is missing; name the cheap model, or set mode = "off"')
    for name in ("weak", "strong", "second", "classifier_model", "verifier_model"):
        model = getattr(settings, name)
        if model and (message := unknown_model(model, config, models)):
            problems.add((*path, name), message)
    if settings.weak and settings.weak in (settings.strong, settings.second):
        name = "strong" if settings.weak == settings.strong else "second"
        problems.add((*path, name), f"is the weak model itself, {shown(settings.weak)}; name another")
    if len(wanted := budgets(settings)) > 1:
        problems.add((*path, wanted[1]), f"only one budget can be kept; {wanted[0]} is set, too")
    if settings.predictor == CLASSIFIER:
        if not settings.classifier_model:
            problems.add((*path, "classifier_model"), "is missing; name the model that grades requests")
        if settings.quality_floor is not None:
            problems.add((*path, "quality_floor"), "grades are no scores; train a router, or set strong_share")
    else:
        _check_router(path, settings, config, problems)
    if settings.max_usd_per_request is not None and len(problems) == before:
        _check_prices(path, settings, config, problems)


def _check_router(path: Path, settings: Any, config: Config, problems: Problems) -> None:
    from trimtab.levers.route.settings import budgets
    from trimtab.semantic.embed import require_packages

    try:
        require_packages()
        head = router.read(router_path(config, settings))[0].head
    except ConfigError as error:
        problems.add((*path, "predictor"), error.problems[0])
        return
    for name in ("weak", "strong", "second"):
        trained, own = getattr(head, name), getattr(settings, name)
        if trained and own and own != trained and _upstream(own, config) != trained:
            problems.add((*path, name), f"the router was trained for {shown(trained)}, not {shown(own)}")
    if settings.quality_floor is not None and settings.cascade and not head.after:
        problems.add((*path, "cascade"), "the router learned from no answers, so it cannot tell what one of them loses")
    if settings.cascade is False and head.kind == "cascade" and not budgets(settings):
        problems.add((*path, "cascade"), "the router's own setting is a cascade: leave it on, or set strong_share")
    if head.weak:
        return
    if settings.quality_floor is not None:
        message = (
            "the router that comes with Trimtab knows nothing of your models; train one with `trimtab route train`"
        )
        problems.add((*path, "quality_floor"), message)
    elif settings.strong_share is None and settings.max_usd_per_request is None:
        message = (
            "the router that comes with Trimtab only orders requests: set strong_share or max_usd_per_request, "
            "or train one for your models with `trimtab route train`"
        )
        problems.add((*path, "predictor"), message)


def _check_prices(path: Path, settings: Any, config: Config, problems: Problems) -> None:
    """A ceiling on cost takes prices of both models, and a cheap one that is below it."""
    key = (*path, "max_usd_per_request")
    if not settings.strong:
        problems.add((*path, "strong"), "is missing; a ceiling on cost takes the strong model's price")
        return
    from trimtab.levers.route.settings import TAKEN_OUTPUT
    from trimtab.prices import Prices

    prices, usd = Prices.of_tables(config.prices, config.models), {}
    typical = Usage(input=_TYPICAL_INPUT, output=TAKEN_OUTPUT)
    for name in ("weak", "strong"):
        model = getattr(settings, name)
        own = config.models.get(model)
        engine = own.engine if own is not None else ""
        kind = config.engines[engine].settings if engine in config.engines else None
        provider = str(getattr(kind, "provider", "") or "")
        upstream = own.name if own is not None else model
        nusd = prices.price(provider, upstream, typical, time.time(), engine=engine, machine_s=None).nusd
        if nusd is None:
            problems.add(key, f'no price is known for {shown(model)}; add price = {{ ... }} to [models."{model}"]')
            return
        usd[name] = nusd / 1e9
    if not usd["weak"] < usd["strong"]:
        problems.add(key, f"{shown(settings.weak)} is not cheaper than {shown(settings.strong)}: nothing can be saved")


def _upstream(model: str, config: Config) -> str:
    own = config.models.get(model)
    return own.name if own is not None else model
