"""How the ledger looks in a terminal: tables, and one request's page with its waterfall."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.stores.ledger_reader import WORK_COLUMNS
from trimtab.types import CACHED

_MODEL_STAGES = ("model_ttft", "model_stream", "earlier_attempts", "shared_call")
_PIPE_COLUMNS = 160  # where there is no terminal, nothing should be cut
_BAR_CHARS = 40
_TOKEN_CLASSES = (
    ("input", "input_tokens"),
    ("cache read", "cache_read_tokens"),
    ("cache write, 5 minutes", "cache_write_5m_tokens"),
    ("cache write, 1 hour", "cache_write_1h_tokens"),
    ("input audio", "input_audio_tokens"),
    ("output", "output_tokens"),
    ("reasoning", "reasoning_tokens"),
    ("output audio", "output_audio_tokens"),
)
_INPUT = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens")
_OUTPUT = ("output_tokens", "reasoning_tokens", "output_audio_tokens")
_COLOURS = {"the application's": "magenta", "the model's": "cyan", "the gateway's": "cyan"}
_END_STYLES = {"ok": "green", "refused": "yellow", "cancelled": "yellow"}
_TAIL_WIDTHS = {"time UTC": 8, "id": 23, "end": 11, "in": 7, "out": 6, "ttft": 7, "total": 7, "cost": 11}
_MODEL_WIDTHS = (8, 24)  # the column that gives way in a narrow terminal


def usd(nusd: int | None, *, digits: int = 6) -> str:
    """Nano-USD as dollars: "$0.000213"; "unpriced" for None; with `digits` decimals, less above a dollar."""
    if nusd is None:
        return "unpriced"
    if not nusd:
        return "$0"
    sign = "-" if nusd < 0 else ""
    amount = abs(nusd)
    if amount >= 1_000_000_000 and digits < 9:
        digits = 4 if amount < 100_000_000_000 else 2
    if 0 < amount * 10**digits < 1_000_000_000:
        digits = 9  # it would show as zero
    return f"{sign}${amount / 1e9:,.{digits}f}"


def seconds(value: float | None) -> str:
    """A duration of three digits: "870 us", "12.3 ms", "1.25 s"; "-" for None."""
    if value is None:
        return "-"
    amount, unit = (value * 1e6, "us") if value < 0.001 else (value * 1e3, "ms") if value < 1 else (value, "s")
    digits = 0 if amount >= 100 or unit == "us" else 1 if amount >= 10 else 2
    return f"{amount:,.{digits}f} {unit}"


def print_tail(rows: Sequence[dict[str, Any]], *, head: bool = True) -> None:
    """A line per request; `head` False goes on under an earlier table."""
    rows = clean(rows)
    console = terminal()
    table = plain_table(show_header=head)
    room = console.width - sum(_TAIL_WIDTHS.values()) - len(_TAIL_WIDTHS)
    for name in ("time UTC", "id", "model", "end", "in", "out", "ttft", "total", "cost"):
        justify: Literal["left", "right"] = "left" if name in ("time UTC", "id", "model", "end") else "right"
        width = _TAIL_WIDTHS.get(name) or min(max(room, _MODEL_WIDTHS[0]), _MODEL_WIDTHS[1])
        table.add_column(name, justify=justify, min_width=width, max_width=width, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(
            time.strftime("%H:%M:%S", time.gmtime(row["at"])),
            row["id"],
            row["model"] or "-",
            _end(row),
            _estimated(row, f"{_total(row, _INPUT):,}"),
            _estimated(row, f"{_total(row, _OUTPUT):,}"),
            seconds(row["ttft_s"]),
            seconds(_total_s(row)),
            _cost(row),
        )
    console.print(table)
    if head:
        _explain(any(row["usage_source"] == "estimated" for row in rows), any(row["cost_nusd"] is None for row in rows))


def print_summary(by: Sequence[str], rows: Sequence[dict[str, Any]], totals: dict[str, Any]) -> None:
    """A line per group and, where there are several, their total."""
    rows = clean(rows)
    of_requests = rows[0]["cache_hits"] is not None
    table = plain_table()
    for name in by:
        table.add_column(name.replace("_", " "), overflow="fold", min_width=10 if name == "day" else None)
    headings = ["requests", "failed", "input", "cached", "output", "cost"]
    if of_requests:
        headings[2:2] = ["hits"]
        headings += ["baseline", "saved"]
    else:
        headings[1:1] = ["attempts"]
    clocked = [name for name in _WORK if any(row[name] is not None for row in rows)]
    for name in (*headings, *clocked):
        table.add_column(name.removesuffix("_s"), justify="right", no_wrap=True)
    for row in rows:
        work = [_WORK[name](row[name]) for name in clocked]
        table.add_row(*[_group(row[name]) for name in by], *_sums(row, of_requests), *work)
    if len(rows) > 1 and of_requests:
        table.add_section()
        table.add_row(*["total" if index == 0 else "" for index in range(len(by))], *_sums(totals, True), style="bold")
    terminal().print(table)
    _explain(any(row["estimated"] for row in rows), any(row["unpriced"] for row in rows), summed=True)


def share(value: float | None) -> str:
    """A share of one in whole percents; "-" for None."""
    return "-" if value is None else f"{value:.0%}"


_WORK: Final = {"queue_s": seconds, "prefill_s": seconds, "decode_s": seconds, "acceptance": share}


def print_request(row: dict[str, Any]) -> None:
    """One request's page."""
    row = clean(row)
    console = terminal()
    detail = row["detail"]
    console.print(Text(row["id"], style="bold"), _end(row), f"(status {row['status']})" if row["status"] else "")
    facts = [
        ("at", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row["at"]))),
        ("call", f"{row['dialect']} {row['path']}{' (stream)' if row['stream'] else ''}"),
        ("model", row["model"]),
        ("error", row["error"]),
        ("cache", row["cache"]),
        ("size", f"{row['request_bytes']:,} bytes in, {row['response_bytes']:,} out, {row['chunks']} chunks"),
    ]
    names = ("tenant", "route", "user", "permission", "session", "workflow", "priority", "trace_id")
    facts += [(name, row.get(name)) for name in (*names, "prompt_version", "corpus_version", "policy_version")]
    facts += [("feedback", _feedback(row))]
    facts += [(f"shadow of {one['lever']}", _verdict(one)) for one in row.get("verdicts", ())]
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        if value:
            grid.add_row(Text(name.replace("_", " "), style="dim"), Text(str(value)))
    console.print(grid)
    _print_money(console, row, detail)
    _print_time(console, row, detail)
    _print_decisions(console, detail.get("decisions", ()))
    _print_attempts(console, row["attempts"])


