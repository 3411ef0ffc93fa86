"""The program `trimtab`: a click group whose commands are imported only when they are run.

`trimtab serve` has to start fast, so the table below says what `trimtab --help` needs to know about each command.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from trimtab import __version__
from trimtab.errors import ConfigError, TrimtabError

# name -> (module:attribute of its click command, one line of help)
COMMANDS = {
    "serve": ("trimtab.cli.serve:serve", "Start the gateway (and, without a configuration, a small model of its own)."),
    "config": ("trimtab.cli.config:config", "Check a configuration file, or show what is in effect."),
    "keys": ("trimtab.cli.keys:keys", "Make API keys for your clients."),
    "ledger": ("trimtab.cli.ledger:ledger", "See what every request did and what it cost."),
    "latency": ("trimtab.cli.latency:latency", "Percentiles of what users felt, by route, model, tenant or version."),
    "slo": ("trimtab.cli.slo:slo", "Does each route keep its promise, and is an alarm on."),
    "levers": ("trimtab.cli.levers:levers", "Levers that change answers: their quality, and their switches."),
    "ab": ("trimtab.cli.ab:ab", "Both arms of an A/B test: cost, latency, errors, feedback, quality."),
    "cache": ("trimtab.cli.cache:cache", "See or purge the answers kept by the cache."),
    "capture": ("trimtab.cli.capture:capture", "See, export or erase what clients sent, where routes capture it."),
    "replay": ("trimtab.cli.replay:replay", "Send real traffic to a server, and report what users would feel."),
    "eval": ("trimtab.cli.eval:evals", "Run eval suites under one setting or several, and see what changed."),
    "gate": ("trimtab.cli.gate:gate", "Did quality survive? Pass, fail or undecided, by stratum."),
    "route": ("trimtab.cli.route:route", "Train a router: which requests the cheap model gets right."),
    "bench": ("trimtab.cli.bench:bench", "Measure a lever on data of your own, before it is switched on."),
    "engine": (
        "trimtab.cli.engine:engine",
        "Start and stop engines, see how they do and what holds them back; smaller models.",
    ),
    "demo": ("trimtab.cli.demo:demo", "Replay real questions, levers off, then on, and compare."),
}

# \b keeps click from re-wrapping a paragraph.
_EPILOG = """\b
Start with:
  trimtab serve                        serve a small built-in model on port 8088
  curl http://127.0.0.1:8088/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}]}'
  trimtab ledger tail                  what did it cost?

\b
With a provider of your own: write trimtab.toml, then
  trimtab config check                 every mistake at once, with its line and the way out
  trimtab keys new --tenant acme       an API key for a client
  trimtab serve
"""


class Commands(click.Group):
    """A group that imports a command when it is run, and turns Trimtab's errors into a line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself. Side effect: imports its module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a guess for a name that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands for --help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a TrimtabError ends as its message on stderr and exit code 1, without a traceback."""
        try:
            return super().invoke(ctx)
        except TrimtabError as error:
            click.echo(_as_text(error), err=True)
            raise click.exceptions.Exit(1) from error


def _as_text(error: TrimtabError) -> str:
    if not isinstance(error, ConfigError):
        return f"Error: {error.message}"
    count = len(error.problems)
    return f"{'1 mistake' if count == 1 else f'{count} mistakes'} in the configuration:\n{error.message}"


@click.command(cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trimtab")
def main() -> None:
    """Trimtab stands between your application and its language models.

    It speaks the OpenAI and Anthropic APIs, sends each request to a provider or to a model on this machine, answers
    repeated ones from a cache, and writes down what every request cost.
    """
