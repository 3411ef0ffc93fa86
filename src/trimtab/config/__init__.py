"""The configuration: one TOML file and the environment, checked as a whole, frozen.

`load` answers with a `Config` or raises ConfigError with every mistake at once, each with its file, line, key and the
way out. Reading goes straight: loading (find, parse) -> tables (each table alone, by decode) -> checks (the whole).
"""

from trimtab.config.checks import bind_problem, is_loopback, otlp_missing
from trimtab.config.keys import hash_key, new_key
from trimtab.config.loading import check, load, locate, with_server
from trimtab.config.problems import Problem
from trimtab.config.registry import changing_answers, find, known
from trimtab.config.render import effective, to_toml
from trimtab.config.routing import router_path
from trimtab.config.schema import (
    DEFAULT_ROUTE,
    AdmissionConfig,
    CaptureConfig,
    Config,
    EngineConfig,
    KeyConfig,
    ModelConfig,
    PriceConfig,
    RouteConfig,
    Server,
    ShadowConfig,
    SloConfig,
    TelemetryConfig,
    is_used,
    keeps_similar,
    own_processes,
    replicas,
    restart_needed,
    settings_of,
    shadowed_routes,
)
from trimtab.config.tables import NAME_RULE, is_name

__all__ = [
    "DEFAULT_ROUTE",
    "NAME_RULE",
    "AdmissionConfig",
    "CaptureConfig",
    "Config",
    "EngineConfig",
    "KeyConfig",
    "ModelConfig",
    "PriceConfig",
    "Problem",
    "RouteConfig",
    "Server",
    "ShadowConfig",
    "SloConfig",
    "TelemetryConfig",
    "bind_problem",
    "changing_answers",
    "check",
    "effective",
    "find",
    "hash_key",
    "is_loopback",
    "is_name",
    "is_used",
    "keeps_similar",
    "known",
    "load",
    "locate",
    "new_key",
    "otlp_missing",
    "own_processes",
    "replicas",
    "restart_needed",
    "router_path",
    "settings_of",
    "shadowed_routes",
    "to_toml",
    "with_server",
]
