"""Finds the file, reads it, and answers with a whole configuration or with every mistake in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from trimtab.config.checks import bind_problem, check_whole, resolve_files
from trimtab.config.problems import Problem, Problems
from trimtab.config.registry import find
from trimtab.config.schema import DEFAULT_ENGINE, DEFAULT_ENGINE_KIND, Config, ModelConfig, Server
from trimtab.config.tables import read_engines, read_tables
from trimtab.errors import ConfigError

DEFAULT_FILE = "trimtab.toml"
BUILT_IN = "built-in defaults"

_TOML_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
# What tomllib says -> what probably happened.
_TOML_WAYS_OUT = (
    ("Invalid value", 'a text needs quotes: name = "value"'),
    ("Expected '=' after", 'write name = "value"; a name with other marks than - and _ needs quotes'),
    ("Expected ']'", 'a name with other marks than - and _ needs quotes: [models."gpt-4.1"]'),
    ("Cannot overwrite", "the key is there twice: take one out"),
    ("Cannot declare", "the table is there twice: put its keys together"),
    ("Unescaped '\\'", "write the text in single quotes"),
    ("Unclosed array", "a ] is missing"),
    ("Illegal character '\\n'", "a closing quote is missing"),
)


def load(path: Path | None, env: Mapping[str, str]) -> Config:
    """The configuration at `path`; None means $TRIMTAB_CONFIG, else ./trimtab.toml if it exists, else the defaults.

    Side effects: reads the file and those it names, imports the engines and levers that it uses.
    Raises ConfigError with every mistake at once, as `FILE:LINE: table.key: what is wrong; the way out`.
    """
    config, problems = check(path, env)
    if config is None:
        raise ConfigError([str(problem) for problem in problems])
    return config


def check(path: Path | None, env: Mapping[str, str]) -> tuple[Config | None, list[Problem]]:
    """As `load`, but the mistakes come back as values: exactly one of the two is there."""
    file = locate(path, env)
    if file is None:
        return _finish({}, Problems(BUILT_IN), env, Path())
    text, problem = _read(file, named_by_env=path is None and bool(env.get("TRIMTAB_CONFIG")))
    if problem is not None:
        return None, [problem]
    import tomllib

    problems = Problems(str(file), text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _report_syntax(str(error), text, problems)
        return None, problems.sorted()
    return _finish(document, problems, env, file.absolute().parent, source=str(file))


def locate(path: Path | None, env: Mapping[str, str]) -> Path | None:
    """The file that `load` reads; None for the built-in defaults."""
    if path is not None:
        return path
    if named := env.get("TRIMTAB_CONFIG"):
        return Path(named).expanduser()
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def with_server(
    config: Config, *, host: str | None = None, port: int | None = None, workers: int | None = None
) -> Config:
    """The configuration with parts of [server] replaced from the command line. Raises ConfigError as `load` does."""
    given = {"host": host, "port": port, "workers": workers}
    changes = {name: value for name, value in given.items() if value is not None}
    found = Problems("command line")
    from trimtab.config.decode import decode

    server = decode(Server, {**msgspec.structs.asdict(config.server), **changes}, ("server",), found)
    if message := bind_problem(host or config.server.host, config.keys):
        found.add(("server", "host"), message)
    if server is None or len(found):
        raise ConfigError([str(problem) for problem in found.sorted()])
    return msgspec.structs.replace(config, server=server)


def data_dir(server: Server, env: Mapping[str, str], folder: Path) -> str:
    """Where the gateway keeps its files: $TRIMTAB_DATA_DIR, else `server.data_dir`, else the user's data folder."""
    if named := env.get("TRIMTAB_DATA_DIR"):
        return str(Path(named).expanduser().absolute())
    if server.data_dir:
        return str((folder / Path(server.data_dir).expanduser()).absolute())
    shared = env.get("XDG_DATA_HOME", "")
    home = Path(shared) if shared.startswith("/") else Path(env.get("HOME") or Path.home()) / ".local" / "share"
    return str(home / "trimtab")


def _finish(
    document: dict[str, Any], problems: Problems, env: Mapping[str, str], folder: Path, source: str = BUILT_IN
) -> tuple[Config | None, list[Problem]]:
    config = read_tables(document, problems)
    try:
        config = _with_defaults(config, document, problems)
    except ConfigError as error:
        problems.add(("engines",), str(error))
    engines = {
        name: msgspec.structs.replace(engine, settings=resolve_files(engine.settings, folder))
        for name, engine in config.engines.items()
    }
    server = msgspec.structs.replace(config.server, data_dir=data_dir(config.server, env, folder))
    telemetry = config.telemetry
    if telemetry.request_log not in ("", "stdout", "stderr"):
        log = str((folder / Path(telemetry.request_log).expanduser()).absolute())
        telemetry = msgspec.structs.replace(telemetry, request_log=log)
    config = msgspec.structs.replace(config, engines=engines, server=server, telemetry=telemetry, source=source)
    check_whole(config, document, env, problems)
    return (None, problems.sorted()) if len(problems) else (config, [])


def _with_defaults(config: Config, document: dict[str, Any], problems: Problems) -> Config:
    """Adds the embedded engine if the file names none, and a model for each engine that brings one and has none.

    The module of such an engine says what its model is called, by `model_name(settings)`; reports it where another
    engine's model is called so, since clients could not reach both.
    """
    engines = dict(config.engines)
    if not document.get("engines"):
        engines |= read_engines({"engines": {DEFAULT_ENGINE: {"kind": DEFAULT_ENGINE_KIND}}}, problems)
    models = dict(config.models)
    for name, engine in engines.items():
        model_name = getattr(find("engines", engine.kind), "model_name", None)
        if model_name is not None and not any(model.engine == name for model in config.models.values()):
            own = model_name(engine.settings)
            other = models.setdefault(own, ModelConfig(engine=name, name=own)).engine
            if other != name:
                way_out = f'give this one a name of its own: a table [models.NAME] with engine = "{name}"'
                problems.add(("engines", name), f"its model is called {own}, as one of engines.{other} is; {way_out}")
    return msgspec.structs.replace(config, engines=engines, models=models)


def _read(file: Path, *, named_by_env: bool) -> tuple[str, Problem | None]:
    origin = " (named by TRIMTAB_CONFIG)" if named_by_env else ""
    try:
        return file.read_bytes().decode("utf-8-sig"), None
    except OSError as error:
        message = f"cannot be read{origin}: {error.strerror}; correct the path or its permissions"
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text{origin}: byte {error.start} is {file.read_bytes()[error.start]:#04x}; save it so"
    return "", Problem(str(file), 0, "", message)


def _report_syntax(error: str, text: str, problems: Problems) -> None:
    place = _TOML_PLACE.search(error)
    said = error[: place.start()] if place else error
    way_out = next((way for start, way in _TOML_WAYS_OUT if said.startswith(start)), "correct it there")
    line = int(place["line"]) if place and place["line"] else text.rstrip().count("\n") + 1
    column = f" at column {place['column']}" if place and place["column"] else ""
    problems.add(("TOML",), f"{said}{column}; {way_out}", line)
