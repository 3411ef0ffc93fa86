"""`trimtab replay`: send real traffic to a server, at its own times, and report what users would feel."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab import __version__
from trimtab.cli.capture import key_option, key_variables
from trimtab.cli.interrupts import until_signal
from trimtab.cli.place import data_folder
from trimtab.cli.progress import bar
from trimtab.cli.run_by_default import RunByDefault
from trimtab.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.measure.load import Call, Timing
    from trimtab.measure.prompts import PromptMaker
    from trimtab.measure.report import Report, Settings
    from trimtab.measure.target import Target
    from trimtab.measure.traces import Trace, Traced

_INTERRUPTED = 130


@click.group(cls=RunByDefault, context_settings={"ignore_unknown_options": True})
def replay() -> None:
    """Send real traffic to any OpenAI-compatible server, and report what users would feel.

    \b
    trimtab replay TRACE [OPTIONS]      run it; see `trimtab replay run --help`
    trimtab replay show RUN             show a saved run again
    trimtab replay diff A B             what differs between two saved runs, and which differences are real
    """


@replay.command()
@click.argument("trace", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--url", default="http://127.0.0.1:8088/v1", show_default=True, help="The server; its URL up to /v1.")
@click.option("--model", default="", help="The model to ask for; needed where the trace has lengths only.")
@click.option(
    "--kind",
    type=click.Choice(["azure", "mooncake", "sessions", "bodies"]),
    help="The trace's kind.  [default: found out]",
)
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Time factor.")
@click.option("--limit", type=click.IntRange(1), help="At most so many requests.")
@click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True), help="Only the first so many s.")
@click.option(
    "--sessions-per-s",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="Starts a second, of a sessions trace.  [default: 1]",
)
@click.option("--seed", default=0, show_default=True, help="Fixes prompts, jitter and intervals.")
@click.option("--concurrency-cap", default=0, help="Requests in flight at most; a wait for a place counts.")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds for one request.")
@click.option("--context", "context_tokens", type=click.IntRange(1), help="Skip requests longer than so many tokens.")
@click.option("--slo", "slo_text", default="chat", show_default=True, help="chat, completion, batch, or ttft=..,e2e=..")
@click.option("--no-stream", is_flag=True, help="Ask for whole answers; times of tokens are then unknown.")
@click.option("--ignore-eos", is_flag=True, help="Ask vLLM, SGLang or llama.cpp for answers of exactly the length.")
@click.option("--api-key-env", default="", help="The variable that holds the server's API key.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE", help="A further header.")
@click.option("--route", help="Of captured traffic: only this route.")
@click.option("--tenant", help="Of captured traffic: only this tenant.")
@key_option
@click.option("--strict", is_flag=True, help="Stop at the first line of the trace that cannot be read.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report with plots here.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the run here, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, without the single requests.")
def run(trace: Path, save: Path | None, html: Path | None, as_json: bool, **options: Any) -> None:
    """Replay TRACE: each request leaves at its own time, however the earlier ones fare.

    Latencies count from the scheduled time, so a server that stalls is seen to stall. TRACE is an Azure CSV, a Mooncake
    JSONL, a JSONL of agent sessions, or a JSONL of chat bodies with timestamps; each may be gzipped. `captured` stands
    for what this machine's gateway captured, as the path of a capture.sqlite does. Where a trace holds lengths only,
    prompts of exactly those lengths are made, by the server's own count. Ctrl-C ends the run and still reports it. Exit
    code: 0, 1 when nothing could be measured, 130 after Ctrl-C.

    \b
    trimtab replay azure.csv.gz --model smollm2-135m-instruct --duration 60 --context 4096
    trimtab replay traffic.jsonl --url http://127.0.0.1:8000/v1 --speed 2 --slo ttft=300ms,e2e=5s --save a.json
    trimtab replay captured --route chat --url http://127.0.0.1:8000/v1
    """
    import msgspec
    import uvloop

    report = uvloop.run(_run(trace, options))
    if save is not None:
        save.write_bytes(msgspec.json.encode(report))
    _present(report, html, as_json)
    if save is not None and not as_json:
        click.echo(f"Saved to {save}; compare with: trimtab replay diff {save} OTHER")
    if report.interrupted:
        raise click.exceptions.Exit(_INTERRUPTED)
    if not report.counts.successful:
        raise click.ClickException(
            f"no request was answered; the most frequent reason: {next(iter(report.errors), '')}"
        )


@replay.command()
@click.argument("saved", metavar="RUN", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report with plots here.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, without the single requests.")
def show(saved: Path, html: Path | None, as_json: bool) -> None:
    """Show a saved run again."""
    _present(_load(saved), html, as_json)


@replay.command()
@click.argument("a", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two saved runs: B minus A, with 95% intervals; real is what they leave no doubt of."""
    import msgspec

    from trimtab.cli import replay_view
    from trimtab.measure import report

    first, second = _load(a), _load(b)
    found = report.compare(first, second)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        replay_view.show_differences(first, second, found)


