"""Writes a configuration as TOML, all defaults filled in, so that it can be read, compared and loaded again."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from trimtab.config.problems import dotted
from trimtab.config.registry import shared_settings
from trimtab.config.schema import Config, EngineConfig, RouteConfig

_INLINE = ("timeouts", "price")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}


def effective(config: Config, *, whole_hashes: bool = False) -> dict[str, Any]:
    """The configuration as plain values, tables as the file has them; hashes of keys are cut unless asked for.

    Secrets cannot be in it: the file holds names of environment variables only.
    """
    keys = {name: _plain(key) for name, key in config.keys.items()}
    if not whole_hashes:
        for key in keys.values():
            key["hash"] = key["hash"][:15] + "..."
    return {
        "server": _plain(config.server),
        "engines": {name: _engine(engine) for name, engine in config.engines.items()},
        "models": {name: _plain(model) for name, model in config.models.items()},
        "routes": {name: _route(route) for name, route in config.routes.items()},
        "levers": {name: _plain(lever) for name, lever in config.levers.items()},
        "keys": keys,
        "prices": {name: _plain(price) for name, price in config.prices.items()},
        "telemetry": _plain(config.telemetry),
    }


def to_toml(tables: dict[str, Any]) -> str:
    """Nested plain values as TOML text: a dict is a table, but `price` and `timeouts` stay on one line."""
    blocks: list[str] = []
    for name, table in tables.items():
        _write((name,), table, blocks)
    return "\n\n".join(blocks) + "\n"


def _engine(engine: EngineConfig) -> dict[str, Any]:
    return {"kind": engine.kind, **_plain(engine.settings), "admission": _plain(engine.admission)}


def _route(route: RouteConfig) -> dict[str, Any]:
    levers = {}
    for lever, settings in route.levers.items():
        shared = shared_settings(lever)
        levers[lever] = {key: value for key, value in _plain(settings).items() if key not in shared}
    return {**_plain(msgspec.structs.replace(route, levers={})), "levers": levers}


def _plain(value: Any) -> Any:
    """Builtins without None, which TOML cannot say and which is the default wherever it is allowed."""
    plain = msgspec.to_builtins(value)
    return _without_none(plain)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value


def _write(path: tuple[str, ...], table: dict[str, Any], blocks: list[str]) -> None:
    nested = {key: value for key, value in table.items() if isinstance(value, dict) and key not in _INLINE}
    lines = [f"{_name(key)} = {_value(value)}" for key, value in table.items() if key not in nested]
    if lines or (len(path) > 1 and not nested):
        blocks.append("\n".join([f"[{dotted(path)}]", *lines]))
    for key, value in nested.items():
        _write((*path, key), value, blocks)


def _name(key: str) -> str:
    return dotted((key,))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + re.sub(r'["\\\x00-\x1f\x7f]', lambda match: _escape(match[0]), value) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_name(key)} = {_value(part)}" for key, part in value.items()) + " }"
    return repr(value)


def _escape(mark: str) -> str:
    return _ESCAPES.get(mark) or f"\\u{ord(mark):04x}"
