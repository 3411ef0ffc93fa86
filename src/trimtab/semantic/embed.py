"""Text embedders behind one protocol, with their files from the user's package index."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from trimtab.errors import ConfigError
from trimtab.wheels import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "tokenizers")


class Embedder(Protocol):
    """Turns texts into unit vectors. Safe to call from several threads."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Float32 of shape (len(texts), dim), each row of length 1 (all zeros for a text without any token)."""
        ...

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens `embed` reads of the texts."""
        ...


def missing_packages() -> list[str]:
    """Those of the extra that are not installed. Imports nothing."""
    return [name for name in PACKAGES if find_spec(name) is None]


def require_packages() -> None:
    """Raises ConfigError that names the extra if a package of it is missing. Imports nothing."""
    if missing := missing_packages():
        raise ConfigError(
            [f"semantic reuse needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}: "
             'pip install "trimtab[semantic]"']
        )  # fmt: skip


def load_fast(cache_dir: Path, progress: Progress | None = None) -> Embedder:
    """The static embedder (256 dimensions, about 0.05 ms a text): averaged word-piece vectors, no network to run.

    Fetches 19 MB into `cache_dir` the first time. Raises ConfigError, with the way out.
    """
    require_packages()
    from trimtab.semantic.static import load

    return load(cache_dir, progress)


def load_accurate(cache_dir: Path, progress: Progress | None = None) -> Embedder:
    """The transformer (all-MiniLM-L6-v2 in int8, 384 dimensions, about 2.5 ms a short text on one core).

    Fetches 104 MB into `cache_dir` the first time and keeps 23 of them. Raises ConfigError, with the way out.
    """
    require_packages()
    from trimtab.semantic.minilm import load

    return load(cache_dir, progress)