def _present(report: Report, html: Path | None, as_json: bool) -> None:
    import msgspec

    from trimtab.cli import replay_view
    from trimtab.measure.html import render

    if html is not None:
        html.write_text(render(report), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.encode(msgspec.structs.replace(report, requests=())))
    else:
        replay_view.show(report)
        if html is not None:
            click.echo(f"Report with plots: {html}")


def _load(path: Path) -> Report:
    from trimtab.measure import report

    return report.load(path.read_bytes(), str(path))


async def _run(trace: Path, options: dict[str, Any]) -> Report:
    """Everything from the trace to the report. Raises BadRequest, Unfit."""
    from trimtab.measure import report, traces
    from trimtab.measure.contention import Contention
    from trimtab.measure.load import Limits
    from trimtab.measure.target import Shape, Target, fits
    from trimtab.slo import parse_slo

    slo = parse_slo(options["slo_text"])
    read = _captured(trace, options) or traces.read(
        trace,
        kind=options["kind"] or "",
        strict=options["strict"],
        seed=options["seed"],
        sessions_per_s=options["sessions_per_s"],
    )
    has_bodies = read.kind in ("bodies", "captured")
    for problem in read.problems:
        click.echo(f"skipped: {problem}", err=True)
    model = options["model"]
    if not model and not has_bodies:
        raise BadRequest("this trace has no model in it; say which one to ask for: --model", param="model")
    extra = {"ignore_eos": True} if options["ignore_eos"] else {}
    target = Target(options["url"], _headers(options), Shape(model, not options["no_stream"], extra))
    try:
        context = options["context_tokens"] or await target.context_tokens()
        wanted = _cut(read.requests, options)
        short_enough = [request for request in wanted if fits(request, context)]
        maker = await _maker(target, options["seed"]) if not has_bodies else None
        fitting = [request for request in short_enough if maker is None or maker.can_make(request)]
        if not fitting:
            raise BadRequest(f"no request of {trace} is left after --duration and --context", param="trace")
        chosen = fitting[: options["limit"]]
        calls = [target.call(request, number, options["speed"], maker) for number, request in enumerate(chosen)]
        settings = report.Settings(
            url=options["url"],
            model=model,
            trace=str(trace),
            kind=read.kind,
            speed=options["speed"],
            seed=options["seed"],
            slo=slo,
            streamed=not options["no_stream"],
            concurrency_cap=options["concurrency_cap"],
        )
        contention = Contention(os.getsid(0))
        limits = Limits(options["concurrency_cap"], options["timeout_s"], keep_text=False)
        timings, interrupted = await _send_all(target, calls, limits)
        brought = report.Run(
            timings,
            in_trace=len(read.requests) + read.malformed + read.other_dialect,
            malformed=read.malformed,
            too_long=len(wanted) - len(short_enough),
            too_short=len(short_enough) - len(fitting),
            interrupted=interrupted,
            others_cpu=contention.share(),
            other_dialect=read.other_dialect,
        )
        return report.make(settings, brought, __version__, _pricer(settings))
    finally:
        await target.close()


