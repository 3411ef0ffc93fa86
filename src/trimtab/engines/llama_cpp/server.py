"""Serve a GGUF file with llama.cpp's HTTP server, in this process, until it is ended."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from trimtab.engines.llama_cpp import huge_pages
from trimtab.engines.llama_cpp.settings import HOST, Config, model_name
from trimtab.errors import ConfigError

_ERRORS_ONLY: Final = 1
_GGML_TYPES: Final = {"f16": 1, "q8_0": 8, "q4_0": 2}


def reserve_port(wanted: int = 0) -> tuple[socket.socket, int]:
    """Take a free loopback port, `wanted` or any, for an engine that is started, and started again, later.

    Raises OSError if `wanted` is taken. Keep the socket as long as the port is wanted: bound but never
    listening, it takes no connection and keeps every other program from the port, while `serve` may bind beside it.
    """
    if wanted:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:  # or it would share another engine's port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, wanted))
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, wanted))
    return held, int(held.getsockname()[1])


def serve(config: Config, weights_path: Path, port: int, ready: Callable[[], None]) -> None:
    """Load the weights, listen on 127.0.0.1:`port`, call `ready` once requests are answered, and never return.

    Meant for a process of its own: SIGTERM must be at its default, and ends it at once, even while it loads (there is
    nothing to save). Serves `/v1/*`, `/health`, `/slots` and `/metrics`; native errors go to stderr.

    Raises ConfigError if the file is no GGUF that llama.cpp can load, if memory lacks, or if the port is taken.
    """
    import xllamacpp

    if not weights_path.is_file():
        raise ConfigError([f"engines: no such file {weights_path}: set `model` to a .gguf file or leave it out"])
    try:
        # It lives as long as this frame.
        server = xllamacpp.Server(_params(xllamacpp, config, weights_path, port))
    except RuntimeError as error:
        raise ConfigError(
            [
                f"engines: llama.cpp cannot serve {weights_path} on port {port} (its reason is above): check the file, "
                f"or lower `context_tokens` (now {config.context_tokens}) or `parallel` (now {config.parallel})"
            ]
        ) from error
    if not config.map_weights:
        huge_pages.take()
    ready()
    while server:
        signal.pause()


def _speculate(xllamacpp: Any, speculative: Any, config: Config) -> None:
    """Set how the next tokens are guessed: by looking up the last few in the text so far, or by a smaller model."""
    if config.speculation == "none":
        return
    kinds = xllamacpp.common_speculative_type
    n, m = config.ngram_tokens or (16 if config.speculation == "ngram_mod" else 3), config.draft_tokens
    if config.speculation == "draft":
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = config.draft_model
        speculative.draft.n_max = m
    elif config.speculation == "ngram_mod":
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_MOD]
        speculative.ngram_mod.n_match, speculative.ngram_mod.n_min, speculative.ngram_mod.n_max = n, 1, m
    else:
        simple = config.speculation == "ngram"
        kind = kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE if simple else kinds.COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K
        speculative.types = [kind]
        chosen = speculative.ngram_simple if simple else speculative.ngram_map_k
        chosen.size_n, chosen.size_m = n, m


def _params(xllamacpp: Any, config: Config, weights_path: Path, port: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(weights_path)
    params.model_alias = {model_name(config)}
    modes = xllamacpp.llama_load_mode
    params.load_mode = modes.LLAMA_LOAD_MODE_MMAP if config.map_weights else modes.LLAMA_LOAD_MODE_NONE
    params.hostnames, params.port, params.reuse_port = [HOST], port, True
    # Slots share no pool of memory (`kv_unified`): when one overflows, every request in flight ends with a 500.
    params.n_ctx, params.n_parallel, params.kv_unified = config.context_tokens * config.parallel, config.parallel, False
    params.n_batch, params.n_ubatch = config.batch_tokens, min(config.batch_tokens, params.n_ubatch)
    if not config.flash_attention:  # else llama.cpp uses it wherever it can
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = _GGML_TYPES[config.kv_cache_type]
    # A web page in a browser on this machine may not read from it.
    params.cors_origins, params.cors_credentials = f"http://{HOST}", False
    # Each stream, running or in line, holds a thread; without spare ones /health would wait too.
    params.n_threads_http = max(64, 16 * config.parallel)
    # Moving idle slots to a cache in memory lost half of the reusable prefixes.
    params.cache_ram_mib, params.cache_idle_slots = 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads
    params.cache_prompt = config.prefix_cache
    # A prompt goes to the slot that holds most of it, if that is half. By default a tenth is enough: then all that have
    # a system prompt in common go to one slot, each writes over what the one before left, and the others stay empty.
    params.slot_prompt_similarity = 0.5
    _speculate(xllamacpp, params.speculative, config)
    params.endpoint_metrics, params.endpoint_slots, params.ui = True, True, False
    params.verbosity = _ERRORS_ONLY
    return params
