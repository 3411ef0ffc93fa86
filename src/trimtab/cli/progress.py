"""How far a command has come, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class Tick(Protocol):
    """Is called after each step."""

    def __call__(self, count: int = 1, *, what: str = ...) -> None:
        """So many more are done; `what` says what is being done, where that changes."""


def bar(*counts: ProgressColumn) -> Progress:
    """A bar with these columns between a task's description and the time left; `disable` where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def progress(what: str, total: int, line: str = "") -> Iterator[Tick]:
    """A bar or, where there is no terminal, a line for each tenth of the way (none if `line` is "").

    `line` may name {what}, {done} and {total}.
    """
    from rich.progress import MofNCompleteColumn

    done, shown = 0, bar(MofNCompleteColumn())
    task = shown.add_task(what, total=total)

    def tick(count: int = 1, *, what: str = what) -> None:
        nonlocal done
        tenths = 10 * done // total
        done += count
        shown.update(task, advance=count, description=what)
        if shown.disable and line and 10 * done // total > tenths:
            click.echo(line.format(what=what, done=done, total=total), err=True)

    with shown:
        yield tick
