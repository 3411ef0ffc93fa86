"""Keeps a route's budget: one dial for each table of settings, which outlives a reload."""

from __future__ import annotations

from trimtab.levers.route.settings import Config, Facts, Means, budgets, cascades
from trimtab.levers.route.thread import TAKEN_OUTPUT
from trimtab.routing import dial as dials
from trimtab.routing.dial import Budget, Dial
from trimtab.types import Dialect, Record, Usage

_TAKEN_INPUT = 1000  # tokens of a typical request, where what models cost is compared


def dial_of(route: str, config: Config, facts: Facts, means: Means) -> Dial | None:
    """The route's dial, None if no budget is set."""
    if not budgets(config):
        return None
    table, budget = facts.table(route), _budget(config, facts)
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


def spend(dial: Dial, config: Config, record: Record, facts: Facts, *, by_weak: bool, expected: float) -> None:
    """Tell what a request spent; `expected` is the strong model's gain over the answer, if the weak one gave it."""
    if config.strong_share is not None:
        dial.spend(float(not by_weak))
    elif config.quality_floor is not None:
        dial.spend(max(0.0, expected) if by_weak else 0.0)
    elif (nusd := facts.spent(record)) is not None:
        dial.spend(nusd / 1e9)


def typical_usd(config: Config, facts: Facts) -> tuple[float, float] | None:
    """What a typical call of the weak and of the strong model costs; None if a price is not known."""
    usage = Usage(input=_TAKEN_INPUT, output=TAKEN_OUTPUT)
    weak, strong = (facts.cost(facts.target(one, Dialect.OPENAI), usage) for one in (config.weak, config.strong))
    return None if weak is None or strong is None else (weak / 1e9, strong / 1e9)


def _budget(config: Config, facts: Facts) -> Budget:
    if config.strong_share is not None:
        return dials.strong_share(config.strong_share)
    if config.quality_floor is not None:
        return dials.mean_loss(1 - config.quality_floor)
    ceiling = config.max_usd_per_request or 0.0
    usd = typical_usd(config, facts)
    if usd is None or not usd[0] < usd[1]:  # prices are looked up in the background, for a moment
        return dials.mean_cost(ceiling, 0.0, 2 * ceiling)
    return dials.mean_cost(max(ceiling, usd[0]), *usd)
