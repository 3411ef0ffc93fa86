"""What one worker serves with: a configuration and everything built from it. A reload swaps it whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimtab.admission import Gate
from trimtab.config import Config
from trimtab.errors import ModelNotFound
from trimtab.pipeline import Pipeline
from trimtab.ports import AnswerStore, Clock, Lever, Threads
from trimtab.routing.dial import Dial
from trimtab.shadow import Spending, Watch
from trimtab.stores import ledger_db, ledger_reader
from trimtab.stores.switches import Switches
from trimtab.types import Dialect, Target
from trimtab.wire import embeddings
from trimtab.wire.access import Access
from trimtab.wire.intake import Ids
from trimtab.wire.metrics import Metrics
from trimtab.wire.neighbours import Neighbours
from trimtab.wire.targets import Targets

_MODEL_SCAN_BYTES = 1 << 20  # bodies beyond it (audio, files) are not searched for a model's name
_INGEST_WAIT_S = 2.0  # a row reaches the database within this after the answer's end


class _Named(msgspec.Struct):
    model: str = ""


class Shared(msgspec.Struct):
    """What outlives a reload: it belongs to the worker process."""

    clock: Clock
    ids: Ids
    metrics: Metrics
    journal: Any  # FileJournal: its health is asked for beyond the port
    store: AnswerStore
    captures: Any  # Captures: what its thread writes is told by each configuration
    data_dir: Path
    switches: Switches
    spending: Spending  # of calls that no client waits for
    similar: Any = None  # similar.client.Client: the process beside, if this gateway has one
    neighbours: Neighbours | None = None  # the other workers
    threads: Threads | None = None  # which model serves which conversation, if any are routed
    dials: dict[str, Dial] = msgspec.field(default_factory=dict)  # of routes with a budget
    gates: dict[str, Gate] = msgspec.field(default_factory=dict)  # of engines with a queue in front of them


class Gateway:
    """One configuration at work. `levers` stand in slot order."""

    def __init__(
        self,
        config: Config,
        shared: Shared,
        targets: Targets,
        levers: Sequence[Lever],
        pipeline: Pipeline,
        watch: Watch,
    ) -> None:
        self.config = config
        self.shared = shared
        self.clock = shared.clock
        self.ids = shared.ids
        self.metrics = shared.metrics
        self.engines = targets.engines
        self.levers = levers
        self.pipeline = pipeline
        self.watch = watch
        self.access = Access(config.keys)
        self.targets = targets
        self.created = int(shared.clock.wall())
        self.in_flight = 0
        self.sweeper: asyncio.Task[None] | None = None  # keeps this configuration's deadlines

    async def not_ready(self) -> list[str]:
        """Why requests should not come yet or any more; empty when they may."""
        problems = [
            f"engine {name} is still loading" for name, engine in self.engines.items() if not await engine.ready()
        ]
        if not self.shared.journal.healthy:
            problems.append("the ledger's journal cannot be written: is the disk full?")
        return problems

    def scrape(self) -> bytes:
        """The metrics of all workers."""
        self.gauge(besides=1)  # the scrape itself
        return self.metrics.render()

    def gauge(self, besides: int = 0) -> None:
        """Note how this worker is now; `besides` requests in flight are not counted."""
        stats = self.shared.store.stats()
        self.metrics.set("trimtab_cache_entries", stats["entries"])
        self.metrics.set("trimtab_cache_errors_total", stats["errors"])
        if "down" in stats:
            self.metrics.set("trimtab_cache_skipped_total", stats["skipped"])
            self.metrics.set("trimtab_cache_down", stats["down"])
        if self.shared.similar is not None:
            self.metrics.set("trimtab_semantic_skipped_total", self.shared.similar.skipped)
            self.metrics.set("trimtab_semantic_errors_total", self.shared.similar.errors)
        for route, dial in self.shared.dials.items():
            self.metrics.set("trimtab_route_drift", round(dial.drift, 3), route)
        for engine, gate in self.shared.gates.items():
            self.metrics.set("trimtab_queue_waiting", gate.waiting, engine)
            self.metrics.set("trimtab_queue_running", gate.running, engine)
            self.metrics.set("trimtab_queue_limit", gate.limit.slots, engine)
        self.metrics.set("trimtab_journal_waiting_rows", self.shared.journal.waiting)
        self.metrics.set("trimtab_in_flight_requests", self.in_flight - besides)

    def models(self) -> list[str]:
        """The names that clients may use, for GET /v1/models."""
        return [*self.targets.models(), *(embeddings.MODELS if self.shared.similar is not None else ())]

    def model_in(self, body: bytes, content_type: bytes) -> str:
        """The model that a passed-through JSON body names, "" where there is none."""
        if not body or len(body) > _MODEL_SCAN_BYTES or b"json" not in content_type:
            return ""
        try:
            return msgspec.json.decode(body, type=_Named).model
        except msgspec.DecodeError:
            return ""  # the upstream says what is wrong with it, in its own words

    def relay_target(self, route: str, model: str, dialect: Dialect) -> Target:
        """Where a passed-through call goes. Raises ModelNotFound."""
        if model:
            return self.targets.plan(route, model, dialect).attempts[0].target
        engine = self.targets.default_engine(dialect, any_engine=True)
        if engine is None:
            raise ModelNotFound("no engine is configured; add [engines.NAME] to trimtab.toml", param="model")
        return Target("", engine.name, "", engine.provider)

    def relay_body(self, body: bytes, model: str, target: Target) -> bytes:
        """The passed-through body, with the model named as its upstream does."""
        if not model or target.upstream_model == model:
            return body
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields["model"] = msgspec.Raw(msgspec.json.encode(target.upstream_model))
        return msgspec.json.encode(fields)

    async def request_detail(self, request_id: str, tenant: str | None) -> bytes | None:
        """A request's row as JSON, waiting a moment for one that was just settled. `tenant` None sees all."""
        deadline = self.clock.mono() + _INGEST_WAIT_S
        while True:
            row = await asyncio.to_thread(self._row, request_id)
            if row is not None:
                return msgspec.json.encode(row) if tenant in (None, row["tenant"]) else None
            if self.clock.mono() > deadline:
                return None
            await asyncio.sleep(0.1)

    def _row(self, request_id: str) -> dict[str, Any] | None:
        with ledger_reader.Reader(self.shared.data_dir / ledger_db.FILE_NAME) as reader:
            row = reader.show(request_id)
        return row if row is not None and row["id"] == request_id else None

    async def close(self) -> None:
        """Release the engines' connections, once the last request of this configuration is done."""
        for _ in range(36_000):
            if not self.in_flight and not self.watch.running:
                break
            await asyncio.sleep(0.1)
        if self.sweeper is not None:
            self.sweeper.cancel()
        for engine in self.engines.values():
            await engine.close()
