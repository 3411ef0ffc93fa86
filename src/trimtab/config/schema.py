"""What a configuration is, as frozen values: one Struct per table of `trimtab.toml`, bounds in their types.

The bounds' `description` is what a problem report says the value must be. Settings that belong to one engine or one
lever are the `Config` Struct of that module; they stay `Any` here, so that a new engine or lever changes no file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from trimtab.config.problems import Path
from trimtab.config.registry import find, shared_settings
from trimtab.slo import Objective, parse_slo
from trimtab.types import Timeouts

DEFAULT_ROUTE = "default"
DEFAULT_ENGINE = "local"
DEFAULT_ENGINE_KIND = "llama_cpp"
DEFAULT_PORT = 8088

Port = Annotated[int, Meta(ge=0, le=65535, description="a TCP port from 1 to 65535 (0 takes any free one)")]
Workers = Annotated[int, Meta(ge=1, le=256, description="a number of processes from 1 to 256")]
BodyLimit = Annotated[int, Meta(ge=1024, le=1 << 32, description="a whole number of bytes from 1024 to 4294967296")]
Grace = Annotated[float, Meta(ge=0, le=3600, description="a number of seconds from 0 to 3600")]
Retries = Annotated[int, Meta(ge=0, le=10, description="a whole number from 0 to 10")]
Backoff = Annotated[float, Meta(ge=0, le=60, description="a number of seconds from 0 to 60")]
RetryAfter = Annotated[float, Meta(ge=0, le=3600, description="a number of seconds from 0 to 3600")]
Share = Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")]
ObjectiveShare = Annotated[float, Meta(ge=0.5, le=0.99999, description="a share from 0.5 to 0.99999")]
Slow = Annotated[float, Meta(gt=0, le=86_400, description="a number of seconds, more than 0 and at most 86400")]
Interval = Annotated[float, Meta(ge=1, le=3600, description="a number of seconds from 1 to 3600")]
CaptureShare = Annotated[float, Meta(gt=0, le=1, description="a share of requests, more than 0 and at most 1")]
Days = Annotated[float, Meta(gt=0, le=3650, description="a number of days, more than 0 and at most 3650")]
Usd = Annotated[float, Meta(ge=0, le=1_000_000, description="an amount of USD from 0 to 1000000")]
Concurrency = Annotated[int, Meta(ge=0, le=4096, description='a whole number from 0 (no queue) to 4096, or "auto"')]
Target = Annotated[float, Meta(ge=0, le=600_000, description="a number of milliseconds from 0 to 600000")]
MaxWait = Annotated[float, Meta(ge=0, le=3600, description="a number of seconds from 0 to 3600")]
Weight = Annotated[float, Meta(gt=0, le=1000, description="a number, more than 0 and at most 1000")]
Margin = Annotated[float, Meta(gt=0, lt=1, description="a share above 0 and below 1")]
Hash = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="'sha256:' and 64 lower-case hex digits, as `trimtab keys new` prints it",
    ),
]
LogFormat = Literal["text", "json"]
CaptureMode = Literal["redacted", "plain"]


class Server(msgspec.Struct, frozen=True):
    """`[server]`: where the gateway listens and keeps its files. `data_dir` is absolute once loaded."""

    host: str = "127.0.0.1"
    port: Port = DEFAULT_PORT
    workers: Workers = 1
    data_dir: str = ""
    max_request_bytes: BodyLimit = 25 << 20
    max_response_bytes: BodyLimit = 32 << 20
    shutdown_grace_s: Grace = 30.0
    log: LogFormat = "text"


class AdmissionConfig(msgspec.Struct, frozen=True):
    """`[engines.NAME.admission]`: the queue in front of an engine. Without a limit there is none.

    `max_concurrency` is for all workers together; None (never once loaded) is what the engine's own slots hold.
    `weights` are of tenants, 1 where there is none.
    """

    max_concurrency: Concurrency | Literal["auto"] | None = None
    target_ttft_ms: Target = 0.0  # what "auto" follows
    max_wait_s: MaxWait = 0.0  # 0: as long as the route's timeouts allow
    batch_share: Share = 0.75  # of the slots, up to which batch requests may start
    weights: dict[str, Weight] = {}


NO_ADMISSION = AdmissionConfig(0)


class EngineConfig(msgspec.Struct, frozen=True):
    """`[engines.NAME]`: an upstream; `settings` is the `Config` of the module `trimtab.engines.<kind>`."""

    kind: str
    settings: Any
    admission: AdmissionConfig = NO_ADMISSION


class PriceConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """An override of a price: USD per million tokens by class, or USD per machine-hour of busy time; never both."""

    input_per_mtok: Usd | None = None
    output_per_mtok: Usd | None = None
    cache_read_per_mtok: Usd | None = None
    cache_write_5m_per_mtok: Usd | None = None
    cache_write_1h_per_mtok: Usd | None = None
    input_audio_per_mtok: Usd | None = None
    output_audio_per_mtok: Usd | None = None
    machine_hour: Usd | None = None


class ModelConfig(msgspec.Struct, frozen=True):
    """`[models.NAME]`: a name that clients may use. `name` is the engine's own name for it (NAME once loaded)."""

    engine: str
    name: str = ""
    fallback: tuple[str, ...] = ()
    replicas: tuple[str, ...] = ()  # further engines that serve the very same model, by the same name
    price: PriceConfig | None = None


