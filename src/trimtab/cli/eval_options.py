"""What `trimtab eval` and `trimtab gate` are told in the same words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from trimtab.evals.sides import Side
    from trimtab.evals.suite import Suite

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--model", default="", help="The model to ask, where a setting has several."),
    click.option("--strata", default="", help="Only these strata, separated by commas."),
    click.option("--limit", type=click.IntRange(1), help="At most so many items of each stratum (the first)."),
    click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Ask each item so often."),
    click.option("--seed", default=0, show_default=True, help="Sent with the requests; a repeat adds 1."),
    click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests in flight."),
    click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds for one request."),
    click.option("--max-cost", "max_cost_usd", type=click.FloatRange(0, min_open=True),
                 help="Stop when a setting has cost so many USD."),
    click.option("--judge-model", default="", help="Scores the items whose scorer is `judge`."),
    click.option("--route", default="default", show_default=True, help="The route that the requests name."),
    click.option("--prompt-version", default="", help="Sent with the requests; a verdict holds for this version."),
    click.option("--policy-version", default="", help="As --prompt-version."),
    click.option("--api-key-env", default="", help="The variable that holds the gateway's API key."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("trimtab-evals"),
                 show_default=True, help="Where runs and verdicts are kept."),
    click.option("--fresh", is_flag=True, help="Ask everything anew, even what an earlier run answered."),
)  # fmt: skip


def eval_options(command: Command) -> Command:
    """Give a command the options that `EvalOptions` holds."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class EvalOptions(msgspec.Struct, frozen=True):
    """The options by name."""

    model: str
    strata: str
    limit: int | None
    repeats: int
    seed: int
    concurrency: int
    timeout_s: float
    max_cost_usd: float | None
    judge_model: str
    route: str
    prompt_version: str
    policy_version: str
    api_key_env: str
    out: Path
    fresh: bool

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Who asks, for what. Raises BadRequest if the key's variable is not set."""
        said = {"route": self.route, "prompt-version": self.prompt_version, "policy-version": self.policy_version}
        headers = [(f"x-trimtab-{name}".encode(), value.encode()) for name, value in said.items() if value]
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key:
                raise BadRequest(f"the variable {self.api_key_env} is not set", param="api-key-env")
            headers.append((b"authorization", f"Bearer {key}".encode()))
        return headers


def load_suite(where: str, options: EvalOptions) -> Suite:
    """The suite, cut down to what was asked for. Raises ConfigError, BadRequest."""
    from trimtab.evals.runner import JUDGE
    from trimtab.evals.suite import load

    suite = load(where)
    known = dict.fromkeys(item.stratum for item in suite.items)
    chosen = [name.strip() for name in options.strata.split(",") if name.strip()] or list(known)
    for name in chosen:
        if name not in known:
            raise BadRequest(f"{name!r} is no stratum of {suite.name}; it has {', '.join(known)}", param="strata")
    items = [item for name in chosen for item in _first(suite.items, name, options.limit)]
    if not options.judge_model and any(item.scorer == JUDGE for item in items):
        raise BadRequest("some items are scored by a judge: name its model with --judge-model", param="judge-model")
    return msgspec.structs.replace(suite, items=tuple(items))


def _first(items: Sequence[Any], stratum: str, limit: int | None) -> list[Any]:
    return [item for item in items if item.stratum == stratum][:limit]


def sides_of(said: Sequence[str], options: EvalOptions) -> list[Side]:
    """The settings by what was said of them. Raises BadRequest."""
    from trimtab.evals.sides import parse

    sides = [parse(one, options.model) for one in said]
    names = [side.name for side in sides]
    for name in names:
        if names.count(name) > 1:
            raise BadRequest(f"two settings are called {name!r}; name them: NAME=FILE", param="config")
    return sides
