"""`trimtab serve`: the supervisor and what it supervises: workers, the ingester, embedded engines."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trimtab import config as configuration
from trimtab.cli.engine_run import Managed
from trimtab.config import Config
from trimtab.errors import ConfigError, StoreError
from trimtab.stores import engine_runs, engines_up
from trimtab.supervise import Child, Context, Supervisor

_log = logging.getLogger("trimtab")
_PR_SET_NAME = 15
_BACKLOG = 2048
_WORKERS, _INGESTER, _ENGINES = 0, 1, 2  # the order of stopping: each group needs the later ones


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file.  [default: $TRIMTAB_CONFIG, else ./trimtab.toml, else the embedded model]",
)
@click.option("--host", help="Address to listen on; overrides server.host.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; overrides server.port.  [default: 8088]"
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Serving processes; overrides server.workers.  [default: 1]"
)
def serve(config_path: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the gateway until Ctrl-C.

    With no configuration at all it serves a small embedded model, so that everything can be tried at once. SIGHUP
    reloads the configuration without dropping a request; SIGTERM lets running requests finish.

    \b
    trimtab serve
    trimtab serve --config trimtab.toml --workers 2
    """
    given = {"host": host, "port": port, "workers": workers}
    overrides = {name: value for name, value in given.items() if value is not None}
    sys.exit(_Serve(config_path, overrides).run())


class _Serve:
    """One run of the command."""

    def __init__(self, config_path: Path | None, overrides: dict[str, Any]) -> None:
        self._path = config_path
        self._overrides = overrides
        self._config = self._load()
        self._ports: dict[str, int] = {}
        self._engines: list[Managed] = []
        self._sock: socket.socket
        self._began = time.perf_counter()

    def _load(self) -> Config:
        return configuration.with_server(configuration.load(self._path, os.environ), **self._overrides)

    def run(self) -> int:
        server = self._config.server
        _set_up_log(server.log)
        _name_process("trimtab-superv")
        Path(server.data_dir).mkdir(parents=True, exist_ok=True)
        self._sock = _listen(server.host, server.port)
        self._take_engines()
        children = [
            Child(f"worker {n}", self._worker(n), _WORKERS, grace_s=server.shutdown_grace_s + 5, reload=True)
            for n in range(server.workers)
        ]
        children.append(Child("ingester", self._ingester, _INGESTER, reload=True))
        if configuration.keeps_similar(self._config):
            children.append(Child(self._similar_name(), self._similar, _INGESTER))
        children += [managed.child(_ENGINES, self._shed(managed)) for managed in self._engines]
        self._tell_engines()
        try:
            return Supervisor(children, on_reload=self._reload, on_ready=self._announce).run()
        finally:
            with contextlib.suppress(OSError):
                engines_up.remove(Path(server.data_dir))

    def _similar_name(self) -> str:
        return "semantic cache" if configuration.is_used(self._config, "semantic_cache") else "comparison of answers"

    def _reload(self) -> bool:
        try:
            fresh = self._load()
        except ConfigError as exc:
            _log.error("the new configuration has mistakes; the old one stays:\n%s", exc)
            return False
        for key in configuration.restart_needed(self._config, fresh):
            _log.warning("%s changed: that takes a restart", key)
        self._config = fresh
        return True

    def _announce(self) -> None:
        host, port = self._sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        models = ", ".join(sorted(self._config.models)) or "any that the client names"
        _log.info(
            "serving http://%s:%d after %.1f s; models: %s", shown, port, time.perf_counter() - self._began, models
        )
        _log.info(
            "OpenAI clients: base_url=http://%s:%d/v1; Anthropic clients: base_url=http://%s:%d",
            shown,
            port,
            shown,
            port,
        )

    def _worker(self, n: int) -> Callable[[Context], int | None]:
        def run(context: Context) -> None:
            from trimtab.app import run_worker

            _name_process(f"trimtab-worker{n}")
            self._drop_claims()
            run_worker(self._config, self._load, f"worker{n}", self._ports, self._sock, context.ready)

        return run

    def _take_engines(self) -> None:
        """Run each engine of ours, or attach to it where `trimtab engine start` runs it already."""
        data_dir = Path(self._config.server.data_dir)
        for name in configuration.own_processes(self._config):
            claim = engine_runs.claim(data_dir, name)
            run = None if claim else engine_runs.last(data_dir, name)
            if run is not None and run.owner == "start":
                self._ports[name] = run.port
                _log.info("engine %s runs already (pid %d, %s): attached", name, run.pid, run.url)
                continue
            managed = Managed(self._config, name, "serve", claim)
            if managed.log_path is not None:
                _log.info("engine %s writes to %s", name, managed.log_path)
            managed.say()
            self._engines.append(managed)
            self._ports[name] = managed.run.port

    def _drop_claims(self, keep: Managed | None = None) -> None:
        """In a child: an engine is claimed by its own process and the supervisor alone."""
        for managed in self._engines:
            if managed.claim is not None and managed is not keep:
                managed.claim.close()

    def _shed(self, managed: Managed) -> Callable[[], None]:
        def first() -> None:
            _name_process("trimtab-engine")
            self._sock.close()
            self._drop_claims(keep=managed)

        return first

    def _tell_engines(self) -> None:
        """Where the engines listen, for `trimtab engine status`."""
        engines = [
            engines_up.EngineUp(name, self._config.engines[name].kind, f"http://127.0.0.1:{port}")
            for name, port in self._ports.items()
        ]
        try:
            engines_up.write(Path(self._config.server.data_dir), engines)
        except OSError as exc:
            _log.warning("`trimtab engine status` will not find the engines: %s", exc)

    def _ingester(self, context: Context) -> None:
        from trimtab.app import Turn, run_ingester

        _name_process("trimtab-ingest")
        self._sock.close()
        self._drop_claims()
        turn = Turn()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, turn.stop)
        signal.signal(signal.SIGHUP, turn.reload)
        run_ingester(self._config, self._load, turn, context.ready)

    def _similar(self, context: Context) -> int:
        from trimtab.app import run_similar

        _name_process("trimtab-similar")
        self._sock.close()
        self._drop_claims()
        try:
            run_similar(self._config, context.ready)
        except (ConfigError, StoreError) as exc:
            _log.error("the %s cannot start, requests go on without it: %s", self._similar_name(), exc)
            return 1
        return 0


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket that all workers share."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise ConfigError(
            [f"server.port: cannot listen on {host}:{port} ({exc.strerror}); choose another with --port or server.port"]
        ) from exc
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _name_process(name: str) -> None:
    """The name that ps and top show (Linux; at most 15 characters)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import json

        line = {
            "at": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _set_up_log(kind: str) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(_JsonLines() if kind == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
