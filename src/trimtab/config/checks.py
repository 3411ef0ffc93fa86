"""What only the whole can tell: references between tables, secrets in the environment, files, addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any, Final

import msgspec

from trimtab.config.problems import Path, Problems, choices, shown
from trimtab.config.registry import find
from trimtab.config.routing import check_routing, unknown_model
from trimtab.config.schema import (
    CaptureConfig,
    Config,
    EngineConfig,
    KeyConfig,
    TelemetryConfig,
    keeps_similar,
    settings_by_path,
    shadowed_routes,
)
from trimtab.config.stores import check_store
from trimtab.errors import BadRequest, ConfigError
from trimtab.slo import parse_slo

_BASE_URL = re.compile(r"https?://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?(?P<path>/\S*)?")
_VERSION_PART = re.compile(r"/v\d+[a-z0-9]*(/|$)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_EXAMPLES = {
    "api_key_env": "OPENAI_API_KEY", "key_env": "TRIMTAB_CAPTURE_KEY", "alert_webhook_env": "ALERT_WEBHOOK",
    "url_env": "TRIMTAB_VALKEY_URL",
}  # fmt: skip
_PEM_MARK = b"-----BEGIN CERTIFICATE-----"


def check_whole(config: Config, document: dict[str, Any], env: Mapping[str, str], problems: Problems) -> None:
    """Report every reference to nothing, cycle, unset secret, unreadable file and unsafe address.

    `document` is the parsed file: names in it count as known even where their table is wrong.
    """
    engines = _names(document, "engines") | config.engines.keys()
    models = _names(document, "models") | config.models.keys()
    for name, model in config.models.items():
        if model.engine not in engines:
            message = f"unknown engine {shown(model.engine)}; {choices(model.engine, engines)}"
            problems.add(("models", name, "engine"), message)
        _check_fallback(("models", name, "fallback"), name, model.fallback, models, problems)
        for n, replica in enumerate(model.replicas):
            if replica not in engines:
                message = f"unknown engine {shown(replica)}; {choices(replica, engines)}"
                problems.add(("models", name, "replicas"), message)
            elif replica in (model.engine, *model.replicas[:n]):
                problems.add(("models", name, "replicas"), f"{shown(replica)} is there twice; keep the first")
    _check_cycles(config, problems)
    for name, route in config.routes.items():
        if route.model and route.model not in models:
            problems.add(("routes", name, "model"), _unknown_model(route.model, models))
        _check_fallback(("routes", name, "fallback"), route.model, route.fallback, models, problems)
        if route.slo is not None:
            try:
                parse_slo(route.slo.targets)
            except BadRequest as error:
                problems.add(("routes", name, "slo", "targets"), error.message)
        if route.capture is not None:
            _check_capture(("routes", name, "capture"), route.capture, env, problems)
    for name, engine in config.engines.items():
        _check_engine(name, engine, env, problems)
    for name, settings in config.levers.items():
        check_store(("levers", name), settings, env, problems, _secret_problem)
    if keeps_similar(config):
        _check_similar(config, problems)
    _check_models_of_levers(config, models, problems)
    check_routing(config, models, problems)
    _check_telemetry(config.telemetry, env, problems)
    all_read = bool(engines) and config.engines.keys() == engines
    if all_read and not models and not config.open_engines():
        problems.add(("engines",), 'no model can be served; add a table [models.NAME] with engine = "..."')
    if not _names(document, "keys"):
        message = bind_problem(config.server.host, config.keys)
    else:
        message = _host_problem(config.server.host)
    if message and ("server", "host") not in problems:
        problems.add(("server", "host"), message)


def bind_problem(host: str, keys: Mapping[str, KeyConfig]) -> str:
    """Why the gateway may not listen there, or "": without API keys it serves this machine only."""
    wrong = _host_problem(host)
    if wrong or keys or is_loopback(host):
        return wrong
    return (
        f"{shown(host)} can be reached from other machines and no [keys] are configured, so Trimtab refuses to bind "
        'elsewhere than on this machine; add a key with `trimtab keys new --tenant NAME`, or use "127.0.0.1"'
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost count as reachable."""
    if host == "localhost":
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def resolve_files(settings: Any, folder: FilePath) -> Any:
    """Engine settings with their file names made absolute, relative ones to the configuration's folder."""
    changes = {}
    for field in ("ca_file", "model", "draft_model"):
        value = getattr(settings, field, "")
        if isinstance(value, str) and value and (field == "ca_file" or _names_file(value)):
            changes[field] = str(folder / FilePath(value).expanduser())
    base_url = getattr(settings, "base_url", "")
    if isinstance(base_url, str) and base_url.endswith("/"):
        changes["base_url"] = base_url.rstrip("/")
    return msgspec.structs.replace(settings, **changes) if changes else settings


