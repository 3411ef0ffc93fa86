"""What vLLM cannot do, or not by this table: refused by name, with the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_GGUF_TYPE: Final = re.compile(r"(I?Q\d\w*|F32|F16|BF16|gguf)", re.IGNORECASE)

_KEYS: Final = {
    "threads": "vLLM has no such setting; its CPU build reads the environment variable VLLM_CPU_OMP_THREADS_BIND where "
    "Trimtab starts",
    "flash_attention": 'vLLM chooses how attention is computed; for another way: extra = ["--attention-backend", NAME]',
    "map_weights": "vLLM always reads weights into memory of its own; take it out",
    "base_url": 'this kind starts vLLM itself; for one that runs already: kind = "openai_http"',
    "api_key_env": 'this kind starts vLLM on this machine alone, without a key; for another: kind = "openai_http"',
    "ca_file": 'this kind starts vLLM on this machine; for another: kind = "openai_http"',
    "accept_any_model": "vLLM serves the one model that it was started with; take it out",
}

_SPECULATION: Final = {
    "ngram_map": 'vLLM does not do this; use "ngram" or "draft", or kind = "llama_cpp"',
    "ngram_mod": 'vLLM does not do this; use "ngram" or "draft", or kind = "llama_cpp"',
}

# Of vLLM's flags, those that a key of the table writes; the first group always, the second where the key is there.
_ALWAYS: Final = {
    "--model": "model",
    "--host": "",
    "--port": "port",
    "--served-model-name": "model",
    "--max-num-seqs": "parallel",
    "--enable-prefix-caching": "prefix_cache",
    "--no-enable-prefix-caching": "prefix_cache",
}
_WHERE_SET: Final = {
    "--max-num-batched-tokens": "batch_tokens",
    "--max-model-len": "context_tokens",
    "--quantization": "quantization",
    "-q": "quantization",
    "--kv-cache-dtype": "kv_cache_type",
    "--speculative-config": "speculation",
    "-sc": "speculation",
    "--gpu-memory-utilization": "gpu_memory",
    "--tensor-parallel-size": "tensor_parallel",
    "-tp": "tensor_parallel",
}


def cannot(table: Mapping[str, Any]) -> dict[str, str]:
    """By key of the table as it stands in the file: why vLLM cannot do it, and the way out."""
    found = {key: message for key, message in _KEYS.items() if key in table}
    model = table.get("model")
    if isinstance(model, str) and model.endswith(".gguf"):
        found["model"] = 'vLLM serves no GGUF files; use kind = "llama_cpp", or a Hugging Face name or folder'
    checks = (
        ("speculation", _speculation_problem),
        ("quantization", _quantization_problem),
        ("kv_cache_type", _kv_cache_problem),
    )
    for key, check in checks:
        value = table.get(key)
        if isinstance(value, str) and (message := check(value)):
            found[key] = message
    extra = table.get("extra")
    if isinstance(extra, list) and (message := _extra_problem(extra, table)):
        found["extra"] = message
    return found


def _speculation_problem(value: str) -> str:
    if message := _SPECULATION.get(value):
        return message
    if value in ("eagle", "eagle3", "medusa", "mtp", "suffix", "mlp_speculator"):
        return f'has no keys here; leave it out and write extra = ["--speculative-config", \'{{"method": "{value}"}}\']'
    return ""


def _quantization_problem(value: str) -> str:
    if value in ("int8", "int4", "w8a8", "w4a16"):
        return f'vLLM reads {value} weights from a checkpoint made for it; use one and write "compressed-tensors"'
    if _GGUF_TYPE.fullmatch(value):
        return f'"{value}" is a type of GGUF files; use kind = "llama_cpp", or "awq", "gptq" or "fp8" here'
    if value == "bitsandbytes":
        return 'vLLM 0.32 cannot do this any more; use a checkpoint in "awq", "gptq", "fp8" or "compressed-tensors"'
    return ""


def _kv_cache_problem(value: str) -> str:
    if value == "int8" or _GGUF_TYPE.fullmatch(value):
        return f'vLLM has no KV cache of "{value}"; use "fp8" (a byte a value), or "auto"'
    return ""


def _extra_problem(extra: list[Any], table: Mapping[str, Any]) -> str:
    """The first flag that the table writes itself."""
    for part in extra:
        flag = str(part).partition("=")[0].replace("_", "-")
        if flag == "--host":
            return "--host is always this machine's own 127.0.0.1; take it out"
        key = _ALWAYS.get(flag) or (_WHERE_SET.get(flag) if _WHERE_SET.get(flag) in table else None)
        if key:
            return f"{flag} is what `{key}` sets; take it out"
    return ""
