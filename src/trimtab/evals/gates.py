"""Which settings of levers a verdict stands behind: what may change answers does so only where quality was judged."""

from __future__ import annotations

import hashlib
import logging
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from trimtab.config import DEFAULT_ROUTE, Config, find
from trimtab.config.problems import Problems
from trimtab.config.tables import read_levers, read_routes
from trimtab.errors import BadRequest, TrimtabError
from trimtab.evals import verdicts
from trimtab.quality.verdict import Ruling
from trimtab.types import Scope

_log: Final = logging.getLogger("trimtab")
_OF_THE_GATE: Final = ("gate", "verdict")  # settings that change no answer


class Verdicts:
    """A lever's verdicts, by the tables of the routes; their files are read here, once.

    `made_of` names the file that settings are about, if they are about any: what was judged must be the present one.
    """

    def __init__(self, config: Config, lever: str, made_of: Callable[[Any], Path | None] = lambda _: None) -> None:
        self._config = config
        self._lever = lever
        self._made_of = made_of
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
        problem = objection(found, settings, self._lever, route)
        file = self._made_of(settings)
        if not problem and file is not None and file.stat().st_mtime > found.candidate.at:
            problem = f"{file.name} is younger than the run that was judged"
        return problem, None if problem else found


def objection(found: verdicts.VerdictFile, settings: Any, lever: str, route: str) -> str:
    """Why a verdict does not stand behind a lever's settings in a route's table; "" if it does."""
    if found.verdict.ruling is not Ruling.PASS:
        return f"the verdict says {found.verdict.ruling}"
    ours = _judged(lever, settings)
    if _judged(lever, settings_in(found.candidate.settings, lever, route)) != ours:
        return "the verdict is of other settings"
    if _judged(lever, settings_in(found.reference.settings, lever, route)) == ours:
        return "the verdict's reference had the same settings"
    return ""


def fresh(path: Path, config: Config, lever: str, route: str, off_since: float) -> str:
    """What a verdict says for a lever that is off since then (unix seconds): its file, its hash, what it found.

    Raises BadRequest where it does not speak for this lever's settings in this route's table, or is older: a run that
    began before the lever went off knows nothing of what was wrong with it.
    """
    data = verdicts.content(path)
    found = verdicts.decoded(data, path)
    judged = found.candidate
    problem = objection(found, config.lever_settings(lever, route), lever, route)
    if not problem and config.table_of(judged.route) != route:
        problem = f"the verdict is of the route {judged.route!r}, whose table is {config.table_of(judged.route)!r}"
    if not problem and judged.at <= off_since:
        problem = f"its run began at {_utc(judged.at)}, before the lever was switched off at {_utc(off_since)}"
    if problem:
        raise BadRequest(f"{path} does not switch {lever} on for route {route}: {problem}", param="verdict")
    sha256 = hashlib.sha256(data).hexdigest()[:16]
    return f"{path.name} (sha256 {sha256}) passed with {judged.model}: {found.verdict.reason}"


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


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


def _judged(lever: str, settings: Any) -> dict[str, Any]:
    """The settings that a verdict is of: those that the lever's module calls `JUDGED`, else all but the gate's own."""
    fields = getattr(settings, "__struct_fields__", ())
    judged = getattr(find("levers", lever), "JUDGED", None) or [name for name in fields if name not in _OF_THE_GATE]
    return {name: getattr(settings, name) for name in fields if name in judged}
