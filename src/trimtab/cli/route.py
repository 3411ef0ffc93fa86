"""`trimtab route`: routers that send each request to the cheapest model that will get it right."""

from __future__ import annotations

import click

from trimtab.cli.route_explain import explain
from trimtab.cli.route_train import train


@click.group()
def route() -> None:
    """Routers: which of two models a request goes to. What one would save: `trimtab bench route`."""


route.add_command(train)
route.add_command(explain)
