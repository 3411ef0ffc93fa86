"""`trimtab engine speculate-bench`: does guessing the next tokens pay, on which work, and by which way?"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from trimtab.cli.progress import progress
from trimtab.errors import BadRequest, TrimtabError

if TYPE_CHECKING:
    from trimtab.measure.speculation import Row, Sample
    from trimtab.transport import Origin

_READY_S: Final = 300.0
_ANSWER_S: Final = 600.0
_ANSWER_BYTES: Final = 16 << 20
_SHIPPED: Final = ("copy", "chat", "repeats")
_NGRAMS: Final = ("ngram", "ngram_map", "ngram_mod")
_MODEL: Final = "m"  # as requests call it


class _Way(NamedTuple):
    name: str
    settings: str  # lines of the engine's table


class _Running(NamedTuple):
    way: _Way
    origin: Origin


@click.command("speculate-bench")
@click.option("--model", default="", help="A .gguf file  [default: the embedded model].")
@click.option("--draft-model", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="A smaller .gguf file with the same vocabulary: is tried as well.")  # fmt: skip
@click.option("--workload", "workloads", multiple=True, default=_SHIPPED, show_default=True,
              help='copy (texts), chat (open), repeats (asked twice), or a file of {"prompt": ...} lines.')  # fmt: skip
@click.option(
    "--prompts", "count", type=click.IntRange(2, 200), default=10, show_default=True, help="Of each workload."
)
@click.option("--max-tokens", type=click.IntRange(8, 4096), default=120, show_default=True, help="Of an answer.")
@click.option("--ngram-tokens", type=click.IntRange(1, 64),
              help="That must occur again.  [default: the engine's: 3, of ngram_mod 16]")  # fmt: skip
@click.option("--draft-tokens", type=click.IntRange(1, 64), help="Drafted at once.  [default: the engine's: 9]")
@click.option("--threads", type=click.IntRange(1, 512), default=2, show_default=True, help="Of the engine.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the shipped prompts, and of resamples.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def speculate_bench(as_json: bool, **options: Any) -> None:
    """Does speculation pay on this machine, and on which work?

    Serves the model plainly and with each way to speculate, asks all of them the same prompts in turn, greedily and one
    at a time, and compares how fast they decode. A way is refused where it does not surely gain 5%, or where fewer than
    half a drafted token is right in each step. Answers that are not word for word those of plain decoding are counted.

    \b
    trimtab engine speculate-bench
    trimtab engine speculate-bench --model big.gguf --draft-model small.gguf --workload support.jsonl --json
    """
    folder = Path(tempfile.mkdtemp(prefix="trimtab-speculate-"))
    try:
        rows = asyncio.run(_bench(folder, options))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    from trimtab.measure.speculation import best

    names = dict.fromkeys(row.workload for row in rows)
    chosen = {name: best([row for row in rows if row.workload == name]) for name in names}
    if as_json:
        click.echo(msgspec.json.encode({"rows": rows, "best": chosen}))
        return
    _show(rows, chosen)


async def _bench(folder: Path, options: dict[str, Any]) -> list[Row]:
    from trimtab.measure import speculation

    ways = _ways(options)
    work = {Path(one).stem: _prompts(one, options) for one in options["workloads"]}
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(_served(folder / way.name, way, options)) for way in ways]
        total = sum(map(len, work.values())) * len(ways)
        with progress("asking", total, "{done} of {total} answers ({what})") as tick:
            for name, asked in work.items():
                samples: dict[str, list[Sample]] = {way.name: [] for way in ways}
                for number, prompt in enumerate(asked):
                    first = number % len(running)  # each comes first as often
                    for one in (*running[first:], *running[:first]):
                        samples[one.way.name].append(await _ask(one.origin, number, prompt, options["max_tokens"]))
                        tick(what=f"{name}: {one.way.name}")
                plain = samples[speculation.BASELINE]
                rows += [
                    speculation.row(one, name, plain, found, seed=options["seed"]) for one, found in samples.items()
                ]
    return rows


def _ways(options: dict[str, Any]) -> list[_Way]:
    drafted = "".join(f"{name} = {options[name]}\n" for name in ("ngram_tokens", "draft_tokens") if options[name])
    ways = [_Way("none", "")]
    ways += [_Way(name, f'speculation = "{name}"\n{drafted}') for name in _NGRAMS]
    if options["draft_model"] is not None:
        path = options["draft_model"].absolute()
        ways.append(_Way("draft", f'speculation = "draft"\ndraft_model = "{path}"\n{drafted}'))
    return ways


def _prompts(workload: str, options: dict[str, Any]) -> list[str]:
    from trimtab.measure import speculation

    if workload in _SHIPPED:
        return speculation.prompts(workload, options["count"], options["seed"])
    path = Path(workload)
    if not path.is_file():
        raise BadRequest(f"no such workload {workload!r}: copy, chat, repeats, or a file", param="workload")
    return speculation.read_prompts(path)[: options["count"]]


@contextlib.asynccontextmanager
async def _served(folder: Path, way: _Way, options: dict[str, Any]) -> AsyncIterator[_Running]:
    """A gateway of its own whose engine speculates in this way."""
    from trimtab.measure.gateway import of_config
    from trimtab.transport import Origin

    folder.mkdir()
    model, name = "", "smollm2-135m-instruct"
    if options["model"]:
        path = Path(options["model"]).absolute()
        model, name = f'model = "{path}"\n', path.stem
    config = folder / "trimtab.toml"
    config.write_text(
        f'[engines.local]\nkind = "llama_cpp"\nparallel = 1\nthreads = {options["threads"]}\n{model}{way.settings}'
        f'[models.{_MODEL}]\nengine = "local"\nname = "{name}"\nprice = {{ machine_hour = 0.10 }}\n'
    )
    gateway = of_config(config, folder)
    click.echo(f"starting the engine: {way.name}", err=True)
    gateway.start()
    try:
        await gateway.wait_ready(_READY_S, lambda _: None)
        origin = Origin(gateway.base_url)
        try:
            yield _Running(way, origin)
        finally:
            await origin.close()
    finally:
        gateway.stop()


async def _ask(origin: Origin, number: int, prompt: str, max_tokens: int) -> Sample:
    from trimtab.measure import speculation

    messages = [{"role": "user", "content": prompt}]
    body = msgspec.json.encode({"model": _MODEL, "messages": messages, "temperature": 0, "max_tokens": max_tokens})
    head = b"content-type: application/json\r\nx-trimtab-cache: off\r\n"
    reply = await origin.request("POST", "/v1/chat/completions", head, body, _ANSWER_S)
    said = await reply.read(_ANSWER_BYTES)
    if reply.status != 200:
        raise TrimtabError(f"the engine answered {reply.status}: {said[:300].decode(errors='replace')}")
    cost = dict(reply.header_items()).get("x-trimtab-cost-usd")
    return speculation.sample(number, said, None if cost is None else float(cost))


def _show(rows: Sequence[Row], chosen: dict[str, str]) -> None:
    from trimtab.cli.ledger_view import plain_table, terminal

    table = plain_table()
    for name in ("workload", "speculation"):
        table.add_column(name)
    for name in ("TTFT", "TPOT", "right a step", "speed", "95%", "same text"):
        table.add_column(name, justify="right")
    table.add_column("ruling", overflow="fold")
    for row in rows:
        table.add_row(
            row.workload,
            row.name,
            "-" if row.ttft_p50_s is None else f"{row.ttft_p50_s * 1000:.0f} ms",
            "-" if row.tpot_p50_s is None else f"{row.tpot_p50_s * 1000:.1f} ms",
            f"{row.accepted_per_step:.2f}",
            f"{row.gain:.2f}x",
            f"{row.gain_low:.2f} to {row.gain_high:.2f}",
            f"{row.identical} of {row.prompts}",
            row.reason,
        )
    terminal().print(table)
    for workload, name in chosen.items():
        click.echo(f"{workload}: {'leave it off' if name == 'none' else f'speculation = {name!r}'}")
