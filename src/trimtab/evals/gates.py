"""Which settings of levers a verdict stands behind: what may change answers does so only where quality was judged."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any, Final

from trimtab.config import DEFAULT_ROUTE, Config
from trimtab.config.problems import Problems
from trimtab.config.tables import read_levers, read_routes
from trimtab.errors import TrimtabError
from trimtab.evals import verdicts
from trimtab.quality.verdict import Ruling
from trimtab.types import Scope

_log: Final = logging.getLogger("trimtab")
_OF_THE_GATE: Final = ("gate", "verdict")  # settings that change no answer


class Gate:
    """A lever's verdicts, by the tables of the routes; their files are read here, once."""

    def __init__(self, config: Config, lever: str) -> None:
        self._config = config
        self._lever = lever
        self._found = {table: self._read(table) for table in (DEFAULT_ROUTE, *config.routes)}
        self._told: set[str] = set()

    def why_not(self, scope: Scope, model: str) -> str:
        """Why no verdict covers the settings on this route for this model and these versions; "" if one does."""
        table = self._config.table_of(scope.route)
        problem, verdict = self._found[table]
        if verdict is None:
            if table not in self._told:
                self._told.add(table)
                if self._config.lever_settings(self._lever, table).gate == "required":
                    _log.warning("%s runs in shadow on route %s: %s", self._lever, table, problem)
            return problem
        judged = verdict.candidate
        for name, theirs, ours in (
            ("route", judged.route, scope.route),
            ("model", judged.model, model),
            ("prompt version", judged.prompt_version, scope.prompt_version),
            ("policy version", judged.policy_version, scope.policy_version),
        ):
            if theirs != ours:
                return f"the verdict is of the {name} {theirs!r}, not {ours!r}"
        return ""

    def _read(self, route: str) -> tuple[str, verdicts.VerdictFile | None]:
        settings = self._config.lever_settings(self._lever, route)
        if not settings.verdict:
            return "no verdict", None
        try:
            found = verdicts.read(Path(self._config.source).parent / Path(settings.verdict).expanduser())
        except TrimtabError as error:
            return error.message, None
        if found.verdict.ruling is not Ruling.PASS:
            return f"the verdict says {found.verdict.ruling}", None
        if _compared(settings_in(found.candidate.settings, self._lever, route)) != _compared(settings):
            return "the verdict is of other settings", None
        if _compared(settings_in(found.reference.settings, self._lever, route)) == _compared(settings):
            return "the verdict's reference had the same settings", None
        return "", found


def settings_in(text: str, lever: str, route: str) -> Any:
    """A lever's settings on a route in a configuration's text; None where there are none to read."""
    if not text:
        return None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    problems = Problems(text)
    levers = read_levers(document, problems)
    routes = read_routes(document, levers, problems)
    own = routes[route].levers.get(lever) if route in routes else None
    return levers.get(lever) if own is None else own


def _compared(settings: Any) -> dict[str, Any]:
    fields = getattr(settings, "__struct_fields__", ())
    return {name: getattr(settings, name) for name in fields if name not in _OF_THE_GATE}
