"""What the embedded engine cannot do: refused by name, with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_PART: Final = (
    'the embedded engine is a part of Trimtab; take it out, or use kind = "openai_http" for a server of yours'
)
_GPU: Final = 'the embedded llama.cpp computes on the CPU; take it out, or use kind = "vllm"'

_KEYS: Final = {
    "gpu_memory": _GPU,
    "tensor_parallel": _GPU,
    "quantization": "llama.cpp serves what its file holds; write one by `trimtab engine quantize`, name it in `model`",
    "command": _PART,
    "port": _PART,
    "extra": _PART,
    "base_url": _PART,
    "api_key_env": _PART,
    "ca_file": _PART,
    "accept_any_model": "it serves the one model that it was started with; take it out",
}
_OF_SAFETENSORS: Final = ("awq", "gptq", "fp8", "compressed-tensors", "bitsandbytes")


def cannot(table: Mapping[str, Any]) -> dict[str, str]:
    """By key of the table as it stands in the file: why llama.cpp cannot do it, and the way out."""
    found = {key: message for key, message in _KEYS.items() if key in table}
    asked = table.get("quantization")
    if asked in _OF_SAFETENSORS:
        found["quantization"] = (
            f'llama.cpp cannot read "{asked}" weights; write a GGUF file by `trimtab engine quantize MODEL --to Q8_0` '
            'or another type and name it in `model`, or use kind = "vllm"'
        )
    kv_cache = table.get("kv_cache_type")
    if isinstance(kv_cache, str) and kv_cache.startswith(("fp8", "bf")):
        found["kv_cache_type"] = f'llama.cpp has no KV cache of "{kv_cache}"; use "q8_0", a byte a value'
    elif table.get("flash_attention") is False and kv_cache in ("q8_0", "q4_0"):
        found["flash_attention"] = f'llama.cpp needs it for a KV cache of "{kv_cache}"; use it, or "f16" there'
    return found
