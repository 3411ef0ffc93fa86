"""What the commands on routing are told in the same words: folders of outcomes, a second model, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class SecondModel(click.ParamType[Any]):
    """A folder and a model of it."""

    name = "DIR:MODEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The two as a pair."""
        folder, colon, model = str(value).partition(":")
        if not colon or not model:
            self.fail(f"{value!r} should be a folder, a colon and a model's name", param, ctx)
        if not Path(folder).is_dir():
            self.fail(f"{folder!r} is no folder", param, ctx)
        return Path(folder), model


class TokenPrices(click.ParamType[Any]):
    """USD a million tokens, in and out, of two or three models."""

    name = "IN_A,OUT_A,IN_B,OUT_B[,IN_S,OUT_S]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The numbers."""
        try:
            prices = tuple(float(one) for one in str(value).split(","))
        except ValueError:
            prices = ()
        if len(prices) not in (4, 6) or not all(0 <= one < float("inf") for one in prices):
            self.fail(f"{value!r} should be four or six numbers, none below 0, with commas between", param, ctx)
        return prices
