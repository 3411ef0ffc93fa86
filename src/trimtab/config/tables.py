"""Reads each table of the file into its Structs; what one table alone can tell is checked here."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from trimtab.config.decode import decode, secret_message
from trimtab.config.problems import Path, Problems, choices, dotted, looks_secret, shown
from trimtab.config.registry import built_in, find, shared_settings
from trimtab.config.schema import (
    AdmissionConfig,
    Config,
    EngineConfig,
    KeyConfig,
    ModelConfig,
    PriceConfig,
    RouteConfig,
    Server,
    TelemetryConfig,
)
from trimtab.errors import ConfigError
from trimtab.types import Timeouts

Table = dict[str, Any]

TABLES = tuple(name for name in Config.__struct_fields__ if name != "source")

# Names end up in headers, file names, metrics and reports; a model's name is the provider's, so it may hold more.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._:/@+-]{0,199}")
NAME_RULE = "up to 64 letters, digits and ._-, the first a letter or a digit"
_MODEL_NAME_RULE = "up to 200 letters, digits and ._:/@+-, the first a letter, a digit or @"
_TIMEOUT_MAX_S = 86_400.0


def is_name(text: str) -> bool:
    """Whether engines, routes, keys and tenants may be called so."""
    return _NAME.fullmatch(text) is not None


def read_tables(document: Table, problems: Problems) -> Config:
    """All tables of a parsed file, wrong parts left out and reported. Side effect: imports the kinds that it names."""
    _find_secrets(document, (), problems)
    for key in document.keys() - set(TABLES):
        _report_top_level(key, problems)
    server = decode(Server, document.get("server", {}), ("server",), problems)
    levers = read_levers(document, problems)
    return Config(
        server=server or Server(),
        engines=read_engines(document, problems),
        models=read_models(document, problems),
        routes=read_routes(document, levers, problems),
        levers=levers,
        keys=read_keys(document, problems),
        prices=read_prices(document, problems),
        telemetry=decode(TelemetryConfig, document.get("telemetry", {}), ("telemetry",), problems) or TelemetryConfig(),
    )


def named(document: Table, group: str, problems: Problems, path: Path = ()) -> dict[str, Table]:
    """The tables of a group by name, such as `[engines.NAME]`; what is not a table is reported and left out."""
    tables = document.get(group, {})
    where = (*path, group)
    if not isinstance(tables, dict):
        problems.add(where, f"must hold tables by name; write [{dotted(where)}.NAME]")
        return {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            problems.add((*where, name), f"must be a table, not {shown(table)}; write [{dotted((*where, name))}]")
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def read_engines(document: Table, problems: Problems) -> dict[str, EngineConfig]:
    """`[engines.NAME]`; the module of the kind says which keys there are."""
    engines = {}
    for name, table in named(document, "engines", problems).items():
        path = ("engines", name)
        _check_name(path, problems)
        kind = table.get("kind")
        if (*path, "kind") in problems:
            continue
        if not isinstance(kind, str):
            wrong = "is missing" if kind is None else f"must be a text in quotes, not {shown(kind)}"
            problems.add((*path, "kind"), f'{wrong}; add kind = "openai_http" or another kind of engine')
            continue
        try:
            module = find("engines", kind)
        except ConfigError as error:
            problems.add((*path, "kind"), str(error))
            continue
        for key, message in _cannot(module, table).items():
            problems.add((*path, key), message)
        settings = decode(module.Config, table, path, problems, also=("kind", "admission"))
        if settings is not None:
            admission = read_admission(table, settings, (*path, "admission"), problems)
            engines[name] = EngineConfig(kind, settings, admission)
    return engines


def _cannot(module: Any, table: Table) -> dict[str, str]:
    """What the kind of engine refuses by name, if its module has anything to say."""
    found: dict[str, str] = getattr(module, "cannot", lambda table: {})(table)
    return found


def read_admission(engine: Table, settings: Any, path: Path, problems: Problems) -> AdmissionConfig:
    """`[engines.NAME.admission]`; a left-out `max_concurrency` becomes the engine's slots, if it says how many."""
    table = engine.get("admission", {})
    slots = getattr(settings, "parallel", 0)
    read = decode(AdmissionConfig, table, path, problems) or AdmissionConfig()
    if isinstance(table, dict):
        for tenant in read.weights:
            _check_name((*path, "weights", tenant), problems)
    most = slots if read.max_concurrency is None else read.max_concurrency
    limit = (*path, "max_concurrency")
    named = limit in problems or path in problems
    if table and not slots and read.max_concurrency is None and not named:
        problems.add(limit, 'is missing; add max_concurrency = 32 or another number of requests, or "auto"')
    if most == "auto" and not read.target_ttft_ms and (*path, "target_ttft_ms") not in problems:
        message = 'is missing; max_concurrency = "auto" follows it: add target_ttft_ms = 1000 or another number'
        problems.add((*path, "target_ttft_ms"), message)
    if most != "auto" and read.target_ttft_ms:
        message = f'is followed by max_concurrency = "auto" only, not by {most}; take one of them out'
        problems.add((*path, "target_ttft_ms"), message)
    return msgspec.structs.replace(read, max_concurrency=most)


