"""`trimtab engine perplexity`: how surprised models are by a text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from trimtab.cli.ledger_view import plain_table, terminal
from trimtab.cli.model_file import model_file
from trimtab.cli.progress import progress
from trimtab.errors import BadRequest


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The text that they guess.  [default: passages of an encyclopedia]")  # fmt: skip
@click.option("--windows", type=click.IntRange(1, 1000), default=4, show_default=True,
              help="Pieces of 512 tokens to read; the second half of each is guessed.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 512), default=2, show_default=True, help="Threads of the engine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity(models: tuple[str, ...], text: Path | None, windows: int, threads: int, as_json: bool) -> None:
    """How surprised each MODEL is by a text, and how many times as much as the first one.

    MODEL is a .gguf file, or the embedded model's name. Each is served in turn and guesses the same tokens, each from
    those before it. 1.00 times: nothing was lost that this text shows. It is a first look at what a smaller type costs,
    for small models some 20 seconds each; whether a model may serve is for `trimtab gate` to say, on your own work.

    \b
    trimtab engine perplexity model-F16.gguf model-Q8_0.gguf model-Q4_0.gguf
    trimtab engine perplexity model-F16.gguf model-Q4_K_M.gguf --text our-manual.txt --windows 16
    """
    from trimtab.engines.llama_cpp import Config
    from trimtab.engines.llama_cpp.alone import served
    from trimtab.engines.llama_cpp.perplexity import SCORED, WINDOW, losses, times, windows_of
    from trimtab.engines.llama_cpp.perplexity import perplexity as of
    from trimtab.measure.workloads.rag import collection
    from trimtab.wheels import unwound_by_sigterm

    paths = [model_file(model)[0] for model in models]
    if text:
        try:
            asked = text.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest(f"{text} is not UTF-8 text: {error}", param="text") from error
    else:
        asked = "\n\n".join(collection().passages.values())
    found: list[list[float]] = []
    read: list[list[int]] = []  # the first one's tokens
    with (
        unwound_by_sigterm(),
        progress("guessing", len(paths) * windows * SCORED, "{done:,} of {total:,} tokens") as tick,
    ):
        for path in paths:
            with served(Config(model=str(path), context_tokens=WINDOW, parallel=1, threads=threads)) as ask:
                cut = windows_of(ask, asked, windows)
                if cut != (read := read or cut):
                    raise BadRequest(
                        f"{path.name} cuts the text into other tokens than {paths[0].name}: their perplexities "
                        f"cannot be compared",
                        param="models",
                    )
                found.append(losses(ask, cut, partial(tick, what=path.name)))
    rows: list[dict[str, Any]] = [
        {
            "path": str(path),
            "bytes": path.stat().st_size,
            "perplexity": round(of(one), 4),
            **{
                f"times{end}": round(value, 4)
                for end, value in zip(("", "_low", "_high"), times(one, found[0]), strict=True)
            },
        }
        for path, one in zip(paths, found, strict=True)
    ]
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"text": str(text or ""), "tokens": len(found[0]), "models": rows}))
        return
    table = plain_table()
    table.add_column("file", overflow="fold")
    for name in ("MB", "perplexity", "times the first", "95%"):
        table.add_column(name, justify="right")
    for number, row in enumerate(rows):
        beside = (f"{row['times']:.3f}", f"{row['times_low']:.3f} to {row['times_high']:.3f}") if number else ("", "")
        table.add_row(Path(row["path"]).name, f"{row['bytes'] / 1e6:,.1f}", f"{row['perplexity']:.3f}", *beside)
    terminal().print(table)
    click.echo(f"of {len(found[0]):,} tokens")