def _names_file(model: str) -> bool:
    return model.endswith(".gguf") or model.startswith(("./", "../", "~/"))


def _names(document: dict[str, Any], group: str) -> set[str]:
    tables = document.get(group)
    return set(tables) if isinstance(tables, dict) else set()


def _unknown_model(name: str, models: Iterable[str]) -> str:
    return f'unknown model {shown(name)}; {choices(name, models)} (or add [models."{name}"])'


def _check_fallback(path: Path, own: str, fallback: tuple[str, ...], models: set[str], problems: Problems) -> None:
    for n, name in enumerate(fallback):
        if name not in models:
            problems.add(path, _unknown_model(name, models))
        elif name == own:
            problems.add(path, f"{shown(name)} falls back to itself; take it out (`retries` tries a model again)")
        elif name in fallback[:n]:
            problems.add(path, f"{shown(name)} is there twice; keep the first")


def _check_cycles(config: Config, problems: Problems) -> None:
    """Reports each cycle of fallbacks once, at its first model in the file."""
    done: set[str] = set()
    for start in config.models:
        trail: list[str] = []
        _walk(start, trail, done, config, problems)


def _walk(name: str, trail: list[str], done: set[str], config: Config, problems: Problems) -> None:
    if name in trail:
        cycle = [*trail[trail.index(name) :], name]
        if len(cycle) > 2:  # to itself is reported by _check_fallback
            message = f"fallbacks go in a circle: {' -> '.join(cycle)}; take one of them out"
            problems.add(("models", name, "fallback"), message)
        return
    if name in done or name not in config.models:
        return
    done.add(name)
    trail.append(name)
    for following in config.models[name].fallback:
        _walk(following, trail, done, config, problems)
    trail.pop()


def _host_problem(host: str) -> str:
    if "://" in host or "/" in host:
        return f"{shown(host)} is not a host; leave out http:// and any path, and put the port into server.port"
    from ipaddress import ip_address

    try:
        ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            return f'{shown(host)} is not a host name or address; use "127.0.0.1" or "0.0.0.0"'
    return ""


def _check_engine(name: str, engine: EngineConfig, env: Mapping[str, str], problems: Problems) -> None:
    """Checks by field name, so that third parties' engines have them too."""
    settings = engine.settings
    for field, check in _ENGINE_CHECKS:
        value = getattr(settings, field, "")
        path = ("engines", name, field)
        if isinstance(value, str) and value and path not in problems:
            message = check(value, engine.kind)
            if message:
                problems.add(path, message)
    if getattr(settings, "speculation", "") == "draft" and not settings.draft_model:
        problems.add(("engines", name, "draft_model"), "is missing; speculation by a draft model needs that model")
    variable = getattr(settings, "api_key_env", "")
    path = ("engines", name, "api_key_env")
    if isinstance(variable, str) and variable and path not in problems:
        message = _secret_problem(variable, env)
        if message:
            problems.add(path, message)


def _check_telemetry(telemetry: TelemetryConfig, env: Mapping[str, str], problems: Problems) -> None:
    hook = ("telemetry", "alert_webhook_env")
    if telemetry.alert_webhook_env and hook not in problems:
        message = _secret_problem(telemetry.alert_webhook_env, env, "alert_webhook_env")
        if not message and not env[telemetry.alert_webhook_env].strip().startswith(("http://", "https://")):
            message = f"the environment variable {telemetry.alert_webhook_env} holds no web address"
        if message:
            problems.add(hook, message)
    path = ("telemetry", "otlp_endpoint")
    endpoint = telemetry.otlp_endpoint
    if not endpoint or path in problems:
        return
    match = _BASE_URL.fullmatch(endpoint)
    if match is None:
        problems.add(path, f'{shown(endpoint)} is not a web address; write it like "http://127.0.0.1:4318"')
    elif (match["path"] or "").endswith(("/v1/traces", "/v1/metrics")):
        problems.add(path, f'{shown(endpoint)} is the address of one signal; cut it off before "/v1"')
    elif missing := otlp_missing():
        problems.add(path, missing)


def otlp_missing() -> str:
    """What has to be installed before anything can be sent to a collector, "" if nothing."""
    from importlib.util import find_spec

    if find_spec("opentelemetry") and find_spec("opentelemetry.exporter.otlp.proto.http"):
        return ""
    return "needs the OpenTelemetry SDK; pip install 'trimtab[otlp]'"