def read_models(document: Table, problems: Problems) -> dict[str, ModelConfig]:
    """`[models.NAME]`; a left-out `name` becomes NAME."""
    models = {}
    for name, table in named(document, "models", problems).items():
        path = ("models", name)
        _check_name(path, problems, _MODEL_NAME)
        model = decode(ModelConfig, table, path, problems)
        if model is None:
            continue
        if model.price is not None:
            _check_price(model.price, (*path, "price"), problems)
        models[name] = msgspec.structs.replace(model, name=model.name or name)
    return models


def read_levers(document: Table, problems: Problems) -> dict[str, Any]:
    """`[levers.KIND]`: the settings of every lever that comes with Trimtab, and of the third parties' in the file."""
    levers: dict[str, Any] = {kind: find("levers", kind).Config() for kind in built_in("levers")}
    for kind, table in named(document, "levers", problems).items():
        path = ("levers", kind)
        try:
            cls = find("levers", kind).Config
        except ConfigError as error:
            problems.add(path, str(error))
            continue
        settings = decode(cls, table, path, problems)
        if settings is not None:
            levers[kind] = settings
    return levers


def read_routes(document: Table, levers: dict[str, Any], problems: Problems) -> dict[str, RouteConfig]:
    """`[routes.NAME]`; overrides of levers are laid over the levers' own settings."""
    routes = {}
    for name, table in named(document, "routes", problems).items():
        path = ("routes", name)
        _check_name(path, problems)
        plain = {key: value for key, value in table.items() if key != "levers"}
        route = decode(RouteConfig, plain, path, problems)
        if route is None:
            continue
        overrides = {
            lever: settings
            for lever, override in named(table, "levers", problems, path).items()
            if (settings := _lever_override(lever, override, levers, (*path, "levers", lever), problems)) is not None
        }
        timeouts = _timeouts(route.timeouts, table.get("timeouts"), (*path, "timeouts"), problems)
        routes[name] = msgspec.structs.replace(route, timeouts=timeouts, levers=overrides)
    return routes


def read_keys(document: Table, problems: Problems) -> dict[str, KeyConfig]:
    """`[keys.NAME]`; no two may have the same hash."""
    keys: dict[str, KeyConfig] = {}
    owners: dict[str, str] = {}
    for name, table in named(document, "keys", problems).items():
        path = ("keys", name)
        _check_name(path, problems)
        if isinstance(table.get("tenant"), str):
            _check_name((*path, "tenant"), problems, text=table["tenant"])
        key = decode(KeyConfig, table, path, problems)
        if key is None:
            continue
        for route in key.routes:
            _check_name((*path, "routes"), problems, text=route)
        owner = owners.setdefault(key.hash, name)
        if owner != name:
            message = f"the same hash as keys.{owner}; a key has one tenant: make another with `trimtab keys new`"
            problems.add((*path, "hash"), message)
        keys[name] = key
    return keys


