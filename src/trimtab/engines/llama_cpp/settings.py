"""The `[engines.NAME]` table of kind `llama_cpp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

BUILT_IN: Final = "smollm2-135m-instruct"
HOST: Final = "127.0.0.1"

Context = Annotated[int, Meta(ge=256, le=1 << 20, description="a whole number of tokens from 256 to 1048576")]
Parallel = Annotated[int, Meta(ge=1, le=64, description="a whole number of requests from 1 to 64")]
Drafted = Annotated[int, Meta(ge=1, le=64, description="a whole number of tokens from 1 to 64")]
BatchTokens = Annotated[int, Meta(ge=32, le=65536, description="a whole number of tokens from 32 to 65536")]
KvCacheType = Literal["f16", "q8_0", "q4_0"]
Speculation = Literal["none", "ngram", "ngram_map", "ngram_mod", "draft"]
Threads = Annotated[int, Meta(ge=1, le=512, description="a whole number from 1 to 512")]


class Config(msgspec.Struct, frozen=True):
    """An embedded engine. `context_tokens` is what one request may use: prompt and answer together.

    `parallel` requests run at once, more wait in line. Each has `context_tokens` to itself, so memory grows with the
    product (built-in model: 23 kB a token). The context that a model was trained with stays the upper bound.
    """

    model: str = BUILT_IN  # or the path of a .gguf file
    context_tokens: Context = 4096
    parallel: Parallel = 8
    batch_tokens: BatchTokens = 2048  # computed in one step, all requests together
    kv_cache_type: KvCacheType = "f16"
    # False: decodes a tenth to a fifth faster at some hundred tokens, reads prompts a quarter to a third slower.
    flash_attention: bool = True
    # True: processes that serve the same file share its pages, and decoding is up to a tenth slower.
    map_weights: bool = False
    threads: Threads = 2
    prefix_cache: bool = True  # a slot keeps what it has read, for the next prompt that begins alike
    speculation: Speculation = "none"  # the next tokens are drafted from the text so far, or by a smaller model
    # That have to occur again before a draft follows them: 3, and 16 with "ngram_mod", whose table holds all requests'
    # texts. Fewer occur in many that go on otherwise, and after some bad drafts the library empties the table.
    ngram_tokens: Drafted | None = None
    # At most, at once. With the token before them an even number, by which the library multiplies Q8_0 fastest.
    draft_tokens: Drafted = 9
    draft_model: str = ""  # the path of a .gguf file with the same vocabulary
    provider: str = ""  # genai-prices provider id; a model of our own has none


def model_name(config: Config) -> str:
    """The name under which the engine serves its model: the built-in's own, or the file's without `.gguf`."""
    return config.model if config.model == BUILT_IN else Path(config.model).stem
