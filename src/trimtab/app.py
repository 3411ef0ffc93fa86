"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import assembly
from trimtab import config as configuration
from trimtab.config import Config, registry
from trimtab.dispatch import Dispatcher
from trimtab.errors import ConfigError, StoreError
from trimtab.levers import exact_cache
from trimtab.pipeline import Pipeline
from trimtab.ports import AnswerStore, Clock, Engine
from trimtab.prices import Prices
from trimtab.shadow import Spending
from trimtab.similar.client import Client
from trimtab.similar.messages import socket_path
from trimtab.sockets import socket_folder
from trimtab.stores.captures import FILE_NAME as CAPTURE_FILE
from trimtab.stores.captures import Captures, Policies, Policy
from trimtab.stores.journal import FileJournal
from trimtab.stores.switches import Switches
from trimtab.stores.switches import path_in as switches_path
from trimtab.stores.threads import ThreadTable
from trimtab.wire.endpoints import App
from trimtab.wire.gateway import Gateway, Shared
from trimtab.wire.intake import Ids
from trimtab.wire.metrics import Metrics
from trimtab.wire.neighbours import Neighbours
from trimtab.wire.server import Server
from trimtab.wire.targets import Targets

if TYPE_CHECKING:
    from trimtab.telemetry.otlp import Otlp
    from trimtab.telemetry.outlet import Dropped
    from trimtab.telemetry.request_log import RequestLog
    from trimtab.telemetry.webhook import Webhook

_log = logging.getLogger("trimtab")

Ports = Mapping[str, int]
"""Engines that run as processes of ours, by name, with the loopback port that each listens on."""


class SystemClock:
    """The machine's own time."""

    wall = staticmethod(time.time)
    mono = staticmethod(time.perf_counter)


def build_gateway(config: Config, shared: Shared, ports: Ports, env: Mapping[str, str]) -> Gateway:
    """A gateway for this configuration inside the running event loop."""
    engines = engines_of(config, ports, env)
    prices = Prices.of_tables(config.prices, config.models)
    dispatcher = Dispatcher(engines, shared.journal, shared.clock, max_response_bytes=config.server.max_response_bytes)
    dispatcher.gates = assembly.gates(config, shared)
    policies = _capture_policies(config, env)
    shared.captures.use(policies)
    cost = assembly.quick_cost(prices, shared)
    pipeline = Pipeline(
        dispatcher,
        shared.journal,
        shared.clock,
        shared.metrics.settled,
        cost,
        shared.captures.tap(policies),
    )
    targets = Targets(config, engines)
    levers, pipeline.watch = assembly.levers(config, targets, shared, pipeline, cost)
    gateway = Gateway(config, shared, targets, levers, pipeline, pipeline.watch)
    gateway.sweeper = asyncio.create_task(dispatcher.deadlines.sweep())
    known = [(engines[m.engine].provider, m.name or name) for name, m in config.models.items()]
    threading.Thread(target=prices.warm, args=(known,), daemon=True, name="prices").start()
    return gateway


def _threads(config: Config, run: Path) -> ThreadTable | None:
    """What conversations are remembered in, where any are routed."""
    if not configuration.is_used(config, "route"):
        return None
    return ThreadTable(run / "threads")