def read_prices(document: Table, problems: Problems) -> dict[str, PriceConfig]:
    """`[prices."PROVIDER/MODEL"]`, by upstream names."""
    prices = {}
    for name, table in named(document, "prices", problems).items():
        path = ("prices", name)
        _check_name(path, problems, _MODEL_NAME)
        price = decode(PriceConfig, table, path, problems)
        if price is not None:
            _check_price(price, path, problems)
            prices[name] = price
    return prices


def _report_top_level(key: str, problems: Problems) -> None:
    if key in Server.__struct_fields__:
        problems.add((key,), "stands outside of any table; move it below [server]")
    elif (key,) not in problems:
        problems.add((key,), f"unknown table; {choices(key, TABLES)}")


def _find_secrets(value: Any, path: Path, problems: Problems) -> None:
    """Reports every text that has the shape of a secret, wherever it stands."""
    if isinstance(value, dict):
        for key, part in value.items():
            _find_secrets(part, (*path, key), problems)
    elif isinstance(value, list):
        for part in value:
            _find_secrets(part, path, problems)
    elif looks_secret(value) and path not in problems:
        problems.add(path, secret_message(path))


def _check_name(path: Path, problems: Problems, allowed: re.Pattern[str] = _NAME, text: str | None = None) -> None:
    name = path[-1] if text is None else text
    if not allowed.fullmatch(name) and path not in problems:
        rule = NAME_RULE if allowed is _NAME else _MODEL_NAME_RULE
        problems.add(path, f"odd name {shown(name)}; use {rule}")


def _check_price(price: PriceConfig, path: Path, problems: Problems) -> None:
    given = [name for name in PriceConfig.__struct_fields__ if getattr(price, name) is not None]
    if not given:
        problems.add(path, "sets no price; set input_per_mtok and output_per_mtok, or machine_hour")
    elif "machine_hour" in given and len(given) > 1:
        problems.add(path, "is both per token and per machine-hour; keep machine_hour or the ..._per_mtok keys")


def _lever_override(kind: str, override: Table, levers: dict[str, Any], path: Path, problems: Problems) -> Any:
    """The lever's settings with the override on top, or None if it is wrong (then reported)."""
    base = levers.get(kind)
    if base is None and ("levers", kind) in problems:
        return None
    try:
        cls = find("levers", kind).Config
    except ConfigError as error:
        problems.add(path, str(error))
        return None
    before = len(problems)
    for name in override.keys() & shared_settings(kind):
        problems.add((*path, name), f"holds for the whole gateway; move it to [levers.{kind}]")
    settings = decode(cls, {**msgspec.to_builtins(base or {}), **override}, path, problems)
    return settings if len(problems) == before else None


def _timeouts(timeouts: Timeouts, table: object, path: Path, problems: Problems) -> Timeouts:
    """Deadlines that agree: one that was set may not exceed the total, one that was not is cut to it."""
    given = table if isinstance(table, dict) else {}
    changes = {}
    for name in Timeouts.__struct_fields__:
        value = getattr(timeouts, name)
        if not 0 < value <= _TIMEOUT_MAX_S and (*path, name) not in problems:
            problems.add((*path, name), f"must be more than 0 and at most {_TIMEOUT_MAX_S:.0f} seconds, not {value:g}")
        elif value > timeouts.total_s > 0:
            if name in given:
                default = "" if "total_s" in given else " (its default)"
                message = f"{value:g} is longer than total_s = {timeouts.total_s:g}{default}; raise total_s or lower it"
                problems.add((*path, name), message)
            else:
                changes[name] = timeouts.total_s
    return msgspec.structs.replace(timeouts, **changes)