def _feedback(row: dict[str, Any]) -> str:
    said = row.get("feedback")
    return "" if said is None else f"{said['score']:g}{': ' if said['comment'] else ''}{said['comment']}"


def _verdict(verdict: dict[str, Any]) -> str:
    loss = verdict["loss"]
    if loss is None:
        return "nobody could tell whether it is as good as the reference's answer"
    word = "as good as" if not loss else "worse than" if loss > 0 else "better than"
    return f"{word} the reference's answer (loss {loss:g}, by {verdict['judge']})"


def _print_money(console: Console, row: dict[str, Any], detail: dict[str, Any]) -> None:
    _heading(console, "Money and tokens")
    reason = detail.get("price_reason", "")
    grid = Table.grid(padding=(0, 2))
    source = "nothing was sent upstream" if row["price_source"] == "none" else f"by {row['price_source']}"
    cost_note = reason if row["cost_nusd"] is None else source
    if row["usage_source"] == "estimated":
        cost_note += ", from estimated tokens"
    grid.add_row("cost", Text(usd(row["cost_nusd"], digits=9), style="bold"), Text(cost_note, style="dim"))
    baseline_model = detail.get("baseline_model", "")
    baseline_note = f"{baseline_model} without the levers" if baseline_model else ""
    if row["baseline_nusd"] is not None:
        baseline_note += f", by {row['baseline_source']}"
    grid.add_row("baseline", usd(row["baseline_nusd"], digits=9), Text(baseline_note, style="dim"))
    if row["saved_nusd"] is not None:
        grid.add_row("saved", usd(row["saved_nusd"], digits=9), "")
    used = detail.get("baseline_usage", {})
    console.print(grid)
    tokens = plain_table()
    tokens.add_column("tokens")
    tokens.add_column("used", justify="right")
    tokens.add_column("baseline", justify="right")
    for label, column in _TOKEN_CLASSES:
        baseline = used.get(column.removesuffix("_tokens"), 0)
        if row[column] or baseline:
            tokens.add_row(label, _estimated(row, f"{row[column]:,}"), f"{baseline:,}" if baseline_model else "-")
    if tokens.row_count:
        console.print(tokens)