def _spent_today(config: Config, data_dir: Path, clock: Clock) -> dict[str, float]:
    """What calls that no client waited for cost since midnight UTC, by route, a worker's part of it."""
    from trimtab.stores import ledger_db, ledger_reader

    if not configuration.shadowed_routes(config):
        return {}
    spent: dict[str, float] = {}
    with ledger_reader.Reader(data_dir / ledger_db.FILE_NAME) as reader:
        for route, nusd in reader.spent_aside(clock.wall() // 86_400 * 86_400).items():
            table = config.table_of(route)
            spent[table] = spent.get(table, 0.0) + nusd / config.server.workers
    return spent


def answer_store(
    settings: exact_cache.Config, data_dir: Path, clock: Clock, env: Mapping[str, str], *, front: bool = True
) -> AnswerStore:
    """The store that the settings of the exact cache name; `front` says whether a worker's memory stands before it."""
    from trimtab.stores.memory import MemoryStore

    memory = MemoryStore(settings.max_entries, settings.max_memory_bytes, clock) if front else None
    if settings.store == "valkey":
        from trimtab.stores.valkey import ValkeyStore

        url = settings.url or env.get(settings.url_env, "").strip()
        return ValkeyStore(url, clock, memory, timeout_s=settings.timeout_ms / 1000)
    folder = data_dir / "cache"
    if settings.store == "memory":
        from trimtab.stores._purges import Purges

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        purges = Purges(folder, clock.wall())
        return MemoryStore(settings.max_entries, settings.max_memory_bytes, clock, purges)
    from trimtab.stores.lmdb import LmdbStore

    return LmdbStore(folder, settings.max_bytes, clock, memory)


def engines_of(config: Config, ports: Ports, env: Mapping[str, str]) -> dict[str, Engine]:
    """The upstreams by name. `ports` has those that run as processes of ours."""
    engines: dict[str, Engine] = {}
    for name, engine in config.engines.items():
        module = registry.find("engines", engine.kind)
        if name in ports:
            engines[name] = module.build(name, engine.settings, ports[name])
        else:
            secret = env.get(getattr(engine.settings, "api_key_env", "") or "\0", "").strip()
            engines[name] = module.build(name, engine.settings, secret)
    return engines


def _capture_policies(config: Config, env: Mapping[str, str]) -> Policies:
    """How each route is captured. Raises BadRequest for a key that cannot be used: never without one instead."""

    def policy(capture: configuration.CaptureConfig | None) -> Policy | None:
        if capture is None:
            return None
        from trimtab.redact import Redactor
        from trimtab.stores.sealing import Seal

        key_env = capture.key_env
        return Policy(
            redactor=None if capture.mode == "plain" else Redactor(capture.patterns),
            seal=Seal.of_text(env.get(key_env, ""), key_env) if key_env else Seal(),
            sample=capture.sample,
            retention_s=capture.retention_days * 86_400,
        )

    by_route = {name: policy(route.capture) for name, route in config.routes.items()}
    return Policies(by_route, by_route.get(configuration.DEFAULT_ROUTE))


def _capture_count(metrics: Metrics) -> Callable[[str, int], None]:
    """Counts in series that only one thread touches each: those of the writer, and "full" of the event loop."""

    def count(what: str, number: int) -> None:
        written = what == "written"
        metrics.add(("trimtab_capture_written_total",) if written else ("trimtab_capture_dropped_total", what), number)

    return count


class Worker:
    """One serving process: opens what it owns after the fork, serves until told to stop, reloads in place."""

    def __init__(self, config: Config, load: Callable[[], Config], name: str, ports: Ports) -> None:
        self._load = load
        self._ports = ports
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        clock = SystemClock()
        data_dir = Path(config.server.data_dir)
        run = data_dir / "run"
        run.mkdir(parents=True, exist_ok=True)
        metrics = Metrics(run, name)
        self._shared = Shared(
            clock,
            Ids(),
            metrics,
            FileJournal(data_dir / "journal", name),
            answer_store(config.levers["exact_cache"], data_dir, clock, os.environ),
            Captures(data_dir / CAPTURE_FILE, _capture_count(metrics)),
            data_dir,
            Switches(switches_path(data_dir)),
            Spending(clock, _spent_today(config, data_dir, clock)),
            Client(socket_path(data_dir)) if configuration.keeps_similar(config) else None,
            Neighbours(socket_folder(run), name),
            _threads(config, run),
        )
        self._config = config

    async def serve(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        """Serve on an open listening socket until SIGTERM; SIGHUP reloads."""
        app = App(build_gateway(self._config, self._shared, self._ports, os.environ))
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload(app)))
        self._spawn(self._housekeeping(app))
        await self._shared.store.start()
        if self._shared.neighbours is not None and self._config.server.workers > 1:
            self._shared.neighbours.start()
        if self._shared.similar is not None:
            await self._shared.similar.start()
        # What is loaded stays: without it the collector walks it again and again (6% of a request's CPU, measured).
        gc.freeze()
        gc.set_threshold(10_000, 50, 100)
        try:
            await Server(app).serve(sock, stop, self._config.server.shutdown_grace_s, ready)
        finally:
            await app.gateway.watch.close()
            self._shared.captures.close()
            self._shared.metrics.save()
            if self._shared.similar is not None:
                await self._shared.similar.stop()
            if self._shared.neighbours is not None:
                self._shared.neighbours.stop()
            await self._shared.store.stop()
            self._shared.journal.close()

    async def _housekeeping(self, app: App) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._shared.journal.flush()
            self._shared.switches.look()
            if self._shared.similar is not None:
                await self._shared.similar.start()  # again, if it was gone
            app.gateway.gauge()
            self._shared.metrics.save()

    async def _reload(self, app: App) -> None:
        """Swap in a new gateway; requests in flight finish with the old one."""
        try:
            config = await asyncio.to_thread(self._load)
        except ConfigError as exc:
            _log.error("the new configuration has mistakes; the old one stays:\n%s", exc)
            return
        for key in configuration.restart_needed(self._config, config):
            _log.warning("%s changed: that takes a restart", key)
        old, app.gateway = app.gateway, build_gateway(config, self._shared, self._ports, os.environ)
        self._config = config
        _log.info("%s: configuration reloaded", self._name)
        self._spawn(old.close())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def run_worker(
    config: Config, load: Callable[[], Config], name: str, ports: Ports, sock: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve in this process until it is told to stop. `load` reads the configuration anew, for a reload."""
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the loop handles it: Ctrl-C reaches every process of the group
    worker = Worker(config, load, name, ports)
    uvloop.run(worker.serve(sock, ready))


class Turn:
    """What signals say to the ingester: stop, or go on with a new configuration."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.stopping = False

    def stop(self, *_: Any) -> None:
        """A signal handler."""
        self.stopping = True
        self.event.set()

    def reload(self, *_: Any) -> None:
        """A signal handler."""
        self.event.set()

    def again(self) -> bool:
        """Whether the ingester is to go on."""
        self.event.clear()
        return not self.stopping


def run_ingester(config: Config, load: Callable[[], Config], turn: Turn, ready: Callable[[], None]) -> None:
    """Move rows from the journals into the ledger's database, and tell others of them, until `turn` says stop."""
    from trimtab.stores.ingest import Ingester

    dropped = _drop_counter(Path(config.server.data_dir) / "run")
    while True:
        outlets = _outlets(config, os.environ, dropped)
        webhook = _webhook(config, os.environ, dropped)
        ingester = Ingester(
            Path(config.server.data_dir),
            Prices.of_tables(config.prices, config.models),
            config.objectives(),
            [*outlets],
            webhook,
        )
        ready()
        ingester.run(turn.event)
        for outlet in (*outlets, *([webhook] if webhook else [])):
            outlet.close()
        if not turn.again():
            return
        try:
            config = load()
        except ConfigError as exc:
            _log.error("the new configuration has mistakes; the old one stays:\n%s", exc)


def _drop_counter(folder: Path) -> Dropped:
    metrics, lock = Metrics(folder, "ingester"), threading.Lock()

    def dropped(outlet: str, count: int) -> None:
        with lock:
            metrics.add(("trimtab_telemetry_dropped_total", outlet), count)
            metrics.save()

    return dropped


def _webhook(config: Config, env: Mapping[str, str], dropped: Dropped) -> Webhook | None:
    url = env.get(config.telemetry.alert_webhook_env or "\0", "").strip()
    if not url:
        return None
    from trimtab.telemetry.webhook import Webhook

    return Webhook(url, dropped)


def _outlets(config: Config, env: Mapping[str, str], dropped: Dropped) -> list[Otlp | RequestLog]:
    """Where rows go beyond the ledger. One that cannot be opened is left out, with a line in the log."""
    outlets: list[Otlp | RequestLog] = []
    telemetry = config.telemetry
    endpoint = telemetry.otlp_endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if endpoint and (missing := configuration.otlp_missing()):
        _log.warning("OTEL_EXPORTER_OTLP_ENDPOINT: %s", missing)
    elif endpoint:
        from trimtab.telemetry.otlp import Otlp

        outlets.append(
            Otlp(
                endpoint,
                f"{socket.gethostname()}:{config.server.data_dir}",
                sample=telemetry.sample,
                slow_s=telemetry.slow_s,
                metrics_every_s=telemetry.metrics_every_s,
                dropped=dropped,
            )
        )
    if telemetry.request_log:
        from trimtab.telemetry.request_log import RequestLog

        try:
            outlets.append(RequestLog(telemetry.request_log, dropped))
        except OSError as exc:
            _log.error("telemetry.request_log: %s cannot be written (%s)", telemetry.request_log, exc.strerror)
    return outlets


def run_similar(config: Config, ready: Callable[[], None]) -> None:
    """Keep the answers to similar questions until told to stop.

    Raises ConfigError if its models cannot be had, StoreError if its file cannot.
    """
    import sqlite3

    from trimtab.levers import route
    from trimtab.semantic.embed import load_accurate, load_fast
    from trimtab.similar import server
    from trimtab.similar.routers import Routers
    from trimtab.similar.service import Service
    from trimtab.wheels import cache_dir, shown_on_stderr

    folder, data_dir = cache_dir(os.environ), Path(config.server.data_dir)
    (data_dir / "run").mkdir(parents=True, exist_ok=True)
    accurate = load_accurate(folder, shown_on_stderr("the accurate embedder"))
    fast = load_fast(folder, shown_on_stderr("the fast embedder"))
    try:
        service = Service(data_dir / "cache", accurate, fast, SystemClock())
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"its file in {data_dir / 'cache'}: {error}") from error
    routers = Routers(fast)
    for settings in configuration.settings_of(config, "route"):
        if route.in_use(settings) and settings.predictor != route.CLASSIFIER:
            routers.warm(str(configuration.router_path(config, settings)))
    asyncio.run(server.serve(socket_path(data_dir), service, routers, ready))


def run_engine(config: Config, name: str, port: int, ready: Callable[[], None]) -> int | None:
    """Serve an engine of ours on a loopback port until it is told to stop, or ends; its exit code."""
    engine = config.engines[name]
    code: int | None = registry.find("engines", engine.kind).run(engine.settings, port, ready)
    return code
