"""Keeps a route's budget: one dial for each table of settings, which outlives a reload."""

from __future__ import annotations

from typing import NamedTuple

from trimtab.levers.route.settings import Config, Facts, Means, cascades
from trimtab.routing import dial as dials
from trimtab.routing.dial import Budget, Dial
from trimtab.types import Record, Target


class Served(NamedTuple):
    """How a request was served; `gain` is the strong model's, expected over the answer."""

    by_weak: bool
    gain: float
    weak: Target
    strong: Target


def dial_of(route: str, config: Config, facts: Facts, means: Means) -> Dial | None:
    """The route's dial, None if no budget is set."""
    if (budget := _budget(config)) is None:
        return None
    table = facts.table(route)
    dial = means.dials.get(table)
    if dial is None:
        found = facts.head(config)
        fitted: tuple[float, ...] = ()
        if found is not None:
            head = found[0]
            fitted = head.after if cascades(config, head) else head.gains
        dial = means.dials[table] = Dial(budget, fitted)
    elif dial.budget != budget:
        dial = means.dials[table] = Dial.of(dial.state(), budget)
    return dial


def spend(dial: Dial, config: Config, record: Record, facts: Facts, served: Served) -> None:
    """Tell what a request spent."""
    if config.strong_share is not None:
        dial.spend(float(not served.by_weak))
    elif config.quality_floor is not None:
        dial.spend(max(0.0, served.gain) if served.by_weak else 0.0)
    elif (nusd := facts.spent(record)) is not None:
        usage = record.attempts[-1].usage
        weak, strong = facts.cost(served.weak, usage), facts.cost(served.strong, usage)
        if weak is not None and strong is not None:
            dial.measure((strong - weak) / 1e9)
        dial.spend(nusd / 1e9)


def _budget(config: Config) -> Budget | None:
    if config.strong_share is not None:
        return dials.strong_share(config.strong_share)
    if config.quality_floor is not None:
        return dials.mean_loss(1 - config.quality_floor)
    if (ceiling := config.max_usd_per_request) is None:
        return None
    return dials.mean_cost(ceiling, 0.0, 2 * ceiling)  # until it is measured how far apart the models are
