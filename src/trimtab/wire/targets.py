"""From a route and the model that a client names to the plan that the levers then may change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.config import Config
from trimtab.errors import ModelNotFound
from trimtab.ports import Engine
from trimtab.types import Attempt, Dialect, Plan, Purpose, Target

_MEMO_LIMIT = 4096  # distinct (route, model, dialect) triples; clients choose the names, so bound it


class Targets:
    """Resolves models to engines. Immutable but for its memo."""

    def __init__(self, config: Config, engines: Mapping[str, Engine]) -> None:
        self._config = config
        self.engines = engines
        self._memo: dict[tuple[str, str, Dialect], Plan] = {}
        self._open = config.open_engines()

    def plan(self, route: str, model: str, dialect: Dialect) -> Plan:
        """The route's plan for a model: retries on the first target, then its fallbacks. Raises ModelNotFound."""
        key = (route, model, dialect)
        plan = self._memo.get(key)
        if plan is None:
            plan = self._make(route, model, dialect)
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            self._memo[key] = plan
        return plan

    def alone(self, model: str, dialect: Dialect) -> Plan:
        """One attempt at a model, whatever the route. Raises ModelNotFound."""
        return Plan((Attempt(self.target(model, dialect), Purpose.SERVE),))

    def _make(self, route: str, model: str, dialect: Dialect) -> Plan:
        settings = self._config.route(route)
        model = settings.model or model
        first = self.target(model, dialect)
        own = self._config.models.get(model)
        names = [*settings.fallback, *(own.fallback if own else ())]
        attempts = [Attempt(first, Purpose.SERVE, settings.timeouts)]
        attempts += [
            Attempt(first, Purpose.RETRY, settings.timeouts, settings.backoff_s * 2**n) for n in range(settings.retries)
        ]
        attempts += [Attempt(self.target(name, dialect), Purpose.FALLBACK, settings.timeouts) for name in names]
        return Plan(tuple(attempts), settings.retry_after_max_s)

    def target(self, model: str, dialect: Dialect) -> Target:
        """Where a model is. Raises ModelNotFound."""
        own = self._config.models.get(model)
        if own is not None:
            return Target(model, own.engine, own.name or model, self.engines[own.engine].provider)
        engine = self.default_engine(dialect)
        if engine is None:
            known = ", ".join(sorted(self._config.models)) or "none"
            raise ModelNotFound(f"no engine serves the model {model!r}; configured models: {known}", param="model")
        return Target(model, engine.name, model, engine.provider)

    def default_engine(self, dialect: Dialect, *, any_engine: bool = False) -> Engine | None:
        """The first engine that takes models by any name, one that speaks the client's dialect before others.

        `any_engine` widens the choice to all engines, for paths that name no model.
        """
        names: Iterable[str] = self._open
        if any_engine:
            names = [*self._open, *(name for name in self.engines if name not in self._open)]
        found = [self.engines[name] for name in names]
        return next((engine for engine in found if engine.dialect == dialect), found[0] if found else None)

    def models(self) -> list[str]:
        """The names that clients may use, for GET /v1/models."""
        return sorted(self._config.models)