class SloConfig(msgspec.Struct, frozen=True):
    """`[routes.NAME.slo]`: which share of the route's requests is to be good; `targets` as `slo.parse_slo` reads it."""

    targets: str = "chat"
    objective: ObjectiveShare = 0.99


class CaptureConfig(msgspec.Struct, frozen=True):
    """`[routes.NAME.capture]`: keep what clients send on a route, for replays. Without the table nothing is kept.

    `key_env` names the variable with the key that encrypts it, `patterns` are further regular expressions to redact.
    """

    mode: CaptureMode = "redacted"
    sample: CaptureShare = 1.0
    retention_days: Days = 30.0
    key_env: str = ""
    patterns: tuple[str, ...] = ()


class ShadowConfig(msgspec.Struct, frozen=True):
    """`[routes.NAME.shadow]`: have a share of the answers that levers changed judged beside the reference's.

    The reference is what the request would have got without those levers. `margin` is the share of worse answers that
    is still allowed; `judge_model` is asked where it cannot be read from the texts.
    """

    share: Share = 0.1
    margin: Margin = 0.05
    budget_usd_per_day: Usd = 1.0
    judge_model: str = ""


class RouteConfig(msgspec.Struct, frozen=True):
    """`[routes.NAME]`: how one use case is served.

    `levers` holds, for each lever that the route overrides, its complete settings (the lever's own `Config`).
    """

    model: str = ""
    fallback: tuple[str, ...] = ()
    retries: Retries = 2
    backoff_s: Backoff = 0.5
    retry_after_max_s: RetryAfter = 20.0
    timeouts: Timeouts = Timeouts()
    slo: SloConfig | None = None
    capture: CaptureConfig | None = None
    shadow: ShadowConfig | None = None
    levers: dict[str, Any] = {}


class TelemetryConfig(msgspec.Struct, frozen=True):
    """`[telemetry]`: what other systems are told of requests that are in the ledger.

    `otlp_endpoint` is a collector's base URL ("": $OTEL_EXPORTER_OTLP_ENDPOINT, or none); `request_log` is "stdout",
    "stderr" or a file, absolute once loaded ("": none); `alert_webhook_env` names the variable that holds the URL
    to which alarms are sent, which is a secret.
    """

    otlp_endpoint: str = ""
    sample: Share = 0.1
    slow_s: Slow = 10.0
    metrics_every_s: Interval = 15.0
    request_log: str = ""
    alert_webhook_env: str = ""


class KeyConfig(msgspec.Struct, frozen=True):
    """`[keys.NAME]`: an API key of Trimtab, as its hash; `routes` is an allow-list, empty for all.

    With `evals` its requests may say that they are evals, which are on nobody's bill.
    """

    hash: Hash
    tenant: str
    routes: tuple[str, ...] = ()
    evals: bool = False


DEFAULT_ROUTE_CONFIG = RouteConfig()


