"""A group of commands whose name alone stands for its command `run`."""

from __future__ import annotations

import click


class RunByDefault(click.Group):
    """`trimtab NAME THING` is short for `trimtab NAME run THING`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with `run` where none of the commands is named."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)