def _print_time(console: Console, row: dict[str, Any], detail: dict[str, Any]) -> None:
    if _total_s(row) is None:
        return
    before, stages, after = (detail.get(name, {}) for name in ("app_stages", "stages", "later_stages"))
    asked_s, used_s = sum(before.values()), sum(after.values())
    head = f"Time: {seconds(row['total_s'])} in all, first token after {seconds(row['ttft_s'])}"
    for when, took_s in (("before it", asked_s), ("after it", used_s)):
        head += f"; {when} {seconds(took_s)} in the application" if took_s else ""
    _heading(console, head)
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(no_wrap=True)
    call_s = max(row["total_s"], sum(stages.values()))
    span_s = max(asked_s + call_s + used_s, 1e-9)
    waterfall = _waterfall(before, stages, after, asked_s + call_s)
    for stage in waterfall:
        start = round(stage.begun_s / span_s * _BAR_CHARS)
        width = round((stage.begun_s + stage.took_s) / span_s * _BAR_CHARS) - start
        bar = " " * min(start, _BAR_CHARS - 1) + ("█" * width or "▏")
        grid.add_row(stage.name.replace("_", " "), seconds(stage.took_s), Text(bar, style=_COLOURS[stage.whose]))
    rest_s = row["total_s"] - sum(stages.values())
    if stages and rest_s > 0:
        grid.add_row(Text("not in a stage", style="dim"), Text(seconds(rest_s), style="dim"), "")
    console.print(grid)
    if waterfall:
        name, took_s, _, whose = max(waterfall, key=lambda stage: stage.took_s)
        said = f"Most of it: {name.replace('_', ' ')}, {whose}, {took_s / span_s:.0%} of {seconds(span_s)}"
        console.print(Text(said, style="bold"))


class _Stage(NamedTuple):
    name: str
    took_s: float
    begun_s: float  # after the first one's begin
    whose: str


def _waterfall(
    before: dict[str, float], stages: dict[str, float], after: dict[str, float], answered_s: float
) -> list[_Stage]:
    """Stages in the order in which they ran; those `after` the answer, which was there at `answered_s`, last."""
    found: list[_Stage] = []
    begun_s = 0.0
    for part in (before, stages, after):
        begun_s = answered_s if part is after else begun_s
        for name, took_s in part.items():
            whose = "the model's" if name in _MODEL_STAGES else "the gateway's"
            found.append(_Stage(name, took_s, begun_s, whose if part is stages else "the application's"))
            begun_s += took_s
    return found


def _print_decisions(console: Console, decisions: Sequence[dict[str, Any]]) -> None:
    if not decisions:
        return
    _heading(console, "Decisions")
    table = plain_table()
    for name in ("lever", "slot", "step", "reason", "score", "took"):
        table.add_column(name, justify="right" if name in ("score", "took") else "left")
    for decision in decisions:
        score, threshold = decision.get("score"), decision.get("threshold")
        shown = "" if score is None else f"{score:.3f}" + ("" if threshold is None else f" / {threshold:.3f}")
        saving = decision.get("saving_nusd")
        reason = decision["reason"] + ("" if saving is None else f" (predicts {usd(saving)} saved)")
        lever = f"{decision['lever']} {decision['version']}"
        table.add_row(
            lever, decision["slot"].lower(), decision["step"], reason, shown, seconds(decision.get("took_s", 0.0))
        )
    console.print(table)