class Config(msgspec.Struct, frozen=True):
    """A whole, checked configuration. `source` says where it came from; `levers` has every lever that is known."""

    server: Server = Server()
    engines: dict[str, EngineConfig] = {}
    models: dict[str, ModelConfig] = {}
    routes: dict[str, RouteConfig] = {}
    levers: dict[str, Any] = {}
    keys: dict[str, KeyConfig] = {}
    prices: dict[str, PriceConfig] = {}
    telemetry: TelemetryConfig = TelemetryConfig()
    source: str = ""

    def route(self, name: str) -> RouteConfig:
        """The settings of a route; a name without a table of its own gets those of `default`, or plain defaults."""
        routes = self.routes
        return routes.get(name) or routes.get(DEFAULT_ROUTE) or DEFAULT_ROUTE_CONFIG

    def table_of(self, route: str) -> str:
        """The name of the table that a route's settings are in: its own, or `default`."""
        return route if route in self.routes else DEFAULT_ROUTE

    def objectives(self) -> dict[str, Objective | None]:
        """The service levels by route; routes without a table of their own have that of `default`."""
        return {
            name: None if route.slo is None else Objective(parse_slo(route.slo.targets), route.slo.objective)
            for name, route in self.routes.items()
        }

    def lever_settings(self, lever: str, route: str) -> Any:
        """The `Config` of a lever on a route: the route's override, else the lever's table, else its defaults.

        Raises ConfigError if no such lever exists.
        """
        settings = self.route(route).levers.get(lever)
        if settings is None:
            settings = self.levers.get(lever)
        return find("levers", lever).Config() if settings is None else settings

    def accepts_any_model(self, engine: str) -> bool:
        """Whether model names without a table pass through to the engine.

        Unless the engine says so itself (`accept_any_model`), those do that no model of the configuration refers to.
        An engine without that setting serves only what it has.
        """
        settings = self.engines[engine].settings
        if not hasattr(settings, "accept_any_model"):
            return False
        if settings.accept_any_model is not None:
            return bool(settings.accept_any_model)
        return not any(model.engine == engine for model in self.models.values())

    def open_engines(self) -> tuple[str, ...]:
        """The engines that take model names without a table, in the file's order."""
        return tuple(name for name in self.engines if self.accepts_any_model(name))


def own_processes(config: Config) -> list[str]:
    """The engines that run as a process of ours: those whose module exports `run`, which the supervisor calls."""
    return [name for name, engine in config.engines.items() if hasattr(find("engines", engine.kind), "run")]


def keeps_similar(config: Config) -> bool:
    """Whether the process that compares questions, and answers, runs beside the workers."""
    return bool(shadowed_routes(config)) or is_used(config, "semantic_cache") or is_used(config, "route")


def is_used(config: Config, lever: str) -> bool:
    """Whether a lever that exports `in_use` may do anything on any route."""
    return any(find("levers", lever).in_use(one) for one in settings_of(config, lever))


def settings_of(config: Config, lever: str) -> list[Any]:
    """A lever's settings, of all routes and of those that override them."""
    return [settings for _, settings in settings_by_path(config, lever)]


def settings_by_path(config: Config, lever: str) -> Iterator[tuple[Path, Any]]:
    """The same, each with the table that it is in."""
    tables: list[tuple[Path, dict[str, Any]]] = [(("levers",), config.levers)]
    tables += [(("routes", name, "levers"), route.levers) for name, route in config.routes.items()]
    for path, levers in tables:
        if (settings := levers.get(lever)) is not None:
            yield (*path, lever), settings


def replicas(config: Config) -> dict[str, tuple[str, ...]]:
    """The engines of each model that has several."""
    return {name: (model.engine, *model.replicas) for name, model in config.models.items() if model.replicas}


def shadowed_routes(config: Config) -> list[str]:
    """The routes of which a share is judged in production."""
    return [name for name, route in config.routes.items() if route.shadow is not None and route.shadow.share > 0]


def _process(config: Config, name: str) -> tuple[str, Any] | None:
    """What a process of ours was started with; the queue in front of it is the workers'."""
    engine = config.engines.get(name)
    return None if engine is None else (engine.kind, engine.settings)


# Fixed when the gateway starts: its socket, its processes, its folder, the form of its log.
_FIXED_SERVER_FIELDS = ("host", "port", "workers", "data_dir", "shutdown_grace_s", "log")


def restart_needed(old: Config, new: Config) -> list[str]:
    """The keys whose change takes a restart, such as `server.port`; empty when a reload is enough.

    Engines that run as a process of ours are started once, stores are opened once, with the size that they have then.
    """
    keys = [f"server.{name}" for name in _FIXED_SERVER_FIELDS if getattr(old.server, name) != getattr(new.server, name)]
    if keeps_similar(old) != keeps_similar(new):
        with_it = old if keeps_similar(old) else new
        shadowed = [f"routes.{name}.shadow" for name in shadowed_routes(with_it)]
        used = [f"levers.{lever}.mode" for lever in ("semantic_cache", "route") if is_used(with_it, lever)]
        keys += used or shadowed
    own = sorted({*own_processes(old), *own_processes(new)})
    keys += [f"engines.{name}" for name in own if _process(old, name) != _process(new, name)]
    for lever in sorted(old.levers.keys() & new.levers.keys()):
        fixed = sorted(shared_settings(lever))
        settings, changed = old.levers[lever], new.levers[lever]
        keys += [f"levers.{lever}.{name}" for name in fixed if getattr(settings, name) != getattr(changed, name)]
    return keys
