"""The engines that Trimtab starts: what a table becomes on vLLM's command line, and what each kind refuses by name."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from trimtab import assembly
from trimtab import config as configuration
from trimtab.engines import llama_cpp, openai_http, vllm
from trimtab.engines.vllm.settings import Config
from trimtab.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
STARTED = ["vllm", "serve", "acme/m", "--served-model-name", "acme/m", "--host", "127.0.0.1", "--port", "8000"]
PLAIN = [*STARTED, "--max-num-seqs", "256", "--enable-prefix-caching", "--enable-prompt-tokens-details"]


def test_a_plain_table_leaves_to_vllm_what_vllm_knows_best():
    assert vllm.command_line(Config("acme/m"), 8000) == PLAIN


def test_every_key_has_its_flag():
    config = Config(
        model="/models/llama-8b",
        context_tokens=8192,
        parallel=64,
        batch_tokens=2048,
        prefix_cache=False,
        quantization="fp8",
        kv_cache_type="fp8",
        speculation="draft",
        draft_tokens=4,
        draft_model="acme/small",
        gpu_memory=0.85,
        tensor_parallel=2,
        command=("/opt/vllm/bin/vllm", "serve"),
        extra=("--enforce-eager", "--seed=1"),
    )
    assert vllm.command_line(config, 8001) == [
        "/opt/vllm/bin/vllm", "serve", "/models/llama-8b", "--served-model-name", "llama-8b",
        "--host", "127.0.0.1", "--port", "8001",
        "--max-num-seqs", "64", "--max-num-batched-tokens", "2048", "--max-model-len", "8192",
        "--quantization", "fp8", "--kv-cache-dtype", "fp8",
        "--speculative-config", '{"method":"draft_model","model":"acme/small","num_speculative_tokens":4}',
        "--gpu-memory-utilization", "0.85", "--tensor-parallel-size", "2", "--no-enable-prefix-caching",
        "--enforce-eager", "--seed=1",
    ]  # fmt: skip


def test_ngrams_are_looked_up_by_one_length():
    line = vllm.command_line(Config("acme/m", speculation="ngram", ngram_tokens=4, draft_tokens=8), 8000)
    chosen = msgspec.json.decode(line[line.index("--speculative-config") + 1])
    assert chosen == {
        "method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_min": 4, "prompt_lookup_max": 4,
    }  # fmt: skip


def test_without_serve_the_model_is_a_flag():
    config = Config("acme/m", command=("python", "-m", "vllm.entrypoints.openai.api_server"))
    assert vllm.command_line(config, 8000) == [*config.command, "--model", *PLAIN[2:]]


VLLM = '[engines.e]\nkind = "vllm"\nmodel = "acme/m"\n'
LLAMA = '[engines.e]\nkind = "llama_cpp"\n'
URL = '[engines.e]\nkind = "openai_http"\nbase_url = "http://127.0.0.1:8000/v1"\n'


@pytest.fixture
def mistakes(tmp_path):
    def read(text: str) -> list[str]:
        file = tmp_path / "t.toml"
        file.write_text(text)
        return [str(problem).removeprefix(f"{file}:") for problem in configuration.check(file, {})[1]]

    return read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (VLLM + 'speculation = "ngram_map"', '4: engines.e.speculation: vLLM does not do this; use "ngram" or "draft"'),
        (VLLM + 'speculation = "eagle"', """extra = ["--speculative-config", '{"method": "eagle"""),
        (VLLM + 'speculation = "draft"', "engines.e.draft_model: is missing; speculation by a draft model needs"),
        (VLLM + 'quantization = "int8"', 'from a checkpoint made for it; use one and write "compressed'),
        (VLLM + 'quantization = "Q4_K_M"', '"Q4_K_M" is a type of GGUF files; use kind = "llama_cpp", or "awq"'),
        (VLLM + 'quantization = "bitsandbytes"', "vLLM 0.32 cannot do this any more"),
        (VLLM + 'quantization = "fp9"', '4: engines.e.quantization: must be one of "auto", "awq", "gptq", "fp8"'),
        (VLLM + "map_weights = true", "4: engines.e.map_weights: vLLM always reads weights into memory of its own"),
        (VLLM + "flash_attention = false", "4: engines.e.flash_attention: vLLM chooses how attention is computed"),
        (VLLM + 'kv_cache_type = "q8_0"', '4: engines.e.kv_cache_type: vLLM has no KV cache of "q8_0"; use "fp8"'),
        (VLLM + "threads = 4", "4: engines.e.threads: vLLM has no such setting; its CPU build reads"),
        (VLLM + 'base_url = "http://a/v1"', 'for one that runs already: kind = "openai_http"'),
        (VLLM + 'extra = ["--max-num-seqs", "4"]', "4: engines.e.extra: --max-num-seqs is what `parallel` sets"),
        (VLLM + 'extra = ["--max_num_seqs=4"]', "4: engines.e.extra: --max-num-seqs is what `parallel` sets"),
        (VLLM + 'extra = ["--host=0.0.0.0"]', "--host is always this machine's own"),
        (VLLM + 'gpu_memory = 0.5\nextra = ["--gpu-memory-utilization=1"]', "is what `gpu_memory` sets; take it out"),
        (VLLM + "gpu_memory = 1.5", "4: engines.e.gpu_memory: must be a share of the memory, more than 0"),
        ('[engines.e]\nkind = "vllm"\nmodel = "m.gguf"', 'vLLM serves no GGUF files; use kind = "llama_cpp"'),
        (LLAMA + 'quantization = "awq"', 'llama.cpp cannot read "awq" weights; write a GGUF file'),
        (LLAMA + 'quantization = "Q8_0"', "3: engines.e.quantization: llama.cpp serves what its file holds"),
        (LLAMA + "gpu_memory = 0.9", "3: engines.e.gpu_memory: the embedded llama.cpp computes on the CPU"),
        (LLAMA + 'kv_cache_type = "fp8"', 'llama.cpp has no KV cache of "fp8"; use "q8_0"'),
        (LLAMA + 'kv_cache_type = "q8_0"\nflash_attention = false', 'llama.cpp needs it for a KV cache of "q8_0"'),
        (LLAMA + "port = 8000", "3: engines.e.port: the embedded engine is a part of Trimtab; take it out"),
        (URL + "parallel = 4", "--max-num-seqs of vLLM, --max-running-requests of SGLang, --max_batch"),
        (URL + 'command = ["vllm"]', "4: engines.e.command: an engine behind a URL is not started by Trimtab"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_refused_by_name(mistakes, text, said):
    (found,) = mistakes(text)
    assert said in found


@pytest.mark.parametrize(
    "text",
    [
        VLLM + 'speculation = "ngram"\nquantization = "gptq"\nkv_cache_type = "fp8_e5m2"',
        VLLM + 'extra = ["--quantization", "modelopt", "--kv-cache-dtype=nvfp4"]',
        LLAMA + 'kv_cache_type = "q4_0"\nbatch_tokens = 256',
        LLAMA + 'kv_cache_type = "f16"\nflash_attention = false',
    ],
)
def test_what_an_engine_can_do_is_not(mistakes, text):
    assert mistakes(text) == []


def test_a_folder_beside_the_file_is_found_from_anywhere(tmp_path):
    (tmp_path / "t.toml").write_text('[engines.e]\nkind = "vllm"\nmodel = "./llama"\n')
    config = configuration.load(tmp_path / "t.toml", {})
    assert config.engines["e"].settings.model == str(tmp_path / "llama")
    assert list(config.models) == ["llama"]
    assert configuration.own_processes(config) == ["e"]


def test_what_changes_the_answers_is_in_the_keys_of_the_caches(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def identity(more: str = "") -> str:
        (tmp_path / "t.toml").write_text(f'[engines.e]\nkind = "vllm"\nmodel = "./llama"\n{more}\n')
        return assembly._identity(configuration.load(tmp_path / "t.toml", {}), "e")

    before = identity()
    assert identity("parallel = 4\ngpu_memory = 0.5") == before
    assert identity('quantization = "fp8"') != before
    assert identity('kv_cache_type = "fp8"') != before
    assert identity('extra = ["--enable-lora"]') != before
    (folder / "model.safetensors").write_text("other weights")
    assert identity() != before


@pytest.mark.parametrize("engine", [vllm, llama_cpp])
def test_a_port_that_is_taken_is_not_given(engine):
    held, port = engine.reserve_port()
    if held is not None:
        held.close()
    again, same = engine.reserve_port(port)
    assert same == port
    if again is not None:
        again.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(OSError):
            engine.reserve_port(port)


def test_a_command_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ConfigError, match=r"no-such-vllm cannot be run .* pip install vllm .*openai_http"):
        vllm.run(Config("acme/m", command=("/no-such-vllm",)), vllm.reserve_port()[1], lambda: None)


def test_the_page_maps_every_key():
    page = (DOCS / "engines.md").read_text()
    for kind in (vllm, llama_cpp):
        for key in set(kind.Config.__struct_fields__) - {"provider"}:
            assert f"`{key}`" in page, key
    for key, flags in openai_http._SET_THERE.items():
        assert f"`{key}`" in page
        for flag in flags:
            assert flag in page, flag