def _print_attempts(console: Console, attempts: Sequence[dict[str, Any]]) -> None:
    if not attempts:
        return
    _heading(console, "Upstream calls")
    table = plain_table()
    for name in ("n", "purpose", "engine", "model", "end"):
        table.add_column(name)
    for name in ("start", "first", "end", "in", "out", "cost"):
        table.add_column(name, justify="right")
    for row in attempts:
        model = row["model"]
        if row["response_model"] not in ("", model):
            model += f" as {row['response_model']}"
        table.add_row(
            str(row["n"]),
            row["purpose"],
            row["engine"],
            model,
            _end(row),
            seconds(row["start_s"]),
            seconds(row["first_token_s"]),
            seconds(row["end_s"]),
            _estimated(row, f"{_total(row, _INPUT):,}"),
            _estimated(row, f"{_total(row, _OUTPUT):,}"),
            _cost(row),
        )
    console.print(table)
    for row in attempts:
        notes = [row["error"], row["price_reason"], f"upstream id {row['upstream_id']}" if row["upstream_id"] else ""]
        notes.append(_work(row))
        if text := "; ".join(note for note in notes if note):
            console.print(Text(f"  {row['n']}: {text}", style="dim"))
    _explain(any(row["usage_source"] == "estimated" for row in attempts), False)


def _work(attempt: dict[str, Any]) -> str:
    """The wait for a place at the engine, and what the engine says of itself; "" where neither is known."""
    queue_s, prefill_s, decode_s, drafted, accepted = (attempt.get(name) for name in WORK_COLUMNS)
    said = [f"waited {seconds(queue_s)} for a place"] if queue_s else []
    if prefill_s is not None or decode_s is not None:
        said.append(f"the engine took {seconds(prefill_s)} to read and {seconds(decode_s)} to write")
    if drafted:
        said.append(f"{accepted:,} of {drafted:,} drafted tokens were right")
    return ", ".join(said)


def plain_table(*, show_header: bool = True) -> Table:
    """A table without lines, one space between columns."""
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_header=show_header)


def _total_s(row: dict[str, Any]) -> float | None:
    """None for a row made after its process died: nobody measured it."""
    return None if row["end"] == "interrupted" else row["total_s"]


def terminal() -> Console:
    """The terminal, or a wide page where the output goes into a pipe."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)


def clean(value: Any) -> Any:
    """Names come from clients: what could steer the operator's terminal is not printed."""
    if isinstance(value, str):
        return (
            value
            if value.isprintable()
            else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
        )
    if isinstance(value, dict):
        return {clean(key): clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold underline"))


def _end(row: dict[str, Any]) -> Text:
    end = row["end"]
    if row.get("cache") in CACHED and end == "ok":
        return Text("cached", style="green")
    status = row["status"]
    return Text(f"{end} {status}" if end == "error" and status else end, style=_END_STYLES.get(end, "red"))


def _cost(row: dict[str, Any]) -> Text:
    text = usd(row["cost_nusd"])
    if row["cost_nusd"] is None:
        return Text(text, style="yellow")
    return Text(_estimated(row, text))


def _estimated(row: dict[str, Any], text: str) -> str:
    return f"~{text}" if row["usage_source"] == "estimated" else text


def _total(row: dict[str, Any], columns: Sequence[str]) -> int:
    return sum(row[name] for name in columns)


def _group(value: Any) -> str:
    return "-" if value in ("", None) else str(value)


def _sums(row: dict[str, Any], of_requests: bool) -> list[str]:
    cost = usd(row["cost_nusd"])
    if row["cost_nusd"] is not None:
        cost = ("≥" if row["unpriced"] else "~" if row["estimated"] else "") + cost
    cells = [f"{row['requests']:,}", f"{row['failed']:,}"]
    figures = [f"{_total(row, _INPUT):,}", f"{row['cache_read_tokens']:,}", f"{_total(row, _OUTPUT):,}", cost]
    if not of_requests:
        return [cells[0], f"{row['attempts']:,}", cells[1], *figures]
    known = row["saved_nusd"] is not None
    money = [usd(row["baseline_nusd"]), usd(row["saved_nusd"])] if known else ["-", "-"]
    return [*cells, f"{row['cache_hits'] + row['semantic_hits']:,}", *figures, *money]


def _explain(estimated: bool, unpriced: bool, *, summed: bool = False) -> None:
    notes = []
    if estimated:
        notes.append("~ from estimated tokens: the provider reported none")
    if unpriced:
        cost = "≥ some requests are unpriced and not in the sum" if summed else "unpriced: no price is known"
        notes.append(f"{cost}; `trimtab ledger show ID` says why, [prices] in trimtab.toml sets one")
    if notes:
        console = terminal()
        console.print()
        for note in notes:
            console.print(Text(note, style="dim"))
