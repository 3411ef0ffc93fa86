"""How the demo's comparison looks: one table, what it means, and how to go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from trimtab.cli.ledger_view import seconds, share, usd
from trimtab.measure.contention import NOISY
from trimtab.measure.demo import SIMILAR_COSINE, Phase

_SAME = 0.05  # relative differences below this are not called a change
_WIDEST = 100

Number = float | int | None


class Comparison(msgspec.Struct, frozen=True):
    """Everything that the demo measured; a phase that was never begun is None. `--json` prints it as it is."""

    version: str
    machine: str
    cores: int
    seed: int
    requests: int
    distinct_questions: int
    exact_repeats: int
    zipf_exponent: float
    capacity_per_s: float
    rate_per_s: float
    machine_hour_usd: float
    interrupted: bool
    levers_off: Phase | None
    levers_on: Phase | None
    with_semantic: Phase | None  # the levers and the semantic cache; None where its packages are not installed
    replayed_hits: int  # answers from the cache that a client received
    faithful_hits: int  # of them, word for word what the model had answered


class _Row(msgspec.Struct, frozen=True):
    """One measure: how to read it from a phase, to show it, and to compare it."""

    name: str
    read: Callable[[Phase], Number]
    show: Callable[[Number], str]
    change: Callable[[float, float], str]


def _count(value: Number) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _money(value: Number) -> str:
    return usd(None if value is None else round(value))


def _speed(off: float, on: float) -> str:
    if min(off, on) <= 0:
        return ""
    ratio = off / on
    if abs(ratio - 1) < _SAME:
        return "about the same"
    factor, word = (ratio, "faster") if ratio > 1 else (1 / ratio, "slower")
    return f"{factor:,.1f}x {word}" if factor < 10 else f"{factor:,.0f}x {word}"


def _percent(off: float, on: float) -> str:
    if off <= 0:
        return ""
    change = on / off - 1
    return f"{change:+.0%}" if abs(change) >= 0.005 else "same"


def _no_change(off: float, on: float) -> str:
    return ""


def _share_of(phase: Phase, count: int) -> float | None:
    return count / phase.ledger.requests if phase.ledger.requests else None


_SECTIONS: tuple[tuple[_Row, ...], ...] = (
    (
        _Row("Requests", lambda p: p.requests, _count, _no_change),
        _Row("  answered whole", lambda p: p.answered, _count, _no_change),
        _Row("  by the exact cache", lambda p: _share_of(p, p.ledger.cache_hits), share, _no_change),
        _Row("  by a call in flight", lambda p: _share_of(p, p.ledger.coalesced), share, _no_change),
        _Row("  by the semantic cache", lambda p: _share_of(p, p.reused), share, _no_change),
        _Row(
            "    wrong of these [4]",
            lambda p: p.reused_wrong / p.reused if p.reused else None,
            share,
            _no_change,
        ),
    ),
    (
        _Row("Time to first token, p50", lambda p: p.ttft_s.p50, seconds, _speed),
        _Row("  p95", lambda p: p.ttft_s.p95, seconds, _speed),
        _Row("  p99", lambda p: p.ttft_s.p99, seconds, _speed),
        _Row("End to end, p50", lambda p: p.end_to_end_s.p50, seconds, _speed),
        _Row("  p95", lambda p: p.end_to_end_s.p95, seconds, _speed),
        _Row("  p99", lambda p: p.end_to_end_s.p99, seconds, _speed),
        _Row("Between tokens, p50 [1]", lambda p: p.inter_token_s, seconds, _speed),
    ),
    (
        _Row("Calls to the model", lambda p: p.ledger.upstream_calls, _count, _percent),
        _Row("Input tokens, computed", lambda p: p.ledger.fresh_input_tokens, _count, _percent),
        _Row("Input tokens, reused [2]", lambda p: p.ledger.cache_read_tokens, _count, _percent),
        _Row("Output tokens", lambda p: p.ledger.output_tokens, _count, _percent),
        _Row("Engine busy", lambda p: p.ledger.machine_s, seconds, _percent),
        _Row("Cost [3]", lambda p: p.ledger.cost_nusd, _money, _percent),
        _Row("Cost per 1,000 requests", lambda p: p.ledger.cost_per_1000_nusd, _money, _percent),
    ),
)


_OF_SEMANTIC: Final = _SECTIONS[0][4:]


def print_report(console: Console, found: Comparison) -> None:
    """The table, its footnotes and the next steps."""
    console.print(_table(found))
    if found.interrupted:
        console.print("[yellow]Interrupted: the figures are of what was measured so far.[/yellow]\n")
    _print_errors(console, found)
    _print_contention(console, found)
    for line in _notes(found):
        console.print(line, highlight=False, width=min(console.width, _WIDEST))
    console.print()
    console.print(_NEXT, highlight=False, soft_wrap=True)


def _table(found: Comparison) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title="What the levers changed",
        title_justify="left",
        title_style="bold",
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    table.add_column("levers off", justify="right", no_wrap=True)
    table.add_column("levers on", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True, style="bold green")
    if found.with_semantic is not None:
        table.add_column("+ semantic", justify="right", no_wrap=True)
    for section in _SECTIONS:
        for row in section:
            off = None if found.levers_off is None else row.read(found.levers_off)
            on = None if found.levers_on is None else row.read(found.levers_on)
            change = "" if off is None or on is None else row.change(off, on)
            style = "[yellow]" if "slower" in change or change.startswith("+") else ""
            if found.with_semantic is None and row in _OF_SEMANTIC:
                continue
            table.add_row(
                row.name.replace("[", r"\["),
                "-" if found.levers_off is None else row.show(off),
                "-" if found.levers_on is None else row.show(on),
                style + change,
                *([] if found.with_semantic is None else [row.show(row.read(found.with_semantic))]),
            )
        table.add_section()
    return table


def _phases(found: Comparison) -> tuple[tuple[str, Phase | None], ...]:
    return ("Levers off", found.levers_off), ("Levers on", found.levers_on), ("+ semantic", found.with_semantic)


def _print_errors(console: Console, found: Comparison) -> None:
    for name, phase in _phases(found):
        if phase is not None and phase.errors:
            failed = phase.requests - phase.answered
            console.print(f"[red]{name}: {failed} without a whole answer.[/red]")
            for error in phase.errors:
                console.print(f"  {error}", markup=False, highlight=False)


def _print_contention(console: Console, found: Comparison) -> None:
    for name, phase in _phases(found):
        if phase is not None and phase.others_cpu is not None and phase.others_cpu > NOISY:
            console.print(
                f"[yellow]{name}: other programs took {phase.others_cpu:.0%} of the processors meanwhile. "
                "Do not trust the times; run it again on a quiet machine.[/yellow]"
            )


def _notes(found: Comparison) -> list[str]:
    """What was measured and what is assumed, in plain words."""
    share = found.exact_repeats / found.requests if found.requests else 0.0
    notes = [
        "[bold]What was measured[/bold]",
        f"The same {found.requests} requests at the same times, each time to one gateway; the first time each said "
        "`x-trimtab-cache: off`. Real customer questions (banking77) under one support prompt. The pattern of arrivals "
        f"is that of a real service (Azure 2023), scaled to {found.rate_per_s:.1f} a second, where the engine can "
        f"answer {found.capacity_per_s:.1f} on the {found.cores} cores here. Times are the client's and count from the "
        "planned moment of sending; percentiles by linear interpolation (of few requests, p99 is little more than the "
        "slowest). Tokens, calls and cost are those of the gateway's ledger.",
        f"[bold]Assumed[/bold]: {found.exact_repeats} of {found.requests} requests ({share:.0%}) repeat an earlier one "
        f"exactly (popularity by Zipf, exponent {found.zipf_exponent:g}, seed {found.seed}). The levers can answer no "
        "more than those: with your traffic the gain is as large as your share of repeats.",
    ]
    if found.levers_on is not None:
        notes.append(_hit_note(found, found.levers_on))
    notes += [
        r"\[1] Median of each answer's mean time between tokens; answers from the cache come at once and are left out.",
        r"\[2] The engine keeps the shared prompt itself, in both phases: no lever is credited for it.",
        rf"\[3] A 2-core cloud machine at USD {found.machine_hour_usd:.2f} an hour, for the time that the engine is "
        "busy.",
        *([] if found.with_semantic is None else [_semantic_note(found.with_semantic)]),
        "The small model (135M) answers badly. It is there so that tokens, times and cost are real on any machine.",
    ]
    return notes


def _semantic_note(phase: Phase) -> str:
    return (
        rf"\[4] The third time, similar questions were answered alike, too, from a cosine of {SIMILAR_COSINE:g} on, as "
        f"most semantic caches do: {phase.reused} answers, {phase.reused_wrong} of them of questions with another "
        "intent (by the data's own labels). That is why it is off unless you say otherwise, and why `mode = "
        '"promise"` exists: you name the share of wrong answers that you accept, and it stays closed until audits show '
        "that it can keep to that; a few hundred requests are too few for it. `trimtab bench cache` tries your own "
        "questions. docs/levers/semantic-cache.md has figures of 3,000."
    )


def _hit_note(found: Comparison, on: Phase) -> str:
    hits, shared = on.ledger.cache_hits, on.ledger.coalesced
    note = f"The cache answered {hits} of the {found.exact_repeats} repeats"
    if shared:
        note += f"; {shared} came while the first was still being answered, and shared its call"
    if on.cut and hits + shared < found.exact_repeats:
        note += f"; others had an answer that max_tokens cut ({on.cut} were), which is never kept"
    if found.replayed_hits and found.faithful_hits == found.replayed_hits:
        note += f". Each of the {found.replayed_hits} was word for word what the model had said"
    elif found.replayed_hits:
        note += f". Only {found.faithful_hits} of {found.replayed_hits} were word for word what the model had said"
    return note + "."


_NEXT = """\
[bold]Use it[/bold]: run `trimtab serve`, then point your client at it:
  OpenAI(base_url="http://127.0.0.1:8088/v1", api_key="anything")    # model="smollm2-135m-instruct"
  Anthropic(base_url="http://127.0.0.1:8088", api_key="anything")
`trimtab ledger tail` shows what each request did and cost. docs/quickstart.md goes on from here."""
