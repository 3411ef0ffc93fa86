"""The fast embedder: WordLlama's static word-piece vectors, averaged.

Model: WordLlama 0.4.0 `l2_supercat`, 32,000 x 256, MIT licence (https://github.com/dleemiller/WordLlama). Only its two
data files are used; its package, with more dependencies, is not installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from trimtab.wheels import Member, Progress, Wheel, kept

WAY_OUT: Final = "set TRIMTAB_CACHE_DIR to another folder (or to one filled on another machine)"
WHEEL: Final = Wheel(
    what="the fast embedder's weights",
    requirement="wordllama==0.4.0.post1",
    sha256="42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
    file="wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    size_bytes=19_155_170,
    members=(
        Member(
            "wordllama/weights/l2_supercat_256.safetensors",
            16_384_096,
            "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
        ),
        Member(
            "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
            1_842_796,
            "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
        ),
    ),
    license="wordllama-0.4.0.post1.dist-info/licenses/LICENSE",
    way_out=WAY_OUT,
    # The release has a wheel per platform; all hold the same data, and one of them is pinned.
    pip_options=("--platform=manylinux2014_x86_64", "--python-version=311", "--implementation=cp", "--abi=cp311"),
)
_LONGEST_CHARS: Final = 8192  # beyond it an average of words says little, and a body may hold a megabyte


class StaticEmbedder:
    """Means of word-piece vectors. Thread-safe: the table is never written to, the tokenizer is Rust without state."""

    def __init__(self, table: NDArray[np.float32], tokenizer: Tokenizer) -> None:
        self._table = table
        self._tokenizer = tokenizer

    @property
    def dim(self) -> int:
        """256."""
        return int(self._table.shape[1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, (len(texts), 256); zeros for an empty text."""
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, one in zip(out, self._encode(texts), strict=True):
            if one.ids:
                total = self._table.take(one.ids, axis=0).sum(axis=0)  # points where the mean does
                row[:] = total / max(math.sqrt(total @ total), 1e-12)
        return out

    def tokens(self, texts: Sequence[str]) -> int:
        """Word pieces of the texts' first characters, as `embed` reads them."""
        return sum(len(one.ids) for one in self._encode(texts))

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        # The fast one leaves out where each piece lies in the text.
        return self._tokenizer.encode_batch_fast([text[:_LONGEST_CHARS] for text in texts], add_special_tokens=False)


def load(cache_dir: Path, progress: Progress | None = None) -> StaticEmbedder:
    """The embedder, its files fetched into `cache_dir` if they lack. Raises ConfigError, with the way out."""
    weights, vocabulary = kept(WHEEL, cache_dir / "models" / "wordllama-l2-supercat-256", progress)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return StaticEmbedder(_read_table(weights), tokenizer)


def _read_table(path: Path) -> NDArray[np.float32]:
    """The one tensor of a safetensors file: 8 bytes length, a JSON header, then the numbers, row by row."""
    raw = path.read_bytes()
    head_end = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:head_end])["embedding.weight"]
    begin, end = entry["data_offsets"]
    table = np.frombuffer(raw[head_end + begin : head_end + end], dtype="<f2").reshape(entry["shape"])
    return table.astype(np.float32)
