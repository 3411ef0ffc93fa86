"""Any upstream that speaks the OpenAI HTTP API: hosted, vLLM, SGLang, llama.cpp's server, another gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from trimtab.transport import HttpEngine, HttpReply, Origin, header_lines
from trimtab.types import Dialect, Timeouts

# What sets a lever in vLLM, SGLang and TensorRT-LLM (trtllm-serve, or its YAML), of which others start the latter two.
_SET_THERE: Final = {
    "parallel": ("--max-num-seqs", "--max-running-requests", "--max_batch_size"),
    "batch_tokens": ("--max-num-batched-tokens", "--chunked-prefill-size", "--max_num_tokens"),
    "context_tokens": ("--max-model-len", "--context-length", "--max_seq_len"),
    "prefix_cache": ("--enable-prefix-caching", "--disable-radix-cache", "kv_cache_config.enable_block_reuse"),
    "quantization": ("--quantization", "--quantization", "a quantized checkpoint"),
    "kv_cache_type": ("--kv-cache-dtype", "--kv-cache-dtype", "kv_cache_config.dtype"),
    "flash_attention": ("--attention-backend", "--attention-backend", "attn_backend"),
    "speculation": ("--speculative-config", "--speculative-algorithm", "speculative_config.decoding_type"),
    "ngram_tokens": ("--speculative-config", "--speculative-algorithm", "speculative_config"),
    "draft_tokens": ("--speculative-config", "--speculative-num-draft-tokens", "speculative_config.max_draft_len"),
    "draft_model": ("--speculative-config", "--speculative-draft-model-path", "speculative_config"),
    "gpu_memory": ("--gpu-memory-utilization", "--mem-fraction-static", "--kv_cache_free_gpu_memory_fraction"),
    "tensor_parallel": ("--tensor-parallel-size", "--tp-size", "--tp_size"),
}
_STARTED_HERE: Final = ("model", "threads", "command", "port", "extra")


def cannot(table: Mapping[str, Any]) -> dict[str, str]:
    """By key of the table as it stands in the file: why an engine behind a URL cannot do it, and the way out."""
    found = {
        key: f"an engine behind a URL is set where it is started: {vllm} of vLLM, {sglang} of SGLang, {trt} of "
        'TensorRT-LLM; take it out, or use kind = "vllm" or "llama_cpp", which Trimtab starts'
        for key, (vllm, sglang, trt) in _SET_THERE.items()
        if key in table
    }
    for key in _STARTED_HERE:
        if key in table:
            way_out = 'kind = "vllm" and "llama_cpp" have it, which Trimtab starts'
            found[key] = f"an engine behind a URL is not started by Trimtab; take it out: {way_out}"
    return found


class Config(msgspec.Struct, frozen=True):
    """One `[engines.NAME]` table of kind `openai_http`."""

    base_url: Annotated[str, msgspec.Meta(min_length=1)]  # ends in /v1
    api_key_env: str = ""  # variable that holds the secret; empty: the client's own key passes through
    provider: str = ""  # genai-prices provider id; empty: guessed from the model's name
    accept_any_model: bool | None = None  # None: yes, unless [models] lists models of this engine
    ca_file: str = ""  # further trusted CA certificates, PEM


class OpenAIEngine(HttpEngine):
    """Implements `ports.Engine`."""

    kind = "openai_http"
    dialect = Dialect.OPENAI

    async def open(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Timeouts,
        client_key: str,
    ) -> HttpReply:
        """Send to `base_url` + `path` without its /v1. See `ports.Engine.open`."""
        head = header_lines(headers)
        if key := self._secret or client_key:
            head += b"authorization: Bearer %b\r\n" % key.encode()
        where = self._origin.base_path + path.removeprefix("/v1")
        return await self._origin.request(method, where, head, body, timeouts.connect_s)


def build(name: str, config: Config, secret: str) -> OpenAIEngine:
    """An engine inside the running event loop."""
    return OpenAIEngine(name, config.provider, secret, Origin(config.base_url, ca_file=config.ca_file))
