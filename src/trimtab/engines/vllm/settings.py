"""The `[engines.NAME]` table of kind `vllm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

HOST: Final = "127.0.0.1"

Text = Annotated[str, Meta(min_length=1)]
Context = Annotated[int, Meta(ge=16, le=1 << 24, description="a whole number of tokens from 16 to 16777216")]
Parallel = Annotated[int, Meta(ge=1, le=4096, description="a whole number of requests from 1 to 4096")]
BatchTokens = Annotated[int, Meta(ge=1, le=1 << 20, description="a whole number of tokens from 1 to 1048576")]
Drafted = Annotated[int, Meta(ge=1, le=64, description="a whole number of tokens from 1 to 64")]
MemoryShare = Annotated[float, Meta(gt=0, le=1, description="a share of the memory, more than 0 and at most 1")]
Cards = Annotated[int, Meta(ge=1, le=64, description="a whole number of GPUs from 1 to 64")]
Port = Annotated[int, Meta(ge=0, le=65535, description="a TCP port from 1 to 65535 (0 takes any free one)")]
Quantization = Literal["auto", "awq", "gptq", "fp8", "compressed-tensors"]
KvCacheType = Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"]
Speculation = Literal["none", "ngram", "draft"]


class Config(msgspec.Struct, frozen=True):
    """A vLLM that Trimtab starts. None is what vLLM chooses by itself; `command` is how it is launched.

    Where keys mean the same as those of `llama_cpp` they are called the same. `gpu_memory` is of the whole card, or of
    the machine's memory where vLLM was built for the CPU.
    """

    model: Text  # a Hugging Face name, or a folder with config.json
    context_tokens: Context | None = None  # of one request: prompt and answer together
    parallel: Parallel = 256
    batch_tokens: BatchTokens | None = None  # computed in one step, all requests together
    prefix_cache: bool = True
    quantization: Quantization = "auto"  # as the checkpoint says
    kv_cache_type: KvCacheType = "auto"  # as the model
    speculation: Speculation = "none"
    ngram_tokens: Drafted = 3  # that have to occur again before a draft follows them
    draft_tokens: Drafted = 5  # drafted at once
    draft_model: str = ""  # as `model`, with the same vocabulary
    gpu_memory: MemoryShare | None = None
    tensor_parallel: Cards = 1  # GPUs that share one copy of the model
    command: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("vllm", "serve")
    port: Port = 0
    extra: tuple[Text, ...] = ()  # further flags of vLLM's
    provider: str = ""  # genai-prices provider id; a model of our own has none


def model_name(config: Config) -> str:
    """The name under which the engine serves its model: the Hugging Face name, or that of the folder."""
    return Path(config.model).name if config.model.startswith(("/", ".", "~")) else config.model