def _check_models_of_levers(config: Config, models: set[str], problems: Problems) -> None:
    """Models that levers and shadows name; where an engine takes any name, any will do."""
    named = [
        ((*path, "judge_model"), settings.judge_model) for path, settings in settings_by_path(config, "semantic_cache")
    ]
    named += [((*path, "model"), settings.model) for path, settings in settings_by_path(config, "ab")]
    shadows = [(name, route.shadow) for name, route in config.routes.items() if route.shadow is not None]
    named += [(("routes", name, "shadow", "judge_model"), shadow.judge_model) for name, shadow in shadows]
    for path, model in named:
        if model and (message := unknown_model(model, config, models)):
            problems.add(path, message)
    for path, settings in settings_by_path(config, "ab"):
        route = config.routes.get(path[1]) if path[0] == "routes" else None
        if route is not None and settings.model and settings.model == route.model:
            message = f"{shown(settings.model)} is the route's own model; name another, or leave it out"
            problems.add((*path, "model"), message)


def _check_similar(config: Config, problems: Problems) -> None:
    from trimtab.semantic.embed import require_packages

    try:
        require_packages()
    except ConfigError as error:
        for path, settings in settings_by_path(config, "semantic_cache"):
            if settings.mode != "off":
                problems.add((*path, "mode"), error.problems[0])
        for name in shadowed_routes(config):
            problems.add(("routes", name, "shadow"), error.problems[0])


def _check_capture(path: Path, capture: CaptureConfig, env: Mapping[str, str], problems: Problems) -> None:
    from trimtab.redact import pattern_problem
    from trimtab.stores.sealing import key_problem

    if capture.key_env and (*path, "key_env") not in problems:
        message = _secret_problem(capture.key_env, env, "key_env")
        if message := message or key_problem(env.get(capture.key_env, ""), capture.key_env):
            problems.add((*path, "key_env"), message)
    for pattern in capture.patterns:
        if message := pattern_problem(pattern):
            problems.add((*path, "patterns"), f"{shown(pattern)} {message}")


def _secret_problem(variable: str, env: Mapping[str, str], key: str = "api_key_env") -> str:
    if not _VARIABLE.fullmatch(variable):
        # It may well be the secret itself, so it is not shown.
        return f'must be the name of an environment variable, not a secret; such as {key} = "{_EXAMPLES[key]}"'
    value = env.get(variable, "").strip()
    if not value:
        return f"the environment variable {variable} is not set; export {variable}=... where Trimtab starts"
    if not (value.isascii() and value.isprintable()) or " " in value:
        return f"the environment variable {variable} has blanks, line breaks or odd characters in it; set it again"
    return ""


def _url_problem(url: str, kind: str) -> str:
    if re.match(r"https?://[^/?#]*@", url):
        return "holds a user name or password; take it out and use api_key_env"
    match = _BASE_URL.fullmatch(url)
    if match is None or int(match["port"] or 0) > 65535:
        return f'{shown(url)} is not a web address; write it like "https://api.example.com/v1"'
    path = match["path"] or ""
    if "?" in path or "#" in path:
        return "must not have a query or a fragment; cut it off at the ? or #"
    if path.rstrip("/").endswith(("/chat/completions", "/messages", "/completions", "/responses")):
        return f"{shown(url)} is the address of one call; cut it off before the call's name"
    if kind == "openai_http" and not _VERSION_PART.search(path):
        return f'lacks /v1; write "{url.rstrip("/")}/v1"'
    if kind == "anthropic_http" and path.rstrip("/").endswith("/v1"):
        return f'must not end in /v1 (it is added); write "{url.rstrip("/").removesuffix("/v1")}"'
    return ""


def _ca_problem(file: str, _kind: str) -> str:
    try:
        content = FilePath(file).read_bytes()
    except OSError as error:
        return f"cannot read {file} ({error.strerror}); correct the path or its permissions"
    return "" if _PEM_MARK in content else f"{file} holds no PEM certificate; it must have {_PEM_MARK.decode()!r} lines"


def _model_problem(model: str, kind: str) -> str:
    if model.endswith(".gguf"):
        return "" if FilePath(model).is_file() else f"there is no file {model}; correct the path"
    built_in = getattr(find("engines", kind), "BUILT_IN", model)
    return "" if model == built_in else f'{shown(model)} is no model here; use "{built_in}" or the path of a .gguf file'


_ENGINE_CHECKS: Final = (
    ("base_url", _url_problem),
    ("ca_file", _ca_problem),
    ("model", _model_problem),
    ("draft_model", _model_problem),
)
