"""`trimtab engine`: engines on this machine, started and stopped, how they do, and models for them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.engine_process import logs, start, stop
from trimtab.cli.engine_status import status
from trimtab.cli.ledger_view import plain_table, terminal
from trimtab.cli.model_file import model_file
from trimtab.cli.perplexity import perplexity
from trimtab.cli.progress import bar
from trimtab.cli.speculate import speculate_bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trimtab.engines.llama_cpp.quantize import Plan


@click.group()
def engine() -> None:
    """Engines on this machine: start and stop them, see how they do, make models for them."""


for _command in (start, stop, status, logs, perplexity, speculate_bench):
    engine.add_command(_command)


@engine.command()
@click.argument("model")
@click.option("--to", "types", required=True, metavar="TYPE,...", help="Types to write, such as Q8_0,Q4_0,Q2_K.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the files.  [default: quantized, in Trimtab's cache folder]")  # fmt: skip
@click.option("--force", is_flag=True, help="Write a file anew that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize(model: str, types: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Write MODEL in smaller types: less memory and often less time, for some of its quality.

    MODEL is a .gguf file, or the name of the embedded model, smollm2-135m-instruct. Each file is called after it and
    its type. Types, from exact to small: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL
    IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K. Serve one with [engines.NAME] kind = "llama_cpp" and model = its path, once you
    have seen that its answers are good enough for your work.

    \b
    trimtab engine quantize smollm2-135m-instruct --to F16,Q8_0,Q4_0
    trimtab engine quantize model-F16.gguf --to Q4_K_M --out .
    """
    from trimtab.engines.llama_cpp import gguf
    from trimtab.engines.llama_cpp.ggml import Ggml
    from trimtab.engines.llama_cpp.mixes import file_type
    from trimtab.engines.llama_cpp.quantize import plan, warnings, write
    from trimtab.wheels import cache_dir, unwound_by_sigterm

    kinds = list(dict.fromkeys(file_type(name) for name in types.split(",")))
    path, stem = model_file(model)
    source = gguf.read(path)
    folder = (out or cache_dir(os.environ) / "quantized").absolute()
    plans = [plan(source, kind, folder, stem) for kind in kinds]
    said = warnings(plans)
    for warning in said:
        click.echo(f"warning: {warning}", err=True)
    ggml = Ggml()
    taken_s: list[float | None] = []
    with unwound_by_sigterm():
        for one in plans:
            if one.is_there and not force:
                taken_s.append(None)
                continue
            with _progress(one) as wrote:
                taken_s.append(write(one, ggml, wrote))
    rows = [_row(one, seconds) for one, seconds in zip(plans, taken_s, strict=True)]
    if as_json:
        import msgspec

        values = sum(tensor.values for tensor in source.tensors)
        click.echo(msgspec.json.encode({"source": str(path), "parameters": values, "warnings": said, "files": rows}))
    else:
        _print(folder, rows)


@contextlib.contextmanager
def _progress(one: Plan) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else one line."""
    from rich.progress import DownloadColumn

    with bar(DownloadColumn()) as shown:
        if shown.disable:
            click.echo(f"Writing {one.path.name} ({one.size_bytes / 1e6:.0f} MB)", err=True)
        task = shown.add_task(one.path.name, total=one.size_bytes)
        yield lambda size_bytes: shown.advance(task, size_bytes)


def _row(one: Plan, seconds: float | None) -> dict[str, Any]:
    fallbacks = one.fallbacks
    return {
        "type": one.kind.name,
        "path": str(one.path),
        "bytes": one.size_bytes,
        "bits_per_weight": round(one.bits_per_weight, 3),
        "fallbacks": fallbacks.total(),
        "fallbacks_by_type": {f"{wanted} as {got}": count for (wanted, got), count in sorted(fallbacks.items())},
        "tensors": len(one.tensors),
        "seconds": None if seconds is None else round(seconds, 3),
        "reused": seconds is None,
    }


def _print(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = plain_table()
    table.add_column("type")
    table.add_column("file", overflow="fold")
    for name in ("MB", "bits/weight", "fallbacks", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["type"],
            Path(row["path"]).name,
            f"{row['bytes'] / 1e6:,.1f}",
            f"{row['bits_per_weight']:.2f}",
            f"{row['fallbacks']} of {row['tensors']}" if row["fallbacks"] else "-",
            "was there" if row["reused"] else f"{row['seconds']:.1f}",
        )
    terminal().print(table)
    click.echo(f"in {folder}")
    for row in rows:
        if row["fallbacks"]:
            counts = ", ".join(f"{count} {types}" for types, count in row["fallbacks_by_type"].items())
            click.echo(f"{row['type']}: tensors whose rows do not fill its blocks have larger types: {counts}")