def _captured(trace: Path, options: dict[str, Any]) -> Trace | None:
    """Captured traffic, if the trace is some: the word `captured`, or a file of it. Raises BadRequest."""
    from trimtab.measure import captured
    from trimtab.stores.captures import FILE_NAME
    from trimtab.stores.captures_db import is_capture_file
    from trimtab.stores.sealing import Keyring

    if str(trace) == captured.KIND and not trace.exists():
        trace = data_folder(None, None) / FILE_NAME
    elif not is_capture_file(trace):
        if options["route"] or options["tenant"]:
            raise BadRequest("--route and --tenant choose from captured traffic; this trace is none", param="trace")
        return None
    keys = Keyring(key_variables(options["key_envs"]), os.environ)
    return captured.read(trace, keys, {"route": options["route"], "tenant": options["tenant"]})


def _headers(options: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    headers = []
    for header in options["headers"]:
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or not header.isprintable():
            raise BadRequest(f"{header!r} is no header; write it as NAME:VALUE", param="header")
        headers.append((name.strip().lower().encode(), value.strip().encode()))
    if variable := options["api_key_env"]:
        secret = os.environ.get(variable, "").strip()
        if not secret:
            raise BadRequest(f"the variable {variable} is not set; it should hold the API key", param="api_key_env")
        headers.append((b"authorization", b"Bearer " + secret.encode()))
    return headers


def _cut(requests: tuple[Traced, ...], options: dict[str, Any]) -> list[Traced]:
    """The requests of the first `--duration` seconds, in the replay's own time."""
    if options["duration_s"] is None:
        return list(requests)
    last_s = options["duration_s"] * options["speed"]
    return [request for request in requests if request.at_s < last_s]


async def _maker(target: Target, seed: int) -> PromptMaker:
    """What makes prompts of exact lengths for this target; it is asked a few questions."""
    from trimtab.measure.prompts import PromptMaker, calibrate

    click.echo("Asking the target how it counts tokens ...", err=True)
    maker = PromptMaker(await calibrate(target.count), seed)
    await target.check()
    return maker


async def _send_all(target: Target, calls: list[Call], limits: Any) -> tuple[list[Timing], bool]:
    """Replay with a progress bar; the first Ctrl-C ends it, and what came so far is returned."""
    from trimtab.measure.load import replay as send

    timings: list[Timing] = []
    with _progress(len(calls)) as tick:

        def done(timing: Timing) -> None:
            timings.append(timing)
            tick(timing)

        return timings, not await until_signal(send(target.origin, calls, target.head, done, limits), (signal.SIGINT,))


@contextlib.contextmanager
def _progress(total: int) -> Any:
    from rich.progress import MofNCompleteColumn, TextColumn

    errors = 0
    with bar(MofNCompleteColumn(), TextColumn("{task.fields[note]}")) as shown:
        task = shown.add_task("Replaying", total=total, note="")

        def tick(timing: Timing) -> None:
            nonlocal errors
            errors += not timing.ok
            shown.update(task, advance=1, note=f"{errors} failed" if errors else "")

        if shown.disable:
            click.echo(f"Replaying {total:,} requests ...", err=True)
        yield tick


def _pricer(settings: Settings) -> Callable[[Timing], float | None]:
    """List prices for what the target's answers do not say a price of."""
    import time

    from trimtab.prices import Prices
    from trimtab.types import Usage

    prices = Prices.of_tables({}, {})
    prices.warm([("", settings.model)])

    def price(timing: Timing) -> float | None:
        usage = Usage(
            input=timing.input_tokens - timing.cached_tokens,
            cache_read=timing.cached_tokens,
            output=timing.output_tokens,
        )
        money = prices.quick("", settings.model, usage, time.time())
        return None if money is None or money.nusd is None else money.nusd / 1e9

    return price
