"""`trimtab config`: check a configuration file, or show what is in effect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trimtab.config import CaptureConfig, Config, EngineConfig, Problem, ShadowConfig

_FILE = click.argument("file", required=False, type=click.Path(path_type=Path))
_OPTION = click.option("--config", "named", type=click.Path(path_type=Path), help="The same as FILE.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group()
def config() -> None:
    """Check a configuration file, or show what is in effect.

    FILE is $TRIMTAB_CONFIG if you name none, else trimtab.toml in this folder, else the built-in defaults.
    """


@config.command()
@_FILE
@_OPTION
@_JSON
def check(file: Path | None, named: Path | None, as_json: bool) -> None:
    """Check a configuration; exit code 1 if anything is wrong.

    Reports every mistake at once, with its line, what is wrong and the way out. That the environment variables with the
    secrets are set is checked too. Nothing is started and nobody is called.

    \b
    Examples:
      trimtab config check
      trimtab config check deploy/trimtab.toml --json
    """
    from trimtab.config import check as check_config

    found, problems = check_config(file or named, os.environ)
    if as_json:
        _print_json(_json_report(found, problems))
    elif found is None:
        count = len(problems)
        lines = [*map(str, problems), "1 mistake." if count == 1 else f"{count} mistakes."]
        click.echo("\n".join(lines), err=True)
    else:
        click.echo("\n".join(_summary(found)))
    if found is None:
        raise click.exceptions.Exit(1)


@config.command()
@_FILE
@_OPTION
@_JSON
def show(file: Path | None, named: Path | None, as_json: bool) -> None:
    """Print the configuration in effect: every default filled in, no secrets, hashes of keys cut short.

    \b
    Examples:
      trimtab config show
      trimtab config show --json | jq .levers
    """
    from trimtab.config import effective, load, to_toml

    found = load(file or named, os.environ)
    tables = effective(found)
    if as_json:
        _print_json({"source": found.source, **tables})
    else:
        click.echo(f"# in effect, from {found.source}\n{to_toml(tables)}", nl=False)


def _print_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def _json_report(found: Config | None, problems: list[Problem]) -> dict[str, Any]:
    if found is None:
        return {"ok": False, "problems": problems}
    return {
        "ok": True,
        "problems": [],
        "source": found.source,
        "listens": f"{found.server.host}:{found.server.port}",
        "engines": {
            name: {
                "kind": engine.kind,
                "secret": _secret(engine, found),
                "accepts_any_model": found.accepts_any_model(name),
            }
            for name, engine in found.engines.items()
        },
        "models": {name: model.engine for name, model in found.models.items()},
        "routes": list(found.routes),
        "capture": {name: route.capture for name, route in found.routes.items() if route.capture is not None},
        "levers": {name: _is_on(name, settings, found) for name, settings in found.levers.items()},
        "keys": {name: key.tenant for name, key in found.keys.items()},
    }


def _summary(found: Config) -> list[str]:
    """What a person wants to see before a start, one line each."""
    server = found.server
    lines = [f"OK: {found.source}"]
    workers = "1 worker" if server.workers == 1 else f"{server.workers} workers"
    lines += _rows("listens", [f"{server.host}:{server.port}, {workers}"])
    lines += _rows("data", [server.data_dir])
    lines += _rows("engines", [_engine(name, engine, found) for name, engine in found.engines.items()])
    lines += _rows("models", [_model(name, found) for name in found.models])
    lines += _rows("routes", list(found.routes) or ["none of their own: all take the defaults"])
    lines += _rows("capture", [f"{name}: {_capture(r.capture)}" for name, r in found.routes.items() if r.capture])
    lines += _rows("shadow", [f"{name}: {_shadow(r.shadow)}" for name, r in found.routes.items() if r.shadow])
    lines += _rows("levers", [_lever(name, found) for name in found.levers])
    keys = [f"{name}: tenant {key.tenant}" for name, key in found.keys.items()]
    lines += _rows("keys", keys or ["none: whoever is on this machine may call, with a provider's key of their own"])
    return lines + _rows("prices", list(found.prices))


def _rows(title: str, values: list[str]) -> list[str]:
    return [f"  {title if n == 0 else '':8} {value}" for n, value in enumerate(values)]


def _engine(name: str, engine: EngineConfig, found: Config) -> str:
    where = getattr(engine.settings, "base_url", "") or getattr(engine.settings, "model", "")
    any_model = "; takes any model name" if found.accepts_any_model(name) else ""
    return f"{name}: {engine.kind} {where}; {_secret(engine, found)}{any_model}"


def _secret(engine: EngineConfig, found: Config) -> str:
    """Where the secret for an engine comes from."""
    variable = getattr(engine.settings, "api_key_env", None)
    if variable is None:
        return "needs no secret"
    if variable:
        return f"secret from ${variable}"
    return "no secret is sent (api_key_env is not set)" if found.keys else "the client's own key passes through"


def _capture(capture: CaptureConfig) -> str:
    sample = "" if capture.sample == 1 else f"{capture.sample:.3g} of the requests, "
    sealed = f"encrypted with ${capture.key_env}" if capture.key_env else "not encrypted"
    return f"{sample}{capture.mode}, {sealed}, kept {capture.retention_days:g} days"


def _model(name: str, found: Config) -> str:
    model = found.models[name]
    upstream = f" as {model.name}" if model.name != name else ""
    fallback = f", then {', '.join(model.fallback)}" if model.fallback else ""
    return f"{name}: {model.engine}{upstream}{fallback}"


def _shadow(shadow: ShadowConfig) -> str:
    by = f", judged by {shadow.judge_model} too" if shadow.judge_model else ""
    return (
        f"{shadow.share:.3g} of what levers changed, margin {shadow.margin:g}, ${shadow.budget_usd_per_day:g} a day{by}"
    )


def _is_on(lever: str, settings: Any, found: Config) -> bool:
    from trimtab.config import find, replicas

    module = find("levers", lever)
    if getattr(module, "NEEDS_REPLICAS", False):
        return bool(replicas(found))
    in_use = getattr(module, "in_use", None)
    if in_use is not None:
        return bool(in_use(settings))
    return bool(getattr(settings, "enabled", getattr(settings, "mode", "") != "off"))


def _lever(name: str, found: Config) -> str:
    def state(settings: Any) -> str:
        return str(getattr(settings, "mode", "on" if _is_on(name, settings, found) else "off"))

    own = [
        f"{state(route.levers[name])} on {route_name}"
        for route_name, route in found.routes.items()
        if name in route.levers
    ]
    return f"{name}: {', '.join([state(found.levers.get(name)), *own])}"
