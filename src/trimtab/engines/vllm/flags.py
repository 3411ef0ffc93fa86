"""The command line of a vLLM. Each flag was checked against vLLM 0.32's `EngineArgs`."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.engines.vllm.settings import HOST, Config, model_name


def command_line(config: Config, port: int) -> list[str]:
    """What starts the engine on that loopback port.

    `vllm serve` takes the model by its place, `python -m vllm.entrypoints.openai.api_server` (all that the CPU build's
    package can be started by) as a flag.
    """
    model = [config.model] if "serve" in config.command else ["--model", config.model]
    named = {
        "--served-model-name": model_name(config),
        "--host": HOST,
        "--port": port,
        "--max-num-seqs": config.parallel,
        "--max-num-batched-tokens": config.batch_tokens,
        "--max-model-len": config.context_tokens,
        "--quantization": None if config.quantization == "auto" else config.quantization,
        "--kv-cache-dtype": None if config.kv_cache_type == "auto" else config.kv_cache_type,
        "--speculative-config": _speculative(config),
        "--gpu-memory-utilization": config.gpu_memory,
        "--tensor-parallel-size": None if config.tensor_parallel == 1 else config.tensor_parallel,
    }
    flags = [part for flag, value in named.items() if value is not None for part in (flag, str(value))]
    # By itself vLLM reuses prefixes without saying in its answers how much.
    reuse = ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    prefix_cache = reuse if config.prefix_cache else ["--no-enable-prefix-caching"]
    return [*config.command, *model, *flags, *prefix_cache, *config.extra]


def _speculative(config: Config) -> str | None:
    """The JSON of `--speculative-config`."""
    if config.speculation == "none":
        return None
    chosen: dict[str, Any] = {"num_speculative_tokens": config.draft_tokens}
    if config.speculation == "draft":
        chosen |= {"method": "draft_model", "model": config.draft_model}
    else:
        chosen |= {
            "method": "ngram",
            "prompt_lookup_min": config.ngram_tokens,
            "prompt_lookup_max": config.ngram_tokens,
        }
    return msgspec.json.encode(chosen, order="sorted").decode()
